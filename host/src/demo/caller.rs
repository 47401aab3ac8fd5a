//! A client of the host. It differs from a client of the API only in the base URL.

use super::DemoError;
use crate::{
    policy::contract::{Failure, FailureKind},
    upstream::{self, HttpClient, Outbound, OutboundBody, Transport as _},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) struct Caller(Arc<HttpClient>);

/// A completely read response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) json: Value,
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-")
    }

    /// Whether the host refused the request with this problem type.
    pub(super) fn is_problem(&self, kind: &str) -> bool {
        self.json["type"].as_str().is_some_and(|text| text.ends_with(kind))
    }
}

impl Caller {
    pub(super) fn to(url: &Uri) -> Result<Self, DemoError> {
        Ok(Self(Arc::new(HttpClient::new(&upstream::Settings::new(url.clone()))?)))
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, DemoError> {
        self.ask(Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    pub(super) async fn create(&self, key: &str, hospital: &Value) -> Result<Answer, DemoError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(key) = HeaderValue::from_str(key) {
            headers.insert("idempotency-key", key);
        }
        self.ask(Method::POST, "/hospitals/", headers, hospital.to_string().into()).await
    }

    async fn ask(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, DemoError> {
        let begun = Instant::now();
        let (path_and_query, body) = (path.to_owned(), OutboundBody::Bytes(body));
        let request = Outbound { method, path_and_query, headers, body, guarded: true };
        let answer = self.0.send(request).await.map_err(DemoError::NoAnswer)?;
        let broken = |_| DemoError::NoAnswer(Failure::new(FailureKind::Body, true));
        let body = answer.body.collect().await.map_err(broken)?.to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Answer { status: answer.status, headers: answer.headers, json, took: begun.elapsed() })
    }
}
