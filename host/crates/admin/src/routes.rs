//! The routing table, which is also the list of the `OpenAPI` document's operations: `routes!` takes only handlers with documentation.
//! The page's own paths are not in the document.

use super::{
    AdminState,
    actions::{breakers, policies, records},
    auth, listen,
    openapi::{authenticated, json, unauthenticated},
    page,
    read_handlers::{self, groups, health, history},
    recordings,
    response::Refusal,
    role::Role,
    sse,
};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, header},
    middleware::{from_fn, from_fn_with_state, map_response},
    response::Response,
    routing::{get, post},
};
use std::sync::LazyLock;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Maximum bytes of a request body.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Routes that need no token, because orchestrators have none.
fn open() -> OpenApiRouter<AdminState> {
    OpenApiRouter::default().routes(routes!(health::healthz)).routes(routes!(health::readyz))
}

/// Routes that only read.
fn reading() -> OpenApiRouter<AdminState> {
    OpenApiRouter::default()
        .routes(routes!(read_handlers::metrics))
        .routes(routes!(read_handlers::openapi))
        .routes(routes!(read_handlers::status))
        .routes(routes!(groups::breakers))
        .routes(routes!(groups::breaker))
        .routes(routes!(groups::limits))
        .routes(routes!(groups::budgets))
        .routes(routes!(read_handlers::policies))
        .routes(routes!(read_handlers::policy))
        .routes(routes!(history::events))
        .routes(routes!(read_handlers::config))
        .routes(routes!(read_handlers::records::records))
        .routes(routes!(read_handlers::records::record))
        .routes(routes!(recordings::list))
        .routes(routes!(recordings::one))
        .routes(routes!(history::requests))
        .routes(routes!(history::request))
}

/// Routes of operators' actions.
fn writing() -> OpenApiRouter<AdminState> {
    OpenApiRouter::default()
        .routes(routes!(breakers::open))
        .routes(routes!(breakers::close))
        .routes(routes!(breakers::reset))
        .routes(routes!(breakers::undo))
        .routes(routes!(breakers::lift_pause))
        .routes(routes!(policies::announce))
        .routes(routes!(policies::promote))
        .routes(routes!(policies::roll_back))
        .routes(routes!(records::applied))
        .routes(routes!(records::not_applied))
        .routes(routes!(recordings::start))
        .routes(routes!(recordings::take))
        .routes(routes!(recordings::stop))
}

/// The `OpenAPI` document of the listener.
pub fn openapi() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        json([
            unauthenticated(open().into_openapi()),
            authenticated(reading().into_openapi(), Role::Read),
            authenticated(writing().into_openapi(), Role::Write),
        ])
    });
    &DOCUMENT
}

/// Stops browsers from guessing another content type.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The whole listener.
pub(super) fn router(state: AdminState) -> Router {
    // Only the page uses `/live`, so the `OpenAPI` document for tools omits it.
    let readers = Router::from(reading())
        .route("/live", get(sse::follow))
        .route_layer(from_fn_with_state(state.clone(), auth::readers));
    let writers = Router::from(writing()).route_layer(from_fn_with_state(state.clone(), auth::writers));
    Router::from(open())
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
    Router::from(open()).fallback(|| async { Refusal::NoPermit }).layer(map_response(no_sniffing)).with_state(state)
}
