//! Recordings of decisions of a running host, and their replay through candidates.

use crate::support::{
    front::{Front, Got},
    scripted::{Reply, Scripted, Seen, ok, status},
    stage::{Stage, prebuilt},
};
use serde_json::{Value, json};
use std::fs;
use triage_decision_log::{self as decision_log, Report};
use triage_engine::{Engine, LoadOptions, Policy};

const SECRET: &str = "Meryem-Yilmaz";

fn policy(name: &str) -> std::sync::Arc<Policy> {
    let bytes = fs::read(prebuilt(name)).unwrap();
    Policy::load(&Engine::start().unwrap(), &bytes, &LoadOptions { reuse_instances: true, ..LoadOptions::default() })
        .unwrap()
}

fn replayed(lines: &str, candidate: &str) -> Report {
    decision_log::replay(lines.as_bytes(), &policy(candidate), "{}", 2)
        .unwrap_or_else(|error| panic!("{error}:\n{lines}"))
}

async fn front(keys: &str, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> (Front, Scripted) {
    let upstream = Scripted::start(script).await;
    let toml = format!(
        "[upstreams.api]\nbase_url = \"{}\"\n{keys}[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n\
         breaker = {{ enabled = false }}\n",
        upstream.url()
    );
    (Front::with_admin("", &toml), upstream)
}

async fn act(front: &Front, verb: &str, body: &str) -> Got {
    front.admin("POST", &format!("/api/v1/traces/api/{verb}"), "", body).await
}

async fn start(front: &Front, body: &str) {
    let got = act(front, "start", body).await;
    assert_eq!(got.status(), "200", "{}", got.text());
}

async fn take(front: &Front) -> String {
    let got = act(front, "take", "").await;
    assert_eq!((got.status(), got.header("content-type")), ("200", Some("application/jsonl")), "{}", got.text());
    got.text()
}

fn decisions(lines: &str) -> Vec<Value> {
    let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line.get("endpoint").is_some()).collect()
}

/// Tripwire: decisions during a recording are in it, and the same policy agrees with them.
#[tokio::test]
async fn decisions_are_recorded_and_the_same_policy_agrees_with_them() {
    let statuses = [404, 503, 200, 429];
    let mut asked = 0;
    let script = move |_: &Seen| {
        asked += 1;
        if asked % 5 == 0 { Reply::Close } else { status(statuses[asked % 4]) }
    };
    let (front, _upstream) = front("", script).await;
    front.ask("GET", "/before", "").await;
    start(&front, "").await;
    for number in 0..40 {
        let method = if number % 3 == 0 { "POST" } else { "GET" };
        front.ask(method, &format!("/{SECRET}"), &format!("authorization: {SECRET}\r\n")).await;
    }
    let lines = take(&front).await;
    assert_eq!(decisions(&lines).len(), 40, "{lines}");
    assert!(
        lines.starts_with("{\"triage-trace\":1,\"generation\":1,\"upstream\":\"api\",\"policy\":\"http-standard\",")
    );
    assert!(!lines.contains(SECRET), "{lines}");
    let report = replayed(&lines, "http-standard");
    assert!(report.agrees() && report.replayed() == 40, "{report}");
    // A policy that retries every response.
    let report = replayed(&lines, "always-retry");
    assert!(report.differing > 0 && !report.agrees(), "{report}");
    assert_eq!(take(&front).await, "", "it was taken");
    front.ask("GET", "/a", "").await;
    assert_eq!(act(&front, "stop", "").await.status(), "200");
    front.ask("GET", "/after", "").await;
    assert_eq!(
        decisions(&take(&front).await).len(),
        1,
        "what was recorded before the stop can still be taken, and nothing else"
    );
}

#[tokio::test]
async fn nothing_is_recorded_unasked_and_everything_about_it_is_an_event() {
    let (front, _upstream) = front("", |_| status(404)).await;
    front.ask("GET", "/a", "").await;
    let off = json!({ "upstream": "api", "recording": false, "contents": false, "decisions": 0, "dropped": 0, "bytes": 0,
        "remaining_ms": null });
    assert_eq!(front.get_json("/api/v1/traces").await, json!([off]));
    assert_eq!(take(&front).await, "");
    start(&front, "{\"contents\": true, \"for_ms\": 60000}").await;
    let again = act(&front, "start", "").await;
    assert_eq!(again.status(), "409", "{}", again.text());
    assert!(again.text().contains("runs already; stop it first"), "{}", again.text());
    front.ask("GET", "/a", "").await;
    let on = front.get_json("/api/v1/traces/api").await;
    assert_eq!((&on["recording"], &on["contents"], &on["decisions"]), (&json!(true), &json!(true), &json!(1)), "{on}");
    assert!((1..=60_000).contains(&on["remaining_ms"].as_u64().unwrap()), "{on}");
    for _ in 0..3 {
        take(&front).await;
    }
    act(&front, "stop", "").await;
    act(&front, "stop", "").await;
    let events = front.get_json("/api/v1/events").await;
    let texts: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["text"].as_str().unwrap()).collect();
    let expected = [
        // This is the fetch that returned nothing.
        "an operator fetches decisions without contents",
        "an operator records decisions with contents for 1 min",
        "an operator fetches decisions with contents",
        "an operator ends the recording: 1 decisions, 0 dropped",
    ];
    assert_eq!(texts, expected, "{events}");
    for (path, body, status) in [
        ("/api/v1/traces/gone/start", "", "404"),
        ("/api/v1/traces/api/explode", "", "404"),
        ("/api/v1/traces/api/start", "{\"for_ms\": 0}", "400"),
        ("/api/v1/traces/api/start", "{\"everything\": true}", "400"),
    ] {
        let got = front.admin("POST", path, "", body).await;
        assert_eq!(got.status(), status, "{path} {body}: {}", got.text());
    }
}

/// Fetching a recording needs the write token, since it contains data that the host saw.
#[tokio::test]
async fn the_read_token_gives_no_access_to_traces() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("read"), "the-readers-token-0\n").unwrap();
    fs::write(file("write"), "the-writers-token-0\n").unwrap();
    let keys = format!("read_token_file = \"{}\"\nwrite_token_file = \"{}\"\n", file("read"), file("write"));
    let front = Front::with_admin(&keys, "[upstreams.api]\nbase_url = \"http://api.invalid\"\n");
    for (token, verb, status) in [
        ("the-readers-token-0", "start", "403"),
        ("the-readers-token-0", "take", "403"),
        ("the-readers-token-0", "stop", "403"),
        ("the-writers-token-0", "start", "200"),
        ("the-writers-token-0", "take", "200"),
    ] {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        let got = front.admin("POST", &format!("/api/v1/traces/api/{verb}"), &bearer, "").await;
        assert_eq!(got.status(), status, "{token} {verb}");
    }
}

#[tokio::test]
async fn contents_are_there_where_the_operator_asks_for_them() {
    let body = "{\"issue\": [{\"code\": \"not-found\"}]}";
    let answer = format!("HTTP/1.1 404 No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let script = move |_: &Seen| Reply::Bytes(answer.clone().into_bytes());
    let (front, _upstream) = front("policy = \"fhir\"\n", script).await;
    start(&front, "{\"contents\": true}").await;
    front.send("POST", "/Patient", &format!("if-none-exist: name={SECRET}\r\nauthorization: {SECRET}\r\n"), "{}").await;
    let lines = take(&front).await;
    let all = decisions(&lines);
    let [decision] = &all[..] else { panic!("{lines}") };
    assert_eq!(decision["path"], "/Patient", "{decision}");
    assert_eq!(decision["request"]["headers"], json!([["if-none-exist", format!("name={SECRET}")]]), "{decision}");
    assert!(decision["response"]["body"].as_str().unwrap().starts_with("{\"issue\""), "{decision}");
    assert!(!lines.contains("authorization"), "{lines}");
    assert!(replayed(&lines, "fhir").agrees());
}

/// A new generation during a recording adds its own head.
#[tokio::test]
async fn each_generation_has_a_head_of_its_own() {
    let stage = Stage::new(&[]).await;
    start(&stage.front, "").await;
    stage.policy().await;
    stage.drop_guest("always-retry");
    stage.installed(2).await;
    stage.policy().await;
    let lines = take(&stage.front).await;
    let heads: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |policy: &str| heads.iter().filter(|head: &&Value| head["policy"] == policy).count();
    assert_eq!((named("http-standard"), named("always-retry")), (1, 1), "{lines}");
    let report = replayed(&lines, "always-retry");
    assert_eq!(report.recorded.len(), 2, "{report}");
    let first = decisions(&lines).iter().filter(|decision| decision["generation"] == 1).count() as u64;
    assert_eq!(report.differing, first, "what the other policy decided differs, its own does not: {report}");
}

/// Responses that the host settles by their status are recorded too, since a candidate may differ.
#[tokio::test]
async fn settled_answers_are_recorded() {
    let (front, _upstream) = front("", |_| ok("", "")).await;
    start(&front, "").await;
    front.ask("GET", "/a", "").await;
    let lines = take(&front).await;
    assert_eq!(decisions(&lines)[0]["settled"], true, "{lines}");
    assert!(replayed(&lines, "http-standard").agrees());
}
