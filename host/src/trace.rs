//! Decision traces: what a policy was shown and what it said, recorded from a running host and replayed through a candidate.
//!
//! A trace is JSON, a line each. A [`Head`] says which policy judged and what it reads; a [`Decision`] is one outcome with the
//! verdict on it; a [`Gap`] says that decisions are missing. Unless the operator asks for contents, nothing is written that a
//! caller or the upstream put in words: no header values but a plain `Retry-After`, no paths, no bodies, no claims. Where a
//! replay would need them, it counts the decision as not replayed, and compares nothing.

mod hand;
mod line;
mod place;
mod recorder;
mod replay;
mod report;
mod written;

pub use line::{Decision, FORMAT, Gap, Head, InvalidLine};
pub use recorder::{AlreadyRecording, Recorder, Recording, View};
pub use replay::{ReplayError, replay};
pub use report::{Difference, Missing, Report};
pub use written::{Judged, Shown};

#[cfg(test)]
mod tests;
