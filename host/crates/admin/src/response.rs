//! Responses: JSON, or a refusal as problem+json.

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request, rejection::BytesRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::request::Parts;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use utoipa::{
    ToResponse, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response as ResponseObject, ResponseBuilder},
};

/// Why a request to the admin listener was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("this path does not exist; /api/v1/openapi.json lists the paths")]
    NoPath,
    #[error("this path does not support the method; /api/v1/openapi.json lists the methods")]
    NoMethod,
    #[error("there is no {what}; {list} lists them")]
    None { what: &'static str, list: &'static str },
    #[error(
        "the host does not keep this request; /api/v1/requests lists the kept requests, and admin.explain sets their \
         number"
    )]
    NoTimeline,
    #[error("{0}")]
    Malformed(String),
    #[error("{0}")]
    NotNow(String),
    #[error("send a configured token as `authorization: Bearer TOKEN`")]
    NoToken,
    #[error("this is the read token; actions need the write token")]
    ReadOnly,
    #[error("the Host header is neither an IP address nor localhost; without a token, the listener accepts only those")]
    Rebound,
    #[error("a browser sent this request for another site; use the command line or this listener's own page")]
    Foreign,
    #[error("too many requests; retry after the wait")]
    TooMany { retry_after: Duration },
    #[error("the maximum number of pages follows this host already; close one of them")]
    TooManyPages,
    #[error("the body is too large; send a small JSON object")]
    TooLarge,
    #[error("the body did not arrive in time; send it at once")]
    Slow,
    #[error(
        "the maximum number of connections is open, and this connection is reserved for /healthz and /readyz; retry"
    )]
    NoPermit,
    #[error("the state store did not answer; retry later")]
    Store,
}

impl Refusal {
    fn row(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoPath | Self::NoTimeline | Self::None { .. } => (StatusCode::NOT_FOUND, "not-found"),
            Self::NoMethod => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed"),
            Self::NotNow(_) => (StatusCode::CONFLICT, "conflict"),
            Self::NoToken => (StatusCode::UNAUTHORIZED, "no-token"),
            Self::ReadOnly => (StatusCode::FORBIDDEN, "read-only"),
            Self::Rebound | Self::Foreign => (StatusCode::FORBIDDEN, "foreign"),
            Self::TooManyPages => (StatusCode::SERVICE_UNAVAILABLE, "too-many-pages"),
            Self::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too-many"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "slow"),
            Self::NoPermit => (StatusCode::SERVICE_UNAVAILABLE, "no-place"),
            Self::Store => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
        }
    }
}

const PROBLEM_JSON: &str = "application/problem+json";
/// What the type of each refusal begins with.
pub(super) const PROBLEM_TYPES: &str = "urn:triage:admin:";

/// Problem details of RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
}

impl<'r> ToResponse<'r> for Problem {
    fn response() -> (&'r str, RefOr<ResponseObject>) {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description("A refusal.").content(PROBLEM_JSON, content).build();
        ("Problem", RefOr::T(response))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind) = self.row();
        let problem = Problem {
            kind: format!("{PROBLEM_TYPES}{kind}"),
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: self.to_string(),
        };
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self == Self::NoToken {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::TooMany { retry_after } = self {
            let seconds = retry_after.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
        }
        response
    }
}

/// A JSON response that must not be cached.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut response = axum::Json(self.0).into_response();
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Parses a JSON body. An empty body gives the defaults.
pub(super) fn body<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.is_empty() {
        return Ok(T::default());
    }
    let malformed =
        |error: &dyn std::fmt::Display| Refusal::Malformed(format!("the body must be a JSON object: {error}"));
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    if !json.is_object() {
        return Err(malformed(&"the body is JSON, but not an object; send a JSON object"));
    }
    serde_json::from_value(json).map_err(|error| malformed(&error))
}

/// An unparsed body, up to the listener's size limit.
#[derive(Debug)]
pub(super) struct Sent(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|rejection: BytesRejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
            _ => Refusal::Malformed("the body ended early; send the request again".to_owned()),
        })
    }
}

/// Extracts a path's parameters.
#[derive(Debug)]
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            // The path is not UTF-8, so no route has it.
            Err(_) => Err(Refusal::NoPath),
        }
    }
}
