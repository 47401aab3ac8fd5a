//! The timelines of single requests.

use super::{Front, Scripted, Value, json, ok, problem, status};
use crate::support::{
    front::Got,
    scripted::{Reply, Seen},
};
use bytes::Bytes;
use tokio::sync::mpsc::Sender;

const DEFAULTS: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 2, min_wait = \"0s\", max_wait = \"0s\" }\n\
                        breaker = { failure_threshold = 3, failure_rate = \"off\" }\n";

/// Responds 503 to every second request to `/flaky`, closes the connection for `/lost`, else 200.
fn answer(flaky: &mut u32, seen: &Seen) -> Reply {
    if seen.line().contains("lost") {
        return Reply::Close;
    }
    *flaky += u32::from(seen.line().contains("flaky"));
    if *flaky % 2 == 1 { status(503) } else { ok("triage-request-id: forged\r\n", "done") }
}

async fn stage(keys: &str) -> (Front, Scripted) {
    let mut flaky = 0;
    let upstream = Scripted::start(move |seen| answer(&mut flaky, seen)).await;
    let toml = format!("[upstreams.api]\nbase_url = \"{}\"\n{DEFAULTS}", upstream.url());
    (Front::with_admin(keys, &toml), upstream)
}

fn id(got: &Got) -> String {
    let id = got.header("triage-request-id").unwrap_or_else(|| panic!("no id: {}", got.head));
    assert_eq!(id.len(), 16, "{}", got.head);
    id.to_owned()
}

async fn timeline(front: &Front, got: &Got) -> Value {
    front.get_json(&format!("/api/v1/requests/{}", id(got))).await
}

/// The names of the steps. A slow machine may be late with a request's body, which is a step too.
fn steps(timeline: &Value) -> Vec<&str> {
    let steps = timeline["steps"].as_array().unwrap().iter().filter(|step| step["for"] != "request-body");
    steps.map(|step| step["step"].as_str().unwrap()).collect()
}

/// The step of this name.
fn step<'a>(timeline: &'a Value, name: &str) -> &'a Value {
    timeline["steps"].as_array().unwrap().iter().find(|step| step["step"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn the_timeline_of_a_retried_request_is_in_order() {
    let (front, _upstream) = stage("").await;
    let got = front.ask("GET", "/flaky", "").await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("200", Some("2")), "{}", got.head);
    let timeline = timeline(&front, &got).await;
    let expected = ["permit", "sent", "answered", "verdict", "waits", "permit", "sent", "answered"];
    assert_eq!(steps(&timeline)[..8], expected, "{timeline:#}");
    let verdict = &timeline["steps"][3];
    assert_eq!((&verdict["class"], &verdict["next"]), (&json!("unknown"), &json!("retry")), "{timeline:#}");
    assert!(!verdict["reason"].as_str().unwrap().is_empty(), "{timeline:#}");
    assert_eq!(
        (&timeline["status"], &timeline["method"], &timeline["endpoint"]),
        (&json!(200), &json!("GET"), &json!("any"))
    );
    let times: Vec<u64> =
        timeline["steps"].as_array().unwrap().iter().map(|step| step["at_us"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && *times.last().unwrap() <= timeline["took_us"].as_u64().unwrap(), "{timeline:#}");
    let rough = front.get_json("/api/v1/requests?rough=true").await;
    assert_eq!(rough[0]["id"], timeline["id"], "{rough}");
}

#[tokio::test]
async fn a_lost_write_and_a_refusal_say_why() {
    let (front, _upstream) = stage("").await;
    let key = "idempotency-key: \"k\"\r\n";
    let got = front.send("POST", "/lost", key, "{}").await;
    assert_eq!(got.status(), "504");
    let lost = timeline(&front, &got).await;
    assert_eq!(steps(&lost), ["key", "permit", "sent", "failed", "verdict", "refused"], "{lost:#}");
    let (key_step, failed) = (step(&lost, "key"), step(&lost, "failed"));
    assert_eq!((&key_step["result"], &failed["sent"]), (&json!("new"), &json!(true)), "{lost:#}");
    assert_eq!(step(&lost, "refused")["reason"], "effect-unknown", "{lost:#}");
    let again = front.send("POST", "/lost", key, "{\"other\": 1}").await;
    assert_eq!(steps(&timeline(&front, &again).await), ["key", "refused"]);
    front.admin("POST", "/api/v1/breakers/api/any/open", "", "").await;
    let got = front.ask("GET", "/x", "").await;
    let open = timeline(&front, &got).await;
    assert_eq!(steps(&open), ["refused"], "{open:#}");
    let text = open["steps"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("no permit, so the host answers itself: breaker-open"), "{open:#}");
    let got = front.ask("GET", "/x", "triage-deadline-ms: soon\r\n").await;
    assert_eq!(steps(&timeline(&front, &got).await), ["refused"]);
}

#[tokio::test]
async fn the_ring_is_bounded_and_smooth_requests_do_not_push_out_the_others() {
    let (front, _upstream) = stage("explain = 2\n").await;
    let rough = front.ask("GET", "/flaky", "").await;
    let mut smooth = Vec::new();
    for _ in 0..5 {
        smooth.push(front.ask("GET", "/x", "").await);
    }
    timeline(&front, &rough).await;
    for got in &smooth[3..] {
        timeline(&front, got).await;
    }
    for got in &smooth[..3] {
        let gone = front.admin("GET", &format!("/api/v1/requests/{}", id(got)), "", "").await;
        assert_eq!(problem(&gone), ("404".to_owned(), "not-found".to_owned()));
    }
    assert_eq!(front.get_json("/api/v1/requests").await.as_array().unwrap().len(), 3);
    assert_eq!(front.get_json("/api/v1/requests?limit=1").await.as_array().unwrap().len(), 1);
    assert_eq!(problem(&front.admin("GET", "/api/v1/requests/none", "", "").await).1, "malformed");
}

#[tokio::test]
async fn switched_off_nothing_is_kept_and_each_answer_has_its_id_still() {
    let (front, _upstream) = stage("explain = 0\n").await;
    let (first, second) = (front.ask("GET", "/flaky", "").await, front.ask("GET", "/x", "").await);
    assert_ne!(id(&first), id(&second));
    assert_eq!(front.get_json("/api/v1/requests").await, json!([]));
}

#[tokio::test]
async fn the_timeline_of_a_caller_that_leaves_ends_abandoned() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    let address = front.address();
    let caller =
        tokio::spawn(async move { crate::support::front::raw(address, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await });
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    caller.abort();
    let mut list = front.get_json("/api/v1/requests").await;
    while list == json!([]) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        list = front.get_json("/api/v1/requests").await;
    }
    assert_eq!(list[0]["status"], Value::Null, "{list}");
    let cancelled = front.get_json(&format!("/api/v1/requests/{}", list[0]["id"].as_str().unwrap())).await;
    assert_eq!(steps(&cancelled), ["permit", "sent", "abandoned"], "{cancelled:#}");
}

/// A host whose caller left in the middle of a write, and the sender of the upstream's answer to it.
async fn abandoned_write() -> (Front, Sender<Bytes>, Scripted) {
    let (answer, parts) = tokio::sync::mpsc::channel(1);
    let mut parts = Some(parts);
    let upstream = Scripted::start(move |_| parts.take().map_or(Reply::Hang, Reply::Paced)).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    let address = front.address();
    let row = "POST /orders HTTP/1.1\r\nHost: triage.test\r\nContent-Length: 3\r\n\r\nrow";
    let caller = tokio::spawn(async move { crate::support::front::raw(address, row.as_bytes()).await });
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    (front, answer, upstream)
}

/// A write goes on without its caller. It is counted among the abandoned requests, and its timeline says what became of it.
#[tokio::test]
async fn a_write_whose_caller_leaves_is_counted_and_explained() {
    let (front, answer, _upstream) = abandoned_write().await;
    // The host learns of the closed connection a moment later. Only a host that never does would wait for ever.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    answer.send("HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ndone".into()).await.unwrap();
    let mut list = front.get_json("/api/v1/requests?rough=true").await;
    while list == json!([]) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        list = front.get_json("/api/v1/requests?rough=true").await;
    }
    assert_eq!((&list[0]["status"], &list[0]["method"]), (&Value::Null, &json!("POST")), "{list}");
    let left = front.get_json(&format!("/api/v1/requests/{}", list[0]["id"].as_str().unwrap())).await;
    let steps = steps(&left);
    assert!(steps.contains(&"answered") && steps.last() == Some(&"abandoned"), "{left:#}");
    let metrics = front.admin("GET", "/metrics", "", "").await.text();
    let counted = "triage_requests_abandoned_total{upstream=\"api\",endpoint=\"any\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

/// A repetition of a write whose caller has left gets that write's response without another send, and its timeline says so.
#[tokio::test]
async fn a_write_that_takes_an_orphan_over_says_what_it_found() {
    let (front, answer, _upstream) = abandoned_write().await;
    answer.send("HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ndone".into()).await.unwrap();
    let got = front.send("POST", "/orders", "", "row").await;
    assert_eq!((got.status(), got.header("triage-adopted")), ("201", Some("true")), "{}", got.head);
    let timeline = timeline(&front, &got).await;
    // It may have waited for the orphan before.
    let last = timeline["steps"].as_array().unwrap().last().unwrap();
    assert!(steps(&timeline).iter().all(|step| ["waited", "orphan"].contains(step)), "{timeline:#}");
    assert_eq!((&last["result"], &timeline["status"]), (&json!("answer"), &json!(201)), "{timeline:#}");
}

/// Hospital data is confidential: no page contains data that callers or the upstream sent.
#[tokio::test]
async fn no_page_holds_what_was_sent() {
    let (front, _upstream) = stage("").await;
    let headers = "x-patient: s3cret-header\r\nauthorization: Bearer s3cret-token\r\nidempotency-key: \"s3cret-key\"\r\n\
                   tracestate: s3cret=state\r\n";
    for (method, path) in [
        ("POST", "/hospitals/s3cret-path?q=s3cret-query"),
        ("POST", "/lost/s3cret-path"),
        ("GET", "/flaky/s3cret-path"),
        ("S3CRET", "/s3cret-path"),
        ("GET", "/s3cret-path/../x"),
    ] {
        front.send(method, path, headers, "{\"name\": \"s3cret-body\"}").await;
    }
    let list = front.get_json("/api/v1/requests").await;
    assert_eq!(list.as_array().unwrap().len(), 5);
    let mut pages = vec![list.to_string()];
    for timeline in list.as_array().unwrap() {
        pages.push(front.get_json(&format!("/api/v1/requests/{}", timeline["id"].as_str().unwrap())).await.to_string());
    }
    for path in
        ["/metrics", "/api/v1/events", "/api/v1/status", "/api/v1/records", "/api/v1/breakers", "/api/v1/config"]
    {
        pages.push(front.admin("GET", path, "", "").await.text());
    }
    for page in pages {
        assert!(!page.to_lowercase().contains("s3cret"), "{page}");
    }
}

#[tokio::test]
async fn a_callers_trace_is_continued_with_a_span_for_each_attempt() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (front, upstream) = stage("").await;
    let headers = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: vendor=1\r\n");
    let got = front.ask("GET", "/flaky", &headers).await;
    assert_eq!(timeline(&front, &got).await["trace"], TRACE);
    let seen = upstream.seen();
    let spans: Vec<String> = seen.iter().map(|seen| seen.all("traceparent").join("|")).collect();
    assert_eq!(spans.len(), 2);
    assert_ne!(spans[0], spans[1], "a span for each attempt");
    for (span, seen) in spans.iter().zip(&seen) {
        assert!(span.starts_with(&format!("00-{TRACE}-")) && span.ends_with("-01") && span.len() == 55, "{span}");
        assert!(!span.contains("00f067aa0ba902b7"), "{span}");
        assert_eq!(seen.all("tracestate"), ["vendor=1"]);
    }
    front.ask("GET", "/x", "traceparent: 00-broken\r\ntracestate: vendor=1\r\n").await;
    front.ask("GET", "/x", "").await;
    for seen in &upstream.seen()[2..] {
        assert!(seen.all("traceparent").is_empty() && seen.all("tracestate").is_empty(), "{}", seen.head);
    }
}

#[tokio::test]
async fn refusals_fold_into_one_row_and_do_not_displace_the_failures_that_caused_them() {
    // One worker keeps two timelines of each kind.
    let (front, _upstream) = stage("explain = 2\n").await;
    for _ in 0..2 {
        assert_eq!(front.ask("GET", "/lost", "").await.status(), "502");
    }
    let breakers = front.get_json("/api/v1/breakers").await;
    let reads = &breakers[1];
    assert_eq!(reads["why"], "3 failures in a row: no answer (reset)", "{breakers}");
    for _ in 0..40 {
        assert_eq!(front.ask("GET", "/x", "").await.status(), "503");
    }
    let rough = front.get_json("/api/v1/requests?rough=true&limit=500").await;
    let rows = rough.as_array().unwrap();
    let refused: Vec<_> = rows.iter().filter(|row| row["reason"] == "breaker-open").collect();
    assert_eq!(refused.len(), 1, "{rough:#}");
    let counted: u64 = refused.iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!((counted, &refused[0]["status"]), (40, &json!(503)), "{rough:#}");
    assert!(refused[0]["first_unix_ms"].as_u64() <= refused[0]["unix_ms"].as_u64(), "{rough:#}");
    assert!(rows.iter().any(|row| row["reason"] == "upstream-failed"), "the failures are still there: {rough:#}");
    for which in ["first_failure", "latest_failure"] {
        let id = reads[which]["request"].as_str().unwrap();
        let timeline = front.get_json(&format!("/api/v1/requests/{id}")).await;
        assert!(steps(&timeline).contains(&"failed"), "{which}: {timeline:#}");
    }
}

#[tokio::test]
async fn requests_are_listed_by_endpoint_status_and_reason() {
    let upstream = Scripted::start(|seen| status(if seen.line().contains("/gone") { 404 } else { 503 })).await;
    let keys = "retry = { max_attempts = 1 }\nbreaker = { failure_threshold = 3, failure_rate = \"off\" }\n";
    let toml = format!("[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\n{keys}", upstream.url());
    let front = Front::with_admin("", &toml);
    for (method, path, count) in [("GET", "/gone", 1), ("DELETE", "/gone", 1), ("GET", "/down", 5)] {
        for _ in 0..count {
            front.ask(method, path, "").await;
        }
    }
    for (query, rows, requests) in [
        ("", 6, 7),
        ("upstream=api", 6, 7),
        ("endpoint=delete", 1, 1),
        ("status=404", 2, 2),
        ("status=404&endpoint=any", 1, 1),
        ("status=5xx", 4, 5),
        ("status=5xx&limit=2", 2, 3),
        ("status=503&reason=breaker-open", 1, 2),
        ("reason=breaker-open&rough=true", 1, 2),
        ("reason=rate-limited", 0, 0),
        ("status=200", 0, 0),
    ] {
        let listed = front.get_json(&format!("/api/v1/requests?{query}")).await;
        let counts: Vec<u64> = listed.as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).collect();
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (rows, requests), "{query}: {listed:#}");
    }
    for (query, detail) in [
        ("status=6xx", "status must be a status such as 503, or a class such as 5xx"),
        ("status=", "status must be a status such as 503, or a class such as 5xx"),
        ("reason=open", "reason must be the last word of a problem's type, one of no-upstream, no-endpoint, "),
        (
            "limit=501",
            "rough must be true or false, limit from 1 to 500; the other parameters are upstream, endpoint, status and reason",
        ),
        (
            "endpoints=any",
            "rough must be true or false, limit from 1 to 500; the other parameters are upstream, endpoint, status and reason",
        ),
        ("upstream=gone", "there is no such upstream or endpoint; /api/v1/breakers lists them"),
        ("upstream=api&endpoint=gone", "there is no such upstream or endpoint; /api/v1/breakers lists them"),
    ] {
        let refused = front.admin("GET", &format!("/api/v1/requests?{query}"), "", "").await;
        let body: Value = serde_json::from_slice(&refused.body).unwrap();
        assert!(body["detail"].as_str().unwrap().starts_with(detail), "{query}: {body:#}");
    }
}
