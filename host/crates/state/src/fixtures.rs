//! Records for the tests of this crate and of others.
#![allow(clippy::unwrap_used, missing_docs)]

use crate::idempotency::{
    BeginRequest, FencingToken, Fingerprint, Identity, Key, RecordId, Settings, Stored, StoredBody, Tenant,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::time::Duration;

pub const LOCK: Duration = Duration::from_secs(150);
pub const KEEP: Duration = Duration::from_hours(24);

pub fn id(n: u16) -> RecordId {
    let value = HeaderValue::from_str(&n.to_string()).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static("idempotency-key"), value)]);
    RecordId::of(&Tenant::of(&headers, &[]), "up", &Key::parse(&headers).unwrap().unwrap())
}

pub fn opening(fence: u128, payload: u8) -> BeginRequest {
    let body = [payload];
    let request =
        Identity { upstream: "up", endpoint: "create", method: &Method::POST, path_and_query: "/", body: &body };
    let settings = Settings { lock: LOCK, keep: KEEP, ..Settings::default() };
    BeginRequest::new(FencingToken(fence), Fingerprint::of(&request), false, &settings)
}

pub fn stored(body: &str) -> Stored {
    Stored::Answer(StoredBody {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        class: "applied",
        policy: "p@1".into(),
    })
}
