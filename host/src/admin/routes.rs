//! Every path. The `OpenAPI` document lists the same ones but for the page's: a test compares.

use super::{Desk, access, actions, answer::Refusal, listen, live, look, page, traces};
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

/// Bytes of a body that are read.
const BODY: usize = 64 << 10;

/// What readers get.
fn reading() -> Vec<(&'static str, MethodRouter<Desk>)> {
    vec![
        ("/metrics", get(look::metrics)),
        ("/api/v1/openapi.json", get(look::openapi)),
        ("/api/v1/status", get(look::status)),
        ("/api/v1/breakers", get(look::breakers)),
        ("/api/v1/breakers/{upstream}/{endpoint}", get(look::breaker)),
        ("/api/v1/limits", get(look::limits)),
        ("/api/v1/budgets", get(look::budgets)),
        ("/api/v1/policies", get(look::policies)),
        ("/api/v1/policies/{upstream}", get(look::policy)),
        ("/api/v1/events", get(look::events)),
        ("/api/v1/config", get(look::config)),
        ("/api/v1/records", get(look::records)),
        ("/api/v1/records/{id}", get(look::record)),
        ("/api/v1/traces", get(traces::list)),
        ("/api/v1/traces/{upstream}", get(traces::one)),
        ("/api/v1/requests", get(look::requests)),
        ("/api/v1/requests/{id}", get(look::request)),
    ]
}

/// What operators do.
fn writing() -> Vec<(&'static str, MethodRouter<Desk>)> {
    vec![
        ("/api/v1/breakers/{upstream}/{endpoint}/forced", delete(actions::undo)),
        ("/api/v1/breakers/{upstream}/{endpoint}/{verb}", post(actions::force)),
        ("/api/v1/limits/{upstream}/{endpoint}/pause", delete(actions::lift_pause)),
        ("/api/v1/policies/{upstream}/{verb}", post(actions::policy)),
        ("/api/v1/records/{id}/{verb}", post(actions::settle)),
        ("/api/v1/traces/{upstream}/{verb}", post(traces::act)),
    ]
}

fn routes(paths: Vec<(&'static str, MethodRouter<Desk>)>) -> Router<Desk> {
    paths.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods))
}

/// No answer is anything but what its content type says: browsers guess otherwise.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The whole listener. Whether the process lives and wants requests is no secret: orchestrators ask without a token.
pub(super) fn router(desk: Desk) -> Router {
    // What the page follows is its own: the document tells of what tools ask.
    let readers = routes(reading())
        .route("/live", get(live::follow))
        .route_layer(from_fn_with_state(desk.clone(), access::readers));
    let writers = routes(writing()).route_layer(from_fn_with_state(desk.clone(), access::writers));
    Router::new()
        .route("/healthz", get(look::healthz))
        .route("/readyz", get(look::readyz))
        .route("/", get(page::root))
        .route("/session", post(page::enter))
        .route("/session/end", post(page::leave))
        .merge(readers)
        .merge(writers)
        .fallback(|| async { Refusal::NoPath })
        .method_not_allowed_fallback(|| async { Refusal::NoMethod })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn(|request, next| listen::whole_body(request, next, BODY)))
        .layer(map_response(no_sniffing))
        .with_state(desk)
}

/// Health alone: what a connection gets for which there is no other place.
pub(super) fn health(desk: Desk) -> Router {
    Router::new()
        .route("/healthz", get(look::healthz))
        .route("/readyz", get(look::readyz))
        .fallback(|| async { Refusal::NoPlace })
        .layer(map_response(no_sniffing))
        .with_state(desk)
}
