//! Rate limits: GCRA arithmetic and reservations.

use crate::clock::{Timestamp, micros};
use std::{num::NonZeroU32, time::Duration};

/// A limit that cannot be wrong: `requests` each `period` over the long run, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests a period.
    pub requests: NonZeroU32,
    /// The period, at least a microsecond for each request.
    pub period: Duration,
    /// Requests at one instant.
    pub burst: NonZeroU32,
}

impl Quota {
    /// The time that one request takes up, rounded up to a microsecond so that the rate is never exceeded.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(micros(self.period).div_ceil(u64::from(self.requests.get())))
    }
}

/// The generic cell rate algorithm's state: the theoretical arrival time of the next request (ITU-T I.371).
///
/// In any window `w` at most `burst + w * requests / period` requests are admitted at their reserved moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gcra {
    tat: Timestamp,
}

/// A reserved place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// How long until it may be used.
    pub wait: Duration,
    made: Gcra,
    before: Gcra,
}

/// No place within the wait that the caller can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// After this wait the caller is admitted, if nobody else comes.
    pub retry_after: Duration,
}

impl Gcra {
    /// Finds the next place. Nothing is taken until [`Gcra::take`], so that several limits can be asked before any is charged.
    ///
    /// # Errors
    /// [`Denied`] where the place lies beyond `max_wait`.
    pub fn reserve(&self, quota: &Quota, now: Timestamp, max_wait: Duration) -> Result<Reservation, Denied> {
        let interval = quota.interval();
        let tolerance = interval.saturating_mul(quota.burst.get() - 1);
        let arrival = self.tat.max(now);
        let wait = arrival.before(tolerance).since(now);
        if wait > max_wait {
            return Err(Denied { retry_after: wait });
        }
        Ok(Reservation { wait, made: Self { tat: arrival.after(interval) }, before: *self })
    }

    /// Charges a reservation that was found on this very state.
    pub fn take(&mut self, reservation: &Reservation) {
        *self = reservation.made;
    }

    /// Gives a place back, unless others were reserved behind it: moving them up would let more through than the quota says,
    /// so that the place is forfeited then.
    pub fn refund(&mut self, reservation: &Reservation) {
        if *self == reservation.made {
            *self = reservation.before;
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

    proptest! {
        #[test]
        fn no_window_admits_more_than_burst_and_rate(
            requests in 1_u32..20, period_ms in 20_u64..10_000, burst in 1_u32..30,
            steps in prop::collection::vec((0_u64..2_000, 0_u64..5_000, prop::bool::weighted(0.2)), 1..200),
        ) {
            let quota = quota(requests, period_ms, burst);
            let (mut gcra, mut now, mut admitted) = (Gcra::default(), Timestamp(1_000_000_000), Vec::new());
            for (pass_ms, wait_ms, refund) in steps {
                now = now.after(Duration::from_millis(pass_ms));
                if let Ok(reservation) = gcra.reserve(&quota, now, Duration::from_millis(wait_ms)) {
                    gcra.take(&reservation);
                    if refund { gcra.refund(&reservation) } else { admitted.push(now.after(reservation.wait)) }
                }
            }
            admitted.sort();
            let interval = quota.interval();
            for (first, from) in admitted.iter().enumerate() {
                for (count, to) in admitted[first..].iter().enumerate() {
                    let window = to.since(*from);
                    let most = u128::from(burst) + window.as_nanos() / interval.as_nanos();
                    prop_assert!((count as u128) < most, "{} in {window:?}, allowed {most}", count + 1);
                }
            }
        }

        #[test]
        fn a_denial_keeps_its_promise(requests in 1_u32..20, period_ms in 20_u64..10_000, burst in 1_u32..30) {
            let quota = quota(requests, period_ms, burst);
            let (mut gcra, now) = (Gcra::default(), Timestamp(1_000_000_000));
            let denied = loop {
                match gcra.reserve(&quota, now, Duration::ZERO) {
                    Ok(reservation) => gcra.take(&reservation),
                    Err(denied) => break denied,
                }
            };
            let at = now.after(denied.retry_after);
            prop_assert!(gcra.reserve(&quota, at, Duration::ZERO).is_ok());
            prop_assert!(gcra.reserve(&quota, at.before(Duration::from_micros(1)), Duration::ZERO).is_err());
        }
    }
}
