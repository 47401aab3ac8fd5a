//! The heartbeat lease of a host that holds records. While the lease is renewed, the host counts as alive and keeps its records.

use super::lease::{Generation, LeaseTerm, RenewedLease};
use crate::clock::Timestamp;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The lease of a host's heartbeat, with the number of records that need it.
#[derive(Debug, Default)]
pub struct HeartbeatLease {
    lease: Arc<RenewedLease>,
    records: AtomicUsize,
}

impl HeartbeatLease {
    /// [`RenewedLease::renewed`].
    pub fn renewed(&self, until: Timestamp, now: impl FnOnce() -> Timestamp) -> Option<Generation> {
        self.lease.renewed(until, now)
    }

    /// Whether a record needs the heartbeat. Without one, the lease may expire.
    pub fn is_needed(&self) -> bool {
        self.records.load(Relaxed) > 0
    }
}

/// Keeps the host's heartbeat renewed for one record until it is dropped.
#[derive(Debug)]
#[must_use = "the heartbeat is not renewed for a record whose need was dropped"]
pub struct HostLease {
    heartbeat: Arc<HeartbeatLease>,
    term: LeaseTerm,
}

impl HostLease {
    /// Counts a record that needs the heartbeat. `generation`: the term in which the record began; none: an expired term.
    pub fn new(heartbeat: &Arc<HeartbeatLease>, generation: Option<Generation>) -> Self {
        heartbeat.records.fetch_add(1, Relaxed);
        let term = LeaseTerm::of(Arc::clone(&heartbeat.lease), generation);
        Self { heartbeat: Arc::clone(heartbeat), term }
    }

    /// The term under which the record is held.
    pub fn term(&self) -> LeaseTerm {
        self.term.clone()
    }
}

impl Drop for HostLease {
    fn drop(&mut self) {
        self.heartbeat.records.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_needed_as_long_as_a_record_is_held() {
        let heartbeat = Arc::new(HeartbeatLease::default());
        assert!(!heartbeat.is_needed());
        let renewed = || heartbeat.renewed(Timestamp(5), || Timestamp(1));
        let [one, other] = [(); 2].map(|()| HostLease::new(&heartbeat, renewed()));
        drop(one);
        assert!(heartbeat.is_needed());
        assert_eq!(other.term().until(), Timestamp(5));
        drop(other);
        assert!(!heartbeat.is_needed());
    }
}
