//! Reads of breakers, rate limits and retry budgets.

// Clippy suggests methods here, but a method of a type with a lifetime does not fit every lifetime.
#![allow(clippy::redundant_closure_for_method_calls)]

use crate::{
    AdminState,
    dto::{self, Shared, input::EndpointPath},
    response::{At, Json, Problem, Refusal},
    upstream_runtime::UpstreamRuntime,
};
use axum::extract::State;
use std::sync::Arc;

/// Maps every group of every upstream to JSON.
fn every<T>(state: &AdminState, shape: impl Fn(&Shared<'_>) -> T) -> Json<Vec<T>> {
    let services: Vec<Arc<UpstreamRuntime>> =
        state.host.shared.rollout.upstreams.iter().map(|serving| serving.current()).collect();
    Json(
        services
            .iter()
            .flat_map(|service| dto::groups(service, &state.host.shared.events))
            .map(|group| shape(&group))
            .collect(),
    )
}

/// The breaker of every group.
#[utoipa::path(
    get,
    path = "/api/v1/breakers",
    operation_id = "breakers",
    responses(
        (status = 200, description = "Every breaker.", body = Vec<dto::Breaker>),
    ),
)]
pub(crate) async fn breakers(State(state): State<AdminState>) -> Json<Vec<dto::Breaker>> {
    every(&state, |group| group.breaker())
}

/// The rate limits of every group, and how much of them is used.
#[utoipa::path(
    get,
    path = "/api/v1/limits",
    operation_id = "limits",
    responses(
        (status = 200, description = "Every rate limit.", body = Vec<dto::Limits>),
    ),
)]
pub(crate) async fn limits(State(state): State<AdminState>) -> Json<Vec<dto::Limits>> {
    let Json(all) = every(&state, |group| group.limits());
    Json(all.into_iter().flatten().collect())
}

/// The retry budget of every group.
#[utoipa::path(
    get,
    path = "/api/v1/budgets",
    operation_id = "budgets",
    responses(
        (status = 200, description = "Every retry budget.", body = Vec<dto::Budget>),
    ),
)]
pub(crate) async fn budgets(State(state): State<AdminState>) -> Json<Vec<dto::Budget>> {
    every(&state, |group| group.budget())
}

/// The breaker of an endpoint's group.
#[utoipa::path(
    get,
    path = "/api/v1/breakers/{upstream}/{endpoint}",
    operation_id = "breaker",
    params(EndpointPath),
    responses(
        (status = 200, description = "The group's breaker.", body = dto::Breaker),
        (status = 404, response = Problem),
    ),
)]
pub(crate) async fn breaker(
    State(state): State<AdminState>,
    At(EndpointPath { upstream, endpoint }): At<EndpointPath>,
) -> Result<Json<dto::Breaker>, Refusal> {
    one_breaker(&state, &upstream, &endpoint).map(Json)
}

pub(crate) fn one_breaker(state: &AdminState, upstream: &str, endpoint: &str) -> Result<dto::Breaker, Refusal> {
    one_group(state, upstream, endpoint, "/api/v1/breakers", |group| group.breaker())
}

pub(crate) fn one_limits(state: &AdminState, upstream: &str, endpoint: &str) -> Result<dto::Limits, Refusal> {
    let list = "/api/v1/limits";
    let limits = one_group(state, upstream, endpoint, list, |group| group.limits())?;
    limits.ok_or(Refusal::None { what: "such upstream or endpoint", list })
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
    let groups = dto::groups(&service, &state.host.shared.events);
    let has = |group: &&Shared<'_>| group.endpoints.iter().any(|own| own.described.name == endpoint);
    groups.iter().find(has).map(shape).ok_or_else(none)
}
