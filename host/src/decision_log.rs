//! Decision traces: what a policy was shown and what it said, recorded from a running host and replayed through a candidate.
//!
//! A trace is JSON, a line each. A [`Head`] says which policy judged and what it reads; a [`Decision`] is one outcome with the
//! verdict on it; a [`Gap`] says that decisions are missing. Unless the operator asks for contents, nothing is written that a
//! caller or the upstream put in words: no header values but a plain `Retry-After`, no paths, no bodies, no claims. Where a
//! replay would need them, it counts the decision as not replayed, and compares nothing.

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
