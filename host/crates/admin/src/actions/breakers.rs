//! Actions on a group's breaker and on its pause.

use super::{Acted, Acting, Actor, lasting};
use crate::{
    AdminState,
    admission::Group,
    breaker::Force,
    dto::{
        self,
        input::{EndpointPath, Expiry},
    },
    read_handlers::groups::{one_breaker, one_limits},
    response::{At, Json, Problem, Refusal, Sent, body},
    rounded::Rounded,
};
use axum::extract::State;
use std::time::Duration;

/// Refuses all requests for a time; then probes decide.
#[utoipa::path(
    post,
    path = "/api/v1/breakers/{upstream}/{endpoint}/open",
    operation_id = "openBreaker",
    params(EndpointPath),
    request_body = Expiry,
    responses(
        (status = 200, description = "The group's breaker.", body = dto::Breaker),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(crate) async fn open(
    State(state): State<AdminState>,
    actor: Acting,
    At(path): At<EndpointPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Breaker> {
    let time = lasting(body::<Expiry>(&bytes)?.for_ms)?;
    set(&state, actor.0, &path, Force::Open(time)).await
}

/// Admits all requests for a time; then the breaker is reset.
#[utoipa::path(
    post,
    path = "/api/v1/breakers/{upstream}/{endpoint}/close",
    operation_id = "closeBreaker",
    params(EndpointPath),
    request_body = Expiry,
    responses(
        (status = 200, description = "The group's breaker.", body = dto::Breaker),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(crate) async fn close(
    State(state): State<AdminState>,
    actor: Acting,
    At(path): At<EndpointPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Breaker> {
    let time = lasting(body::<Expiry>(&bytes)?.for_ms)?;
    set(&state, actor.0, &path, Force::Close(time)).await
}

/// Resets the breaker: closed, with empty counts.
#[utoipa::path(
    post,
    path = "/api/v1/breakers/{upstream}/{endpoint}/reset",
    operation_id = "resetBreaker",
    params(EndpointPath),
    responses(
        (status = 200, description = "The group's breaker.", body = dto::Breaker),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
    ),
)]
pub(crate) async fn reset(
    State(state): State<AdminState>,
    actor: Acting,
    At(path): At<EndpointPath>,
) -> Acted<dto::Breaker> {
    set(&state, actor.0, &path, Force::Reset).await
}

/// Clears an operator's forced state.
#[utoipa::path(
    delete,
    path = "/api/v1/breakers/{upstream}/{endpoint}/forced",
    operation_id = "undoBreaker",
    params(EndpointPath),
    responses(
        (status = 200, description = "The group's breaker.", body = dto::Breaker),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
    ),
)]
pub(crate) async fn undo(
    State(state): State<AdminState>,
    actor: Acting,
    At(path): At<EndpointPath>,
) -> Acted<dto::Breaker> {
    set(&state, actor.0, &path, Force::Clear).await
}

async fn set(state: &AdminState, actor: Actor, path: &EndpointPath, force: Force) -> Acted<dto::Breaker> {
    let EndpointPath { upstream, endpoint } = path;
    let before = one_breaker(state, upstream, endpoint)?;
    let group = group(state, upstream, endpoint);
    let (action, text) = match force {
        Force::Open(time) => ("breaker-open", format!("an operator forces the breaker open for {}", Rounded(time))),
        Force::Close(time) => ("breaker-close", format!("an operator forces the breaker closed for {}", Rounded(time))),
        Force::Reset => ("breaker-reset", "an operator resets the breaker".to_owned()),
        Force::Clear if !group.as_ref().is_some_and(is_forced) => {
            return Err(Refusal::NotNow("no operator has forced this breaker; there is nothing to clear".to_owned()));
        }
        Force::Clear => {
            ("breaker-undo", "an operator clears the forced state; the breaker decides by itself again".to_owned())
        }
    };
    let subject = format!("{upstream}/{}", before.group);
    let done = match group {
        Some(group) => match group.force(force).await {
            Ok(done) => done,
            Err(error) => {
                // Part of the command may have taken effect, so it is audited.
                state.audit(actor, action, &subject, format!("{text}; shared state did not confirm it"));
                return Err(Refusal::NotNow(error.to_string()));
            }
        },
        None => false,
    };
    if !done {
        return Err(Refusal::NotNow("this endpoint has no breaker; set breaker.enabled = true".to_owned()));
    }
    state.audit(actor, action, &subject, text);
    one_breaker(state, upstream, endpoint).map(Json)
}

/// Whether an operator has forced the group's breaker, or that of its safe requests.
fn is_forced(group: &Group) -> bool {
    let forced = |group: &Group| group.view().breaker.is_some_and(|breaker| breaker.forced);
    forced(group) || group.reads().is_some_and(forced)
}

fn group(state: &AdminState, upstream: &str, endpoint: &str) -> Option<Group> {
    let service = dto::serving(&state.host, upstream)?.current();
    service.endpoints.iter().find(|own| own.described.name == endpoint).map(|own| own.group.clone())
}

/// Ends the pause of an endpoint's group; the host sends requests again within its limits.
#[utoipa::path(
    delete,
    path = "/api/v1/limits/{upstream}/{endpoint}/pause",
    operation_id = "liftPause",
    params(EndpointPath),
    responses(
        (status = 200, description = "The group's rate limits.", body = dto::Limits),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
    ),
)]
pub(crate) async fn lift_pause(
    State(state): State<AdminState>,
    actor: Acting,
    At(EndpointPath { upstream, endpoint }): At<EndpointPath>,
) -> Acted<dto::Limits> {
    let before = one_limits(&state, &upstream, &endpoint)?;
    let done = match group(&state, &upstream, &endpoint) {
        Some(group) => group.lift_pause().await.map_err(|error| Refusal::NotNow(error.to_string()))?,
        None => false,
    };
    if !done {
        return Err(Refusal::NotNow("the group of this endpoint is not paused; there is nothing to lift".to_owned()));
    }
    let left = before
        .paused_ms
        .map(|left| format!(", {} before its end", Rounded(Duration::from_millis(left))))
        .unwrap_or_default();
    let subject = format!("{upstream}/{}", before.group);
    state.audit(actor.0, "pause-lift", &subject, format!("an operator lifts the pause{left}"));
    one_limits(&state, &upstream, &endpoint).map(Json)
}
