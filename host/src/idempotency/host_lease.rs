//! The lease of a host's heartbeat where it holds records: while it is renewed the host counts as alive, and so may go on.
//!
//! A lease that was over stays over for the records that were held under it, however often the heartbeat is renewed afterwards:
//! in between another host may have taken them over.

use crate::clock::Timestamp;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Until when the heartbeat holds, on this host's own time line, and how many records need it.
#[derive(Debug, Default)]
pub struct HeartbeatLease {
    term: Mutex<Term>,
    records: AtomicUsize,
}

/// A time without a gap for which the heartbeat was renewed.
#[derive(Debug, Default)]
struct Term {
    generation: Generation,
    until: Timestamp,
}

/// Which of the heartbeat's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation(u64);

impl HeartbeatLease {
    /// The store has renewed the lease. It holds until then at least. `now` is when this host has heard of it.
    ///
    /// Returns the term to which that belongs. None: it was over before this host heard of it, and tells nothing any more. A
    /// renewal that is heard of after the term before was over begins another one, even if it was asked for earlier: the store may
    /// have carried it out too late.
    pub fn renewed(&self, until: Timestamp, now: impl FnOnce() -> Timestamp) -> Option<Generation> {
        let mut term = self.term.lock();
        // Read under the lock: a thread that was stopped before it would join a later term.
        let now = now();
        if until <= now {
            return None;
        }
        if term.until <= now {
            term.generation.0 += 1;
        }
        term.until = term.until.max(until);
        Some(term.generation)
    }

    /// Whether a record needs it: a lease that none needs may end.
    pub fn is_needed(&self) -> bool {
        self.records.load(Relaxed) > 0
    }
}

/// A term of a heartbeat, as a record's owner sees it.
#[derive(Debug, Clone)]
pub struct HostTerm {
    heartbeat: Arc<HeartbeatLease>,
    generation: Option<Generation>,
}

impl HostTerm {
    /// Until when the store counts this host as alive at least, on this host's own time line; long ago for a term that was over.
    pub fn until(&self) -> Timestamp {
        let term = self.heartbeat.term.lock();
        if self.generation == Some(term.generation) { term.until } else { Timestamp::default() }
    }
}

/// A record's need of its host's heartbeat. It ends with this.
#[derive(Debug)]
#[must_use = "the heartbeat is not renewed for a record whose need was dropped"]
pub struct HostLease(HostTerm);

impl HostLease {
    /// Has the heartbeat renewed until this is dropped. `generation`: the term in which the record was begun; none: one that is over.
    pub fn new(heartbeat: &Arc<HeartbeatLease>, generation: Option<Generation>) -> Self {
        heartbeat.records.fetch_add(1, Relaxed);
        Self(HostTerm { heartbeat: Arc::clone(heartbeat), generation })
    }

    /// The term under which the record is held.
    pub fn term(&self) -> HostTerm {
        self.0.clone()
    }
}

impl Drop for HostLease {
    fn drop(&mut self) {
        self.0.heartbeat.records.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewed(heartbeat: &HeartbeatLease, until: u64, now: u64) -> Option<Generation> {
        heartbeat.renewed(Timestamp(until), || Timestamp(now))
    }

    #[test]
    fn a_heartbeat_is_needed_as_long_as_a_record_is_held() {
        let heartbeat = Arc::new(HeartbeatLease::default());
        assert!(!heartbeat.is_needed());
        let [one, other] = [1, 2].map(|now| HostLease::new(&heartbeat, renewed(&heartbeat, 5, now)));
        drop(one);
        assert!(heartbeat.is_needed());
        renewed(&heartbeat, 20, 3);
        renewed(&heartbeat, 10, 4);
        assert_eq!(other.term().until(), Timestamp(20), "answers may overtake each other");
        drop(other);
        assert!(!heartbeat.is_needed());
    }

    #[test]
    fn a_lease_that_was_over_does_not_come_back() {
        let heartbeat = Arc::new(HeartbeatLease::default());
        let first = HostLease::new(&heartbeat, renewed(&heartbeat, 15, 1)).term();
        renewed(&heartbeat, 19, 5);
        assert_eq!(first.until(), Timestamp(19), "renewed in time");
        let second = HostLease::new(&heartbeat, renewed(&heartbeat, 34, 19)).term();
        assert_eq!(first.until(), Timestamp(0), "renewed after its end");
        assert_eq!(second.until(), Timestamp(34));
        renewed(&heartbeat, 40, 25);
        assert_eq!((first.until(), second.until()), (Timestamp(0), Timestamp(40)));
    }

    /// A process that is stopped between the store's reply and its own next step reads the reply when it is worth nothing.
    #[test]
    fn a_renewal_that_is_heard_of_too_late_renews_nothing() {
        let heartbeat = Arc::new(HeartbeatLease::default());
        let living = HostLease::new(&heartbeat, renewed(&heartbeat, 115, 100)).term();
        let late = HostLease::new(&heartbeat, renewed(&heartbeat, 15, 101)).term();
        assert_eq!((living.until(), late.until()), (Timestamp(115), Timestamp(0)));
    }
}
