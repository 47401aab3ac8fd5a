//! Integration tests: one binary, a module a feature.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod hostile;
mod idempotency;
mod layers;
mod prebuilt;
mod process;
mod proxy;
mod refusals;
mod settling;
mod support;
mod vectors;
