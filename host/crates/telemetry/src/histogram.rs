//! A lock-free histogram: an observation costs two atomic additions.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of buckets in nanoseconds, ascending.
pub type Bounds = [u64; BOUNDS];

/// Number of bounds; one more bucket counts values beyond the last.
pub const BOUNDS: usize = 14;

const MS: u64 = 1_000_000;

/// Bounds for the time of an upstream: from a cache's millisecond to a cold start's minute.
pub const ANSWERS: Bounds = [
    MS,
    2 * MS + MS / 2,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    1_000 * MS,
    2_500 * MS,
    5_000 * MS,
    10_000 * MS,
    60_000 * MS,
];

/// Bounds for the time of a policy's call: from a native policy's 50 ns to the cap of 5 ms.
pub const DECISIONS: Bounds =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, MS, 5 * MS];

/// Counts durations by bucket.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    buckets: [AtomicU64; BOUNDS + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// An empty histogram.
    pub fn new(bounds: &'static Bounds) -> Self {
        Self { bounds, buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }

    /// Adds a duration.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| ns <= *bound).unwrap_or(BOUNDS);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
    }

    /// The present counts.
    pub fn read(&self) -> Observed {
        let mut read = Observed { bounds: self.bounds, buckets: [0; BOUNDS + 1], sum_ns: self.sum_ns.load(Relaxed) };
        for (read, own) in read.buckets.iter_mut().zip(&self.buckets) {
            *read = own.load(Relaxed);
        }
        read
    }
}

/// The counts of a histogram at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    bounds: &'static Bounds,
    buckets: [u64; BOUNDS + 1],
    sum_ns: u64,
}

impl Observed {
    /// Adds the counts of another histogram with the same bounds.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// The difference to earlier counts of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        for (own, earlier) in since.buckets.iter_mut().zip(earlier.buckets) {
            *own = own.saturating_sub(earlier);
        }
        since.sum_ns = self.sum_ns.wrapping_sub(earlier.sum_ns);
        since
    }

    /// The quantile `share` (0 to 1), interpolated linearly within its bucket; the last bound for values beyond it. `None` if empty.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = share * count as f64;
        let (mut below, mut lower) = (0.0, 0);
        for (bound, own) in self.bounds.iter().zip(self.buckets) {
            let own = own as f64;
            if below + own >= wanted && own > 0.0 {
                let within = (wanted - below).max(0.0) / own;
                return Some(Duration::from_nanos(lower + ((*bound - lower) as f64 * within) as u64));
            }
            below += own;
            lower = *bound;
        }
        Some(Duration::from_nanos(lower))
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of the durations, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Upper bound in seconds (the last one infinite) and count of each bucket.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
        bounds.zip(self.buckets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        assert!([ANSWERS, DECISIONS].iter().all(|bounds| bounds.is_sorted_by(|a, b| a < b)));
        let histogram = Histogram::new(&ANSWERS);
        for ms in [0, 1, 2, 60_000, 60_001] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut read = histogram.read();
        assert_eq!((read.count(), read.buckets[0], read.buckets[1]), (5, 2, 1));
        assert_eq!((read.buckets[BOUNDS - 1], read.buckets[BOUNDS]), (1, 1));
        assert!((read.sum_seconds() - 120.004).abs() < 1e-9);
        read.add(&histogram.read());
        assert_eq!(read.count(), 10);
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let histogram = Histogram::new(&ANSWERS);
        assert_eq!(histogram.read().quantile(0.5), None);
        for _ in 0..100 {
            histogram.observe(Duration::from_millis(7));
        }
        let before = histogram.read();
        let half = before.quantile(0.5).unwrap_or_default();
        assert!(half > Duration::from_millis(5) && half <= Duration::from_millis(10), "{half:?}");
        histogram.observe(Duration::from_secs(100));
        let since = histogram.read().since(&before);
        assert_eq!(since.count(), 1);
        assert_eq!(since.quantile(0.5), Some(Duration::from_secs(60)), "beyond the last bound");
        let most = histogram.read().quantile(0.99).unwrap_or_default();
        assert!(most <= Duration::from_millis(10), "{most:?}");
    }
}
