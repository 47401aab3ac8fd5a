//! The circuit breaker: pure transitions.
//!
//! Closed, it counts; open, it refuses; half-open, a few probes with leases decide. Time and chance are arguments.

mod baseline;
mod state;
mod window;

pub use state::CHANCE_SHIFT;

pub use state::{Admission, Breaker, BreakerState, BreakerStatus, Force, Ticket, Transition, Trip};
pub use window::Counts;

use crate::contract::BreakerSignal;
use std::time::Duration;

/// What a probe leaves of its lease: for clocks that do not run alike, and for the answer on its way.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// Whether a probe may begin now: what is left of its lease covers a whole attempt and a margin, half of the room between the
/// two at most. `looked_ago` is the time on this host's own clock since it *asked* for the look by which the lease began: a host
/// that was stopped meanwhile finds that it is too late.
pub fn lease_covers(looked_ago: Duration, attempt: Duration, settings: &Settings) -> bool {
    let room = settings.probe_lease.saturating_sub(attempt);
    looked_ago.saturating_add(LEASE_MARGIN.min(room / 2)) < room
}

/// When a breaker opens, for how long, and how it finds out that the upstream is back.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Failures in a row that trip it; none to look at the rate alone. Default 5, the seed's.
    pub consecutive_failures: Option<u32>,
    /// The share of failures in the window, in percent, that trips it; none to switch it off. Default 50, resilience4j's.
    pub failure_rate_percent: Option<u32>,
    /// How far above what is usual, in percentage points, the share of failures trips it instead, once that is known: then
    /// neither `failure_rate_percent` nor as many failures in a row trip it where these are usual. None to do without, the default.
    pub baseline_percent: Option<u32>,
    /// How long a call may take before it counts as slow; none to switch slow calls off, the default.
    pub slow_call_after: Option<Duration>,
    /// The share of slow calls in the window, in percent, that trips it. Default 80.
    pub slow_rate_percent: u32,
    /// The length of the sliding window. Default 30 s, Polly's.
    pub window: Duration,
    /// Calls that the window must hold before a rate counts. Default 20.
    pub minimum_calls: u32,
    /// How long it stays open the first time. Default 60 s, the seed's.
    pub open_for: Duration,
    /// The longest time open after repeated failed probes; each doubles it. Default 5 min.
    pub open_for_max: Duration,
    /// How much of the open time is random, in percent, so that a fleet does not probe in step. Default 10.
    pub jitter_percent: u32,
    /// Probes at once and successes in a row that close it (K). Default 1.
    pub probes: u32,
    /// How long a probe may hold its place; the attempt timeout is shorter. Default 35 s.
    pub probe_lease: Duration,
    /// What a failed attempt counts as once verification has found its write applied. Default [`BreakerSignal::Ignore`]: the
    /// upstream did the work, and the caller has its answer.
    pub settled: BreakerSignal,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            failure_rate_percent: Some(50),
            baseline_percent: None,
            slow_call_after: None,
            slow_rate_percent: 80,
            window: Duration::from_secs(30),
            minimum_calls: 20,
            open_for: Duration::from_secs(60),
            open_for_max: Duration::from_secs(300),
            jitter_percent: 10,
            probes: 1,
            probe_lease: Duration::from_secs(35),
            settled: BreakerSignal::Ignore,
        }
    }
}
