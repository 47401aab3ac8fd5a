//! What share of calls fails usually, and whether more fail than chance explains. Pure.
//!
//! How unlikely it is that `n` calls, of which a share `p` fails usually, hold a share `f` of failures or more has a
//! bound that holds for small numbers too: `exp(-n * D(f, p))`, where `D(f, p) = f ln(f/p) + (1-f) ln((1-f)/(1-p))`
//! (Hoeffding 1963, theorem 1; Chernoff's bound of the binomial). A normal approximation, so many standard deviations,
//! would trip on the second failure of an endpoint that hardly ever fails.

use super::window::{Bucket, Counts};
use crate::clock::{Timestamp, micros};
use std::time::Duration;

/// What is learned of fades with this: a night's troubles are forgotten by noon, a minute's weigh nothing.
const FADING_TIME: Duration = Duration::from_hours(1);
/// Calls from which on it is known what is usual.
const MIN_CALLS_MILLI: u64 = 200_000;
/// An endpoint that has never failed yet does so this often, in thousandths: nobody knows better.
const MIN_FAILURES_MILLI: u64 = 1;
/// What is less likely than e^-16, one in nine million, is no chance: with a look at each of a hundred failures a
/// second it still comes to pass about once a day.
const MIN_SURPRISE: f64 = 16.0;

/// Calls and failures, fading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usual {
    calls_milli: u64,
    failures_milli: u64,
    at: Timestamp,
}

impl Usual {
    /// Learns from what has left the window without a trip.
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

    /// The share that fails usually, in thousandths, once it is known.
    pub(super) fn share_milli(&self) -> Option<u32> {
        if self.calls_milli < MIN_CALLS_MILLI {
            return None;
        }
        let share = u128::from(self.failures_milli) * 1000 / u128::from(self.calls_milli);
        u32::try_from(share.max(MIN_FAILURES_MILLI.into())).ok()
    }
}

/// What a breaker is held to where the usual share is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Baseline {
    /// The usual share in thousandths, as far as it is believed.
    pub(super) usual_milli: u32,
    /// The share of failures from which on it trips, if that is no chance.
    limit_milli: u32,
    /// The operator's limit is no further than that.
    pub(super) is_capped: bool,
}

impl Baseline {
    /// Of a usual share, and how far above it is too far. Never further than the limit that the operator sets for every
    /// share (`ceiling_percent`): where that is nearer it holds, chance or not, so that failing ever more teaches a
    /// breaker nothing beyond it. Where it is not, few calls may exceed even that limit as long as chance explains it.
    pub(super) fn new(usual_milli: u32, above_percent: u32, ceiling_percent: Option<u32>) -> Self {
        let above = above_percent.saturating_mul(10);
        let ceiling = ceiling_percent.unwrap_or(100).saturating_mul(10);
        let limit_milli = usual_milli.saturating_add(above);
        let is_capped = ceiling_percent.is_some() && limit_milli >= ceiling;
        Self { usual_milli: usual_milli.min(ceiling).max(1), limit_milli: limit_milli.min(ceiling), is_capped }
    }

    /// Whether the window holds more failures than that, and chance does not explain it.
    pub(super) fn is_exceeded(self, counts: &Counts) -> bool {
        let failures = counts.failures_milli.saturating_mul(1000);
        failures >= counts.calls_milli.saturating_mul(self.limit_milli.into())
            && self.surprise(counts.calls_milli, counts.failures_milli) >= MIN_SURPRISE
    }

    /// So many failures in a row are no chance: `p^n <= e^-16`.
    pub(super) fn in_row(self) -> u32 {
        let each = -(f64::from(self.usual_milli.clamp(1, 999)) / 1000.0).ln();
        (MIN_SURPRISE / each).ceil() as u32
    }

    /// `n * D(f, p)`, where `f` is above `p`.
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
