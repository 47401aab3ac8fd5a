//! A candidate policy beside the live one: in shadow its verdicts are only compared, as a canary it decides for a share of the requests.

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

/// Differences kept for operators; all are counted.
const MAX_DIFFERENCES: usize = 64;

/// An upstream's candidate: its settings, and the component on trial, once there is one.
#[derive(Debug)]
pub struct Candidate {
    /// The policy, the mode and the share of requests.
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

/// An outcome on which the candidate decided differently. Contains no data of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The endpoint's name in the live policy.
    pub endpoint: String,
    /// The upstream's status, or the failure's name.
    pub outcome: String,
    /// The live policy's decision: class, breaker signal and next action.
    pub live: String,
    /// The candidate's decision, or its fault.
    pub candidate: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, outcome, live, candidate } = self;
        write!(f, "{endpoint} {outcome}: {live}; candidate: {candidate}")
    }
}

/// The results of a candidate's trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// The component's digest; none without a candidate in service, or for the built-in policy.
    pub digest: Option<Digest>,
    /// In shadow: outcomes that both policies decided about.
    pub compared: u64,
    /// Compared outcomes with different decisions.
    pub differed: u64,
    /// Outcomes that the candidate did not see: its queue was full, or it wants more of the body than was read.
    pub skipped: u64,
    /// The latest differences, oldest first; at most 64.
    pub differences: Vec<Difference>,
}

impl Candidate {
    /// A candidate without a component yet.
    pub fn new(settings: settings::Candidate) -> Self {
        Self { settings, current: ArcSwapOption::empty(), tally: Mutex::default(), skipped: AtomicU64::new(0) }
    }

    /// The component on trial, if there is one.
    pub fn current(&self) -> Option<Arc<UpstreamRuntime>> {
        self.current.load_full()
    }

    /// The component, if its verdicts are compared.
    pub fn in_shadow(&self) -> Option<Arc<UpstreamRuntime>> {
        if self.settings.mode == Mode::Shadow { self.current() } else { None }
    }

    /// The component, if it decides for the request that these bytes identify: its idempotency key, or its request id. Equal bytes give the
    /// same result in the whole fleet.
    pub fn as_canary(&self, request: &[u8]) -> Option<Arc<UpstreamRuntime>> {
        let decides = self.settings.mode == Mode::Canary && percentile(request) < self.settings.share_percent;
        if decides { self.current() } else { None }
    }

    /// Starts the trial of another component, with new counts.
    pub(super) fn put(&self, next: Option<Arc<UpstreamRuntime>>) {
        let mut tally = self.tally.lock();
        if next.is_some() {
            *tally = Tally::default();
            self.skipped.store(0, Ordering::Relaxed);
        }
        self.current.store(next);
    }

    /// Replaces the settings of the same component; counts stay.
    pub(super) fn replace(&self, next: Arc<UpstreamRuntime>) {
        self.current.store(Some(next));
    }

    /// Whether this is the component on trial.
    pub(super) fn is(&self, service: &Arc<UpstreamRuntime>) -> bool {
        self.current.load().as_ref().is_some_and(|own| own.is_same(service))
    }

    /// Counts an outcome that the candidate did not see.
    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a comparison, and keeps the difference, if there is one.
    pub(super) fn compared(&self, difference: Option<Difference>) {
        let mut tally = self.tally.lock();
        tally.compared += 1;
        let Some(difference) = difference else { return };
        tally.differed += 1;
        // Log ever more rarely, so that a candidate that always differs does not fill the log.
        if tally.differed.is_power_of_two() {
            tracing::info!(differed = tally.differed, compared = tally.compared, "candidate: {difference}");
        }
        if tally.latest.len() == MAX_DIFFERENCES {
            tally.latest.pop_front();
        }
        tally.latest.push_back(difference);
    }

    /// The results so far.
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

/// A request's percentile, from 0 to 99, by the SHA-256 of its identifier.
fn percentile(request: &[u8]) -> u32 {
    let hash: [u8; 32] = Sha256::digest(request).into();
    let [a, b, c, d, ..] = hash;
    u32::try_from((u64::from(u32::from_be_bytes([a, b, c, d])) * 100) >> 32).unwrap_or(0)
}

/// The part of a verdict that is compared. Waits may differ by chance, and reasons are free text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerdictSummary {
    class: &'static str,
    breaker: BreakerSignal,
    next: &'static str,
    replaced_by: Option<http::StatusCode>,
}

impl VerdictSummary {
    /// Summarizes a verdict.
    pub fn of(verdict: &Verdict) -> Self {
        let (next, replaced_by) = match &verdict.next {
            Next::Deliver => ("deliver", None),
            Next::Retry(_) => ("retry", None),
            Next::Verify(_) => ("verify", None),
            Next::Replace(answer) => ("replace by", Some(answer.status)),
        };
        Self { class: verdict.class.name(), breaker: verdict.breaker, next, replaced_by }
    }

    /// The summary of a response that was settled by its status, without a policy call.
    pub const SETTLED: Self =
        Self { class: "applied", breaker: BreakerSignal::Success, next: "deliver", replaced_by: None };
}

impl fmt::Display for VerdictSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let breaker = self.breaker.name();
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
