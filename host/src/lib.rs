//! Triage: a WebAssembly policy host in front of an HTTP API.

pub mod admin;
mod authority;
pub mod bounded_file;
pub mod breaker;
pub mod clock;
pub mod config;
pub mod demo;
pub mod emulator;
pub mod entropy;
pub mod error;
mod flush_notice;
pub mod gate;
pub mod idempotency;
pub mod import;
#[doc(hidden)]
pub mod inputs;
pub mod overload;
pub mod pipeline;
pub mod policy;
pub mod preflight;
pub mod rate_limit;
pub mod registry;
pub mod retry;
pub mod rollout;
pub mod route;
pub mod secret;
pub mod server;
pub mod service;
pub mod settlement;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace;
mod units;
pub mod upstream;

pub use pipeline::{Host, HostError};

/// The book's page about the library: its example compiles and runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../docs/src/guide/library.md")]
struct LibraryPage;
