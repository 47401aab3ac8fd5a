//! The server's responses, byte for byte.

use super::directory::BATCH_CAP;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// The message for a batch id without hospitals.
pub const EMPTY_BATCH: &str = "No hospitals found with the specified batch ID";
/// The message for an unknown hospital id.
pub const NO_HOSPITAL: &str = "Hospital not found";
/// The message for a batch that is fully or partly active.
pub const ALREADY_ACTIVE: &str = "Cannot activate batch: one or more hospitals in the batch are already active";

/// A JSON response.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, body: &T) -> Response<Bytes> {
    let text = serde_json::to_vec(body).unwrap_or_default();
    with_body(status, HeaderValue::from_static("application/json"), text.into())
}

/// `{"detail": text}`.
pub fn detail(status: StatusCode, text: &str) -> Response<Bytes> {
    json(status, &json!({ "detail": text }))
}

/// 404: no route matches the path.
pub fn not_found() -> Response<Bytes> {
    detail(StatusCode::NOT_FOUND, "Not Found")
}

/// 405: a route matches the path, but not the method.
pub fn method_not_allowed<'a>(allowed: impl Iterator<Item = &'a str>) -> Response<Bytes> {
    let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Ok(allow) = HeaderValue::from_str(&allowed.collect::<Vec<_>>().join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// 307: the router's redirect to the path with a slash.
pub fn redirect(location: &'static str) -> Response<Bytes> {
    let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(location));
    response
}

/// 400: the batch is full.
pub fn batch_full() -> Response<Bytes> {
    detail(StatusCode::BAD_REQUEST, &format!("Batch cannot exceed {BATCH_CAP} hospitals"))
}

/// 200 after an activation.
pub fn activated(count: usize, batch: Uuid) -> Response<Bytes> {
    let message = format!("Activated {count} hospital(s) with batch ID {batch}");
    json(StatusCode::OK, &json!({ "activated_count": count, "message": message }))
}

/// 200 after a batch's deletion.
pub fn deleted(count: usize, batch: Uuid) -> Response<Bytes> {
    let message = format!("Deleted {count} hospital(s) with batch ID {batch}");
    json(StatusCode::OK, &json!({ "deleted_count": count, "message": message }))
}

/// 429. The real server sends no Retry-After; a fault may add one.
pub fn rate_limited(limit: u32, retry_after: Option<Duration>) -> Response<Bytes> {
    let text = format!("Rate limit exceeded: {limit} per 1 minute");
    let mut response = json(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": text }));
    if let Some(wait) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().into());
    }
    response
}

/// The response to a failure of the server (500) or the edge proxy (502, 503, 504): text, not JSON.
pub fn failure(status: StatusCode) -> Response<Bytes> {
    let text = status.canonical_reason().unwrap_or("Error");
    with_body(status, HeaderValue::from_static("text/plain; charset=utf-8"), Bytes::from_static(text.as_bytes()))
}

/// A response without a body.
pub fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

fn with_body(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
