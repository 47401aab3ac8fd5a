//! Metrics of script calls: durations, and failures by cause.

use super::LinkError;
use crate::telemetry::{Bounds, Histogram, Observed};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const US: u64 = 1_000;

/// From a call on the same machine to the longest that a keyed write waits for.
const CALL_TIME_BOUNDS: Bounds = [
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

/// The script ran and its reply arrived.
pub(super) const ANSWERED: &str = "answered";
/// The script may have run.
pub(super) const TIMED_OUT: &str = "timed-out";
/// Causes of failure, in the order of [`failure_index`].
const FAILURES: [&str; 6] = ["down", TIMED_OUT, "broke", "not-serving", "refused", "nonsense"];

/// The outcome of a call, as metrics and spans name it.
pub(super) fn outcome(answer: Result<(), &LinkError>) -> &'static str {
    answer.map_or_else(|error| FAILURES[failure_index(error)], |()| ANSWERED)
}

fn failure_index(error: &LinkError) -> usize {
    match error {
        LinkError::Down => 0,
        LinkError::TimedOut(_) => 1,
        LinkError::Broke(_) => 2,
        LinkError::NotServing(_) => 3,
        LinkError::Refused(_) => 4,
        LinkError::Nonsense { .. } => 5,
    }
}

/// Counts script calls.
#[derive(Debug)]
pub(super) struct ScriptMetrics {
    times: Histogram,
    failed: [AtomicU64; FAILURES.len()],
}

/// Script calls of a connection so far.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// Durations of the calls that got a reply.
    pub times: Observed,
    /// Number of calls without a reply, by cause.
    pub failed: [(&'static str, u64); FAILURES.len()],
}

impl Default for ScriptMetrics {
    fn default() -> Self {
        Self { times: Histogram::new(&CALL_TIME_BOUNDS), failed: Default::default() }
    }
}

impl ScriptMetrics {
    pub(super) fn note(&self, took: Duration, failed: Option<&LinkError>) {
        match failed {
            None => self.times.observe(took),
            Some(error) => drop(self.failed[failure_index(error)].fetch_add(1, Relaxed)),
        }
    }

    pub(super) fn read(&self) -> Steps {
        Steps {
            times: self.times.read(),
            failed: std::array::from_fn(|index| (FAILURES[index], self.failed[index].load(Relaxed))),
        }
    }
}
