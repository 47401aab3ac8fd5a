//! A sliding window of two buckets: the current one counts in full, the one before by the share that still lies in the window.

use crate::clock::{Timestamp, micros};
use std::time::Duration;

/// Counts of one bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) calls: u32,
    pub(super) failures: u32,
    slow: u32,
}

impl Bucket {
    const EMPTY: Self = Self { calls: 0, failures: 0, slow: 0 };

    #[cfg(test)]
    pub(super) fn of(calls: u32, failures: u32) -> Self {
        Self { calls, failures, slow: 0 }
    }

    fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            failures: self.failures.saturating_add(other.failures),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// The window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    began: Timestamp,
    now: Bucket,
    before: Bucket,
}

/// The weighted counts of the window, in thousandths. Integers, so that every host and the Lua script compute equal values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls.
    pub calls_milli: u64,
    /// Failures among them.
    pub failures_milli: u64,
    /// Slow ones among them.
    pub slow_milli: u64,
}

impl Counts {
    /// `part_milli` as a share of the calls, in whole percent, rounded; 0 without calls.
    pub(super) fn percent(&self, part_milli: u64) -> u32 {
        let percent = part_milli.saturating_mul(200).saturating_add(self.calls_milli) / (self.calls_milli * 2).max(1);
        u32::try_from(percent).unwrap_or(u32::MAX)
    }
}

impl Window {
    /// A window without calls.
    pub(super) const EMPTY: Self = Self { began: Timestamp(0), now: Bucket::EMPTY, before: Bucket::EMPTY };

    /// Counts one call. Returns the counts that left the window since the last call.
    pub(super) fn add(&mut self, failed: bool, slow: bool, length: Duration, now: Timestamp) -> Option<Bucket> {
        let left = self.rotate(length, now);
        self.now.calls = self.now.calls.saturating_add(1);
        self.now.failures = self.now.failures.saturating_add(failed.into());
        self.now.slow = self.now.slow.saturating_add(slow.into());
        left
    }

    /// The counts as of `now`.
    pub fn counts(&self, length: Duration, now: Timestamp) -> Counts {
        let mut rotated = *self;
        rotated.rotate(length, now);
        let length_us = micros(length).max(1);
        let left_us = length_us.saturating_sub(micros(now.since(rotated.began)));
        let share_milli = left_us.saturating_mul(1000) / length_us;
        let sum = |now: u32, before: u32| u64::from(now) * 1000 + u64::from(before) * share_milli;
        Counts {
            calls_milli: sum(rotated.now.calls, rotated.before.calls),
            failures_milli: sum(rotated.now.failures, rotated.before.failures),
            slow_milli: sum(rotated.now.slow, rotated.before.slow),
        }
    }

    fn rotate(&mut self, length: Duration, now: Timestamp) -> Option<Bucket> {
        let length_us = micros(length).max(1);
        let passed = micros(now.since(self.began)) / length_us;
        if passed == 0 {
            return None;
        }
        let left = if passed == 1 { self.before } else { self.before.and(self.now) };
        self.before = if passed == 1 { self.now } else { Bucket::default() };
        self.now = Bucket::default();
        self.began = Timestamp(self.began.0.saturating_add(passed * length_us));
        Some(left)
    }
}
