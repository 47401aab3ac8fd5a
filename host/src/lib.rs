//! Triage: a WebAssembly policy host in front of an HTTP API.
//!
//! The package holds the program, the listener ([`server`]) and the demo. The rooms below are crates of their own, each with one purpose;
//! cargo forbids cycles between them:
//!
//! ```text
//! core <- engine, upstream <- problem <- telemetry <- state <- state-redis
//!      <- overload, registry, settlement, config
//!      <- admission <- upstream-runtime <- decision-log <- rollout
//!      <- gateway <- admin <- triage
//! ```
//!
//! [`Host`] is the way in for a program that embeds the gateway: build it from [`config`], and call it with requests.

pub mod demo;
#[doc(hidden)]
pub mod fuzz_inputs;
pub mod preflight;
pub mod server;

pub use triage_admin as admin;
pub use triage_admission as admission;
pub use triage_bounded_file as bounded_file;
pub use triage_config as config;
pub use triage_core::{breaker, clock, rate_limit, retry, rng, route, secret, units};
pub use triage_decision_log as decision_log;
pub use triage_engine as policy;
pub(crate) use triage_gateway::authority;
pub use triage_gateway::{Host, HostError, host, pipeline, tls};
pub use triage_hospital::{emulator, import};
pub use triage_overload as overload;
pub use triage_problem as error;
pub use triage_registry as registry;
pub use triage_rollout as rollout;
pub use triage_settlement as settlement;
pub use triage_state as state;
pub use triage_state::idempotency;
pub use triage_telemetry as telemetry;
pub use triage_upstream as upstream;
pub(crate) use triage_upstream::flush_notice;
pub use triage_upstream_runtime as upstream_runtime;

/// The stores that keep state.
pub mod store {
    pub use triage_state::{local_fallback, memory};
    pub use triage_state_redis as redis;
}

/// The book's page about the library: a doctest compiles and runs its example.
#[cfg(doctest)]
#[doc = include_str!("../docs/src/guide/library.md")]
struct LibraryPage;
