//! A policy that is tried beside the one that serves: in shadow its verdicts are only compared, as a canary it decides for a
//! share of the requests.

use crate::{
    config::settings::{self, Mode},
    policy::{
        Digest,
        contract::{BreakerSignal, Next, Verdict},
    },
    upstream_runtime::UpstreamRuntime,
};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Differences that are kept for operators; all are counted.
const DIFFERENCES: usize = 64;

/// An upstream's candidate: its settings, and the component that is being tried, once there is one.
#[derive(Debug)]
pub struct Candidate {
    /// Which policy, how, and for how many requests.
    pub settings: settings::Candidate,
    current: ArcSwapOption<UpstreamRuntime>,
    tally: Mutex<Tally>,
    skipped: AtomicU64,
}

#[derive(Debug, Default)]
struct Tally {
    compared: u64,
    differed: u64,
    latest: VecDeque<Difference>,
}

/// One outcome on which the candidate decided otherwise. It holds nothing of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The endpoint, as the live policy names it.
    pub endpoint: String,
    /// The upstream's status, or the failure's name.
    pub outcome: String,
    /// What the live policy said: class, breaker's signal and next step.
    pub live: String,
    /// What the candidate said, or how it failed.
    pub candidate: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, outcome, live, candidate } = self;
        write!(f, "{endpoint} {outcome}: {live}; the candidate: {candidate}")
    }
}

/// How a candidate does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// Its component; none while there is no candidate in service, or for the native policy.
    pub digest: Option<Digest>,
    /// In shadow: outcomes that both judged.
    pub compared: u64,
    /// Of these, how many they judged otherwise.
    pub differed: u64,
    /// Outcomes that the candidate was not shown: it was behind, or wants to read more than the live policy does.
    pub skipped: u64,
    /// The latest differences, the oldest first; at most 64.
    pub differences: Vec<Difference>,
}

impl Candidate {
    /// No component yet.
    pub fn new(settings: settings::Candidate) -> Self {
        Self { settings, current: ArcSwapOption::empty(), tally: Mutex::default(), skipped: AtomicU64::new(0) }
    }

    /// The component that is being tried, if there is one.
    pub fn current(&self) -> Option<Arc<UpstreamRuntime>> {
        self.current.load_full()
    }

    /// The component, if its verdicts are compared.
    pub fn in_shadow(&self) -> Option<Arc<UpstreamRuntime>> {
        if self.settings.mode == Mode::Shadow { self.current() } else { None }
    }

    /// The component, if it decides for the request that these bytes name: its idempotency key, or its own name. Equal
    /// bytes always give the same answer, in the whole fleet.
    pub fn as_canary(&self, request: &[u8]) -> Option<Arc<UpstreamRuntime>> {
        let decides = self.settings.mode == Mode::Canary && percentile(request) < self.settings.share_percent;
        if decides { self.current() } else { None }
    }

    /// Tries another component; the counts begin anew.
    pub(super) fn put(&self, next: Option<Arc<UpstreamRuntime>>) {
        let mut tally = self.tally.lock();
        if next.is_some() {
            *tally = Tally::default();
            self.skipped.store(0, Ordering::Relaxed);
        }
        self.current.store(next);
    }

    /// The same component with other settings; what was counted stays.
    pub(super) fn replace(&self, next: Arc<UpstreamRuntime>) {
        self.current.store(Some(next));
    }

    /// Whether this is the component that is being tried.
    pub(super) fn is(&self, service: &Arc<UpstreamRuntime>) -> bool {
        self.current.load().as_ref().is_some_and(|own| own.is_same(service))
    }

    /// Notes that an outcome was not shown to it.
    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a comparison into account; the difference, if there is one.
    pub(super) fn compared(&self, difference: Option<Difference>) {
        let mut tally = self.tally.lock();
        tally.compared += 1;
        let Some(difference) = difference else { return };
        tally.differed += 1;
        // Rarer and rarer, so that a candidate that always differs fills no log.
        if tally.differed.is_power_of_two() {
            tracing::info!(differed = tally.differed, compared = tally.compared, "candidate: {difference}");
        }
        if tally.latest.len() == DIFFERENCES {
            tally.latest.pop_front();
        }
        tally.latest.push_back(difference);
    }

    /// How it does.
    pub fn report(&self) -> CandidateReport {
        let tally = self.tally.lock();
        CandidateReport {
            digest: self.current().and_then(|service| service.policy.digest()),
            compared: tally.compared,
            differed: tally.differed,
            skipped: self.skipped.load(Ordering::Relaxed),
            differences: tally.latest.iter().cloned().collect(),
        }
    }
}

/// Where a request lies among all, from 0 to 99, by its name's SHA-256.
fn percentile(request: &[u8]) -> u32 {
    let hash: [u8; 32] = Sha256::digest(request).into();
    let [a, b, c, d, ..] = hash;
    u32::try_from((u64::from(u32::from_be_bytes([a, b, c, d])) * 100) >> 32).unwrap_or(0)
}

/// What two verdicts are compared by: the waits may differ by chance, and the words as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerdictSummary {
    class: &'static str,
    breaker: BreakerSignal,
    next: &'static str,
    replaced_by: Option<http::StatusCode>,
}

impl VerdictSummary {
    /// The gist of a verdict.
    pub fn of(verdict: &Verdict) -> Self {
        let (next, replaced_by) = match &verdict.next {
            Next::Deliver => ("deliver", None),
            Next::Retry(_) => ("retry", None),
            Next::Verify(_) => ("verify", None),
            Next::Replace(answer) => ("replace by", Some(answer.status)),
        };
        Self { class: verdict.class.name(), breaker: verdict.breaker, next, replaced_by }
    }

    /// What a settled answer counts as, without any policy being asked.
    pub const SETTLED: Self =
        Self { class: "applied", breaker: BreakerSignal::Success, next: "deliver", replaced_by: None };
}

impl fmt::Display for VerdictSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let breaker = match self.breaker {
            BreakerSignal::Success => "success",
            BreakerSignal::Failure => "failure",
            BreakerSignal::Ignore => "ignore",
        };
        write!(f, "{}, {breaker}, {}", self.class, self.next)?;
        self.replaced_by.map_or(Ok(()), |status| write!(f, " {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_requests_is_the_share_asked_for() {
        let below = |percent| (0..100_000_u32).filter(|n| percentile(&n.to_le_bytes()) < percent).count();
        for (percent, expected) in [(0, 0), (1, 1_000), (10, 10_000), (50, 50_000), (99, 99_000), (100, 100_000)] {
            let found = below(percent);
            assert!(found.abs_diff(expected) < 1_000, "{percent} %: {found}");
        }
        assert_eq!(below(100), 100_000, "all is all");
    }

    #[test]
    fn the_same_request_is_always_in_the_same_place() {
        // Pinned: hosts of different versions must agree.
        assert_eq!([b"a", b"b", b"c"].map(|key| percentile(key)), [79, 24, 18]);
    }
}
