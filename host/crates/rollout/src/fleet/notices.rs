//! Reports to operators about a fleet's policy.

use super::{Aborted, PolicyRef, Proposed, Why, staging::Unstaged};
use crate::policy::Digest;
use std::fmt;

/// A report to operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    StateUnknown,
    Flawed,
    Proposed(Proposed),
    Aborted(Aborted),
    Serves { generation: u64, chosen: PolicyRef, why: Why, by: String },
    Behind { generation: u64, digest: Digest, why: Unstaged },
    NotStaged { digest: Digest, why: Unstaged },
    NotKept { digest: Digest, why: Unstaged },
    NotRolledBack { generation: u64 },
}

impl Notice {
    /// The kind of the host event.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Flawed => "policy-flawed",
            Self::Proposed(_) => "policy-announced",
            Self::Aborted(_) => "policy-aborted",
            Self::Serves { .. } => "policy-switched",
            Self::StateUnknown
            | Self::Behind { .. }
            | Self::NotStaged { .. }
            | Self::NotKept { .. }
            | Self::NotRolledBack { .. } => "policy-behind",
        }
    }

    /// Whether the report is good news, logged as information.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Proposed(_) | Self::Serves { why: Why::Nothing | Why::Announced | Why::Promoted, .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateUnknown => f.write_str(
                "this host starts without having heard what serves its fleet: with what it remembers of it, else with \
                 what its configuration names; it catches up once shared state answers",
            ),
            Self::Flawed => f.write_str(
                "shared state held something else than the fleet's agreement; it was thrown away, and what the hosts \
                 know is there again: find out who else writes below state.prefix",
            ),
            Self::Proposed(Proposed { digest, by, .. }) => {
                write!(f, "{} is announced to the fleet by {by}; it serves once every host has it", digest.short())
            }
            Self::Aborted(Aborted { digest, by, step, reason, .. }) => write!(
                f,
                "{} does not serve: host {by} refused it at step {step}: {reason}; the fleet stays as it is",
                digest.short()
            ),
            Self::Serves { generation, chosen, why, by } => {
                write!(f, "the fleet's generation {generation} serves here, ")?;
                match chosen {
                    PolicyRef::Configured => f.write_str("as each host's configuration has it")?,
                    PolicyRef::Artifact(digest) => f.write_str(&digest.short())?,
                }
                match why {
                    Why::Nothing => Ok(()),
                    Why::Announced => write!(f, "; {by} announced it"),
                    Why::Promoted => write!(f, "; {by} announced it although it was rolled back before"),
                    Why::Operator => write!(f, "; an operator went back to it at {by}"),
                    Why::Fault => write!(f, "; the one before it failed at {by} and is quarantined"),
                }
            }
            Self::Behind { generation, digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "this host is behind: the fleet's generation {generation} ({}) does not serve here, step {}: {reason}; \
                     it is tried again",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotStaged { digest, why } => {
                let (step, reason) = why.parts();
                write!(f, "{} is announced, but not to be had here, step {}: {reason}", digest.short(), step.name())
            }
            Self::NotKept { digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "{}, which the fleet would go back to, is not to be had here, step {}: {reason}",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotRolledBack { generation } => write!(
                f,
                "generation {generation} failed here, and the fleet has none before it: each host decides for itself; \
                 announce a component that serves better"
            ),
        }
    }
}
