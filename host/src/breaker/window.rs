//! A sliding window in two buckets: the current one, and the share of the one before it that still lies in the window.

use crate::clock::{Timestamp, micros};
use std::time::Duration;

/// Counts of one bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bucket {
    calls: u32,
    failures: u32,
    slow: u32,
}

impl Bucket {
    const EMPTY: Self = Self { calls: 0, failures: 0, slow: 0 };
}

/// The window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    began: Timestamp,
    now: Bucket,
    before: Bucket,
}

/// What the window holds, weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Calls.
    pub calls: f64,
    /// Failures among them.
    pub failures: f64,
    /// Slow ones among them.
    pub slow: f64,
}

impl Window {
    /// Nothing counted yet.
    pub(super) const EMPTY: Self = Self { began: Timestamp(0), now: Bucket::EMPTY, before: Bucket::EMPTY };

    /// Counts one call.
    pub fn add(&mut self, failed: bool, slow: bool, length: Duration, now: Timestamp) {
        self.turn(length, now);
        self.now.calls = self.now.calls.saturating_add(1);
        self.now.failures = self.now.failures.saturating_add(failed.into());
        self.now.slow = self.now.slow.saturating_add(slow.into());
    }

    /// The counts as of `now`.
    pub fn counts(&self, length: Duration, now: Timestamp) -> Counts {
        let mut turned = *self;
        turned.turn(length, now);
        let into = now.since(turned.began).as_secs_f64() / length.as_secs_f64().max(1e-6);
        let share = (1.0 - into).clamp(0.0, 1.0);
        let sum = |now: u32, before: u32| f64::from(now) + f64::from(before) * share;
        Counts {
            calls: sum(turned.now.calls, turned.before.calls),
            failures: sum(turned.now.failures, turned.before.failures),
            slow: sum(turned.now.slow, turned.before.slow),
        }
    }

    fn turn(&mut self, length: Duration, now: Timestamp) {
        let length_us = micros(length).max(1);
        let passed = micros(now.since(self.began)) / length_us;
        if passed == 0 {
            return;
        }
        self.before = if passed == 1 { self.now } else { Bucket::default() };
        self.now = Bucket::default();
        self.began = Timestamp(self.began.0.saturating_add(passed * length_us));
    }
}
