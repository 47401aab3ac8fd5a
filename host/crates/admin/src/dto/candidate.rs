//! The JSON object of a candidate's trial.

use crate::{
    config::settings::Mode as ConfiguredMode,
    rollout::{CandidateReport, Component, DifferenceGroup, TrialCounts, TrialState, UpstreamPolicy},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The trial of an upstream's candidate on this host.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Candidate {
    pub(crate) source: String,
    #[schema(inline)]
    pub(crate) mode: Mode,
    /// The share of requests that a canary decides for, in percent; null in shadow.
    pub(crate) share_percent: Option<u32>,
    #[schema(inline)]
    pub(crate) state: State,
    /// The policy's name; null before the first trial.
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    /// The component's digest; null for the built-in policy, and before the first trial.
    pub(crate) digest: Option<String>,
    /// The start of the trial, since 1970.
    pub(crate) began_unix_ms: Option<u64>,
    /// Decisions of the candidate, with faults.
    pub(crate) decisions: u64,
    /// Decisions that were compared with the live policy's: all in shadow, none of a canary.
    pub(crate) compared: u64,
    /// Compared decisions that were different.
    pub(crate) differed: u64,
    /// Outcomes that the candidate did not see: its queue was full, or it wants more of the body than was read.
    pub(crate) skipped: u64,
    /// Decisions that failed. In shadow a fault is a difference too.
    pub(crate) faults: u64,
    /// The differences in groups, the most frequent first.
    #[schema(max_items = 64)]
    pub(crate) differences: Vec<DifferenceDto>,
    /// Differences beyond these groups.
    pub(crate) ungrouped: u64,
}

/// How a candidate is tried.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = CandidateMode)]
pub(crate) enum Mode {
    Shadow,
    Canary,
}

/// How far a trial is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = CandidateState)]
pub(crate) enum State {
    /// There is no component yet.
    Missing,
    OnTrial,
    /// A thousand decisions or more, none of which differed or failed.
    Ready,
    /// It failed too often, and no longer decides.
    GivenUp,
}

/// Outcomes about which the candidate decided differently.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Difference)]
pub(crate) struct DifferenceDto {
    pub(crate) endpoint: String,
    /// The upstream's status, or the failure's name.
    pub(crate) outcome: String,
    /// The live policy's decision: class, breaker signal and next action.
    pub(crate) live: String,
    /// The candidate's decision, or its fault.
    pub(crate) candidate: String,
    pub(crate) count: u64,
    /// Time of the latest, since 1970.
    pub(crate) latest_unix_ms: u64,
}

/// An upstream's candidate; none if it has none.
pub(super) fn of(serving: &UpstreamPolicy) -> Option<Candidate> {
    let candidate = serving.candidate.as_ref()?;
    let settings = &candidate.settings;
    let CandidateReport { state, component, counts, skipped, groups, ungrouped } = candidate.report();
    let TrialCounts { decisions, compared, differed, faults } = counts;
    let began_unix_ms = component.as_ref().map(|own| serving.clock.unix_ms_at(own.began));
    let (named, digest) = component.map(|Component { name, version, digest, .. }| ((name, version), digest)).unzip();
    let (name, version) = named.unzip();
    let group = |DifferenceGroup { difference, count, latest }: DifferenceGroup| DifferenceDto {
        endpoint: difference.endpoint,
        outcome: difference.outcome,
        live: difference.live,
        candidate: difference.candidate,
        count,
        latest_unix_ms: serving.clock.unix_ms_at(latest),
    };
    Some(Candidate {
        source: settings.policy.to_string(),
        mode: match settings.mode {
            ConfiguredMode::Shadow => Mode::Shadow,
            ConfiguredMode::Canary => Mode::Canary,
        },
        share_percent: (settings.mode == ConfiguredMode::Canary).then_some(settings.share_percent),
        state: match state {
            TrialState::Missing => State::Missing,
            TrialState::OnTrial => State::OnTrial,
            TrialState::Ready => State::Ready,
            TrialState::GivenUp => State::GivenUp,
        },
        name,
        version,
        digest: digest.flatten().map(|digest| digest.to_string()),
        began_unix_ms,
        decisions,
        compared,
        differed,
        skipped,
        faults,
        differences: groups.into_iter().map(group).collect(),
        ungrouped,
    })
}
