//! Generations of a policy at runtime: dropped in, staged, swapped, watched, and rolled back where one fails.
//!
//! file -> [`stage`] (every check, off the request threads) -> [`Serving::install`] (one swap) -> [`Probation`] -> good, or
//! back to the last good one. Requests under way end in the generation they began in.

mod event;
mod folder;
mod probation;
mod serving;
mod stage;

pub use event::{Event, Step};
pub use folder::{Watch, WatchError};
pub use probation::{Judgement, Probation};
pub use serving::{NotDone, Serving, View};
pub use stage::{Refused, stage};
