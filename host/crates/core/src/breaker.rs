//! The circuit breaker: pure transitions.
//!
//! A closed breaker counts results, an open one refuses attempts, and a half-open one admits a few probes, each with a lease, whose results
//! close or open it. Time and random numbers are arguments.

mod baseline;
mod state;
mod window;

pub use state::CHANCE_SHIFT;

pub use state::{Admission, Breaker, BreakerState, BreakerStatus, Force, Ticket, Transition, Trip};
pub use window::Counts;

use crate::contract::BreakerSignal;
use std::time::Duration;

/// The part of a lease that a probe must not use: it covers clocks that run at different speeds, and the way of the response.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// Whether a probe may begin now: the rest of its lease must cover a whole attempt and [`LEASE_MARGIN`], or half of the lease's slack if
/// that is less. `rechecked_ago`: the time on this host's own clock since it *requested* the recheck that started the lease, so that a host
/// that was stopped in between does not send.
pub fn lease_covers(rechecked_ago: Duration, attempt: Duration, settings: &Settings) -> bool {
    let slack = settings.probe_lease.saturating_sub(attempt);
    rechecked_ago.saturating_add(LEASE_MARGIN.min(slack / 2)) < slack
}

/// When a breaker opens, for how long, and how many probes close it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Failures in a row that trip it; none: only the rate trips it. Default 5, the seed's.
    pub consecutive_failures: Option<u32>,
    /// The share of failures in the window, in percent, that trips it; none: no fixed share does. Default 50, resilience4j's.
    pub failure_rate_percent: Option<u32>,
    /// How many percentage points above the endpoint's usual share of failures trip it. Once the usual share is known, this limit replaces
    /// `failure_rate_percent`, and only more failures in a row than that share explains trip it. Default none: no baseline is learned.
    pub baseline_percent: Option<u32>,
    /// How long a call may take before it counts as slow. Default none: no call does.
    pub slow_call_after: Option<Duration>,
    /// The share of slow calls in the window, in percent, that trips it. Default 80.
    pub slow_rate_percent: u32,
    /// The length of the sliding window. Default 30 s, Polly's.
    pub window: Duration,
    /// The number of calls in the window from which a share can trip it. Default 20.
    pub minimum_calls: u32,
    /// How long it stays open the first time. Default 60 s, the seed's.
    pub open_for: Duration,
    /// The longest open time. Each failed probe doubles the open time up to it. Default 5 min.
    pub open_for_max: Duration,
    /// The random part of the open time, in percent, so that the hosts of a fleet do not probe at the same moment. Default 10.
    pub jitter_percent: u32,
    /// The maximum of concurrent probes, and the number of successes in a row that close it. Default 1.
    pub probes: u32,
    /// How long a probe may hold its lease; the attempt timeout must be shorter. Default 35 s.
    pub probe_lease: Duration,
    /// The signal of a failed attempt whose write a verification found applied. Default [`BreakerSignal::Ignore`]: the upstream executed
    /// the write, and the caller has its answer.
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
