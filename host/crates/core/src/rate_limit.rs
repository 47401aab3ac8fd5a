//! Rate limits: GCRA arithmetic and reservations.
//!
//! The crate `governor` cannot reserve a later moment and take it back, and the same arithmetic runs in Redis as a Lua script.

pub mod adaptive;

use crate::clock::{Timestamp, micros};
use std::{num::NonZeroU32, time::Duration};

/// A rate limit: `requests` each `period` over the long run, `burst` at once. No field can be zero but the period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests a period.
    pub requests: NonZeroU32,
    /// The period, at least a microsecond.
    pub period: Duration,
    /// Requests at one instant.
    pub burst: NonZeroU32,
}

impl Quota {
    /// The time between two requests at the limit's rate, rounded up to a microsecond, the clock's resolution, so that the rate is never
    /// exceeded. So the rate is at most a million requests a second.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(micros(self.period).div_ceil(u64::from(self.requests.get())))
    }

    /// Requests a minute, over the long run.
    pub fn per_minute(&self) -> f64 {
        60.0 * f64::from(self.requests.get()) / self.period.as_secs_f64()
    }

    /// The number of requests that a theoretical arrival time so far ahead of now accounts for.
    pub fn requests_ahead(&self, ahead: Duration) -> u32 {
        u32::try_from(micros(ahead).div_ceil(micros(self.interval()).max(1))).unwrap_or(u32::MAX)
    }
}

/// The generic cell rate algorithm's state: the theoretical arrival time of the next request (ITU-T I.371).
///
/// In any window `w` at most `burst + w * requests / period` requests are admitted at their reserved moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gcra {
    tat: Timestamp,
}

/// One request's reservation: the states after and before it, for a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    made: Gcra,
    before: Gcra,
}

impl Gcra {
    /// The first moment from `from` on at which a request conforms, if no other request is admitted before.
    pub fn earliest(&self, quota: &Quota, from: Timestamp) -> Timestamp {
        let tolerance = quota.interval().saturating_mul(quota.burst.get() - 1);
        self.tat.before(tolerance).max(from)
    }

    /// Counts a request at `due`, which must not be earlier than [`Gcra::earliest`]. A request with several limits has one `due` for all of
    /// them, so that each limit counts the request at the moment of its send.
    pub fn take(&mut self, quota: &Quota, due: Timestamp) -> Reservation {
        let before = *self;
        self.tat = self.tat.max(due).after(quota.interval());
        Reservation { made: *self, before }
    }

    /// The number of requests that count at `now`: at most `burst`, or more if some are reserved for later.
    pub fn taken(&self, quota: &Quota, now: Timestamp) -> u32 {
        quota.requests_ahead(self.tat.since(now))
    }

    /// Delays all reservations by this much, because of a pause.
    pub fn delay(&mut self, by: Duration) {
        self.tat = self.tat.after(by);
    }

    /// Drops all reservations for later than `now`: a pause was lifted, and the waiting requests reserve anew. The burst counts as used up,
    /// because requests sent before may have used it: requests go on at the limit's rate.
    pub fn void_reserved(&mut self, quota: &Quota, now: Timestamp) {
        self.tat = self.tat.min(now.after(quota.interval().saturating_mul(quota.burst.get())));
    }

    /// Returns an unused reservation. `moved`: how far pauses of the group have delayed the reservation since it was made. If later
    /// reservations exist, nothing is returned: to move them forward would admit more requests than the quota allows.
    pub fn refund(&mut self, reservation: &Reservation, moved: Duration) {
        if self.tat == reservation.made.tat.after(moved) {
            self.tat = reservation.before.tat.after(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn quota(requests: u32, period_ms: u64, burst: u32) -> Quota {
        Quota {
            requests: NonZeroU32::new(requests).unwrap(),
            period: Duration::from_millis(period_ms),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    const START: Timestamp = Timestamp(1_000_000_000);

    fn reserve(
        gcra: &mut Gcra,
        quota: &Quota,
        now: Timestamp,
        max_wait: Duration,
    ) -> Result<(Timestamp, Reservation), Duration> {
        let due = gcra.earliest(quota, now);
        if due.since(now) > max_wait { Err(due.since(now)) } else { Ok((due, gcra.take(quota, due))) }
    }

    /// Tripwire of the bound, and the reason for the forfeit: a refund out of turn would exceed it.
    #[test]
    fn only_the_last_place_is_given_back() {
        let quota = quota(10, 1_000, 1);
        let mut gcra = Gcra::default();
        let [first, second] = std::array::from_fn(|_| reserve(&mut gcra, &quota, START, Duration::MAX).unwrap());
        let before = gcra;
        gcra.refund(&first.1, Duration::ZERO);
        assert_eq!(gcra, before, "the second one stands behind it");
        gcra.delay(Duration::from_secs(5));
        gcra.refund(&second.1, Duration::from_secs(5));
        let third = gcra.earliest(&quota, START);
        assert_eq!(third, second.0.after(Duration::from_secs(5)), "the second one's moment, moved by the pause");
    }

    #[test]
    fn a_voided_line_leaves_what_was_sent() {
        let quota = quota(10, 1_000, 3);
        let (mut used_up, mut idle) = (Gcra::default(), Gcra::default());
        for _ in 0..9 {
            let _ = reserve(&mut used_up, &quota, START, Duration::MAX).unwrap();
        }
        used_up.delay(Duration::from_secs(600));
        used_up.void_reserved(&quota, START);
        assert_eq!(used_up.taken(&quota, START), 3, "all of the burst, and none for later");
        assert_eq!(used_up.earliest(&quota, START), START.after(quota.interval()), "from then on at its rate");
        idle.void_reserved(&quota, START);
        assert_eq!(idle, Gcra::default(), "a limit that nothing uses stays free");
    }

    proptest! {
        #[test]
        fn a_denial_keeps_its_promise(requests in 1_u32..20, period_ms in 20_u64..10_000, burst in 1_u32..30) {
            let quota = quota(requests, period_ms, burst);
            let mut gcra = Gcra::default();
            let wait = loop {
                if let Err(wait) = reserve(&mut gcra, &quota, START, Duration::ZERO) { break wait }
            };
            let at = START.after(wait);
            prop_assert_eq!(gcra.earliest(&quota, at), at);
            let early = at.before(Duration::from_micros(1));
            prop_assert_eq!(gcra.earliest(&quota, early), at, "not a microsecond earlier");
        }
    }
}
