//! Policy generations at runtime: a component is dropped in, staged, swapped in, put on probation, and rolled back if it fails.
//!
//! file -> [`stage`] (every check, off the request threads) -> [`UpstreamPolicy::install`] (one swap) ->
//! [`crate::upstream_runtime::Probation`] -> good, or rolled back to the last good generation. A request ends in the generation it began
//! in.

mod candidate;
mod context;
mod event;
pub mod fleet;
mod shadow;
mod stage;
mod upstream_policy;
mod watcher;

pub use candidate::{Candidate, CandidateReport, Difference, VerdictSummary};
pub use context::{Context, Parts};
pub use event::Event;
pub use shadow::{Case, Shadow};
pub(crate) use stage::told;
pub use stage::{Refused, stage};
pub use upstream_policy::{NotDone, PolicyRole, PolicyStatus, Reconfigured, UpstreamPolicy};
pub use watcher::{Identity, identity};
pub use watcher::{PolicyWatcher, WatchError};
