//! Exports traces to an OpenTelemetry collector. Each sampled request is a span with child spans for its attempts, verifications,
//! decisions and awaited calls of shared state, from the same timeline that `triage explain` shows. OTLP over HTTP in JSON, which every
//! collector accepts (OTLP 1.0, section "JSON Protobuf Encoding").
//!
//! A request queues its timeline at its end and does not wait. Timelines that the collector does not take in time are dropped and
//! counted. Traces hold no bodies, header values, path parameters or text of a policy.
//!
//! The exporter is our own because `opentelemetry-otlp` exports spans of its SDK, which a request would build beside the timeline that it
//! keeps anyway.

use super::{RequestId, RequestTimeline, TimedEvent, TimelineEvent};
use crate::{
    clock::Clock,
    upstream::{HttpClient, Outbound, OutboundBody, Settings, Transport, TransportError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header::CONTENT_TYPE, uri::PathAndQuery};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{Mutex, Notify, mpsc},
    task::spawn_blocking,
    time::{Instant, timeout},
};

/// Maximum of requests that wait for export; further ones are dropped.
const MAX_QUEUED_REQUESTS: usize = 2048;
/// Requests per batch.
const MAX_BATCH_REQUESTS: usize = 256;
/// The time between two batches, unless the next one is full earlier.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of the collector for a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// URL that takes the traces.
    pub endpoint: http::Uri,
    /// Percentage of requests to sample among those without a sampling decision of the caller. Default 100.
    pub share_percent: u32,
    /// Attributes that all traces carry. Default: name and version of the service.
    pub resource: BTreeMap<String, String>,
}

impl Target {
    /// A target with the defaults.
    pub fn new(endpoint: http::Uri) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let resource = [("service.name", "triage"), ("service.version", version)];
        let resource = resource.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Self { endpoint, share_percent: 100, resource }
    }
}

/// Queues timelines and exports them.
#[derive(Debug)]
pub struct Exporter {
    clock: Clock,
    share_percent: u32,
    /// The encoded attributes of the resource.
    resource: Value,
    /// The path of the target, below which nothing is added.
    path: String,
    client: HttpClient,
    sender: mpsc::Sender<RequestTimeline>,
    waiting: Mutex<mpsc::Receiver<RequestTimeline>>,
    /// Signals a full batch.
    full: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Exporter {
    /// An exporter; [`Exporter::run`] must be called to send.
    ///
    /// # Errors
    /// [`TransportError`] where the URL cannot be called.
    pub fn new(target: &Target, clock: Clock) -> Result<Self, TransportError> {
        let mut server = target.endpoint.clone().into_parts();
        server.path_and_query = Some(PathAndQuery::from_static("/"));
        let server = http::Uri::from_parts(server).unwrap_or_else(|_| target.endpoint.clone());
        let client = HttpClient::new(&Settings::new(server))?;
        let (sender, waiting) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let (exported, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        let share_percent = target.share_percent;
        let resource: Vec<(&str, Value)> =
            target.resource.iter().map(|(key, value)| (key.as_str(), value.as_str().into())).collect();
        let (resource, path) = (attributes(&resource).into(), target.endpoint.path().to_owned());
        let (waiting, full) = (Mutex::new(waiting), Notify::new());
        Ok(Self { clock, share_percent, resource, path, client, sender, waiting, full, exported, dropped })
    }

    /// Whether to sample a request whose caller made no decision.
    pub fn samples(&self, id: RequestId) -> bool {
        id.0 % 100 < u64::from(self.share_percent)
    }

    /// Number of exported and of dropped requests.
    pub fn counts(&self) -> (u64, u64) {
        (self.exported.load(Relaxed), self.dropped.load(Relaxed))
    }

    /// Queues the timeline of a request that has ended.
    pub(super) fn take(&self, timeline: RequestTimeline) {
        if self.sender.try_send(timeline).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
        if MAX_QUEUED_REQUESTS - self.sender.capacity() >= MAX_BATCH_REQUESTS {
            self.full.notify_one();
        }
    }

    /// Sends batches forever.
    pub async fn run(&self) {
        loop {
            let _ = timeout(EXPORT_INTERVAL, self.full.notified()).await;
            while self.send_batch().await == MAX_BATCH_REQUESTS {}
        }
    }

    /// Sends the remaining batches at shutdown, once each.
    pub async fn finish(&self) {
        while self.send_batch().await > 0 {}
    }

    async fn send_batch(&self) -> usize {
        let mut batch = Vec::new();
        {
            let mut waiting = self.waiting.lock().await;
            while batch.len() < MAX_BATCH_REQUESTS
                && let Ok(timeline) = waiting.try_recv()
            {
                batch.push(timeline);
            }
        }
        if batch.is_empty() {
            return 0;
        }
        let (count, now, now_unix_ms) = (batch.len(), Instant::now(), self.clock.unix_ms());
        let resource = self.resource.clone();
        // Encoding takes milliseconds, in which a worker would serve no request.
        let built = spawn_blocking(move || request(&batch, &resource, now, now_unix_ms).to_string()).await;
        let Ok(body) = built else {
            self.dropped.fetch_add(count as u64, Relaxed);
            return count;
        };
        let request = Outbound {
            method: Method::POST,
            path_and_query: self.path.clone(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            body: OutboundBody::Bytes(Bytes::from(body)),
            guarded: true,
        };
        let why = match timeout(EXPORT_TIMEOUT, self.client.send(request)).await {
            Ok(Ok(answer)) if answer.status.is_success() => {
                self.exported.fetch_add(count as u64, Relaxed);
                return count;
            }
            Ok(Ok(answer)) => format!("it answered {}", answer.status.as_u16()),
            Ok(Err(failure)) => failure.kind.name().to_owned(),
            Err(_) => "it took too long".to_owned(),
        };
        self.dropped.fetch_add(count as u64, Relaxed);
        tracing::warn!(%why, count, "the collector did not accept traces (telemetry.otlp.endpoint)");
        count
    }
}

/// Encodes a batch.
fn request(timelines: &[RequestTimeline], resource: &Value, now: Instant, now_unix_ms: u64) -> Value {
    let spans: Vec<Value> = timelines.iter().flat_map(|timeline| spans(timeline, now, now_unix_ms)).collect();
    let scope = json!({ "name": "triage", "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": scope, "spans": spans }],
    }] })
}

const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 3;

fn spans(timeline: &RequestTimeline, now: Instant, now_unix_ms: u64) -> Vec<Value> {
    let Some(trace) = timeline.trace else { return Vec::new() };
    let ago = now.saturating_duration_since(timeline.began);
    let began = u128::from(now_unix_ms) * 1_000_000 - ago.as_nanos().min(u128::from(now_unix_ms) * 1_000_000);
    let at = |since: Duration| (began + since.as_nanos()).to_string();
    let span = |id: u64, parent: u64, name: String, kind: u8, times: (Duration, Duration), own: &[(&str, Value)]| {
        let parent = if parent == 0 { String::new() } else { format!("{parent:016x}") };
        json!({
            "traceId": trace.to_string(),
            "spanId": format!("{id:016x}"),
            "parentSpanId": parent,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": at(times.0),
            "endTimeUnixNano": at(times.1),
            "attributes": attributes(own),
        })
    };
    let own = timeline.id.0.max(1);
    let names = &timeline.names;
    let mut all = Vec::new();
    let mut events = Vec::new();
    let mut sent: Option<(Duration, u64, String)> = None;
    for (index, TimedEvent { at: noted, step }) in timeline.steps.iter().enumerate() {
        match step {
            TimelineEvent::Sent { attempt } => {
                sent = Some((*noted, timeline.id.span(*attempt), format!("attempt {attempt}")));
            }
            TimelineEvent::VerificationSent { verification } => {
                sent = Some((
                    *noted,
                    timeline.id.span(VERIFICATION_SPANS + verification),
                    format!("verification {verification}"),
                ));
            }
            TimelineEvent::HealthCall { call } => {
                sent = Some((*noted, timeline.id.span(HEALTH_CALL_SPANS + call), format!("health call {call}")));
            }
            TimelineEvent::Answered { status, .. } => {
                if let Some((from, id, name)) = sent.take() {
                    let own_status = [("http.response.status_code", (*status).into())];
                    all.push(span(id, own, name, CLIENT, (from, *noted), &own_status));
                }
            }
            TimelineEvent::Failed { kind, .. } => {
                if let Some((from, id, name)) = sent.take() {
                    let mut failed = span(id, own, name, CLIENT, (from, *noted), &[("error.type", (*kind).into())]);
                    failed["status"] = json!({ "code": 2 });
                    all.push(failed);
                }
            }
            TimelineEvent::Verdict { class, next, breaker, took, .. } => {
                let id = timeline.id.span(DECISION_SPANS + u32::try_from(index).unwrap_or(u32::MAX / 2));
                let said = [
                    ("triage.class", (*class).into()),
                    ("triage.next", (*next).into()),
                    ("triage.breaker", (*breaker).into()),
                ];
                let from = noted.saturating_sub(*took);
                all.push(span(id, own, "decision".to_owned(), INTERNAL, (from, *noted), &said));
            }
            TimelineEvent::State { name, outcome, took } => {
                let id = timeline.id.span(STATE_SPANS + u32::try_from(index).unwrap_or(u32::MAX / 2));
                let said = [
                    ("db.system.name", "redis".into()),
                    ("triage.step", (*name).into()),
                    ("triage.outcome", (*outcome).into()),
                ];
                let from = noted.saturating_sub(*took);
                let mut own = span(id, own, format!("state {name}"), CLIENT, (from, *noted), &said);
                if *outcome != "answered" {
                    own["status"] = json!({ "code": 2 });
                }
                all.push(own);
            }
            other => events.push(event(other, at(*noted))),
        }
    }
    let name = [timeline.method, " ", &names.upstream, "/", &names.endpoint].concat();
    let mut said = vec![
        ("http.request.method", timeline.method.into()),
        ("triage.request_id", timeline.id.to_string().into()),
        ("triage.upstream", names.upstream.as_str().into()),
        ("triage.endpoint", names.endpoint.as_str().into()),
        ("triage.policy", timeline.policy.to_str().unwrap_or_default().into()),
        ("triage.generation", timeline.generation.into()),
    ];
    said.extend(timeline.status.map(|status| ("http.response.status_code", status.into())));
    let mut whole = span(own, trace.parent(), name, SERVER, (Duration::ZERO, timeline.took), &said);
    whole["events"] = events.into();
    if timeline.status.is_none_or(|status| status >= 500) {
        whole["status"] = json!({ "code": 2 });
    }
    all.push(whole);
    all
}

/// Offsets for the span numbers of verifications, health calls, decisions and calls of shared state, so that span ids of a request are unique.
const VERIFICATION_SPANS: u32 = 1 << 16;
const HEALTH_CALL_SPANS: u32 = 1 << 15;
const DECISION_SPANS: u32 = 1 << 17;
const STATE_SPANS: u32 = 1 << 18;

/// An event without a duration. Its fields come from closed sets; none holds text of a policy.
fn event(step: &TimelineEvent, at: String) -> Value {
    let members_value = serde_json::to_value(step).unwrap_or_default();
    let members = members_value.as_object().cloned().unwrap_or_default();
    let name = members.get("step").and_then(Value::as_str).unwrap_or_default().to_owned();
    let own: Vec<(&str, Value)> =
        members.iter().filter(|(key, _)| *key != "step").map(|(key, value)| (key.as_str(), value.clone())).collect();
    json!({ "name": name, "timeUnixNano": at, "attributes": attributes(&own) })
}

fn attributes(all: &[(&str, Value)]) -> Vec<Value> {
    let value = |value: &Value| match value {
        Value::Bool(truth) => json!({ "boolValue": truth }),
        // OTLP encodes 64-bit integers as strings in JSON.
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        other => json!({ "stringValue": other.as_str().unwrap_or_default() }),
    };
    all.iter().map(|(key, own)| json!({ "key": key, "value": value(own) })).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Names;
    use futures_util::FutureExt as _;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_full_batch_does_not_wait() {
        let target = Target::new(http::Uri::from_static("http://127.0.0.1:9/v1/traces"));
        let exporter = Exporter::new(&target, Clock::system()).unwrap();
        let timeline = RequestTimeline {
            id: RequestId(1),
            names: Arc::new(Names { upstream: "a".to_owned(), endpoint: "b".to_owned() }),
            method: "GET",
            policy: HeaderValue::from_static("p"),
            generation: 1,
            trace: None,
            began: Instant::now(),
            took: Duration::ZERO,
            status: Some(200),
            steps: Vec::new(),
            omitted: 0,
        };
        (1..MAX_BATCH_REQUESTS).for_each(|_| exporter.take(timeline.clone()));
        assert!(exporter.full.notified().now_or_never().is_none(), "it is not full");
        exporter.take(timeline);
        assert!(exporter.full.notified().now_or_never().is_some(), "nobody is woken");
    }

    #[test]
    fn a_target_has_its_own_path_and_resource() {
        let mut target = Target::new(http::Uri::from_static("http://127.0.0.1:9/own/path"));
        target.resource.insert("service.name".to_owned(), "front desk".to_owned());
        let exporter = Exporter::new(&target, Clock::system()).unwrap();
        assert_eq!(exporter.path, "/own/path");
        let exported = request(&[], &exporter.resource, Instant::now(), 0);
        let expected =
            attributes(&[("service.name", "front desk".into()), ("service.version", env!("CARGO_PKG_VERSION").into())]);
        assert_eq!(exported["resourceSpans"][0]["resource"]["attributes"], Value::from(expected));
    }
}
