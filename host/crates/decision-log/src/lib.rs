//! The decision log: inputs and verdicts of a policy, recorded from a running host and replayed through a candidate policy.
//!
//! A decision log has one JSON object per line. A [`Head`] describes the policy and what it reads; a [`Decision`] is one outcome with
//! its verdict; a [`Gap`] counts decisions that are missing. Unless the operator asks for contents, a log holds no text of a caller or
//! the upstream: no header values except plain retry hints such as `Retry-After`, no paths, no bodies, no claims. If a replay needs
//! them, it counts the decision as not replayed.

#[cfg(test)]
use triage_admission as admission;
#[cfg(test)]
use triage_config as config;
#[cfg(test)]
use triage_core::rng;
use triage_core::{clock, route};
use triage_engine as policy;
#[cfg(test)]
use triage_telemetry as telemetry;
use triage_upstream_runtime as upstream_runtime;

mod encode;
mod endpoint_match;
mod format;
mod inputs;
mod recorder;
mod replay;
mod report;

pub use encode::{DecisionInput, Judged};
pub use format::{Decision, FORMAT, Gap, Head, InvalidLine};
pub use recorder::{AlreadyRecording, Recorder, Recording, RecordingStatus};
pub use replay::{ReplayError, replay};
pub use report::{Difference, Missing, Report};

#[cfg(test)]
mod tests;
