//! The interfaces of state that requests use, and the store that keeps state in this process.
//!
//! | module | holds |
//! |---|---|
//! | [`group`] | the contract of a group's breaker and limits with its store |
//! | [`rollout`] | the contract of a fleet's policies with shared state |
//! | [`idempotency`] | the contract of records with their store, and the guards that give records back |
//! | [`memory`] | all three contracts but the fleet's, in this process |
//! | [`local_fallback`] | records of this host while shared state does not answer |

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod group;
pub mod idempotency;
pub mod local_fallback;
pub mod memory;
pub mod rollout;

use triage_core::{breaker, clock, contract, digest, rate_limit, retry, rng, rounded};
use triage_telemetry as telemetry;
