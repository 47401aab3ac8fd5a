//! The JSON object for a fleet's choice of an upstream's policy.

use crate::{
    clock::millis,
    rollout::fleet::Report,
    state::rollout::{Aborted, PolicyRef, Proposed, Why},
};
use serde::Serialize;

/// The fleet's generation, and the state of each host.
#[derive(Debug, Serialize)]
pub(crate) struct Fleet {
    /// This host's name.
    host: String,
    /// 0 before the first command to the fleet.
    generation: u64,
    /// None: each host serves what its configuration names.
    digest: Option<String>,
    /// `none`, `announced`, `promoted`, `operator` or `fault`.
    why: &'static str,
    /// The host that issued the command.
    by: Option<String>,
    /// `unreachable`, `staging` or `agreed`.
    phase: &'static str,
    /// Whether this host serves another policy than the fleet's.
    behind: bool,
    why_behind: Option<String>,
    proposal: Option<Proposal>,
    /// The last proposal that was aborted.
    aborted: Option<Abort>,
    hosts: Vec<Host>,
    quarantined: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Proposal {
    /// Distinguishes proposals of the same component.
    id: String,
    digest: String,
    by: String,
    /// Time until the proposal stops waiting for hosts.
    left_ms: u64,
}

#[derive(Debug, Serialize)]
struct Abort {
    id: String,
    digest: String,
    by: String,
    step: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Host {
    name: String,
    generation: u64,
    behind: bool,
    /// Whether the host has staged the proposal.
    staged: bool,
    silent_ms: u64,
}

pub(crate) fn of(report: &Report) -> Fleet {
    let Report { host, standing, view, is_current, behind, why_behind } = report;
    let proposed = view.proposed.as_ref();
    Fleet {
        host: host.clone(),
        generation: standing.generation,
        digest: match standing.chosen {
            PolicyRef::Configured => None,
            PolicyRef::Artifact(digest) => Some(digest.to_string()),
        },
        why: match standing.why {
            Why::Nothing => "none",
            Why::Announced => "announced",
            Why::Promoted => "promoted",
            Why::Operator => "operator",
            Why::Fault => "fault",
        },
        by: Some(standing.by.clone()).filter(|by| !by.is_empty()),
        phase: match (is_current, proposed) {
            (false, _) => "unreachable",
            (true, Some(_)) => "staging",
            (true, None) => "agreed",
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
                behind: host.generation != standing.generation,
                staged: proposed.is_some_and(|own| host.staged == Some(own.id)),
                silent_ms: millis(host.silent),
            })
            .collect(),
        quarantined: standing.quarantined.iter().map(ToString::to_string).collect(),
    }
}
