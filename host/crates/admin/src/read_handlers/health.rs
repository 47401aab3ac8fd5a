//! The health routes, which need no token.

use crate::{AdminState, dto::Ready, response::Json};
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

/// Liveness: the process runs and answers.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    responses(
        (status = 200, description = "The process runs.", body = String, content_type = "text/plain"),
    ),
)]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Readiness: whether the host accepts requests.
///
/// The host is ready if it has started and is not stopping. Shared state that refuses this host's name or password makes it unready. Shared
/// state that cannot be reached makes it unready only with `state.required`.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    responses(
        (status = 200, description = "The host is ready.", body = Ready),
        (status = 503, description = "The host is not ready.", body = Ready),
    ),
)]
pub(crate) async fn readyz(State(state): State<AdminState>) -> Response {
    let why = state.unready();
    let status = if why.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready: why.is_none(), why })).into_response()
}
