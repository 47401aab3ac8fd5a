//! The lease of a host's heartbeat where it holds records: while it is renewed the host counts as alive, and so may go on.

use crate::clock::Timestamp;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Until when the heartbeat holds, on this host's own time line, and how many records need it.
#[derive(Debug, Default)]
pub struct HeartbeatLease {
    until: AtomicU64,
    records: AtomicUsize,
}

impl HeartbeatLease {
    /// The store has renewed the lease. It holds until then at least.
    pub fn renewed(&self, until: Timestamp) {
        self.until.fetch_max(until.0, Relaxed);
    }

    /// Whether a record needs it: a lease that none needs may end.
    pub fn is_needed(&self) -> bool {
        self.records.load(Relaxed) > 0
    }

    fn until(&self) -> Timestamp {
        Timestamp(self.until.load(Relaxed))
    }
}

/// A record's need of its host's heartbeat. It ends with this.
#[derive(Debug)]
#[must_use = "the heartbeat is not renewed for a record whose need was dropped"]
pub struct HostLease(Arc<HeartbeatLease>);

impl HostLease {
    /// Has the heartbeat renewed until this is dropped.
    pub fn new(heartbeat: &Arc<HeartbeatLease>) -> Self {
        heartbeat.records.fetch_add(1, Relaxed);
        Self(Arc::clone(heartbeat))
    }

    /// Until when the store counts this host as alive at least, on this host's own time line.
    pub fn until(&self) -> Timestamp {
        self.0.until()
    }
}

impl Drop for HostLease {
    fn drop(&mut self) {
        self.0.records.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_needed_as_long_as_a_record_is_held() {
        let heartbeat = Arc::new(HeartbeatLease::default());
        assert!(!heartbeat.is_needed());
        let (one, other) = (HostLease::new(&heartbeat), HostLease::new(&heartbeat));
        drop(one);
        assert!(heartbeat.is_needed());
        heartbeat.renewed(Timestamp(20));
        heartbeat.renewed(Timestamp(10));
        assert_eq!(other.until(), Timestamp(20), "answers may overtake each other");
        drop(other);
        assert!(!heartbeat.is_needed());
    }
}
