//! Events of a policy's life, for the log and for operators.

use crate::{
    candidate::{Difference, TrialCounts},
    policy::Digest,
    upstream_runtime::StagePhase,
};
use std::{fmt, path::PathBuf};

/// An event of an upstream's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A generation serves.
    Installed {
        /// The generation's number.
        generation: u64,
        /// The component's digest; none for the built-in policy.
        digest: Option<Digest>,
        /// Configuration keys to set before the policy may settle unknown writes; empty if it already may.
        ungranted: Vec<String>,
    },
    /// A component was refused; the previous generation keeps serving.
    Refused {
        /// The component's file.
        file: PathBuf,
        /// The component's digest; none if the file was not read.
        digest: Option<Digest>,
        /// The phase that failed.
        step: StagePhase,
        /// The cause, and the remedy.
        reason: String,
    },
    /// A candidate is on trial.
    Tried {
        /// The component's digest; none for the built-in policy.
        digest: Option<Digest>,
        /// The percentage of requests that a canary decides for; none in shadow.
        share_percent: Option<u32>,
    },
    /// A candidate decided differently from the live policy for the first time.
    Differed {
        /// The component's digest.
        digest: Option<Digest>,
        /// The outcome and both decisions.
        difference: Difference,
    },
    /// A candidate's trial has its decisions: the candidate is ready to promote if none differed and none failed.
    Completed {
        /// The component's digest.
        digest: Option<Digest>,
        /// The decisions so far.
        counts: TrialCounts,
    },
    /// A candidate failed too often; its trial has ended, and its digest is quarantined.
    GivenUp {
        /// The component's digest.
        digest: Option<Digest>,
        /// Faults in the window.
        faults: u32,
        /// Decisions in the window.
        decisions: u32,
        /// The last fault.
        last: String,
    },
    /// A generation has passed its probation.
    Good {
        /// The generation's number.
        generation: u64,
    },
    /// A generation failed too often and was rolled back; its digest is quarantined.
    RolledBack {
        /// The generation's number.
        generation: u64,
        /// The component's digest.
        digest: Option<Digest>,
        /// The generation whose policy serves now; none: the built-in policy decides.
        to: Option<u64>,
        /// Faults in the window.
        faults: u32,
        /// Decisions in the window.
        decisions: u32,
        /// The last fault.
        last: String,
    },
    /// An operator or the fleet withdrew a generation; its digest is quarantined.
    Withdrawn {
        /// The generation's number.
        generation: u64,
        /// The component's digest.
        digest: Option<Digest>,
        /// The generation whose policy serves now; none: the built-in policy decides.
        to: Option<u64>,
        /// "an operator" or "its fleet".
        by: &'static str,
    },
}

impl Event {
    /// The kind of the host event.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Installed { .. } => "policy-installed",
            Self::Refused { .. } => "policy-refused",
            Self::Good { .. } => "policy-good",
            Self::RolledBack { .. } => "policy-rolled-back",
            Self::Tried { .. } => "candidate-tried",
            Self::Differed { .. } => "candidate-differed",
            Self::Completed { counts, .. } if counts.is_ready() => "candidate-ready",
            Self::Completed { .. } => "candidate-not-ready",
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
                    f.write_str("; it may not settle unknown writes until you trust it: set ")?;
                    for (index, key) in ungranted.iter().enumerate() {
                        write!(f, "{}`{key} = true`", if index > 0 { ", " } else { "" })?;
                    }
                    f.write_str(", and send the host SIGHUP; no restart is needed")?;
                }
                Ok(())
            }
            Self::Refused { file, digest, step, reason } => write!(
                f,
                "{} ({}) was refused at step {}: {reason}; the previous generation continues to serve",
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
            Self::Differed { digest, difference } => {
                write!(f, "candidate {} decides differently for the first time: {difference}", Short(*digest))
            }
            Self::Completed { digest, counts } => {
                let TrialCounts { decisions, compared, differed, faults } = counts;
                let digest = Short(*digest);
                match (counts.is_ready(), *compared) {
                    (true, 0) => write!(
                        f,
                        "candidate {digest} is ready to promote: it decided {decisions} times without a fault"
                    )?,
                    (true, _) => write!(
                        f,
                        "candidate {digest} is ready to promote: it decided {decisions} times as the live policy did"
                    )?,
                    (false, 0) => {
                        write!(f, "candidate {digest} is not ready: {faults} of {decisions} decisions were faults")?;
                    }
                    (false, _) => write!(
                        f,
                        "candidate {digest} is not ready: {differed} of {compared} decisions differed from the live \
                         policy's, {faults} of them were faults; `triage policy list` shows the differences; if they \
                         are intended, promote the candidate all the same"
                    )?,
                }
                f.write_str("; to promote a candidate, copy its file over the live policy's")
            }
            Self::GivenUp { digest, faults, decisions, last } => write!(
                f,
                "candidate {} failed {faults} of {decisions} decisions, the last time: {last}; it no longer decides, \
                 and the component is quarantined: fix it and copy it into the folder again",
                Short(*digest)
            ),
            Self::Good { generation } => write!(f, "generation {generation} has passed its probation"),
            Self::Withdrawn { generation, digest, to, by } => {
                write!(f, "generation {generation} ({}) was withdrawn by {by}; ", Short(*digest))?;
                match to {
                    Some(to) => write!(f, "the policy of generation {to} serves")?,
                    None => f.write_str("there is no other good generation, and the built-in policy decides")?,
                }
                f.write_str(", and the component is quarantined")
            }
            Self::RolledBack { generation, digest, to, faults, decisions, last } => {
                let digest = Short(*digest);
                write!(
                    f,
                    "generation {generation} ({digest}) failed {faults} of {decisions} decisions, the last time: \
                     {last}; "
                )?;
                match to {
                    Some(to) => write!(f, "the policy of generation {to} serves again")?,
                    None => f.write_str("the built-in policy decides")?,
                }
                f.write_str("; the component is quarantined: fix it and copy it into the folder again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::KINDS;

    #[test]
    fn a_completed_trial_says_whether_the_candidate_is_ready_and_why_not() {
        let text = |compared, differed, faults| {
            let event =
                Event::Completed { digest: None, counts: TrialCounts { decisions: 1000, compared, differed, faults } };
            assert!(KINDS.contains(&event.kind()), "{}", event.kind());
            (event.kind(), event.to_string())
        };
        let promote = "; to promote a candidate, copy its file over the live policy's";
        for (compared, differed, faults, kind, said) in [
            (
                1000,
                0,
                0,
                "candidate-ready",
                "candidate - is ready to promote: it decided 1000 times as the live policy did",
            ),
            (0, 0, 0, "candidate-ready", "candidate - is ready to promote: it decided 1000 times without a fault"),
            (0, 0, 2, "candidate-not-ready", "candidate - is not ready: 2 of 1000 decisions were faults"),
            (
                1000,
                12,
                1,
                "candidate-not-ready",
                "candidate - is not ready: 12 of 1000 decisions differed from the live policy's, 1 of them were faults; \
                 `triage policy list` shows the differences; if they are intended, promote the candidate all the same",
            ),
        ] {
            assert_eq!(text(compared, differed, faults), (kind, format!("{said}{promote}")));
        }
    }
}
