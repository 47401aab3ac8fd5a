//! How the steps went, for operators.

use super::LinkError;
use crate::telemetry::{Bounds, Histogram, Observed};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const US: u64 = 1_000;

/// From a step on the same machine to the longest that a keyed write waits for.
const STEPS: Bounds = [
    50 * US,
    100 * US,
    200 * US,
    500 * US,
    1_000 * US,
    2_000 * US,
    5_000 * US,
    10_000 * US,
    20_000 * US,
    50_000 * US,
    100_000 * US,
    200_000 * US,
    500_000 * US,
    1_000_000 * US,
];

/// A step that was done, and is known to be.
pub(super) const ANSWERED: &str = "answered";
/// One that may have been done.
pub(super) const TIMED_OUT: &str = "timed-out";
/// Why a step was not done, in the order of [`place`].
const FAILURES: [&str; 6] = ["down", TIMED_OUT, "broke", "not-serving", "refused", "nonsense"];

/// How a step went, in the words of its counters.
pub(super) fn outcome(answer: Result<(), &LinkError>) -> &'static str {
    answer.map_or_else(|error| FAILURES[place(error)], |()| ANSWERED)
}

fn place(error: &LinkError) -> usize {
    match error {
        LinkError::Down => 0,
        LinkError::TimedOut(_) => 1,
        LinkError::Broke(_) => 2,
        LinkError::NotServing(_) => 3,
        LinkError::Refused(_) => 4,
        LinkError::Nonsense { .. } => 5,
    }
}

/// Counts steps.
#[derive(Debug)]
pub(super) struct ScriptMetrics {
    times: Histogram,
    failed: [AtomicU64; FAILURES.len()],
}

/// How the steps of a link went so far.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// Those that were answered, by what they took.
    pub times: Observed,
    /// Those that were not done, or are not known to be, by why.
    pub failed: [(&'static str, u64); FAILURES.len()],
}

impl Default for ScriptMetrics {
    fn default() -> Self {
        Self { times: Histogram::new(&STEPS), failed: Default::default() }
    }
}

impl ScriptMetrics {
    pub(super) fn note(&self, took: Duration, failed: Option<&LinkError>) {
        match failed {
            None => self.times.observe(took),
            Some(error) => drop(self.failed[place(error)].fetch_add(1, Relaxed)),
        }
    }

    pub(super) fn read(&self) -> Steps {
        Steps {
            times: self.times.read(),
            failed: std::array::from_fn(|place| (FAILURES[place], self.failed[place].load(Relaxed))),
        }
    }
}
