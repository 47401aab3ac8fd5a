//! Triage: a WebAssembly policy host in front of an HTTP API.

pub mod breaker;
pub mod clock;
pub mod config;
pub mod emulator;
pub mod entropy;
pub mod error;
pub mod idempotency;
pub mod import;
pub mod policy;
pub mod rate_limit;
pub mod retry;
pub mod route;
pub mod upstream;
