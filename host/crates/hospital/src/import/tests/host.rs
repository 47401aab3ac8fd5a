//! A minimal host with idempotency: implements what the import relies on, and injects faults.

use crate::{
    contract::{Failure, FailureKind},
    rng::Rng,
    upstream::{Inbound, Outbound, OutboundBody, Transport, full},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// A received request.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub path: String,
    pub key: String,
    pub maybe_sent: bool,
    pub body: Value,
}

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    None,
    /// The connection fails.
    Unreached,
    /// The request is done, but the response is lost.
    LostAfter,
    /// The request is not done, but the failure leaves that open.
    LostBefore,
    /// The breaker is open.
    Refused,
    /// The host returns "effect unknown".
    Unknown,
    /// The upstream rejects the request.
    Rejected,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    /// The number by key; none while the request runs.
    records: HashMap<String, Option<u64>>,
    /// The name and batch of every hospital ever created.
    made: Vec<(String, String)>,
    activated: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Host {
    state: Mutex<State>,
    mishap: Mutex<Box<dyn FnMutDebug>>,
    is_triage: bool,
}

pub(super) trait FnMutDebug: FnMut(&Seen) -> Mishap + Send {}
impl<F: FnMut(&Seen) -> Mishap + Send> FnMutDebug for F {}
impl std::fmt::Debug for dyn FnMutDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("mishap")
    }
}

/// Sends requests to the host.
#[derive(Debug, Clone)]
pub(super) struct Way(pub Arc<Host>);

impl Way {
    pub(super) fn to(mishap: impl FnMut(&Seen) -> Mishap + Send + 'static) -> Way {
        Self(Arc::new(Host { state: Mutex::default(), mishap: Mutex::new(Box::new(mishap)), is_triage: true }))
    }

    pub(super) fn to_somebody_else() -> Self {
        let mishap = Mutex::new(Box::new(|_: &Seen| Mishap::None) as Box<_>);
        Self(Arc::new(Host { state: Mutex::default(), mishap, is_triage: false }))
    }
}

impl Host {
    pub(super) fn set(&self, mishap: impl FnMut(&Seen) -> Mishap + Send + 'static) {
        *self.mishap.lock() = Box::new(mishap);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    pub(super) fn made(&self) -> Vec<(String, String)> {
        self.state.lock().made.clone()
    }

    pub(super) fn activated(&self) -> Vec<String> {
        self.state.lock().activated.clone()
    }

    fn perform(&self, seen: &Seen) -> u64 {
        let mut state = self.state.lock();
        let number = if let Some(batch) = seen.path.strip_suffix("/activate") {
            let batch = batch.rsplit('/').next().unwrap().to_owned();
            let count = state.made.iter().filter(|(_, of)| *of == batch).count();
            state.activated.push(batch);
            count
        } else {
            let text = |field: &str| seen.body[field].as_str().unwrap().to_owned();
            state.made.push((text("name"), text("creation_batch_id")));
            state.made.len()
        } as u64;
        state.records.insert(seen.key.clone(), Some(number));
        number
    }
}

/// Injects faults at random.
pub(super) fn by_chance(seed: u64) -> impl FnMut(&Seen) -> Mishap + Send {
    let entropy = Rng::seeded(seed);
    move |_| match entropy.next() % 10 {
        0 => Mishap::Unreached,
        1 | 2 => Mishap::LostAfter,
        3 => Mishap::LostBefore,
        4 => Mishap::Refused,
        5 => Mishap::Unknown,
        _ => Mishap::None,
    }
}

#[allow(clippy::unnecessary_wraps)] // what `send` returns
fn answer(status: u16, pairs: &[(&'static str, &'static str)], body: &Value) -> Result<Inbound, Failure> {
    let headers: HeaderMap =
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let status = StatusCode::from_u16(status).unwrap();
    Ok(Inbound { status, headers, body: full(Bytes::from(body.to_string())) })
}

fn problem(status: u16, kind: &str, sent: &'static str) -> Result<Inbound, Failure> {
    let pairs = [("content-type", "application/problem+json"), ("triage-sent", sent), ("retry-after", "1")];
    answer(status, &pairs, &json!({ "type": format!("urn:triage:problem:{kind}"), "detail": kind }))
}

impl Transport for Way {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let host = Arc::clone(&self.0);
        Box::pin(async move {
            if request.path_and_query == "/" {
                let pairs: &[_] = if host.is_triage { &[("triage-attempts", "1")] } else { &[] };
                return answer(200, pairs, &json!({ "status": "OK" }));
            }
            let OutboundBody::Bytes(body) = request.body else { panic!("a stream") };
            let header = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let seen = Seen {
                path: request.path_and_query,
                key: header("idempotency-key").unwrap(),
                maybe_sent: header("triage-maybe-sent").is_some(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            let mishap = (host.mishap.lock())(&seen);
            if mishap != Mishap::Unreached {
                host.state.lock().seen.push(seen.clone());
            }
            let known = host.state.lock().records.get(&seen.key).copied();
            let number = if seen.path.ends_with("/activate") { "activated_count" } else { "id" };
            let good = |n: u64| answer(200, &[("triage-attempts", "1")], &json!({ number: n }));
            let lost = Err(Failure::new(FailureKind::Reset, true));
            match (mishap, known) {
                (Mishap::Unreached, _) => Err(Failure::new(FailureKind::Connect, false)),
                (Mishap::LostBefore, _) | (Mishap::LostAfter, Some(_)) => lost,
                (Mishap::Refused, _) => problem(503, "breaker-open", "no"),
                (_, Some(Some(n))) => good(n),
                (_, Some(None)) => problem(409, "in-flight", "maybe"),
                (Mishap::Rejected, None) => answer(400, &[("triage-verdict", "rejected")], &json!({ "detail": "no" })),
                (mishap, None) => {
                    host.state.lock().records.insert(seen.key.clone(), None);
                    // A host finishes the request even if the caller leaves.
                    let done = tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        host.perform(&seen)
                    });
                    match mishap {
                        Mishap::LostAfter => lost,
                        Mishap::Unknown => problem(504, "effect-unknown", "maybe"),
                        _ => good(done.await.unwrap()),
                    }
                }
            }
        })
    }
}
