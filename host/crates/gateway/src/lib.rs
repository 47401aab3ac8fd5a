//! The gateway: the life of a request from its head to its response.
//!
//! | module | does |
//! |---|---|
//! | [`host`] | builds, reloads and drains a host: all upstreams and the state that they share |
//! | [`pipeline`] | takes a request from its head to its response |
//! | [`tls`] | accepts TLS on the host's own listeners |
//! | [`authority`] | checks whether a request was meant for this listener |

pub mod authority;
pub mod host;
pub mod pipeline;
pub mod tls;

pub use host::{Host, HostError, Shared};

use triage_admission as admission;
use triage_bounded_file as bounded_file;
use triage_config as config;
use triage_core::{breaker, clock, error_chain, rate_limit, retry, rng, route, secret};
use triage_decision_log as decision_log;
use triage_engine as policy;
use triage_overload as overload;
use triage_problem as error;
use triage_registry as registry;
use triage_rollout as rollout;
use triage_settlement as settlement;
use triage_state::{self as state, idempotency};
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;
use triage_upstream::{self as upstream, flush_notice};
use triage_upstream_runtime as upstream_runtime;
