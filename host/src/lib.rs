//! Triage: a WebAssembly policy host in front of an HTTP API.

pub mod admin;
pub mod admission;
mod authority;
pub mod bounded_file;
pub mod breaker;
pub mod clock;
pub mod config;
pub mod decision_log;
pub mod demo;
pub mod emulator;
pub mod error;
mod flush_notice;
#[doc(hidden)]
pub mod fuzz_inputs;
pub mod idempotency;
pub mod import;
pub mod overload;
pub mod pipeline;
pub mod policy;
pub mod preflight;
pub mod rate_limit;
pub mod registry;
pub mod retry;
pub mod rng;
pub mod rollout;
pub mod route;
pub mod secret;
pub mod server;
pub mod settlement;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod tls;
mod units;
pub mod upstream;
pub mod upstream_runtime;

pub use pipeline::{Host, HostError};

/// The book's page about the library: a doctest compiles and runs its example.
#[cfg(doctest)]
#[doc = include_str!("../docs/src/guide/library.md")]
struct LibraryPage;
