//! Triage: a WebAssembly policy host in front of an HTTP API.

pub mod breaker;
pub mod clock;
pub mod config;
pub mod entropy;
pub mod idempotency;
pub mod policy;
pub mod rate_limit;
pub mod retry;
pub mod store;
pub mod upstream;
