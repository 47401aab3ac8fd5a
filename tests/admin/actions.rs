//! Operators' actions.

use super::{Front, Scripted, Value, json, ok, problem, stage, status};
use crate::support::scripted::Reply;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

async fn act(front: &Front, method: &str, path: &str, body: &str) -> Value {
    let got = front.admin(method, path, "", body).await;
    assert_eq!(got.status(), "200", "{method} {path}: {}", got.text());
    serde_json::from_slice(&got.body).unwrap()
}

fn kinds(events: &Value) -> Vec<(&str, &str)> {
    events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["kind"].as_str().unwrap(), event["subject"].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_breaker_is_forced_open_given_back_and_each_action_is_an_event() {
    let (front, upstream) = stage(200, "").await;
    let opened = act(&front, "POST", "/api/v1/breakers/api/any/open", "{\"for_ms\": 600000.0}").await;
    assert_eq!((&opened["state"], &opened["forced"]), (&json!("open"), &json!(true)), "{opened}");
    assert_eq!(opened["why"], "an operator opened it");
    let refused = front.ask("GET", "/a", "").await;
    assert_eq!(refused.status(), "503");
    assert!(refused.text().contains("is open: an operator opened it"), "{}", refused.text());
    assert!(upstream.seen().is_empty());
    let undone = act(&front, "DELETE", "/api/v1/breakers/api/any/forced", "").await;
    assert_eq!((&undone["state"], &undone["forced"]), (&json!("half-open"), &json!(false)), "{undone}");
    for method in ["GET", "POST"] {
        assert_eq!(front.ask(method, "/a", "").await.status(), "200", "the probe");
    }
    assert_eq!(front.get_json("/api/v1/breakers/api/any").await["state"], "closed");
    let events = front.get_json("/api/v1/events").await;
    let (own, reads) = ("api/any", "api/any (reads)");
    let expected = [
        ("breaker-opened", reads),
        ("breaker-opened", own),
        ("action", own),
        ("action", own),
        ("breaker-closed", reads),
        ("breaker-closed", own),
    ];
    assert_eq!(kinds(&events), expected, "{events}");
}

#[tokio::test]
async fn a_breaker_that_is_held_closed_does_not_trip_and_a_reset_ends_that() {
    let (front, _upstream) = stage(500, "breaker = { failure_threshold = 2 }\n").await;
    let held = act(&front, "POST", "/api/v1/breakers/api/any/close", "").await;
    assert_eq!((&held["state"], &held["forced"]), (&json!("closed"), &json!(true)), "{held}");
    let remaining = held["remaining_ms"].as_u64().unwrap();
    assert!((1..=600_000).contains(&remaining), "ten minutes if nothing is said: {held}");
    for _ in 0..5 {
        assert_eq!(front.ask("PUT", "/a", "").await.status(), "500");
    }
    let reset = act(&front, "POST", "/api/v1/breakers/api/any/reset", "").await;
    assert_eq!((&reset["forced"], &reset["failures_in_row"]), (&json!(false), &json!(0)), "{reset}");
    for _ in 0..2 {
        front.ask("PUT", "/a", "").await;
    }
    assert_eq!(front.get_json("/api/v1/breakers/api/any").await["state"], "open");
    let reset = act(&front, "POST", "/api/v1/breakers/api/any/reset", "").await;
    assert_eq!(reset["state"], "closed", "{reset}");
}

/// With a limit of one at once, requests would be refused until the pause's end if lifting it left the limit postponed.
#[tokio::test]
async fn a_pause_is_lifted_and_requests_go_on_within_the_limits() {
    let mut throttled = false;
    let upstream = Scripted::start(move |_| {
        if std::mem::replace(&mut throttled, true) {
            return status(200);
        }
        Reply::Bytes(b"HTTP/1.1 429 Slow down\r\ncontent-length: 0\r\nretry-after: 200\r\n\r\n".to_vec())
    })
    .await;
    let toml = format!(
        "[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n\
         limits = [{{ requests = 100, period = \"1s\", burst = 1 }}]\n",
        upstream.url()
    );
    let front = Front::with_admin("", &toml);
    let path = "/api/v1/limits/api/any/pause";
    let nothing = front.admin("DELETE", path, "", "").await;
    assert_eq!(problem(&nothing).1, "conflict", "no pause yet: {}", nothing.text());
    assert_eq!(problem(&front.admin("DELETE", "/api/v1/limits/api/none/pause", "", "").await).0, "404");
    assert_eq!(front.ask("GET", "/a", "").await.status(), "429");
    assert_eq!(front.ask("GET", "/a", "").await.status(), "429");
    assert_eq!(upstream.seen().len(), 1, "the second one was held back");
    assert!(front.get_json("/api/v1/limits").await[0]["paused_ms"].as_u64().unwrap() > 0);
    let lifted = act(&front, "DELETE", path, "").await;
    assert_eq!(lifted["paused_ms"], json!(null), "{lifted}");
    for _ in 0..3 {
        assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    }
    let twice = front.admin("DELETE", path, "", "").await;
    assert_eq!(problem(&twice).1, "conflict", "{}", twice.text());
    let events = front.get_json("/api/v1/events").await;
    assert_eq!(kinds(&events), [("action", "api/any")], "{events}");
    assert!(events[0]["text"].as_str().unwrap().starts_with("an operator lifts the pause, "), "{events}");
}

#[tokio::test]
async fn an_endpoint_without_a_breaker_cannot_be_forced() {
    let (front, _upstream) = stage(200, "breaker = { enabled = false }\n").await;
    let got = front.admin("POST", "/api/v1/breakers/api/any/open", "", "").await;
    assert_eq!(problem(&got).1, "conflict");
    assert!(got.text().contains("set breaker.enabled = true"), "{}", got.text());
    assert_eq!(front.get_json("/api/v1/events").await, json!([]), "nothing was done");
}

/// A write without a response stays unsettled until an operator settles it.
#[tokio::test]
async fn an_unsettled_write_is_resolved_by_an_operator() {
    for (verb, body, status, sent) in [
        ("applied", "{\"status\": 201, \"body\": \"{\\\"id\\\": 7}\"}", "201", 1),
        ("applied", "", "200", 1),
        ("not-applied", "", "200", 2),
    ] {
        let lost = Arc::new(AtomicBool::new(true));
        let loses = Arc::clone(&lost);
        let upstream =
            Scripted::start(move |_| if loses.load(Ordering::Relaxed) { Reply::Close } else { ok("", "sent") }).await;
        let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
        let key = "Idempotency-Key: \"k-1\"\r\n";
        let unknown = front.send("POST", "/orders", key, "{}").await;
        assert_eq!(unknown.status(), "504", "{}", unknown.text());
        let records = front.get_json("/api/v1/records").await;
        let id = records[0]["id"].as_str().unwrap_or_else(|| panic!("{records}"));
        let settled = act(&front, "POST", &format!("/api/v1/records/{id}/{verb}"), body).await;
        assert_eq!(settled["settled"], verb);
        assert_eq!(front.get_json("/api/v1/records").await, json!([]));
        lost.store(false, Ordering::Relaxed);
        let again = front.send("POST", "/orders", key, "{}").await;
        assert_eq!(again.status(), status, "{verb}: {}", again.text());
        assert_eq!(again.header("triage-replay"), (verb == "applied").then_some("true"), "{verb}");
        assert_eq!(upstream.seen().len(), sent, "{verb}");
        let twice = front.admin("POST", &format!("/api/v1/records/{id}/{verb}"), "", body).await;
        assert_eq!(problem(&twice).1, "conflict", "{verb}");
        let events = front.get_json("/api/v1/events").await;
        assert!(kinds(&events).contains(&("action", id)), "{events}");
    }
}

/// A write without a key leaves a record too, once its effect is unknown.
#[tokio::test]
async fn a_write_without_a_key_is_listed_and_resolved() {
    let upstream = Scripted::start(|_| Reply::Close).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    let unknown = front.send("POST", "/orders", "", "{}").await;
    assert_eq!(unknown.status(), "504", "{}", unknown.text());
    let records = front.get_json("/api/v1/records").await;
    let id = records[0]["id"].as_str().unwrap_or_else(|| panic!("{records}"));
    let settled = act(&front, "POST", &format!("/api/v1/records/{id}/not-applied"), "").await;
    assert_eq!(settled["settled"], "not-applied");
    assert_eq!(front.get_json("/api/v1/records").await, json!([]));
}

#[tokio::test]
async fn a_policy_is_promoted_and_rolled_back() {
    let upstream = Scripted::start(|_| status(503)).await;
    let folder = tempfile::tempdir().unwrap();
    let toml = format!(
        "[policies]\ndir = \"{}\"\npoll = \"20ms\"\n[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\n\
         retry = {{ max_attempts = 1 }}\nbreaker = {{ enabled = false }}\n",
        folder.path().display(),
        upstream.url()
    );
    let front = Front::with_admin("", &toml);
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/prebuilt/fhir.wasm");
    fs::copy(guest, folder.path().join("new.tmp")).unwrap();
    fs::rename(folder.path().join("new.tmp"), folder.path().join("http-standard.wasm")).unwrap();
    let path = "/api/v1/policies/api";
    let mut policy = front.get_json(path).await;
    while policy["serving"]["generation"] != 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        policy = front.get_json(path).await;
    }
    assert_eq!((&policy["serving"]["standing"], &policy["serving"]["name"]), (&json!("probation"), &json!("fhir")));
    assert_eq!(policy["fallback"]["generation"], 1, "{policy}");
    let promoted = act(&front, "POST", &format!("{path}/promote"), "").await;
    assert_eq!(promoted["serving"]["standing"], "good", "{promoted}");
    let other = format!("{{\"digest\": \"sha256:{}\"}}", "0".repeat(64));
    let refused = front.admin("POST", &format!("{path}/rollback"), "", &other).await;
    assert_eq!(problem(&refused).1, "conflict", "another one than serves: {}", refused.text());
    let named = format!("{{\"digest\": {}}}", promoted["serving"]["digest"]);
    let back = act(&front, "POST", &format!("{path}/rollback"), &named).await;
    assert_eq!((&back["serving"]["generation"], &back["latest"]), (&json!(1), &json!(2)), "{back}");
    assert_eq!(back["quarantined"].as_array().unwrap().len(), 1, "{back}");
    let got = front.ask("GET", "/a", "").await;
    assert!(got.header("triage-policy").unwrap().starts_with("http-standard;"), "{}", got.head);
    let events = front.get_json("/api/v1/events").await;
    let expected = ["policy-installed", "policy-good", "action", "policy-withdrawn", "action"];
    assert_eq!(kinds(&events).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), expected, "{events}");
}
