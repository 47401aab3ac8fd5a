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
                "this host starts without shared state and does not know the fleet's present policy: it uses its copy \
                 of the fleet's last policy, or without a copy the configured policy; it catches up once shared state \
                 answers",
            ),
            Self::Flawed => f.write_str(
                "the fleet's agreement in shared state was damaged; it was deleted, and the hosts have restored it \
                 from their copies: find out which other program writes below state.prefix",
            ),
            Self::Proposed(Proposed { digest, by, .. }) => {
                write!(
                    f,
                    "{} is announced to the fleet by {by}; it serves once every host has staged it",
                    digest.short()
                )
            }
            Self::Aborted(Aborted { digest, by, step, reason, .. }) => write!(
                f,
                "{} does not serve: host {by} refused it at step {step}: {reason}; the fleet keeps its policy",
                digest.short()
            ),
            Self::Serves { generation, chosen, why, by } => {
                write!(f, "the fleet's generation {generation} serves here, ")?;
                match chosen {
                    PolicyRef::Configured => f.write_str("the policy of each host's configuration")?,
                    PolicyRef::Artifact(digest) => f.write_str(&digest.short())?,
                }
                match why {
                    Why::Nothing => Ok(()),
                    Why::Announced => write!(f, "; {by} announced it"),
                    Why::Promoted => write!(f, "; {by} announced it although it was rolled back before"),
                    Why::Operator => write!(f, "; an operator rolled back to it at {by}"),
                    Why::Fault => write!(f, "; the previous generation failed at {by} and is quarantined"),
                }
            }
            Self::Behind { generation, digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "this host is behind: the fleet's generation {generation} ({}) does not serve here, step {}: \
                     {reason}; the host retries",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotStaged { digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "{} is announced, but this host could not stage it, step {}: {reason}",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotKept { digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "{}, the fleet's fallback, could not be loaded here, step {}: {reason}",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotRolledBack { generation } => write!(
                f,
                "generation {generation} failed here, and the fleet has no earlier one: each host decides for itself; \
                 announce a better component"
            ),
        }
    }
}
