//! Policy generations at runtime: a component is dropped in, staged, swapped in, put on probation, and rolled back if it fails.
//!
//! file -> [`stage`] (every check, off the request threads) -> [`UpstreamPolicy::install`] (one swap) ->
//! [`crate::upstream_runtime::Probation`] -> good, or rolled back to the last good generation. A request ends in the generation it began
//! in.

use triage_admission as admission;
use triage_bounded_file as bounded_file;
use triage_config as config;
use triage_core::{clock, error_chain, rng};
use triage_decision_log as decision_log;
use triage_engine as policy;
use triage_overload as overload;
use triage_registry as registry;
use triage_state as state;
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;
use triage_upstream_runtime as upstream_runtime;

mod candidate;
mod context;
mod event;
pub mod fleet;
mod shadow;
mod stage;
mod upstream_policy;
mod verdict_summary;
mod watcher;

pub use candidate::{Candidate, CandidateReport, Component, Difference, DifferenceGroup, TrialCounts, TrialState};
pub use context::{Context, Parts};
pub use event::Event;
pub use shadow::{Case, Shadow};
pub use stage::{Refused, stage};
pub use upstream_policy::{NotDone, PolicyRole, PolicyStatus, Reconfigured, UpstreamPolicy};
pub use verdict_summary::VerdictSummary;
pub use watcher::{Identity, identity};
pub use watcher::{PolicyWatcher, WatchError};
