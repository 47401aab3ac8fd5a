//! The JSON object for a fleet's choice of an upstream's policy.

use crate::{
    clock::millis,
    rollout::fleet::Report,
    state::rollout::{self, Aborted, PolicyRef, Proposed},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The fleet's generation, and the state of each host.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetPolicy)]
pub(crate) struct Fleet {
    /// This host's name.
    pub(crate) host: String,
    /// 0 before the first command to the fleet.
    generation: u64,
    /// Null: each host serves what its configuration names.
    digest: Option<String>,
    #[schema(inline)]
    why: Why,
    /// The host that issued the command.
    by: Option<String>,
    #[schema(inline)]
    pub(crate) phase: Phase,
    /// Whether this host serves another policy than the fleet's.
    pub(crate) behind: bool,
    /// Why this host serves another policy.
    pub(crate) why_behind: Option<String>,
    proposal: Option<Proposal>,
    /// The last proposal that was aborted.
    aborted: Option<Abort>,
    pub(crate) hosts: Vec<Host>,
    /// Digests that the fleet does not serve again by itself.
    quarantined: Vec<String>,
}

/// The command that set the fleet's generation.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Why {
    None,
    Announced,
    Promoted,
    Operator,
    Fault,
}

/// The phase of the fleet's agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    Unreachable,
    Staging,
    Agreed,
}

/// A component that the fleet stages.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetProposal)]
struct Proposal {
    /// Distinguishes proposals of the same component.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    id: String,
    digest: String,
    by: String,
    /// Remaining time to wait for hosts.
    left_ms: u64,
}

/// A proposal that was aborted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetAbort)]
struct Abort {
    #[schema(pattern = "^[0-9a-f]{16}$")]
    id: String,
    digest: String,
    by: String,
    step: String,
    reason: String,
}

/// A host of the fleet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FleetHost)]
pub(crate) struct Host {
    pub(crate) name: String,
    generation: u64,
    pub(crate) behind: bool,
    /// Whether the host has staged the proposal.
    staged: bool,
    /// Time since the host last reported.
    silent_ms: u64,
}

pub(crate) fn of(report: &Report) -> Fleet {
    let Report { host, state, view, is_current, behind, why_behind } = report;
    let proposed = view.proposed.as_ref();
    Fleet {
        host: host.clone(),
        generation: state.generation,
        digest: match state.chosen {
            PolicyRef::Configured => None,
            PolicyRef::Artifact(digest) => Some(digest.to_string()),
        },
        why: match state.why {
            rollout::Why::Nothing => Why::None,
            rollout::Why::Announced => Why::Announced,
            rollout::Why::Promoted => Why::Promoted,
            rollout::Why::Operator => Why::Operator,
            rollout::Why::Fault => Why::Fault,
        },
        by: Some(state.by.clone()).filter(|by| !by.is_empty()),
        phase: match (is_current, proposed) {
            (false, _) => Phase::Unreachable,
            (true, Some(_)) => Phase::Staging,
            (true, None) => Phase::Agreed,
        },
        behind: *behind,
        why_behind: why_behind.clone(),
        proposal: proposed.map(|Proposed { id, digest, by, left, .. }| Proposal {
            id: format!("{id:016x}"),
            digest: digest.to_string(),
            by: by.clone(),
            left_ms: millis(*left),
        }),
        aborted: view.aborted.as_ref().map(|Aborted { id, digest, by, step, reason }| Abort {
            id: format!("{id:016x}"),
            digest: digest.to_string(),
            by: by.clone(),
            step: step.clone(),
            reason: reason.clone(),
        }),
        hosts: view
            .hosts
            .iter()
            .map(|host| Host {
                name: host.name.clone(),
                generation: host.generation,
                behind: host.generation != state.generation,
                staged: proposed.is_some_and(|own| host.staged == Some(own.id)),
                silent_ms: millis(host.silent),
            })
            .collect(),
        quarantined: state.quarantined.iter().map(ToString::to_string).collect(),
    }
}
