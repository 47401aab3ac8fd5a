//! A lease: a right that expires unless it is renewed.
//!
//! An expired lease never revives for a record held under it, even if it is renewed later: another host may have taken the record
//! over in between.

use crate::clock::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;

/// A lease with the earliest time at which the store may end it, on this host's own clock.
#[derive(Debug, Default)]
pub struct RenewedLease(Mutex<Term>);

/// A period in which the lease was renewed without a gap.
#[derive(Debug, Default)]
struct Term {
    generation: Generation,
    until: Timestamp,
}

/// The number of a lease's term; each gap begins a new one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation(u64);

impl RenewedLease {
    /// Notes that the store has renewed the lease at least until `until`. `now`: the time at which this host got the reply.
    ///
    /// Returns the term of the renewal. None: the renewal had expired when its reply arrived. A reply that arrives after the previous
    /// term has ended begins a new term, even if this host asked earlier: the store may have executed the renewal too late.
    pub fn renewed(&self, until: Timestamp, now: impl FnOnce() -> Timestamp) -> Option<Generation> {
        let mut term = self.0.lock();
        // Read the clock under the lock: a thread that is suspended between the two would otherwise join a later term.
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

/// One term of a lease, for the owner of a record that is held under it.
#[derive(Debug, Clone)]
pub struct LeaseTerm {
    lease: Arc<RenewedLease>,
    generation: Option<Generation>,
}

impl LeaseTerm {
    /// A term of `lease`; without a generation, an expired one.
    pub fn of(lease: Arc<RenewedLease>, generation: Option<Generation>) -> Self {
        Self { lease, generation }
    }

    /// The first term of a new lease. It ends at `until` unless the lease is renewed before.
    pub fn until_renewed(until: Timestamp) -> Self {
        let term = Term { until, ..Term::default() };
        let generation = Some(term.generation);
        Self { lease: Arc::new(RenewedLease(Mutex::new(term))), generation }
    }

    /// The lease of this term.
    pub fn lease(&self) -> &Arc<RenewedLease> {
        &self.lease
    }

    /// The earliest end of the term, on this host's own clock; time 0 for an expired term.
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
