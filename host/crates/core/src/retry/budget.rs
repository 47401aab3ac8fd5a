//! The retry budget: retries are a share of traffic, so that they cannot multiply an outage.

use crate::clock::Timestamp;
use std::time::Duration;

/// How many retries the traffic allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Retries earned by first attempts, in percent of them. Default 20, Envoy's and Finagle's.
    pub percent: u32,
    /// Retries a second that are allowed without traffic, so that an endpoint with few requests can retry. Default 3, Envoy's floor.
    pub floor_per_second: u32,
    /// The most retries that can be saved up. Default 100.
    pub capacity: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { percent: 20, floor_per_second: 3, capacity: 100 }
    }
}

/// The budget counts thousandths of a retry, because a first attempt earns only a share of one.
const MILLI: u64 = 1000;

/// A token bucket of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    tokens_milli: u64,
    at: Timestamp,
}

/// The budget holds less than one retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    /// The time until the floor alone has earned one.
    pub retry_after: Duration,
}

impl Budget {
    /// A bucket that holds one second's floor, at most its capacity, so that the first failure after a start can be retried.
    pub fn new(settings: &Settings, now: Timestamp) -> Self {
        let most = settings.capacity.max(1);
        Self { tokens_milli: u64::from(settings.floor_per_second.clamp(1, most)) * MILLI, at: now }
    }

    fn refill(&mut self, settings: &Settings, now: Timestamp) {
        // Thousandths of a retry: microseconds times floor, divided by a thousand. Less than one is not lost: `at` stays, so that the time
        // counts in the next call.
        let earned =
            crate::clock::micros(now.since(self.at)).saturating_mul(u64::from(settings.floor_per_second)) / 1000;
        if earned > 0 {
            self.at = now;
            self.add(settings, earned);
        }
    }

    fn add(&mut self, settings: &Settings, milli: u64) {
        let most = u64::from(settings.capacity).max(1) * MILLI;
        self.tokens_milli = self.tokens_milli.saturating_add(milli).min(most);
    }

    /// A first attempt earns its share.
    pub fn deposit(&mut self, settings: &Settings) {
        self.add(settings, u64::from(settings.percent) * MILLI / 100);
    }

    /// Takes one retry from the budget.
    ///
    /// # Errors
    /// [`Exhausted`] if it holds less than one.
    pub fn withdraw(&mut self, settings: &Settings, now: Timestamp) -> Result<(), Exhausted> {
        self.refill(settings, now);
        if self.tokens_milli >= MILLI {
            self.tokens_milli -= MILLI;
            return Ok(());
        }
        let missing = MILLI - self.tokens_milli;
        let floor = u64::from(settings.floor_per_second);
        let wait_us = (missing * 1000).checked_div(floor);
        let retry_after = wait_us.map_or(Duration::from_secs(1), |wait_us| Duration::from_micros(wait_us + 1));
        Err(Exhausted { retry_after })
    }

    /// The retries that the budget holds at `now`, in thousandths.
    pub fn saved(&self, settings: &Settings, now: Timestamp) -> u64 {
        let mut refilled = *self;
        refilled.refill(settings, now);
        refilled.tokens_milli
    }

    /// Returns a retry that was not made.
    pub fn refund(&mut self, settings: &Settings) {
        self.add(settings, MILLI);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::micros;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp(3_600_000_000);

    #[derive(Debug, Clone)]
    enum Event {
        Deposit,
        Withdraw,
        Refund,
        Advance(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => Just(Event::Deposit),
            4 => Just(Event::Withdraw),
            1 => Just(Event::Refund),
            3 => (0u64..2_000_000).prop_map(Event::Advance),
        ];
        prop::collection::vec(event, 0..300)
    }

    /// Retries <= what was there at the start + the share of the first attempts + the floor of the time, in thousandths.
    fn within_bound(sent: u64, deposits: u64, elapsed_us: u64, settings: &Settings) -> bool {
        let floor = u64::from(settings.floor_per_second);
        let earned = deposits * u64::from(settings.percent) * MILLI / 100;
        sent * MILLI <= floor.max(1) * MILLI + earned + floor * elapsed_us / 1000
    }

    proptest! {
        #[test]
        fn retries_stay_within_their_share(
            events in events(), percent in 0u32..150, floor_per_second in 0u32..20, capacity in 1u32..50,
        ) {
            let settings = Settings { percent, floor_per_second, capacity };
            let mut budget = Budget::new(&settings, START);
            let (mut now, mut deposits, mut sent) = (START, 0, 0_u64);
            for event in events {
                match event {
                    Event::Deposit => { budget.deposit(&settings); deposits += 1; }
                    Event::Advance(us) => now = now.after(Duration::from_micros(us)),
                    Event::Refund if sent > 0 => { budget.refund(&settings); sent -= 1; }
                    Event::Refund => {}
                    Event::Withdraw => match budget.withdraw(&settings, now) {
                        Ok(()) => sent += 1,
                        Err(Exhausted { retry_after }) if floor_per_second > 0 => {
                            let mut then = budget;
                            prop_assert!(then.withdraw(&settings, now.after(retry_after)).is_ok(), "the promise");
                        }
                        Err(_) => {}
                    },
                }
                prop_assert!(
                    budget.tokens_milli <= u64::from(capacity.max(1)) * MILLI,
                    "{} saved up of {capacity}", budget.tokens_milli
                );
                prop_assert!(within_bound(sent, deposits, micros(now.since(START)), &settings), "{sent} sent");
            }
        }
    }

    /// The bound is tight: a budget that gave one retry more would break it.
    #[test]
    fn the_bound_catches_one_retry_too_many() {
        let settings = Settings::default();
        let mut budget = Budget::new(&settings, START);
        let sent = (0..100).filter(|_| budget.withdraw(&settings, START).is_ok()).count() as u64;
        assert!(within_bound(sent, 0, 0, &settings) && !within_bound(sent + 1, 0, 0, &settings), "{sent}");
    }

    #[test]
    fn retries_are_a_share_of_traffic_above_a_floor() {
        let settings = Settings { percent: 20, floor_per_second: 0, capacity: 100 };
        let now = Timestamp(1_000_000);
        let mut budget = Budget { tokens_milli: 0, at: now };
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit(&settings);
            retries += u32::from(budget.withdraw(&settings, now).is_ok());
        }
        assert_eq!(retries, 200, "20 % of 1000");
        let settings = Settings { floor_per_second: 3, ..settings };
        let later = now.after(Duration::from_secs(10));
        assert_eq!((0..100).filter(|_| budget.withdraw(&settings, later).is_ok()).count(), 30, "3 a second for 10 s");
        let denied = budget.withdraw(&settings, later).unwrap_err();
        assert!(budget.withdraw(&settings, later.after(denied.retry_after)).is_ok(), "the promise holds");
    }
}
