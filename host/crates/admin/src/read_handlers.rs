//! Handlers of requests that only read.

pub(super) mod groups;
pub(super) mod health;
pub(super) mod history;
pub(super) mod records;
mod request_filter;

use super::{
    AdminState,
    dto::{self, input::UpstreamPath},
    openmetrics::{Sources, scrape},
    response::{At, Json, Problem, Refusal},
};
use crate::{
    config,
    rollout::{TrialCounts, UpstreamPolicy},
    state_redis::RedisConnection,
};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;

/// This document.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    operation_id = "openapi",
    responses(
        (status = 200, description = "The OpenAPI document.", body = Object),
    ),
)]
pub(super) async fn openapi(State(state): State<AdminState>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], state.document).into_response()
}

/// The state of the host and its upstreams.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    operation_id = "status",
    responses(
        (status = 200, description = "The host.", body = dto::Status),
    ),
)]
pub(super) async fn status(State(state): State<AdminState>) -> Json<dto::Status> {
    Json(dto::status(&state, state.monitor.refresh(&state)))
}

/// Every upstream's policy.
#[utoipa::path(
    get,
    path = "/api/v1/policies",
    operation_id = "policies",
    responses(
        (status = 200, description = "Every upstream's policy.", body = Vec<dto::Policy>),
    ),
)]
pub(super) async fn policies(State(state): State<AdminState>) -> Json<Vec<dto::Policy>> {
    Json(state.host.shared.rollout.upstreams.iter().map(|serving| dto::policy(serving)).collect())
}

/// An upstream's policy.
#[utoipa::path(
    get,
    path = "/api/v1/policies/{upstream}",
    operation_id = "policy",
    params(UpstreamPath),
    responses(
        (status = 200, description = "The upstream's policy.", body = dto::Policy),
        (status = 404, response = Problem),
    ),
)]
pub(super) async fn policy(
    State(state): State<AdminState>,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
) -> Result<Json<dto::Policy>, Refusal> {
    one_policy(&state, &upstream).map(|serving| Json(dto::policy(serving)))
}

pub(crate) fn one_policy<'a>(state: &'a AdminState, upstream: &str) -> Result<&'a UpstreamPolicy, Refusal> {
    dto::serving(&state.host, upstream).ok_or(Refusal::None { what: "such upstream", list: "/api/v1/policies" })
}

/// The fleet's generation, and whether this host is behind.
fn fleet(serving: &UpstreamPolicy) -> Option<(String, u64, bool)> {
    let report = serving.following.as_ref()?.report(serving.current().artifact);
    Some((serving.settings.name.clone(), report.state.generation, report.behind))
}

/// The counts of an upstream's candidates.
fn candidate(serving: &UpstreamPolicy) -> Option<(String, TrialCounts, u64)> {
    let (counts, skipped) = serving.candidate.as_ref()?.totals();
    Some((serving.settings.name.clone(), counts, skipped))
}

/// All metrics, in the `OpenMetrics` text format.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    responses(
        (status = 200, description = "OpenMetrics text.", body = String, content_type = "application/openmetrics-text"),
    ),
)]
pub(super) async fn metrics(State(state): State<AdminState>) -> Result<Response, Refusal> {
    let shared = &state.host.shared;
    let sources = Sources {
        meters: Arc::clone(&shared.meters),
        events: Arc::clone(&shared.events),
        services: shared.rollout.upstreams.iter().map(|serving| serving.current()).collect(),
        loads: shared.rollout.upstreams.iter().map(|serving| serving.overload.view()).collect(),
        fleets: shared.rollout.upstreams.iter().filter_map(|serving| fleet(serving)).collect(),
        candidates: shared.rollout.upstreams.iter().filter_map(|serving| candidate(serving)).collect(),
        memory: shared.memory.view(),
        traces: shared.exporter.as_ref().map_or((0, 0), |exporter| exporter.counts()),
        unsettled: shared
            .records
            .unsettled(records::MAX_RECORDS)
            .await
            .ok()
            .map(|records| (records.len(), records.iter().map(|record| record.sent_ago).max().unwrap_or_default())),
        settlements: shared.settlement.counts().to_vec(),
        notices: shared.settlement.notices(),
        state: shared.link.as_ref().map(RedisConnection::condition),
        steps: shared.link.as_ref().map(RedisConnection::steps),
        conditions: state.monitor.refresh(&state),
        ready: state.unready().is_none(),
        started_unix_ms: state.started_unix_ms,
    };
    let text = scrape(sources).map_err(|_| Refusal::Store)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], text).into_response())
}

/// The effective configuration as TOML, each value with its source. Secrets are hidden.
#[utoipa::path(
    get,
    path = "/api/v1/config",
    operation_id = "config",
    responses(
        (status = 200, description = "TOML.", body = String, content_type = "application/toml"),
    ),
)]
pub(super) async fn config(State(state): State<AdminState>) -> Response {
    let current = state.host.shared.rollout.upstreams.iter().map(|serving| serving.current());
    let descriptions: Vec<_> = current.map(|service| service.policy.description().clone()).collect();
    let text = config::show(&state.settings.load(), &descriptions);
    ([(header::CONTENT_TYPE, "application/toml"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}
