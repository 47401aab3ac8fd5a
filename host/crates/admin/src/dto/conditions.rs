//! The JSON objects of conditions: see [`crate::conditions`].

use serde::Serialize;
use utoipa::ToSchema;

/// The kinds of condition, the most urgent first within a severity.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum ConditionId {
    /// The host is not ready for requests.
    NotReady,
    /// Shared state cannot be reached.
    StateDown,
    /// Shared state refuses this host's name or password.
    StateUnauthorized,
    /// Shared state refuses calls: it is full, or this host lacks a permission.
    StateRefuses,
    /// The host has reached its memory limit.
    MemoryFull,
    /// The host has no file descriptor left.
    DescriptorsExhausted,
    /// A policy no longer serves; the built-in policy decides.
    PolicySuspended,
    /// A breaker is open.
    BreakerOpen,
    /// The upstream is overloaded: the host refuses requests.
    UpstreamOverloaded,
    /// The host refuses requests.
    RequestsRefused,
    /// The upstream fails.
    RequestsFailing,
    /// A breaker is half-open.
    BreakerHalfOpen,
    /// An operator forced a breaker open or closed.
    BreakerForced,
    /// The upstream asked for a pause.
    UpstreamPaused,
    /// The upstream throttles: the adaptive rate is below the limits.
    UpstreamThrottles,
    /// Writes have an unknown effect.
    WritesUnsettled,
    /// Shared state has lost data.
    StateLostData,
    /// Calls to shared state fail or time out.
    StateSlow,
    /// Shared state deletes data when its memory is full.
    StateEvicts,
    /// A policy failed too often and was rolled back.
    PolicyRolledBack,
    /// An operator or the fleet withdrew a policy.
    PolicyWithdrawn,
    /// A component was refused.
    PolicyRefused,
    /// A candidate failed too often.
    CandidateGivenUp,
    /// This host serves another policy than its fleet.
    FleetBehind,
    /// Other hosts of the fleet serve another policy.
    FleetHostBehind,
    /// The configuration was refused at the last reload.
    ReloadRefused,
    /// A peer has reached its share of the connections.
    PeerLimited,
    /// Traces are dropped.
    TracesDropped,
}

impl ConditionId {
    /// The name in the API and in the metric.
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }
}

/// How urgent a condition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Severity {
    /// Requests are refused or fail, or soon will.
    Critical,
    /// The host works, with less protection or less freedom than it should have.
    Warning,
}

impl Severity {
    /// The name in the API and in the metric.
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }
}

/// Something that an operator should know now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Condition {
    #[schema(inline)]
    pub(crate) id: ConditionId,
    #[schema(inline)]
    pub(crate) severity: Severity,
    /// `host`, an upstream, or `upstream/group` for a breaker.
    pub(crate) subject: String,
    /// Since when it holds, since 1970.
    pub(crate) since_unix_ms: u64,
    /// The fact, and its effect on requests.
    pub(crate) text: String,
    /// What to do.
    pub(crate) remedy: String,
}
