//! Handlers of requests that only read.

// Clippy suggests methods here, but a method of a type with a lifetime does not fit every lifetime.
#![allow(clippy::redundant_closure_for_method_calls)]

use super::{
    AdminState,
    dto::{self, Shared},
    openmetrics::{Sources, scrape},
    response::{At, Json, Refusal},
};
use crate::{
    config,
    idempotency::{RecordId, fingerprint::NotARecordId},
    state_redis::RedisConnection,
    telemetry::{Event, NotARequestId, RequestId, RequestTimeline},
    upstream_runtime::UpstreamRuntime,
};
use axum::{
    extract::{Query, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use std::sync::Arc;

/// Maximum unsettled records in one response.
const MAX_RECORDS: usize = 1000;
/// Maximum unsettled records to count for the total. The store is queried for each one.
const MAX_COUNTED_RECORDS: usize = 10_000;
/// The header for the total number of entries, since the list may hold only the first ones.
const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

/// Liveness: the process runs and answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Readiness: policies are loaded, every worker listens, the host is not stopping, and required shared state is reachable.
pub(super) async fn readyz(State(state): State<AdminState>) -> Response {
    let unready = state.unready();
    let status = if unready.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": unready.is_none(), "why": unready }))).into_response()
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::OPENAPI).into_response()
}

pub(super) async fn status(State(state): State<AdminState>) -> Json<dto::Status> {
    Json(dto::status(&state))
}

/// Maps every group of every upstream to JSON.
fn every<T>(state: &AdminState, shape: impl Fn(&Shared<'_>) -> T) -> Json<Vec<T>> {
    let services: Vec<Arc<UpstreamRuntime>> =
        state.host.shared.rollout.upstreams.iter().map(|serving| serving.current()).collect();
    Json(services.iter().flat_map(|service| dto::groups(service)).map(|group| shape(&group)).collect())
}

pub(super) async fn breakers(State(state): State<AdminState>) -> Json<Vec<dto::Breaker>> {
    every(&state, |group| group.breaker())
}

pub(super) async fn limits(State(state): State<AdminState>) -> Json<Vec<dto::Limits>> {
    every(&state, |group| group.limits())
}

pub(super) async fn budgets(State(state): State<AdminState>) -> Json<Vec<dto::Budget>> {
    every(&state, |group| group.budget())
}

pub(super) async fn breaker(
    State(state): State<AdminState>,
    At((upstream, endpoint)): At<(String, String)>,
) -> Result<Json<dto::Breaker>, Refusal> {
    one_breaker(&state, &upstream, &endpoint).map(Json)
}

/// The breaker of an endpoint's group.
pub(super) fn one_breaker(state: &AdminState, upstream: &str, endpoint: &str) -> Result<dto::Breaker, Refusal> {
    one_group(state, upstream, endpoint, "/api/v1/breakers", |group| group.breaker())
}

pub(super) fn one_limits(state: &AdminState, upstream: &str, endpoint: &str) -> Result<dto::Limits, Refusal> {
    one_group(state, upstream, endpoint, "/api/v1/limits", |group| group.limits())
}

fn one_group<T>(
    state: &AdminState,
    upstream: &str,
    endpoint: &str,
    list: &'static str,
    shape: impl Fn(&Shared<'_>) -> T,
) -> Result<T, Refusal> {
    let none = || Refusal::None { what: "such upstream or endpoint", list };
    let service = dto::serving(&state.host, upstream).ok_or_else(none)?.current();
    let groups = dto::groups(&service);
    let has = |group: &&Shared<'_>| group.endpoints.iter().any(|own| own.described.name == endpoint);
    groups.iter().find(has).map(shape).ok_or_else(none)
}

pub(super) async fn policies(State(state): State<AdminState>) -> Json<Vec<dto::Policy>> {
    Json(state.host.shared.rollout.upstreams.iter().map(|serving| dto::policy(serving)).collect())
}

pub(super) async fn policy(
    State(state): State<AdminState>,
    At(upstream): At<String>,
) -> Result<Json<dto::Policy>, Refusal> {
    let none = Refusal::None { what: "such upstream", list: "/api/v1/policies" };
    dto::serving(&state.host, &upstream).map(|serving| Json(dto::policy(serving))).ok_or(none)
}

/// The fleet's generation, and whether this host is behind.
fn fleet(serving: &crate::rollout::UpstreamPolicy) -> Option<(String, u64, bool)> {
    let report = serving.following.as_ref()?.report(serving.current().artifact);
    Some((serving.settings.name.clone(), report.standing.generation, report.behind))
}

/// All metrics in the `OpenMetrics` text format.
pub(super) async fn metrics(State(state): State<AdminState>) -> Result<Response, Refusal> {
    let shared = &state.host.shared;
    let sources = Sources {
        meters: Arc::clone(&shared.meters),
        events: Arc::clone(&shared.events),
        services: shared.rollout.upstreams.iter().map(|serving| serving.current()).collect(),
        loads: shared.rollout.upstreams.iter().map(|serving| serving.overload.view()).collect(),
        fleets: shared.rollout.upstreams.iter().filter_map(|serving| fleet(serving)).collect(),
        memory: shared.memory.view(),
        traces: shared.exporter.as_ref().map_or((0, 0), |exporter| exporter.counts()),
        unsettled: shared
            .records
            .unsettled(MAX_RECORDS)
            .await
            .ok()
            .map(|records| (records.len(), records.iter().map(|record| record.sent_ago).max().unwrap_or_default())),
        settlements: shared.settlement.counts().to_vec(),
        notices: shared.settlement.notices(),
        state: shared.link.as_ref().map(RedisConnection::condition),
        steps: shared.link.as_ref().map(RedisConnection::steps),
        ready: state.unready().is_none(),
        started_unix_ms: state.started_unix_ms,
    };
    let text = scrape(sources).map_err(|_| Refusal::Store)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], text).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

/// Events with a greater number than `after`, oldest first.
pub(super) async fn events(
    State(state): State<AdminState>,
    query: Result<Query<After>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<Event>>, Refusal> {
    let malformed = || Refusal::Malformed("after must be the number of an event".to_owned());
    let Query(After { after }) = query.map_err(|_| malformed())?;
    // Limit the number to what other languages parse as an integer.
    if i64::try_from(after).is_err() {
        return Err(malformed());
    }
    Ok(Json(state.host.shared.events.after(after)))
}

/// The effective configuration as TOML, each value with its source. Secrets are hidden.
pub(super) async fn config(State(state): State<AdminState>) -> Response {
    let current = state.host.shared.rollout.upstreams.iter().map(|serving| serving.current());
    let descriptions: Vec<_> = current.map(|service| service.policy.description().clone()).collect();
    let text = config::show(&state.settings.load(), &descriptions);
    ([(header::CONTENT_TYPE, "application/toml"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}

/// Unsettled records, the next to expire first.
pub(super) async fn records(State(state): State<AdminState>) -> Result<Response, Refusal> {
    let unsettled = state.host.shared.records.unsettled(MAX_COUNTED_RECORDS).await.map_err(|_| Refusal::Store)?;
    let total = HeaderValue::from(unsettled.len());
    let first: Vec<_> = unsettled.into_iter().take(MAX_RECORDS).map(dto::record).collect();
    Ok(([(TOTAL_COUNT, total)], Json(first)).into_response())
}

/// One unsettled record.
pub(super) async fn record(State(state): State<AdminState>, At(id): At<String>) -> Result<Json<dto::Record>, Refusal> {
    let id: RecordId = id.parse().map_err(|error: NotARecordId| Refusal::Malformed(error.to_string()))?;
    let found = state.host.shared.records.unsettled_one(id).await.map_err(|_| Refusal::Store)?;
    let none =
        Refusal::None { what: "unsettled record with this id, or a request is settling it", list: "/api/v1/records" };
    found.map(|own| Json(dto::record(own))).ok_or(none)
}

/// Maximum requests in one response.
const MAX_REQUESTS: usize = 500;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    #[serde(default)]
    rough: bool,
    limit: Option<usize>,
}

/// Recent requests, latest first.
pub(super) async fn requests(
    State(state): State<AdminState>,
    query: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<dto::Summary>>, Refusal> {
    let malformed = || Refusal::Malformed(format!("rough must be true or false, limit from 1 to {MAX_REQUESTS}"));
    let Query(Which { rough, limit }) = query.map_err(|_| malformed())?;
    let limit = limit.unwrap_or(100);
    if !(1..=MAX_REQUESTS).contains(&limit) {
        return Err(malformed());
    }
    let shared = &state.host.shared;
    let summary = |timeline: &RequestTimeline| dto::summary(timeline, &shared.clock);
    Ok(Json(shared.workers.latest(limit, rough).iter().map(summary).collect()))
}

/// One request and its timeline.
pub(super) async fn request(
    State(state): State<AdminState>,
    At(id): At<String>,
) -> Result<Json<dto::Request>, Refusal> {
    let id: RequestId = id.parse().map_err(|error: NotARequestId| Refusal::Malformed(error.to_string()))?;
    let timeline = state.host.shared.workers.timeline(id).ok_or(Refusal::NoTimeline)?;
    Ok(Json(dto::request(timeline, &state.host.shared.clock)))
}
