//! The gateway: the life of a request, and the policies that decide in it.
//!
//! | module | does |
//! |---|---|
//! | [`host`] | builds, reloads and drains a host |
//! | [`pipeline`] | takes a request from its head to its response |
//! | [`admission`] | asks the breaker and the limits of a group, in memory or shared |
//! | [`upstream_runtime`] | holds one upstream with one generation of its policy |
//! | [`rollout`] | loads, checks, swaps and withdraws policies, on this host and in a fleet |
//! | [`decision_log`] | records decisions and replays them through another policy |

pub mod admission;
pub mod authority;
pub mod decision_log;
pub mod host;
pub mod pipeline;
pub mod rollout;
pub mod tls;
pub mod upstream_runtime;

pub use host::{Host, HostError, Shared};

use triage_bounded_file as bounded_file;
use triage_config as config;
use triage_core::{breaker, clock, rate_limit, retry, rng, route, secret};
use triage_engine as policy;
use triage_overload as overload;
use triage_problem as error;
use triage_registry as registry;
use triage_settlement as settlement;
use triage_state::{self as state, idempotency};
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;
use triage_upstream::{self as upstream, flush_notice};
