//! Generations of a policy at runtime: dropped in, staged, swapped, watched, and rolled back where one fails.
//!
//! file -> [`stage`] (every check, off the request threads) -> [`Serving::install`] (one swap) -> [`crate::service::Probation`] -> good, or
//! back to the last good one. Requests under way end in the generation they began in.

mod candidate;
mod context;
mod event;
pub mod fleet;
mod folder;
mod serving;
mod shadow;
mod stage;

pub use candidate::{Candidate, CandidateReport, Difference, Gist};
pub(crate) use context::Context;
pub use event::Event;
pub(crate) use folder::{Identity, identity};
pub use folder::{Watch, WatchError};
pub use serving::{NotDone, Reconfigured, Serving, Slot, View};
pub use shadow::{Case, Shadow};
pub(crate) use stage::told;
pub use stage::{Refused, begin, stage};
