//! The JSON objects of requests and responses, and the schemas of the `OpenAPI` document. Times are in milliseconds, shares from 0 to 1.

// The API fixes the names.
#![allow(clippy::struct_field_names)]

mod candidate;
mod conditions;
mod fleet;
mod groups;
pub(super) mod input;
mod policies;
mod timeline;

pub(super) use conditions::{Condition, ConditionId, Severity};
pub(super) use fleet::Phase as FleetPhase;
pub(super) use groups::{Breaker, BreakerState, Budget, Limits, Requests, Shared, groups};
pub(super) use policies::{Policy, Standing, policy};
pub(super) use timeline::{Request, Summary, request, summary};

use super::AdminState;
use crate::{Host, clock::millis, config::settings, idempotency::Unsettled, rollout::UpstreamPolicy, telemetry};
use serde::Serialize;
use utoipa::ToSchema;

/// Whether the host is ready.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) why: Option<&'static str>,
}

/// The host.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The host's version.
    pub(super) version: &'static str,
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) unready: Option<&'static str>,
    /// Everything that an operator should know now, the most severe first. While the list is empty, no breaker, limit, budget or overload
    /// control refuses requests, and fewer than 1 % fail. Refusals of a single request, such as `key-reused`, are no condition.
    pub(super) conditions: Vec<Condition>,
    /// The host's clock, since 1970.
    pub(super) unix_ms: u64,
    /// Time of the start, since 1970.
    pub(super) started_unix_ms: u64,
    pub(super) uptime_ms: u64,
    /// Threads that accept connections.
    pub(super) workers: usize,
    /// `memory` or `shared`.
    pub(super) state: &'static str,
    pub(super) upstreams: Vec<Upstream>,
}

/// An upstream.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) base_url: String,
    pub(super) policy: String,
    pub(super) generation: u64,
    /// The number of endpoints.
    pub(super) endpoints: usize,
    /// The number of breakers that are not closed.
    pub(super) breakers_open: usize,
}

/// A record of a write with unknown effect.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Record {
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub(super) id: String,
    /// Null if this record has no send of its own: the first send went through another host, which lost its record.
    pub(super) upstream: Option<String>,
    pub(super) endpoint: Option<String>,
    /// Time since the write was sent.
    pub(super) sent_ms_ago: u64,
    /// Time until a host verifies it automatically; null if no host will.
    pub(super) verified_in_ms: Option<u64>,
}

/// A record that an operator has settled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Settled {
    pub(super) id: String,
    /// `applied` or `not-applied`.
    pub(super) settled: &'static str,
}

/// A recent event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Event {
    /// Consecutive number, from 1.
    number: u64,
    /// Time of the event, since 1970.
    unix_ms: u64,
    kind: &'static str,
    /// An upstream, or `upstream/group` for a breaker.
    subject: String,
    text: String,
}

impl From<telemetry::Event> for Event {
    fn from(event: telemetry::Event) -> Self {
        let telemetry::Event { number, unix_ms, kind, subject, text } = event;
        Self { number, unix_ms, kind, subject, text }
    }
}

pub(super) fn status(state: &AdminState, conditions: Vec<Condition>) -> Status {
    let unready = state.unready();
    let now = state.host.shared.clock.unix_ms();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        ready: unready.is_none(),
        unready,
        conditions,
        unix_ms: now,
        started_unix_ms: state.started_unix_ms,
        uptime_ms: now.saturating_sub(state.started_unix_ms),
        workers: state.lifecycle.workers(),
        state: match state.settings.load().state {
            settings::State::Memory => "memory",
            settings::State::Shared(_) => "shared",
        },
        upstreams: state.host.shared.rollout.upstreams.iter().map(|serving| upstream(&state.host, serving)).collect(),
    }
}

pub(super) fn record(own: Unsettled) -> Record {
    let (upstream, endpoint) = own.endpoint.unzip();
    let verified_in_ms = own.verified_in.map(millis);
    Record { id: own.id.to_string(), upstream, endpoint, sent_ms_ago: millis(own.sent_ago), verified_in_ms }
}

pub(super) fn upstream(host: &Host, serving: &UpstreamPolicy) -> Upstream {
    let service = serving.current();
    let open = groups(&service, &host.shared.events)
        .iter()
        .filter(|group| group.breaker().state != groups::BreakerState::Closed)
        .count();
    Upstream {
        name: serving.settings.name.clone(),
        base_url: serving.settings.connection.base_url.to_string(),
        policy: service.policy.label().to_str().unwrap_or_default().to_owned(),
        generation: service.generation,
        endpoints: service.endpoints.len(),
        breakers_open: open,
    }
}

/// The upstream with this name.
pub(super) fn serving<'a>(host: &'a Host, name: &str) -> Option<&'a UpstreamPolicy> {
    host.shared.rollout.upstreams.iter().find(|serving| serving.settings.name == name).map(AsRef::as_ref)
}
