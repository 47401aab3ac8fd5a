//! The routing table. A test compares it with the `OpenAPI` document, which omits only the page's own paths.

use super::{AdminState, actions, auth, listen, page, read_handlers, recordings, response::Refusal, sse};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, header},
    middleware::{from_fn, from_fn_with_state, map_response},
    response::Response,
    routing::{MethodRouter, delete, get, post},
};

/// The `OpenAPI` document of the listener.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Maximum bytes of a request body.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Routes that only read.
fn reading() -> Vec<(&'static str, MethodRouter<AdminState>)> {
    vec![
        ("/metrics", get(read_handlers::metrics)),
        ("/api/v1/openapi.json", get(read_handlers::openapi)),
        ("/api/v1/status", get(read_handlers::status)),
        ("/api/v1/breakers", get(read_handlers::breakers)),
        ("/api/v1/breakers/{upstream}/{endpoint}", get(read_handlers::breaker)),
        ("/api/v1/limits", get(read_handlers::limits)),
        ("/api/v1/budgets", get(read_handlers::budgets)),
        ("/api/v1/policies", get(read_handlers::policies)),
        ("/api/v1/policies/{upstream}", get(read_handlers::policy)),
        ("/api/v1/events", get(read_handlers::events)),
        ("/api/v1/config", get(read_handlers::config)),
        ("/api/v1/records", get(read_handlers::records)),
        ("/api/v1/records/{id}", get(read_handlers::record)),
        ("/api/v1/traces", get(recordings::list)),
        ("/api/v1/traces/{upstream}", get(recordings::one)),
        ("/api/v1/requests", get(read_handlers::requests)),
        ("/api/v1/requests/{id}", get(read_handlers::request)),
    ]
}

/// Routes of operators' actions.
fn writing() -> Vec<(&'static str, MethodRouter<AdminState>)> {
    vec![
        ("/api/v1/breakers/{upstream}/{endpoint}/forced", delete(actions::undo)),
        ("/api/v1/breakers/{upstream}/{endpoint}/{verb}", post(actions::force)),
        ("/api/v1/limits/{upstream}/{endpoint}/pause", delete(actions::lift_pause)),
        ("/api/v1/policies/{upstream}/{verb}", post(actions::policy)),
        ("/api/v1/records/{id}/{verb}", post(actions::settle)),
        ("/api/v1/traces/{upstream}/{verb}", post(recordings::act)),
    ]
}

fn routes(paths: Vec<(&'static str, MethodRouter<AdminState>)>) -> Router<AdminState> {
    paths.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods))
}

/// Stops browsers from guessing another content type.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The whole listener. The health routes need no token, because orchestrators have none.
pub(super) fn router(state: AdminState) -> Router {
    // Only the page uses `/live`, so the `OpenAPI` document for tools omits it.
    let readers = routes(reading())
        .route("/live", get(sse::follow))
        .route_layer(from_fn_with_state(state.clone(), auth::readers));
    let writers = routes(writing()).route_layer(from_fn_with_state(state.clone(), auth::writers));
    Router::new()
        .route("/healthz", get(read_handlers::healthz))
        .route("/readyz", get(read_handlers::readyz))
        .route("/", get(page::root))
        .route("/session", post(page::enter))
        .route("/session/end", post(page::leave))
        .merge(readers)
        .merge(writers)
        .fallback(|| async { Refusal::NoPath })
        .method_not_allowed_fallback(|| async { Refusal::NoMethod })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(|request, next| listen::whole_body(request, next, MAX_BODY_BYTES)))
        .layer(map_response(no_sniffing))
        .with_state(state)
}

/// The health routes alone, for connections over the limits.
pub(super) fn health(state: AdminState) -> Router {
    Router::new()
        .route("/healthz", get(read_handlers::healthz))
        .route("/readyz", get(read_handlers::readyz))
        .fallback(|| async { Refusal::NoPermit })
        .layer(map_response(no_sniffing))
        .with_state(state)
}
