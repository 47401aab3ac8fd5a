//! What happened to a policy, for the log and for operators.

use crate::{policy::Digest, upstream_runtime::StagePhase};
use std::{fmt, path::PathBuf};

/// What happened to an upstream's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A generation serves.
    Installed {
        /// Its number.
        generation: u64,
        /// Its digest; none for the native policy.
        digest: Option<Digest>,
        /// The keys to set where it may settle unknown writes only once the operator says so.
        ungranted: Vec<String>,
    },
    /// A component was refused; the generation before goes on.
    Refused {
        /// The file.
        file: PathBuf,
        /// The digest, as far as it was read.
        digest: Option<Digest>,
        /// At which step.
        step: StagePhase,
        /// Why, and what to do.
        reason: String,
    },
    /// A candidate is being tried.
    Tried {
        /// Its digest; none for the native policy.
        digest: Option<Digest>,
        /// As a canary: for how many requests of a hundred; none in shadow.
        share_percent: Option<u32>,
    },
    /// A candidate failed too often and is tried no more; its digest is not taken again.
    GivenUp {
        /// Its digest.
        digest: Option<Digest>,
        /// Faults.
        faults: u32,
        /// Of so many decisions.
        decisions: u32,
        /// What the last fault was.
        last: String,
    },
    /// A generation has proven itself.
    Good {
        /// Its number.
        generation: u64,
    },
    /// A generation failed too often and was taken out of service; its digest is not taken again.
    RolledBack {
        /// Its number.
        generation: u64,
        /// Its digest.
        digest: Option<Digest>,
        /// Which generation's policy serves now; none: the built-in policy decides.
        to: Option<u64>,
        /// Faults.
        faults: u32,
        /// Of so many decisions.
        decisions: u32,
        /// What the last fault was.
        last: String,
    },
    /// An operator, or the fleet, took a generation out of service; its digest is not taken again.
    Withdrawn {
        /// Its number.
        generation: u64,
        /// Its digest.
        digest: Option<Digest>,
        /// Which generation's policy serves now; none: the built-in one decides.
        to: Option<u64>,
        /// Who.
        by: &'static str,
    },
}

impl Event {
    /// Its kind among a host's events.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Installed { .. } => "policy-installed",
            Self::Refused { .. } => "policy-refused",
            Self::Good { .. } => "policy-good",
            Self::RolledBack { .. } => "policy-rolled-back",
            Self::Tried { .. } => "candidate-tried",
            Self::GivenUp { .. } => "candidate-given-up",
            Self::Withdrawn { .. } => "policy-withdrawn",
        }
    }
}

/// A digest's short form, or `-`.
struct Short(Option<Digest>);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(digest) => f.write_str(&digest.short()),
            None => f.write_str("-"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { generation, digest, ungranted } => {
                write!(f, "generation {generation} ({}) serves", Short(*digest))?;
                if !ungranted.is_empty() {
                    f.write_str("; it may not settle unknown writes until you trust it to: set ")?;
                    for (index, key) in ungranted.iter().enumerate() {
                        write!(f, "{}`{key} = true`", if index > 0 { ", " } else { "" })?;
                    }
                    f.write_str(" and start again")?;
                }
                Ok(())
            }
            Self::Refused { file, digest, step, reason } => write!(
                f,
                "{} ({}) was refused at step {}: {reason}; the generation before it goes on",
                file.display(),
                Short(*digest),
                step.name()
            ),
            Self::Tried { digest, share_percent } => {
                write!(f, "candidate {} ", Short(*digest))?;
                match share_percent {
                    None => f.write_str("decides in shadow: its verdicts are only compared"),
                    Some(share) => write!(f, "decides for {share} % of the requests"),
                }
            }
            Self::GivenUp { digest, faults, decisions, last } => write!(
                f,
                "candidate {} failed {faults} of {decisions} decisions, at last: {last}; it decides no more; the component is \
                 quarantined: mend it and drop it in again",
                Short(*digest)
            ),
            Self::Good { generation } => write!(f, "generation {generation} has proven itself"),
            Self::Withdrawn { generation, digest, to, by } => {
                write!(f, "generation {generation} ({}) was withdrawn by {by}; ", Short(*digest))?;
                match to {
                    Some(to) => write!(f, "the policy of generation {to} serves")?,
                    None => f.write_str("there is no other good one, and the built-in policy decides")?,
                }
                f.write_str(", and the component is quarantined")
            }
            Self::RolledBack { generation, digest, to, faults, decisions, last } => {
                let digest = Short(*digest);
                write!(
                    f,
                    "generation {generation} ({digest}) failed {faults} of {decisions} decisions, at last: {last}; "
                )?;
                match to {
                    Some(to) => write!(f, "the policy of generation {to} serves again")?,
                    None => f.write_str("the built-in policy decides")?,
                }
                f.write_str("; the component is quarantined: mend it and drop it in again")
            }
        }
    }
}
