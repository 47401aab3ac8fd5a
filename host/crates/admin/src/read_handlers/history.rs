//! Reads of recent events and requests.

use super::request_filter::RequestFilter;
use crate::{
    AdminState,
    dto::{
        self,
        input::{EventsQuery, RequestPath, RequestsQuery},
    },
    response::{At, Json, Problem, Refusal},
    telemetry::{NotARequestId, RequestId},
};
use axum::extract::{Query, State, rejection::QueryRejection};

/// Maximum requests in one response.
const MAX_REQUESTS: usize = 500;

/// Recent events, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    operation_id = "events",
    params(EventsQuery),
    responses(
        (status = 200, description = "Recent events.", body = Vec<dto::Event>),
        (status = 400, response = Problem),
    ),
)]
pub(crate) async fn events(
    State(state): State<AdminState>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Vec<dto::Event>>, Refusal> {
    let malformed = || Refusal::Malformed("after must be the number of an event".to_owned());
    let Query(EventsQuery { after }) = query.map_err(|_| malformed())?;
    // Limit the number to what other languages parse as an integer.
    if i64::try_from(after).is_err() {
        return Err(malformed());
    }
    Ok(Json(state.host.shared.events.after(after).into_iter().map(dto::Event::from).collect()))
}

/// Recent requests, latest first.
#[utoipa::path(
    get,
    path = "/api/v1/requests",
    operation_id = "requests",
    params(RequestsQuery),
    responses(
        (status = 200, description = "Recent requests.", body = Vec<dto::Summary>),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
    ),
)]
pub(crate) async fn requests(
    State(state): State<AdminState>,
    query: Result<Query<RequestsQuery>, QueryRejection>,
) -> Result<Json<Vec<dto::Summary>>, Refusal> {
    let malformed = || {
        Refusal::Malformed(format!(
            "rough must be true or false, limit from 1 to {MAX_REQUESTS}; the other parameters are upstream, endpoint, \
             status and reason"
        ))
    };
    let Query(query) = query.map_err(|_| malformed())?;
    let RequestsQuery { rough, limit, .. } = query;
    if !(1..=MAX_REQUESTS).contains(&limit) {
        return Err(malformed());
    }
    let filter = RequestFilter::of(query)?;
    let shared = &state.host.shared;
    let rows = shared.workers.latest(limit, rough, |row| filter.fits(row));
    if rows.is_empty() && filter.names_none(&state) {
        return Err(Refusal::None { what: "such upstream or endpoint", list: "/api/v1/breakers" });
    }
    Ok(Json(rows.iter().map(|row| dto::summary(row, &shared.clock)).collect()))
}

/// One request and its timeline.
#[utoipa::path(
    get,
    path = "/api/v1/requests/{id}",
    operation_id = "request",
    params(RequestPath),
    responses(
        (status = 200, description = "The request.", body = dto::Request),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
    ),
)]
pub(crate) async fn request(
    State(state): State<AdminState>,
    At(RequestPath { id }): At<RequestPath>,
) -> Result<Json<dto::Request>, Refusal> {
    let id: RequestId = id.parse().map_err(|error: NotARequestId| Refusal::Malformed(error.to_string()))?;
    let timeline = state.host.shared.workers.timeline(id).ok_or(Refusal::NoTimeline)?;
    Ok(Json(dto::request(timeline, &state.host.shared.clock)))
}
