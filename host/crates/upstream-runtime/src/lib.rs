//! One upstream in one generation of its policy: its endpoints with their effective settings, and its health. A reload makes a new
//! generation; a request stays with the generation it began in.
//!
//! | module | holds |
//! |---|---|
//! | `load` | reads or pulls a policy and checks it |
//! | `generation` | [`UpstreamRuntime`]: policy, endpoints and route table |
//! | `endpoint` | [`Endpoint`]: the settings and the admission group of one route |
//! | `probation` | [`Probation`]: decides whether a new policy stays, by its faults |
//! | `health` | [`Wakefulness`]: whether the upstream may be asleep |

use triage_admission as admission;
use triage_bounded_file as bounded_file;
use triage_config as config;
use triage_core::{clock, route};
use triage_engine as policy;
use triage_registry as registry;
use triage_state::{self as state, idempotency};
use triage_telemetry as telemetry;

mod endpoint;
mod error;
mod generation;
mod health;
mod load;
mod probation;
mod stage_phase;

pub use endpoint::Endpoint;
pub use error::ServiceError;
pub use generation::UpstreamRuntime;
pub use health::Wakefulness;
pub use load::checked;
pub use probation::{DecisionResult, Judgement, Probation};
pub use stage_phase::StagePhase;
