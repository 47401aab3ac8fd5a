//! Traces: what a collector gets of requests, and what it must never get.

use crate::support::{
    front::Front,
    redis_server::RedisServer,
    scripted::{Scripted, ok, status},
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// A collector, an upstream that fails every second time, and a host that exports.
async fn stage(further: &str) -> (Scripted, Scripted, Front) {
    let collector = Scripted::start(|_| ok("", "{}")).await;
    let mut fails = false;
    let upstream = Scripted::start(move |_| {
        fails = !fails;
        if fails { status(503) } else { ok("", "a secret answer") }
    })
    .await;
    let front = Front::serve(&format!(
        "[telemetry.otlp]\nendpoint = \"{}/below\"\n{further}[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\n\
         retry = {{ min_wait = \"0s\", max_wait = \"0s\" }}\n",
        collector.url(),
        upstream.url()
    ));
    (collector, upstream, front)
}

/// All spans, after this number of requests is complete.
async fn spans(collector: &Scripted, requests: usize) -> Vec<Value> {
    loop {
        let mut all = Vec::new();
        for seen in collector.seen() {
            assert_eq!(seen.line(), "post /below/v1/traces http/1.1");
            assert_eq!(seen.all("content-type"), ["application/json"]);
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            all.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
        }
        if all.iter().filter(|span| span["kind"] == 2).count() >= requests {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    all.iter().find(|own| own["key"] == key).map_or(&Value::Null, |own| &own["value"])
}

fn nanos(span: &Value, key: &str) -> u128 {
    span[key].as_str().unwrap().parse().unwrap()
}

const CALLERS: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";

#[tokio::test]
async fn a_request_is_a_span_with_its_attempts_and_decisions_below_it() {
    let (collector, upstream, front) = stage("").await;
    let got = front.ask("GET", "/a", CALLERS).await;
    assert_eq!(got.status(), "200");
    let spans = spans(&collector, 1).await;
    let by_name: BTreeMap<&str, &Value> = spans.iter().map(|span| (span["name"].as_str().unwrap(), span)).collect();
    assert_eq!(by_name.keys().copied().collect::<Vec<_>>(), ["GET api/any", "attempt 1", "attempt 2", "decision"]);
    let whole = by_name["GET api/any"];
    assert_eq!(whole["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(attribute(whole, "triage.request_id")["stringValue"], got.header("triage-request-id").unwrap());
    assert_eq!(attribute(whole, "http.response.status_code")["intValue"], "200");
    assert_eq!(attribute(by_name["attempt 1"], "http.response.status_code")["intValue"], "503");
    assert_eq!(attribute(by_name["decision"], "triage.next")["stringValue"], "retry");
    for (name, span) in &by_name {
        assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736", "{name}");
        let (from, to) = (nanos(span, "startTimeUnixNano"), nanos(span, "endTimeUnixNano"));
        let (first, last) = (nanos(whole, "startTimeUnixNano"), nanos(whole, "endTimeUnixNano"));
        assert!(first <= from && from <= to && to <= last, "{name}: {from} to {to} of {first} to {last}");
        if *name != "GET api/any" {
            assert_eq!(span["parentSpanId"], whole["spanId"], "{name}");
        }
    }
    // The upstream's trace continues under its attempt.
    for (seen, attempt) in upstream.seen().iter().zip(["attempt 1", "attempt 2"]) {
        let own = by_name[attempt]["spanId"].as_str().unwrap();
        assert_eq!(seen.all("traceparent"), [format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{own}-01")], "{attempt}");
    }
}

#[tokio::test]
async fn the_callers_word_decides_and_else_the_share() {
    let (collector, upstream, front) = stage("share = 0\n").await;
    for headers in ["", &CALLERS.replace("-01\r", "-00\r"), CALLERS] {
        assert_eq!(front.ask("GET", "/a", headers).await.status(), "200");
    }
    let wanted = spans(&collector, 1).await;
    assert_eq!(wanted.iter().filter(|span| span["kind"] == 2).count(), 1, "only the one that its caller samples");
    assert!(upstream.seen()[0].all("traceparent").is_empty(), "none is begun for the others");
    let (collector, upstream, front) = stage("share = 100\n").await;
    assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    let own = spans(&collector, 1).await;
    let trace = own[0]["traceId"].as_str().unwrap();
    assert!(upstream.seen()[0].all("traceparent")[0].starts_with(&format!("00-{trace}-")), "it is begun here");
}

#[tokio::test]
async fn nothing_confidential_is_in_a_trace() {
    let (collector, _upstream, front) = stage("").await;
    let headers = "authorization: Bearer secret\r\nidempotency-key: \"secret\"\r\nx-secret: secret\r\n";
    let got = front.send("PUT", "/secret/path?secret=secret", headers, "{\"secret\": \"secret\"}").await;
    assert_eq!(got.status(), "200", "{}", got.text());
    assert_eq!(front.send("SECRET", "/secret", "x-secret: secret\r\n", "secret").await.status(), "503");
    spans(&collector, 2).await;
    for seen in collector.seen() {
        let text = String::from_utf8(seen.body).unwrap();
        assert!(!text.to_lowercase().contains("secret"), "{text}");
        assert!(text.contains("\"key\""), "steps without a time of their own are events: {text}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request_anything() {
    let (collector, upstream, front) = stage("").await;
    drop(collector);
    for _ in 0..3 {
        assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    }
    assert_eq!(upstream.seen().len(), 6);
}

/// Spans of running requests are sent before the host ends.
#[tokio::test]
async fn the_last_traces_are_sent_before_the_host_ends() {
    let (collector, _upstream, front) = stage("").await;
    assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    tokio::task::spawn_blocking(move || front.stop()).await.unwrap();
    assert_eq!(spans(&collector, 1).await.len(), 4);
}

/// Tripwire: steps in shared state that a request waits for are in its trace, but no stored data.
#[tokio::test]
async fn each_awaited_step_of_shared_state_is_a_span_below_its_request() {
    let server = RedisServer::start();
    let (collector, _upstream, front) =
        stage(&format!("[state]\nurl = \"{}\"\nprefix = \"secret\"\ntimeout = \"5s\"\n", server.url())).await;
    let got = front.send("PUT", "/secret", "idempotency-key: \"secret\"\r\n", "secret").await;
    assert_eq!(got.status(), "200", "{}", got.text());
    let spans = spans(&collector, 1).await;
    let whole = spans.iter().find(|span| span["kind"] == 2).unwrap();
    let steps: Vec<&Value> = spans.iter().filter(|span| span["name"].as_str().unwrap().starts_with("state ")).collect();
    let named = |name: &str| steps.iter().filter(|span| span["name"] == name).count();
    // The first step of a record may be preceded by a check of the server.
    assert!(named("state begin") >= 1 && named("state acquire") == 2, "{steps:#?}");
    for step in &steps {
        let name = attribute(step, "triage.step")["stringValue"].as_str().unwrap();
        assert_eq!(step["name"], format!("state {name}"));
        assert_eq!(attribute(step, "triage.outcome")["stringValue"], "answered", "{name}");
        assert_eq!((&step["parentSpanId"], &step["traceId"]), (&whole["spanId"], &whole["traceId"]), "{name}");
        let (from, to) = (nanos(step, "startTimeUnixNano"), nanos(step, "endTimeUnixNano"));
        let (first, last) = (nanos(whole, "startTimeUnixNano"), nanos(whole, "endTimeUnixNano"));
        assert!(first <= from && from < to && to <= last, "{name}: {from} to {to} of {first} to {last}");
    }
    let ids: std::collections::BTreeSet<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), spans.len(), "each has an id of its own");
    for seen in collector.seen() {
        let text = String::from_utf8(seen.body).unwrap();
        assert!(!text.contains("secret") && !text.contains(&format!("127.0.0.1:{}", server.port())), "{text}");
    }
}
