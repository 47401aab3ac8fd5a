//! The retry budget: retries are a share of traffic, so that they cannot multiply an outage.

use crate::clock::Timestamp;
use std::time::Duration;

/// How many retries traffic earns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Retries earned by first attempts, in percent of them. Default 20, Envoy's and Finagle's.
    pub percent: u32,
    /// Retries a second that are free of charge, so that quiet endpoints can retry at all. Default 3, Envoy's floor.
    pub floor_per_second: u32,
    /// The most retries that can be saved up. Default 100.
    pub capacity: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { percent: 20, floor_per_second: 3, capacity: 100 }
    }
}

/// Thousandths of a retry: deposits are shares.
const MILLI: u64 = 1000;

/// The bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    tokens_milli: u64,
    at: Timestamp,
}

/// No retry is affordable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    /// When the floor alone affords one.
    pub retry_after: Duration,
}

impl Budget {
    /// A bucket with a second's floor in it, so that the first failure after a start can be retried.
    pub fn new(settings: &Settings, now: Timestamp) -> Self {
        Self { tokens_milli: u64::from(settings.floor_per_second).max(1) * MILLI, at: now }
    }

    fn refill(&mut self, settings: &Settings, now: Timestamp) {
        // Thousandths earned: microseconds times floor, divided by a thousand; what is below one stays as time.
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

    /// Pays for a retry.
    ///
    /// # Errors
    /// [`Exhausted`] where less than one is saved up.
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

    /// Gives a retry back that was not made.
    pub fn refund(&mut self, settings: &Settings) {
        self.add(settings, MILLI);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
