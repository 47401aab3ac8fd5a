//! What happened to a policy, for the log and for operators.

use crate::policy::Digest;
use std::{fmt, path::PathBuf};

/// The step of a load at which a component was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading the file.
    Read,
    /// It was rolled back before.
    Quarantine,
    /// Everything up to `configure`: size, format, imports, exports, description, settings.
    Load,
    /// Its golden cases.
    Cases,
    /// Its endpoints and the configuration.
    Configuration,
}

impl Step {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Quarantine => "quarantine",
            Self::Load => "load",
            Self::Cases => "cases",
            Self::Configuration => "configuration",
        }
    }
}

/// What happened to an upstream's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A generation serves.
    Installed {
        /// Its number.
        generation: u64,
        /// Its digest; none for the native policy.
        digest: Option<Digest>,
        /// Endpoints where it may not settle unknown writes.
        ungranted: usize,
    },
    /// A component was refused; the generation before goes on.
    Refused {
        /// The file.
        file: PathBuf,
        /// The digest, as far as it was read.
        digest: Option<Digest>,
        /// At which step.
        step: Step,
        /// Why, and what to do.
        reason: String,
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
    },
    /// An operator took a generation out of service; its digest is not taken again.
    Withdrawn {
        /// Its number.
        generation: u64,
        /// Its digest.
        digest: Option<Digest>,
        /// Which generation's policy serves now.
        to: u64,
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
                if *ungranted > 0 {
                    write!(
                        f,
                        "; it may not settle unknown writes on {ungranted} endpoints: set `settle = true` there to trust it"
                    )?;
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
            Self::Good { generation } => write!(f, "generation {generation} has proven itself"),
            Self::Withdrawn { generation, digest, to } => write!(
                f,
                "generation {generation} ({}) was withdrawn by an operator; the policy of generation {to} serves, and the \
                 component is quarantined",
                Short(*digest)
            ),
            Self::RolledBack { generation, digest, to, faults, decisions } => {
                write!(f, "generation {generation} ({}) failed {faults} of {decisions} decisions; ", Short(*digest))?;
                match to {
                    Some(to) => write!(f, "the policy of generation {to} serves again")?,
                    None => f.write_str("the built-in policy decides")?,
                }
                f.write_str("; the component is quarantined: mend it and drop it in again")
            }
        }
    }
}
