//! Generations of a policy at runtime: dropped in, staged, swapped, watched, and rolled back where one fails.
//!
//! file -> [`stage`] (every check, off the request threads) -> [`UpstreamPolicy::install`] (one swap) -> [`crate::upstream_runtime::Probation`] -> good, or
//! back to the last good one. Requests under way end in the generation they began in.

mod candidate;
mod context;
mod event;
pub mod fleet;
mod shadow;
mod stage;
mod upstream_policy;
mod watcher;

pub use candidate::{Candidate, CandidateReport, Difference, VerdictSummary};
pub(crate) use context::Context;
pub use event::Event;
pub use shadow::{Case, Shadow};
pub(crate) use stage::told;
pub use stage::{Refused, begin, stage};
pub use upstream_policy::{NotDone, PolicyRole, PolicyStatus, Reconfigured, UpstreamPolicy};
pub(crate) use watcher::{Identity, identity};
pub use watcher::{PolicyWatcher, WatchError};
