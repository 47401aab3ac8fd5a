#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod sockets;
mod table;

use super::{Emulator, Reply, Request};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const BATCH: &str = "7d3c5a52-0000-4000-8000-000000000001";

/// The response as status and JSON (null for an empty body, a string for text).
pub(super) fn read(response: &Response<bytes::Bytes>) -> (StatusCode, Value) {
    let body = response.body();
    let text = || Value::String(String::from_utf8_lossy(body).into_owned());
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap_or_else(|_| text()) };
    (response.status(), value)
}

pub(super) async fn ask(emulator: &Arc<Emulator>, request: Request) -> (StatusCode, Value) {
    match emulator.handle(request).await {
        Reply::Answer(response) => read(&response),
        other => panic!("no answer: {other:?}"),
    }
}

pub(super) fn create(name: &str, batch: Option<&str>) -> Request {
    Request::post("/hospitals/", json!({ "name": name, "address": "B", "creation_batch_id": batch }).to_string())
}

pub(super) fn activate(batch: &str) -> Request {
    Request::new(Method::PATCH, format!("/hospitals/batch/{batch}/activate"), "")
}
