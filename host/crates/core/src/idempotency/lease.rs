//! A right that ends by itself unless it is renewed.
//!
//! A lease that was over stays over for what was held under it, however often it is renewed afterwards: in between another host
//! may have taken that over.

use crate::clock::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;

/// Until when a store grants a right at least, on this host's own time line.
#[derive(Debug, Default)]
pub struct RenewedLease(Mutex<Term>);

/// A time without a gap for which the lease was renewed.
#[derive(Debug, Default)]
struct Term {
    generation: Generation,
    until: Timestamp,
}

/// Which of a lease's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation(u64);

impl RenewedLease {
    /// The store has renewed the lease. It holds until then at least. `now` is when this host has heard of it.
    ///
    /// Returns the term to which that belongs. None: it was over before this host heard of it, and tells nothing any more. A
    /// renewal that is heard of after the term before was over begins another one, even if it was asked for earlier: the store may
    /// have carried it out too late.
    pub fn renewed(&self, until: Timestamp, now: impl FnOnce() -> Timestamp) -> Option<Generation> {
        let mut term = self.0.lock();
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
}

/// A term of a lease, as the owner of what is held under it sees it.
#[derive(Debug, Clone)]
pub struct LeaseTerm {
    lease: Arc<RenewedLease>,
    generation: Option<Generation>,
}

impl LeaseTerm {
    /// A term of `lease`; with no generation one that is over.
    pub fn of(lease: Arc<RenewedLease>, generation: Option<Generation>) -> Self {
        Self { lease, generation }
    }

    /// The first term of a lease of its own. It ends at `until` unless that lease is renewed before.
    pub fn until_renewed(until: Timestamp) -> Self {
        let term = Term { until, ..Term::default() };
        let generation = Some(term.generation);
        Self { lease: Arc::new(RenewedLease(Mutex::new(term))), generation }
    }

    /// The lease that it is a term of.
    pub fn lease(&self) -> &Arc<RenewedLease> {
        &self.lease
    }

    /// Until when the right lasts at least, on this host's own time line; long ago for a term that was over.
    pub fn until(&self) -> Timestamp {
        let term = self.lease.0.lock();
        if self.generation == Some(term.generation) { term.until } else { Timestamp::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewed(lease: &Arc<RenewedLease>, until: u64, now: u64) -> LeaseTerm {
        let generation = lease.renewed(Timestamp(until), || Timestamp(now));
        LeaseTerm::of(Arc::clone(lease), generation)
    }

    #[test]
    fn answers_may_overtake_each_other() {
        let lease = Arc::new(RenewedLease::default());
        let term = renewed(&lease, 20, 3);
        renewed(&lease, 10, 4);
        assert_eq!(term.until(), Timestamp(20));
    }

    #[test]
    fn a_lease_that_was_over_does_not_come_back() {
        let first = LeaseTerm::until_renewed(Timestamp(15));
        let lease = Arc::clone(first.lease());
        renewed(&lease, 19, 5);
        assert_eq!(first.until(), Timestamp(19), "renewed in time");
        let second = renewed(&lease, 34, 19);
        assert_eq!(first.until(), Timestamp(0), "renewed after its end");
        assert_eq!(second.until(), Timestamp(34));
        renewed(&lease, 40, 25);
        assert_eq!((first.until(), second.until()), (Timestamp(0), Timestamp(40)));
    }

    /// A process that is stopped between the store's reply and its own next step reads the reply when it is worth nothing.
    #[test]
    fn a_renewal_that_is_heard_of_too_late_renews_nothing() {
        let lease = Arc::new(RenewedLease::default());
        let living = renewed(&lease, 115, 100);
        let late = renewed(&lease, 15, 101);
        assert_eq!((living.until(), late.until()), (Timestamp(115), Timestamp(0)));
    }
}
