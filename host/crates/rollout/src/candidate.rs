//! A candidate policy beside the live one: in shadow its verdicts are only compared, as a canary it decides for a share of the requests.

mod tally;

pub(crate) use tally::{Comparison, Milestone};
pub use tally::{Difference, DifferenceGroup, TrialCounts};

use crate::{
    clock::Timestamp,
    config::settings::{self, Mode},
    policy::Digest,
    upstream_runtime::UpstreamRuntime,
};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tally::Tally;

/// An upstream's candidate: its settings, and the component on trial, once there is one.
#[derive(Debug)]
pub struct Candidate {
    /// The policy, the mode and the share of requests.
    pub settings: settings::Candidate,
    current: ArcSwapOption<UpstreamRuntime>,
    trial: Mutex<Trial>,
    /// Outcomes that no candidate saw, in all trials.
    skipped: AtomicU64,
}

/// The latest trial, which a given-up component keeps until the next one.
#[derive(Debug, Default)]
struct Trial {
    component: Option<Component>,
    tally: Tally,
    /// The counts of earlier trials.
    before: TrialCounts,
    skipped_before: u64,
}

/// A component on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// The policy's name.
    pub name: String,
    /// The policy's version.
    pub version: String,
    /// The component's digest; none for the built-in policy.
    pub digest: Option<Digest>,
    /// The start of its trial.
    pub began: Timestamp,
}

/// How far a trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialState {
    /// There is no component yet.
    Missing,
    /// The component has not decided often enough, or it differs from the live policy, or it failed.
    OnTrial,
    /// [`TrialCounts::is_ready`].
    Ready,
    /// It failed too often, and no longer decides.
    GivenUp,
}

/// The results of a candidate's latest trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// How far the trial is.
    pub state: TrialState,
    /// The component; none before the first trial.
    pub component: Option<Component>,
    /// The counts of this trial.
    pub counts: TrialCounts,
    /// Outcomes that the candidate did not see: its queue was full, or it wants more of the body than was read.
    pub skipped: u64,
    /// Differences by endpoint, outcome and both decisions, the most frequent first; at most 64.
    pub groups: Vec<DifferenceGroup>,
    /// Differences beyond these groups.
    pub ungrouped: u64,
}

impl Candidate {
    /// A candidate without a component yet.
    pub fn new(settings: settings::Candidate) -> Self {
        Self { settings, current: ArcSwapOption::empty(), trial: Mutex::default(), skipped: AtomicU64::new(0) }
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
    pub(super) fn begin(&self, next: Arc<UpstreamRuntime>, now: Timestamp) {
        let description = next.policy.description();
        let component = Component {
            name: description.name.clone(),
            version: description.version.clone(),
            digest: next.policy.digest(),
            began: now,
        };
        let mut trial = self.trial.lock();
        *trial = Trial {
            component: Some(component),
            tally: Tally::default(),
            before: trial.before.plus(trial.tally.counts()),
            skipped_before: self.skipped.load(Ordering::Relaxed),
        };
        self.current.store(Some(next));
    }

    /// Ends the trial. Its results stay.
    pub(super) fn give_up(&self) {
        self.current.store(None);
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

    /// Counts a decision, unless it is of an earlier component.
    pub(super) fn decided(
        &self,
        service: &Arc<UpstreamRuntime>,
        comparison: Comparison,
        is_fault: bool,
        now: Timestamp,
    ) -> Option<Milestone> {
        let mut trial = self.trial.lock();
        if self.is(service) { trial.tally.note(comparison, is_fault, now) } else { None }
    }

    /// The results so far.
    pub fn report(&self) -> CandidateReport {
        let trial = self.trial.lock();
        let counts = trial.tally.counts();
        let state = match (&trial.component, self.current.load().is_some()) {
            (None, _) => TrialState::Missing,
            (Some(_), false) => TrialState::GivenUp,
            (Some(_), true) if counts.is_ready() => TrialState::Ready,
            (Some(_), true) => TrialState::OnTrial,
        };
        CandidateReport {
            state,
            component: trial.component.clone(),
            counts,
            skipped: self.skipped.load(Ordering::Relaxed).saturating_sub(trial.skipped_before),
            groups: trial.tally.groups(),
            ungrouped: trial.tally.ungrouped(),
        }
    }

    /// The counts of all trials since the start, and the outcomes that no candidate saw. They never fall.
    pub fn totals(&self) -> (TrialCounts, u64) {
        let trial = self.trial.lock();
        (trial.before.plus(trial.tally.counts()), self.skipped.load(Ordering::Relaxed))
    }
}

/// A request's percentile, from 0 to 99, by the SHA-256 of its identifier.
fn percentile(request: &[u8]) -> u32 {
    let hash: [u8; 32] = Sha256::digest(request).into();
    let [a, b, c, d, ..] = hash;
    u32::try_from((u64::from(u32::from_be_bytes([a, b, c, d])) * 100) >> 32).unwrap_or(0)
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
