//! Learns an endpoint's usual share of failures, and decides whether chance explains a higher share. Pure.
//!
//! If calls fail with probability `p`, then the probability that a share `f` or more of `n` calls fails is at most `exp(-n * D(f, p))`,
//! where `D(f, p) = f ln(f/p) + (1-f) ln((1-f)/(1-p))` (Hoeffding 1963, theorem 1; Chernoff's bound of the binomial). The bound holds for a
//! few calls too. A limit in standard deviations, from the normal approximation, would trip on the second failure of an endpoint that
//! hardly ever fails.

use super::window::{Bucket, Counts};
use crate::clock::{Timestamp, micros};
use std::time::Duration;

/// The time over which learned counts decay to nothing: long enough that an outage of a minute hardly changes the usual share, short enough
/// that an outage at night no longer counts at noon.
const FADING_TIME: Duration = Duration::from_hours(1);
/// The number of learned calls, in thousandths, from which the usual share is known.
const MIN_CALLS_MILLI: u64 = 200_000;
/// The smallest usual share, in thousandths, assumed for an endpoint that has never failed.
const MIN_FAILURES_MILLI: u64 = 1;
/// Chance does not explain a share whose probability is below e^-16, one in nine million. An endpoint with a hundred failures a second,
/// each of which is checked, still trips by chance about once a day.
const MIN_SURPRISE: f64 = 16.0;

/// Calls and failures, in thousandths, that decay over [`FADING_TIME`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usual {
    calls_milli: u64,
    failures_milli: u64,
    at: Timestamp,
}

impl Usual {
    /// Adds the calls that left the window without a trip.
    pub(super) fn learn(&mut self, left: Bucket, now: Timestamp) {
        let horizon = micros(FADING_TIME);
        let kept = horizon.saturating_sub(micros(now.since(self.at)).min(horizon));
        let faded = |milli: u64| u64::try_from(u128::from(milli) * u128::from(kept) / u128::from(horizon)).unwrap_or(0);
        let more = |milli: u64, count: u32| faded(milli).saturating_add(u64::from(count) * 1000);
        *self = Self {
            calls_milli: more(self.calls_milli, left.calls),
            failures_milli: more(self.failures_milli, left.failures),
            at: now.max(self.at),
        };
    }

    /// The usual share of failures, in thousandths; none until it is known.
    pub(super) fn share_milli(&self) -> Option<u32> {
        if self.calls_milli < MIN_CALLS_MILLI {
            return None;
        }
        let share = u128::from(self.failures_milli) * 1000 / u128::from(self.calls_milli);
        u32::try_from(share.max(MIN_FAILURES_MILLI.into())).ok()
    }
}

/// The limit of a breaker whose usual share of failures is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Baseline {
    /// The usual share in thousandths, at most the operator's limit.
    pub(super) usual_milli: u32,
    /// The share of failures, in thousandths, from which the breaker trips, unless chance explains it.
    limit_milli: u32,
    /// Whether the operator's limit is the lower one, and so the one that applies.
    pub(super) is_capped: bool,
}

impl Baseline {
    /// The limit is `above_percent` above the usual share, and at most `ceiling_percent`, the operator's limit for every share. If the
    /// operator's limit is the lower one, the breaker trips at it without regard to chance: an endpoint that fails more and more must not
    /// teach its breaker a higher limit. If it is not, a few calls may exceed both limits as long as chance explains that.
    pub(super) fn new(usual_milli: u32, above_percent: u32, ceiling_percent: Option<u32>) -> Self {
        let above = above_percent.saturating_mul(10);
        let ceiling = ceiling_percent.unwrap_or(100).saturating_mul(10);
        let limit_milli = usual_milli.saturating_add(above);
        let is_capped = ceiling_percent.is_some() && limit_milli >= ceiling;
        Self { usual_milli: usual_milli.min(ceiling).max(1), limit_milli: limit_milli.min(ceiling), is_capped }
    }

    /// Whether the share of failures in the window reaches the limit, and chance does not explain it.
    pub(super) fn is_exceeded(self, counts: &Counts) -> bool {
        let failures = counts.failures_milli.saturating_mul(1000);
        failures >= counts.calls_milli.saturating_mul(self.limit_milli.into())
            && self.surprise(counts.calls_milli, counts.failures_milli) >= MIN_SURPRISE
    }

    /// The number of failures in a row that chance does not explain: `p^n <= e^-16`.
    pub(super) fn in_row(self) -> u32 {
        let each = -(f64::from(self.usual_milli.clamp(1, 999)) / 1000.0).ln();
        (MIN_SURPRISE / each).ceil() as u32
    }

    /// The exponent `n * D(f, p)` of the bound; 0 if `f` is not above `p`.
    fn surprise(self, calls_milli: u64, failures_milli: u64) -> f64 {
        let n = calls_milli as f64 / 1000.0;
        let f = (failures_milli as f64 / (calls_milli.max(1)) as f64).min(1.0);
        let p = f64::from(self.usual_milli.clamp(1, 999)) / 1000.0;
        let part = |share: f64, usual: f64| if share > 0.0 { share * (share / usual).ln() } else { 0.0 };
        if f <= p { 0.0 } else { n * (part(f, p) + part(1.0 - f, 1.0 - p)) }
    }
}

#[cfg(test)]
#[path = "baseline/tests.rs"]
mod tests;
