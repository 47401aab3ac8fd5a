//! Every row of the vectors, through the real engine and the built component.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use std::{str::FromStr, time::Duration};
use triage::{
    policy::{
        Engine, Loading, Policy,
        contract::{Attempt, BreakerSignal, Effect, Failure, FailureKind, Next, Outcome, Purpose},
        prebuilt,
    },
    route::Router,
};

#[derive(Debug, Deserialize)]
struct Row {
    method: String,
    path: String,
    purpose: String,
    number: u32,
    prior_unknown: String,
    sent_ms_ago: Option<u64>,
    taken: String,
    condition: String,
    request_headers: String,
    request_body: String,
    response_headers: String,
    response_body: String,
    class: String,
    next: String,
    breaker: String,
    delay_ms: Option<u64>,
    pause_ms: Option<u64>,
    claim: String,
    note: String,
}

fn headers(text: &str) -> HeaderMap {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (HeaderName::from_str(name).unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn failure(text: &str) -> Failure {
    use FailureKind::{Body, Connect, ConnectTimeout, Dns, Protocol, Reset, Send, Timeout, Tls};
    let (kind, sent) = text.strip_suffix("+sent").map_or((text, false), |kind| (kind, true));
    let all = [Dns, Connect, ConnectTimeout, Tls, Send, Reset, Timeout, Protocol, Body];
    Failure { kind: all.into_iter().find(|known| known.name() == kind).unwrap(), sent }
}

/// The component under test: the embedded one, or the one of `TRIAGE_PREBUILT`, as the rebuild check sets it.
fn component(name: &str) -> Vec<u8> {
    match std::env::var_os("TRIAGE_PREBUILT") {
        Some(folder) => std::fs::read(std::path::Path::new(&folder).join(format!("{name}.wasm"))).unwrap(),
        None => prebuilt::embedded(name).unwrap().to_vec(),
    }
}

fn play(name: &str, csv: &str) {
    let engine = Engine::start().unwrap();
    let policy =
        Policy::load(&engine, &component(name), &Loading::default()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let endpoints = &policy.description().endpoints;
    let router = Router::new(endpoints.iter().map(|e| (e.method.as_ref(), e.path.as_str()))).unwrap();
    let mut wrong = Vec::new();
    let mut played = 0;
    for (line, row) in csv::Reader::from_reader(csv.as_bytes()).deserialize::<Row>().enumerate() {
        let row = row.unwrap();
        let differs = differences(&policy, &router, &row);
        if !differs.is_empty() {
            wrong.push(format!(
                "row {} {} {} {} ({}): {differs}",
                line + 2,
                row.method,
                row.path,
                row.condition,
                row.note
            ));
        }
        played += 1;
    }
    assert!(played > 30, "{name}: only {played} rows");
    assert!(wrong.is_empty(), "{name}: {} of {played} rows\n{}", wrong.len(), wrong.join("\n"));
}

fn differences(policy: &Policy, router: &Router, row: &Row) -> String {
    let method = Method::from_str(&row.method).unwrap();
    let endpoint = router.find(&method, row.path.split('?').next().unwrap()).expect("an endpoint");
    let described = &policy.description().endpoints[endpoint];
    let (request_headers, response_headers) = (headers(&row.request_headers), headers(&row.response_headers));
    let taken: Vec<String> = row.taken.split_whitespace().map(str::to_owned).collect();
    let attempt = Attempt {
        endpoint,
        effect: Effect::of(&method).max(described.effect),
        purpose: if row.purpose == "probe" { Purpose::Probe } else { Purpose::Request },
        number: row.number,
        prior_unknown: row.prior_unknown == "yes",
        sent_ago: row.sent_ms_ago.map(Duration::from_millis),
        elapsed: Duration::from_secs(1),
        remaining: Duration::from_secs(600),
        previous_delay: Duration::ZERO,
        random: 0,
        now_unix_ms: 1_767_225_600_000,
        keyed: false,
        path: &row.path,
        request_headers: &request_headers,
        request_body: row.request_body.as_bytes(),
        taken: &taken,
    };
    let outcome = match row.condition.strip_prefix("failure:") {
        Some(kind) => Outcome::Failure(failure(kind)),
        None => Outcome::Response {
            status: StatusCode::from_str(&row.condition).unwrap(),
            headers: &response_headers,
            body: row.response_body.as_bytes(),
            complete: true,
        },
    };
    let verdict = policy.decide(&attempt, &outcome).unwrap_or_else(|fault| panic!("{row:?}: {fault:?}"));
    let (next, delay) = match &verdict.next {
        Next::Deliver => ("deliver", None),
        Next::Retry(delay) => ("retry", Some(*delay)),
        Next::Verify(probe) => ("verify", Some(probe.delay)),
        Next::Replace(_) => ("replace", None),
    };
    let breaker = match verdict.breaker {
        BreakerSignal::Success => "success",
        BreakerSignal::Failure => "failure",
        BreakerSignal::Ignore => "ignore",
    };
    let mut differs = Vec::new();
    let mut check = |what: &str, got: String, wanted: String| {
        if !wanted.is_empty() && got != wanted {
            differs.push(format!("{what} {got}, not {wanted}"));
        }
    };
    let ms = |duration: Option<Duration>| duration.map_or_else(String::new, |d| d.as_millis().to_string());
    check("class", verdict.class.name().to_owned(), row.class.clone());
    check("next", next.to_owned(), row.next.clone());
    check("breaker", breaker.to_owned(), row.breaker.clone());
    check("delay", ms(delay), row.delay_ms.map_or_else(String::new, |ms| ms.to_string()));
    check("pause", ms(verdict.pause), row.pause_ms.map_or_else(String::new, |ms| ms.to_string()));
    check("claim", verdict.claim.unwrap_or_default(), row.claim.clone());
    differs.join(", ")
}

#[test]
fn http_standard() {
    play("http-standard", include_str!("vectors/http-standard.csv"));
}

#[test]
fn hospital_directory() {
    play("hospital-directory", include_str!("vectors/hospital-directory.csv"));
}

#[test]
fn fhir() {
    play("fhir", include_str!("vectors/fhir.csv"));
}
