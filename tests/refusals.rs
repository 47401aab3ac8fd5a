//! Every refusal as a caller sees it, compared word for word. All but nine are produced through the pipeline.
//!
//! Both matches below are exhaustive: a new problem breaks the build of this test until it has an expected row and a way to produce it.

use crate::support::{Answered, World, create, read, settings};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_core::{clock::Clock, rate_limit::Quota, rng::Rng};
use triage_engine::contract::{Failure, FailureKind};
use triage_hospital::emulator::{Call, ColdStart, Fault, Faults, Meanwhile, Options, When};
use triage_problem::Problem;
use triage_upstream::{Body, Inbound, Outbound, Transport, full, headers::Caller};

/// The parts of a refusal that a caller sees.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    status: u16,
    kind: &'static str,
    title: &'static str,
    detail: &'static str,
    /// `retry-after` and `retry_after_ms`.
    wait: Option<(&'static str, u64)>,
    /// `triage-sent`.
    sent: &'static str,
}

const fn row(status: u16, kind: &'static str, title: &'static str, detail: &'static str) -> Row {
    Row { status, kind, title, detail, wait: None, sent: "no" }
}

impl Row {
    const fn waits(self, seconds: &'static str, ms: u64) -> Self {
        Self { wait: Some((seconds, ms)), ..self }
    }

    const fn maybe_sent(self) -> Self {
        Self { sent: "maybe", ..self }
    }
}

/// The expected values of each problem.
#[allow(clippy::too_many_lines)]
fn expected(problem: &Problem) -> Row {
    match problem {
        Problem::NoUpstream => row(
            404,
            "no-upstream",
            "no such upstream",
            "no upstream matches this host and path; the request must match one of the configured upstreams",
        ),
        Problem::NoEndpoint { .. } => row(
            404,
            "no-endpoint",
            "no such endpoint",
            "no endpoint of upstream up matches DELETE on this path; add one in the configuration or the policy",
        ),
        Problem::NoRecord => row(
            404,
            "no-record",
            "no such record",
            "no record with this id is kept for this caller: the record has expired, its request had no effect, or the id never existed; send the request again with the same idempotency key",
        ),
        Problem::PathNotPlain => row(
            400,
            "path-not-plain",
            "path is ambiguous",
            "the path has dot segments or backslashes, which upstreams resolve differently; send the resolved path",
        ),
        Problem::HostAmbiguous => row(
            400,
            "host-ambiguous",
            "host is ambiguous",
            "the request names its host more than once, and servers differ in which one counts; name the host once",
        ),
        Problem::HostMissing => row(
            400,
            "host-missing",
            "host is missing",
            "the request names no host, but HTTP/1.1 and HTTP/2 require one; send a Host field",
        ),
        Problem::HostMalformed => row(
            400,
            "host-malformed",
            "host is malformed",
            "the request's host is malformed; send a host name or address, with or without a port",
        ),
        Problem::TargetMalformed => row(
            400,
            "target-malformed",
            "request target is malformed",
            "the request's target is malformed; send a path, or an http or https URL with its host",
        ),
        Problem::TransferCoding => row(
            501,
            "transfer-coding",
            "transfer coding is not supported",
            "the host does not support the transfer coding of the request's body; send the body chunked without another coding, or with its length",
        ),
        Problem::LengthMalformed => row(
            400,
            "length-malformed",
            "content length is malformed",
            "the request's content-length is malformed; send one whole number up to 9223372036854775807, or no content-length and a chunked body",
        ),
        Problem::Expectation => row(
            417,
            "expectation",
            "expectation cannot be met",
            "the request has an expectation other than 100-continue, and the host supports no other; leave it out",
        ),
        Problem::TooManyFields { .. } => row(
            431,
            "too-many-fields",
            "too many header fields",
            "the request has more than 256 header fields, the maximum of server.max_header_fields; send fewer",
        ),
        Problem::Tunnel => row(
            501,
            "tunnel",
            "tunnels are not supported",
            "CONNECT requests a tunnel, but this host forwards single requests only; send the request itself",
        ),
        Problem::Deadline { .. } => row(
            400,
            "deadline-malformed",
            "deadline is malformed",
            "header triage-deadline-ms must be a whole number of milliseconds from 1; send one or leave it out",
        ),
        Problem::Key { .. } => row(
            400,
            "key-malformed",
            "idempotency key is malformed",
            "the idempotency-key is empty; send 1 to 255 visible ascii characters, such as a uuid",
        ),
        Problem::KeyReused => row(
            422,
            "key-reused",
            "idempotency key was used for another request",
            "this idempotency key belongs to a request with another method, path or body; use a new key for a new request",
        ),
        Problem::InFlight { .. } => row(
            409,
            "in-flight",
            "the first request is under way",
            "this request, or an equal one whose caller disconnected, is under way; retry after the wait, with the same idempotency key if the request has one",
        )
        .waits("1", 1000)
        .maybe_sent(),
        Problem::NotKept { .. } => row(
            409,
            "answer-not-kept",
            "the first answer was not stored",
            "the request was answered 200, but the answer was not stored: it was incomplete, had more than 16 bytes, or the memory for stored answers was full. The host does not send the request again",
        )
        .maybe_sent(),
        Problem::KeysFull => row(
            503,
            "keys-full",
            "no room for another idempotency key",
            "the store is full: it holds the maximum number of idempotency keys; retry after the wait",
        )
        .waits("1", 1000),
        Problem::BodyTooLarge { .. } => row(
            413,
            "body-too-large",
            "body is too large for a keyed request",
            "the body of a request with an idempotency key may have at most 16 bytes; send a smaller body, or no key",
        ),
        Problem::BodyBroken => {
            row(400, "body-broken", "request body broke off", "the request's body ended early; send the request again")
        }
        Problem::BreakerOpen { .. } => row(
            503,
            "breaker-open",
            "circuit breaker is open",
            "the circuit breaker of list is open: 1 failures in a row; retry after the wait",
        )
        .waits("60", 60_000),
        Problem::RateLimited { quota: Some(_), .. } => row(
            429,
            "rate-limited",
            "rate limit reached",
            "list admits 1 request per 1 min, and no permit is free within the time that the deadline leaves for waiting; retry after the wait",
        )
        .waits("60", 60_000),
        Problem::RateLimited { quota: None, .. } => row(
            429,
            "rate-limited",
            "rate limit reached",
            "list-hospitals admits no request while the upstream asks for fewer requests, and no permit is free within the time that the deadline leaves for waiting; retry after the wait",
        )
        .waits("120", 120_000),
        Problem::Paced { .. } => row(
            429,
            "rate-limited",
            "rate limit reached",
            "list is sent 6 requests a minute, the rate that the upstream accepted lately, and no permit is free within the time that the deadline leaves for waiting; retry after the wait",
        )
        .waits("10", 10_000),
        Problem::BudgetExhausted { .. } => row(
            503,
            "budget-exhausted",
            "retry budget is used up",
            "the retry budget of list is used up: retries may only be a share of the traffic; retry after the wait",
        )
        .waits("2", 1001),
        Problem::Concurrency { .. } => row(
            503,
            "overloaded",
            "too many requests at once",
            "list has 1 requests under way, its maximum; retry after the wait",
        )
        .waits("1", 1000),
        Problem::Overloaded { .. } => row(
            503,
            "overloaded",
            "upstream is overloaded",
            "upstream up is overloaded, and requests with a priority above low go first; nothing was sent: retry after the wait",
        )
        .waits("1", 1000),
        Problem::MemoryScarce { .. } => row(
            503,
            "overloaded",
            "memory limit is reached",
            "this host has reached its memory limit of 1 bytes; nothing was sent: retry after the wait",
        )
        .waits("1", 1000),
        Problem::TooManyRequests { .. } => row(
            503,
            "overloaded",
            "too many requests under way",
            "this host has 1 requests under way, its maximum; nothing was sent: retry after the wait",
        )
        .waits("1", 1000),
        Problem::Exhausted => row(
            503,
            "overloaded",
            "no file descriptor is left",
            "this host has no file descriptor left for a connection to the upstream; nothing was sent: retry after the wait",
        )
        .waits("1", 1000),
        Problem::DeadlineBeforeSend => row(
            504,
            "deadline-before-send",
            "deadline passed before the request was sent",
            "the deadline passed while the request waited; nothing was sent: retry with a longer deadline",
        ),
        Problem::Asleep => row(
            503,
            "upstream-asleep",
            "upstream did not wake up",
            "the upstream did not wake up in time; nothing was sent: retry after the wait",
        )
        .waits("10", 10_000),
        Problem::StoreUnavailable => row(
            503,
            "store-unavailable",
            "state store is unavailable",
            "the state store did not answer, and without it a write might be repeated; retry after the wait",
        )
        .waits("1", 1000),
        Problem::EffectUnknown => row(
            504,
            "effect-unknown",
            "effect is unknown",
            "the request may or may not have taken effect at the upstream. With an idempotency key, repeat it with the same key and the same credentials, and the host settles it. Without a key, check the upstream first: a repetition would be a second write",
        )
        .waits("60", 60_000)
        .maybe_sent(),
        Problem::UnsentSinceLoss => row(
            504,
            "effect-unknown",
            "effect is unknown",
            "shared state has lost its data, and an earlier request with this key may have been sent; this request was not sent, and no result of the earlier request was found so far: repeat it with the same idempotency key after the wait, and the host sends it once that is safe",
        ),
        Problem::UnknownAfterLoss { .. } => row(
            504,
            "effect-unknown",
            "effect is unknown",
            "shared state has lost its data, and the resource at the upstream may come from this request or from an equal one; this request was not sent. Have an operator settle record 0707070707070707070707070707070707070707070707070707070707070707 (triage records resolve 0707070707070707070707070707070707070707070707070707070707070707 applied --body FILE, where FILE holds the answer; not-applied if the resource belongs to another request), then repeat the request",
        ),
        Problem::SeveralAfterLoss { .. } => row(
            504,
            "effect-unknown",
            "effect is unknown",
            "shared state has lost its data, and several resources at the upstream may come from this request; the host adopts none, because the others belong to equal requests. Have an operator settle record 0707070707070707070707070707070707070707070707070707070707070707 (triage records resolve 0707070707070707070707070707070707070707070707070707070707070707 applied --body FILE, where FILE holds the answer; not-applied if none belongs to it), then repeat the request",
        )
        .maybe_sent(),
        Problem::NotInEffect { .. } => row(
            409,
            "not-in-effect",
            "the request did not take effect",
            "a verification at the upstream showed that the request did not take effect (rejected); correct the conflicting state there, then send the request again",
        )
        .maybe_sent(),
        Problem::UpstreamFailed { failure, .. } => match (failure.kind, failure.sent) {
            (FailureKind::Timeout, _) => row(
                504,
                "upstream-timeout",
                "upstream did not answer in time",
                "the upstream gave no complete and valid answer (timeout)",
            )
            .maybe_sent(),
            (_, true) => row(
                502,
                "upstream-failed",
                "upstream failed",
                "the upstream gave no complete and valid answer (reset)",
            )
            .maybe_sent(),
            (_, false) => row(
                502,
                "upstream-unreachable",
                "upstream cannot be reached",
                "the upstream gave no complete and valid answer (dns)",
            ),
        },
    }
}

/// Produces the refusal by the action of a caller or an upstream.
#[allow(clippy::too_many_lines)]
async fn produced(problem: &Problem) -> Answered {
    match problem {
        Problem::NoUpstream => plain("path_prefix = \"/api\"", "").get("/other").await,
        Problem::PathNotPlain => plain("", "").get("/list/../admin").await,
        Problem::HostAmbiguous => plain("", "").ask("GET", "/list", &[("host", "a"), ("host", "b")], "").await,
        Problem::HostMalformed => plain("", "").ask("GET", "/list", &[("host", "a b")], "").await,
        Problem::TargetMalformed => plain("", "").ask("GET", "ftp://a/list", &[], "").await,
        Problem::TransferCoding => {
            plain("", "").ask("POST", "/rows", &[("transfer-encoding", "gzip, chunked")], "").await
        }
        Problem::LengthMalformed => {
            plain("", "").ask("POST", "/rows", &[("content-length", "9223372036854775808")], "").await
        }
        Problem::Expectation => plain("", "").ask("POST", "/rows", &[("expect", "foo")], "").await,
        Problem::Tunnel => plain("", "").ask("CONNECT", "/list", &[], "").await,
        Problem::Deadline { .. } => plain("", "").ask("GET", "/list", &[("triage-deadline-ms", "soon")], "").await,
        Problem::Key { .. } => plain("", "").ask("POST", "/rows", &[("idempotency-key", "")], "").await,
        Problem::KeyReused => {
            let scene = plain("", "");
            scene.post("/rows", "k", "one").await;
            scene.post("/rows", "k", "two").await
        }
        Problem::InFlight { .. } => {
            let scene = Arc::new(plain("", "").upstream(|_| Scripted::Silence));
            let first = Arc::clone(&scene);
            let first = tokio::spawn(async move { first.post("/rows", "k", "one").await });
            tokio::task::yield_now().await;
            let second = scene.post("/rows", "k", "one").await;
            first.abort();
            second
        }
        Problem::NotKept { .. } => {
            let scene = plain("idempotency.max_response = \"16B\"", "")
                .upstream(|_| Scripted::Answer(200, "more than sixteen bytes"));
            scene.post("/rows", "k", "one").await;
            scene.post("/rows", "k", "one").await
        }
        Problem::KeysFull => {
            let scene = plain("idempotency.max_records = 1", "").upstream(|_| Scripted::Fail(FailureKind::Reset, true));
            scene.post("/rows", "a", "one").await;
            scene.post("/rows", "b", "one").await
        }
        Problem::BodyTooLarge { .. } => {
            plain("idempotency.max_request = \"16B\"", "").post("/rows", "k", "more than sixteen bytes").await
        }
        Problem::NoRecord => plain("", "").get("/.triage/records/none").await,
        Problem::BodyBroken => {
            let broken: triage_upstream::BoxError = "gone".into();
            let body = StreamBody::new(stream::iter([Err(broken)])).boxed();
            plain("", "").handle(Request::post("/rows").body(body).unwrap()).await
        }
        Problem::BreakerOpen { .. } => {
            let scene = plain("", "breaker = { failure_threshold = 1, jitter = 0 }\nretry = { max_attempts = 1 }")
                .upstream(|_| Scripted::Fail(FailureKind::Connect, false));
            scene.get("/list").await;
            scene.get("/list").await
        }
        Problem::RateLimited { quota: Some(_), .. } => {
            let scene = plain("", "limits = [{ requests = 1, period = \"60s\" }]");
            scene.get("/list").await;
            scene.get("/list").await
        }
        Problem::RateLimited { quota: None, .. } => {
            let world = World::new(&settings(), Options::immediate());
            let wait = Fault::RateLimited(Some(Duration::from_secs(120)));
            world.emulator.set_faults(Faults::none().on(Call::List, When::Always, wait));
            let list = || Request::get("/hospitals/").body(Bytes::new()).unwrap();
            world.send(list()).await;
            world.send(list()).await
        }
        Problem::Paced { .. } => {
            let keys = "adaptive_rate = { enabled = true, rise_per_minute = 1 }\nretry = { max_attempts = 1 }\ndeadline = \"6s\"";
            let throttled = AtomicBool::new(false);
            let scene = plain("", keys).upstream(move |_| {
                let status = if throttled.swap(true, Relaxed) { 200 } else { 429 };
                Scripted::Answer(status, "as asked")
            });
            scene.get("/list").await;
            // Wait out the policy's pause, which lasts one window.
            tokio::time::sleep(Duration::from_secs(60)).await;
            scene.get("/list").await;
            scene.get("/list").await
        }
        Problem::Concurrency { .. } => {
            let scene = Arc::new(
                plain("", "concurrency = 1\nattempt_timeout = \"1h\"\ndeadline = \"2h\"")
                    .upstream(|_| Scripted::Silence),
            );
            let first = Arc::clone(&scene);
            let first = tokio::spawn(async move { first.get("/list").await });
            tokio::task::yield_now().await;
            let second = scene.ask("GET", "/list", &[("triage-deadline-ms", "50")], "").await;
            first.abort();
            second
        }
        Problem::Overloaded { .. } => overloaded().await,
        Problem::MemoryScarce { .. } => {
            let mut scene = plain("", "attempt_timeout = \"1h\"\ndeadline = \"2h\"");
            scene.settings.server.memory_limit = Some(1);
            let scene = scene.upstream(|_| Scripted::Silence);
            let mut first = Box::pin(scene.get("/list"));
            tokio::select! {
                biased;
                _ = &mut first => unreachable!("nobody answers it"),
                () = std::future::ready(()) => {}
            }
            scene.get("/list").await
        }
        Problem::TooManyRequests { .. } => {
            let mut scene = plain("", "attempt_timeout = \"1h\"\ndeadline = \"2h\"");
            scene.settings.server.max_requests = 1;
            let scene = scene.upstream(|_| Scripted::Silence);
            let mut first = Box::pin(scene.get("/list"));
            tokio::select! {
                biased;
                _ = &mut first => unreachable!("nobody answers it"),
                () = std::future::ready(()) => {}
            }
            scene.get("/list").await
        }
        Problem::Exhausted => {
            plain("", "").upstream(|_| Scripted::Fail(FailureKind::Exhausted, false)).get("/list").await
        }
        Problem::DeadlineBeforeSend => {
            let body = StreamBody::new(stream::pending::<Result<_, triage_upstream::BoxError>>()).boxed();
            plain("", "").handle(Request::post("/rows").body(body).unwrap()).await
        }
        Problem::Asleep => {
            let meanwhile = Meanwhile::Answer(StatusCode::BAD_GATEWAY);
            let (idle, waking) = (Duration::from_secs(900), Duration::from_secs(3600));
            let cold = ColdStart { idle, waking, meanwhile, asleep: true };
            let world = World::new(&settings(), Options { cold_start: Some(cold), ..Options::default() });
            world.send(create("A", None)).await
        }
        Problem::EffectUnknown => {
            plain("", "").upstream(|_| Scripted::Fail(FailureKind::Reset, true)).post("/rows", "k", "one").await
        }
        Problem::UpstreamFailed { failure, .. } => {
            let failure = *failure;
            let scene = plain("", "retry = { max_attempts = 1 }");
            let scene = match failure.kind {
                FailureKind::Timeout => scene.upstream(|_| Scripted::Silence),
                _ => scene.upstream(move |_| Scripted::Fail(failure.kind, failure.sent)),
            };
            scene.get("/list").await
        }
        // These are not produced here; only their text is checked. With a store in memory, a retry that the budget refuses delivers the
        // upstream's last response, and the store cannot fail. Two others need a policy without a catch-all endpoint, and one that calls a
        // lost request rejected. The two of the listener are in the abuse tests, and those after a loss in the fleet tests.
        Problem::BudgetExhausted { .. }
        | Problem::HostMissing
        | Problem::TooManyFields { .. }
        | Problem::StoreUnavailable
        | Problem::UnsentSinceLoss
        | Problem::UnknownAfterLoss { .. }
        | Problem::SeveralAfterLoss { .. }
        | Problem::NoEndpoint { .. }
        | Problem::NotInEffect { .. } => read(problem.clone().into_response()).await,
    }
}

/// More requests at once than any limit admits, and an upstream that never responds.
async fn overloaded() -> Answered {
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&arrived);
    let scene = plain("", "deadline = \"1h\"\nattempt_timeout = \"1h\"").upstream(move |_| {
        count.fetch_add(1, Relaxed);
        Scripted::Silence
    });
    let scene = Arc::new(scene);
    let ask = |deadline: &'static str| {
        let scene = Arc::clone(&scene);
        let headers = [("triage-priority", "Low"), ("triage-deadline-ms", deadline)];
        async move { scene.ask("GET", "/list", &headers, "").await }
    };
    let crowd: Vec<_> = (0..10_000).map(|_| tokio::spawn(ask("60000"))).collect();
    while arrived.load(Relaxed) < crowd.len() {
        tokio::task::yield_now().await;
    }
    let refused = ask("50").await;
    for caller in crowd {
        caller.abort();
    }
    refused
}

/// One of each problem, and two of those with different texts.
fn every_problem() -> Vec<Problem> {
    let failed =
        |kind: FailureKind, sent| Problem::UpstreamFailed { failure: Failure::new(kind, sent), kind: kind.name() };
    let retry_after = Duration::from_micros(1_000_001);
    let endpoint = || "list".to_owned();
    let quota = Quota { requests: NonZeroU32::MIN, period: Duration::from_secs(60), burst: NonZeroU32::MIN };
    vec![
        Problem::NoUpstream,
        Problem::NoEndpoint { upstream: "up".to_owned(), method: "DELETE".to_owned() },
        Problem::NoRecord,
        Problem::PathNotPlain,
        Problem::HostAmbiguous,
        Problem::HostMissing,
        Problem::HostMalformed,
        Problem::TargetMalformed,
        Problem::TransferCoding,
        Problem::LengthMalformed,
        Problem::Expectation,
        Problem::TooManyFields { limit: 256 },
        Problem::Tunnel,
        Problem::Deadline { header: "triage-deadline-ms".to_owned() },
        Problem::Key { why: String::new() },
        Problem::KeyReused,
        Problem::InFlight { retry_after },
        Problem::NotKept { status: 200, limit_bytes: 16 },
        Problem::KeysFull,
        Problem::BodyTooLarge { limit_bytes: 16 },
        Problem::BodyBroken,
        Problem::BreakerOpen { endpoint: endpoint(), why: String::new(), retry_after },
        Problem::RateLimited { endpoint: endpoint(), quota: Some(quota), retry_after },
        Problem::RateLimited { endpoint: endpoint(), quota: None, retry_after },
        Problem::Paced { endpoint: endpoint(), per_minute: 6, retry_after },
        Problem::BudgetExhausted { endpoint: endpoint(), retry_after: Duration::from_micros(1_001_000) },
        Problem::Concurrency { endpoint: endpoint(), limit: 1 },
        Problem::Overloaded { upstream: "up".to_owned(), priority: "low" },
        Problem::MemoryScarce { limit_bytes: 1 },
        Problem::TooManyRequests { scope: "this host", limit: 1, what: "requests" },
        Problem::Exhausted,
        Problem::DeadlineBeforeSend,
        Problem::Asleep,
        Problem::StoreUnavailable,
        Problem::EffectUnknown,
        Problem::UnsentSinceLoss,
        Problem::UnknownAfterLoss { record: triage_state::idempotency::RecordId::from_bytes([7; 32]) },
        Problem::SeveralAfterLoss { record: triage_state::idempotency::RecordId::from_bytes([7; 32]) },
        Problem::NotInEffect { class: "rejected" },
        failed(FailureKind::Timeout, true),
        failed(FailureKind::Reset, true),
        failed(FailureKind::Dns, false),
    ]
}

/// The table for the book's page on problem types.
pub fn reference() -> String {
    let mut table = String::from(
        "| type | status | title | `triage-sent` | `Retry-After` | an example of its detail |\n|---|---|---|---|---|---|\n",
    );
    for problem in every_problem() {
        let row = expected(&problem);
        let wait = if row.wait.is_some() { "yes" } else { "" };
        let detail = row.detail.replace(&"07".repeat(32), "RECORD").replace('|', "\\|");
        let _ =
            writeln!(table, "| `{}` | {} | {} | `{}` | {wait} | {detail} |", row.kind, row.status, row.title, row.sent);
    }
    table
}

#[tokio::test(start_paused = true)]
async fn every_refusal_says_what_why_and_when_to_come_back() {
    let mut wrong = Vec::new();
    for problem in every_problem() {
        let expected = expected(&problem);
        let answered = Box::pin(produced(&problem)).await;
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(&answered.body) else {
            wrong.push(format!("{}: no refusal but {} {:?}", expected.kind, answered.status, answered.body));
            continue;
        };
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let seen = (
            (answered.status, body["status"].as_u64(), text("type"), text("title"), text("detail")),
            (answered.header("retry-after").to_owned(), body["retry_after_ms"].as_u64()),
            (answered.header("content-type").to_owned(), answered.header("triage-sent").to_owned()),
        );
        let wanted = (
            (
                expected.status,
                Some(u64::from(expected.status)),
                format!("urn:triage:problem:{}", expected.kind),
                expected.title.to_owned(),
                expected.detail.to_owned(),
            ),
            (expected.wait.map_or("", |wait| wait.0).to_owned(), expected.wait.map(|wait| wait.1)),
            ("application/problem+json".to_owned(), expected.sent.to_owned()),
        );
        if seen != wanted {
            wrong.push(format!("{}:\n  seen   {seen:?}\n  wanted {wanted:?}", expected.kind));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The behaviour of a [`Scene`]'s upstream.
enum Scripted {
    Answer(u16, &'static str),
    Fail(FailureKind, bool),
    Silence,
}

type Script = dyn Fn(&Outbound) -> Scripted + Send + Sync;

struct Upstream(Box<Script>);

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstream")
    }
}

impl Transport for Upstream {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            // The health call: this upstream never sleeps.
            let scripted = if request.path_and_query == "/" { Scripted::Answer(200, "") } else { (self.0)(&request) };
            match scripted {
                Scripted::Answer(status, body) => Ok(Inbound {
                    status: StatusCode::from_u16(status).unwrap(),
                    headers: http::HeaderMap::new(),
                    body: full(Bytes::from_static(body.as_bytes())),
                }),
                Scripted::Fail(kind, sent) => Err(Failure::new(kind, sent)),
                Scripted::Silence => std::future::pending().await,
            }
        })
    }
}

/// A host with two endpoints in addition to those of the policy: `list` and `rows`.
struct Scene {
    settings: Settings,
    host: Host,
}

fn plain(upstream: &str, endpoint: &str) -> Scene {
    let settings = config::from_toml(&format!(
        r#"
        [upstreams.up]
        base_url = "http://up.invalid"
        policy = "hospital-directory"
        {upstream}
        [upstreams.up.endpoints.list]
        method = "GET"
        path = "/list"
        {endpoint}
        [upstreams.up.endpoints.rows]
        method = "POST"
        path = "/rows"
        "#
    ))
    .unwrap_or_else(|problems| panic!("{problems}"));
    let host = host(&settings, |_| Scripted::Answer(200, "done"));
    Scene { settings, host }
}

fn host(settings: &Settings, script: impl Fn(&Outbound) -> Scripted + Send + Sync + 'static) -> Host {
    let upstream: Arc<dyn Transport> = Arc::new(Upstream(Box::new(script)));
    Host::with_transports(settings, Clock::anchored(1_767_225_600_000), Rng::seeded(7), vec![upstream]).unwrap()
}

impl Scene {
    fn upstream(self, script: impl Fn(&Outbound) -> Scripted + Send + Sync + 'static) -> Self {
        Self { host: host(&self.settings, script), settings: self.settings }
    }

    async fn handle(&self, request: Request<Body>) -> Answered {
        read(self.host.handle(request, &Caller::new(Ipv4Addr::LOCALHOST.into(), "http"), None).await).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> Answered {
        let request = Request::builder().method(method).uri(path);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.handle(request.body(full(Bytes::from_static(body.as_bytes()))).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, key: &str, body: &'static str) -> Answered {
        self.ask("POST", path, &[("idempotency-key", key)], body).await
    }
}
