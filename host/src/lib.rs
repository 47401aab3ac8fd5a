//! Triage: a WebAssembly policy host in front of an HTTP API.
//!
//! A program that embeds the gateway needs three things:
//!
//! - [`Host`], built from a [`config`]: it answers requests with breakers, limits, retries and idempotency records around each.
//! - [`HostService`] and [`HostLayer`]: the host as a tower service, and as a layer before a service of your own that calls the upstream.
//! - [`transport::Transport`]: another way to the upstream than the host's own HTTP clients.
//!
//! ```
//! use bytes::Bytes;
//! use std::sync::Arc;
//! use triage::{Clock, Host, Rng, config, emulator::{Emulator, InProcess, Options}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = config::for_upstream("http://hospital.invalid", "hospital-directory")?;
//! // In service: `Host::new`. Here the upstream is the emulator of the hospital directory, in this process.
//! let upstream = Arc::new(InProcess(Emulator::new(Options::default())));
//! let host = Host::with_transports(&settings, Clock::system(), Rng::system(), vec![upstream])?;
//! let response = host.call(http::Request::get("/hospitals/").body(Bytes::new())?).await;
//! assert_eq!(response.headers()["triage-verdict"], "applied");
//! # Ok(())
//! # }
//! ```
//!
//! The program `triage` is this package's binary: the listener, the demo and the command line. All else is in crates of their own, each
//! with one purpose; cargo forbids cycles between them:
//!
//! ```text
//! core <- engine, upstream <- problem <- telemetry <- state <- state-redis
//!      <- overload, registry, settlement, config
//!      <- admission <- upstream-runtime <- decision-log <- rollout
//!      <- gateway <- admin, hospital <- triage
//! ```

// For the program, its tests and the fuzz targets.
#[doc(hidden)]
pub mod demo;
#[doc(hidden)]
pub mod fuzz_inputs;
#[doc(hidden)]
pub mod preflight;
#[doc(hidden)]
pub mod server;
mod tower;

pub use tower::{HostLayer, HostService};
pub use triage_config as config;
pub use triage_core::{clock::Clock, rng::Rng};
pub use triage_gateway::{Host, HostError};
pub use triage_hospital::emulator;

/// The way to an upstream: what [`Host::with_transports`] takes, and the bodies of requests and responses.
pub mod transport {
    pub use triage_core::contract::{CertificateFact, CertificateNames, Failure, FailureKind, FailureReason};
    pub use triage_upstream::{Body, BoxError, Inbound, Outbound, OutboundBody, Transport, full};
}

use triage_admin as admin;
use triage_admission as admission;
use triage_core::{clock, error_chain, rng, route, secret};
use triage_decision_log as decision_log;
use triage_engine as policy;
use triage_gateway::{authority, host, pipeline, tls};
use triage_hospital::import;
use triage_overload as overload;
use triage_problem as error;
use triage_registry as registry;
use triage_rollout as rollout;
use triage_settlement as settlement;
use triage_state::idempotency;
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;
use triage_upstream::{self as upstream, flush_notice};
use triage_upstream_runtime as upstream_runtime;

/// The book's page about the library: a doctest compiles and runs its example.
#[cfg(doctest)]
#[doc = include_str!("../docs/src/guide/library.md")]
struct LibraryPage;
