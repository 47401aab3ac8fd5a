//! Integration tests: one binary, with one module per feature.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod abuse;
mod admin;
mod book;
mod candidate;
mod contracts;
mod deploy;
mod fhir;
mod fleet;
mod fuzz_inputs;
mod hostile;
mod idempotency;
mod layers;
mod metrics;
mod orphans;
mod page;
mod prebuilt;
mod process;
mod proxy;
mod refusals;
mod registry;
mod reload;
mod settlement;
mod settling;
mod signatures;
mod spans;
mod structure;
mod support;
mod ten_faults;
mod traces;
mod upstream_key;
mod vectors;
mod waits;
