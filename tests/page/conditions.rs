//! The line on top of the page: it is green only if the host has no condition, and each condition is shown with what to do about it.

use super::{Front, Reply, Scripted, ok, status};
use crate::{
    hostile::guest::{Guest, TRAP},
    support::{
        browser::{Browser, installed},
        redis_server::RedisServer,
    },
};
use serde_json::{Value, json};
use std::{convert::Infallible, fs, time::Duration};

/// Replaces the conditions of every snapshot by `window.injected`, if that is set. `show()` shows the last snapshot again.
const INJECT: &str = "window.EventSource = class extends EventSource { \
    addEventListener(name, follow) { super.addEventListener(name, (event) => { \
      if (name !== 'now') return follow(event); \
      window.show = () => { const now = JSON.parse(event.data); \
        if (window.injected) now.status.conditions = injected; \
        follow({ data: JSON.stringify(now) }); }; \
      show(); }); } };";

/// The ids of conditions in the `OpenAPI` document.
async fn ids(front: &Front) -> Vec<String> {
    let document = front.get_json("/api/v1/openapi.json").await;
    let ids = &document["components"]["schemas"]["Condition"]["properties"]["id"];
    let variants =
        ids["oneOf"].as_array().into_iter().flatten().flat_map(|one| one["enum"].as_array().into_iter().flatten());
    let all: Vec<String> = variants
        .chain(ids["enum"].as_array().into_iter().flatten())
        .map(|id| id.as_str().unwrap().to_owned())
        .collect();
    assert!(all.len() > 20 && all.iter().any(|id| id == "state-down"), "{ids}");
    all
}

#[tokio::test]
async fn no_condition_leaves_the_line_on_top_green() {
    if !installed() {
        return;
    }
    let upstream = Scripted::start(|_| ok("", "{}")).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    let browser = Browser::start().await;
    browser.before(INJECT).await;
    browser.set_viewport(1280, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser.until("document.getElementById('summary').dataset.tone === 'good'").await;
    assert_eq!(browser.value("document.getElementById('conditions-section').hidden").await, true);
    let began = front.get_json("/api/v1/status").await["unix_ms"].as_u64().unwrap() - 3_720_000;
    for id in ids(&front).await {
        for (severity, tone) in [("critical", "bad"), ("warning", "warn")] {
            let condition = json!([{
                "id": id, "severity": severity, "subject": "api", "since_unix_ms": began,
                "text": format!("It is {id} and {severity}. More."), "remedy": format!("Run `triage mend {id}`."),
            }]);
            browser.script(&format!("window.injected = {condition}; show()")).await;
            let own = format!("document.querySelector('#conditions > li[data-id=\"{id}\"]')");
            browser.until(&format!("{own}?.dataset.tone === '{tone}'")).await;
            let top = browser.value("[document.getElementById('summary').dataset.tone, document.title[0]]").await;
            assert_eq!(top, json!([tone, if tone == "bad" { "✕" } else { "▲" }]), "{id}");
            assert_eq!(browser.text("#summary").await, format!("api: It is {id} and {severity}."));
            let shown = browser.text("#conditions").await;
            assert!(shown.contains(&format!("It is {id} and {severity}. More.")), "{shown}");
            assert!(shown.contains(&format!("Run triage mend {id}.")) && shown.contains(" for 1 h "), "{shown}");
        }
    }
    // A page announces a condition's beginning, not each new number in its text.
    let heard = browser.text("#told").await;
    browser.script("injected = injected.map((own) => ({ ...own, text: 'Now it is another text.' })); show()").await;
    browser.until("document.getElementById('summary').innerText.includes('another text')").await;
    assert_eq!(browser.text("#told").await, heard);
    browser.script("window.injected = []; show()").await;
    browser.until("document.getElementById('summary').dataset.tone === 'good'").await;
    assert_eq!(browser.text("#told").await, "No problem: nothing is refused, behind or lost.");
}

/// A page that waits for a condition of the host.
struct Watched {
    browser: Browser,
    shots: usize,
}

impl Watched {
    /// Waits until the page shows these conditions and a line on top that is not green. Checks each text and remedy against the API.
    async fn shows(&mut self, what: &str, front: &Front, ids: &[&str]) {
        self.browser.open(&format!("http://{}/", front.admin_address())).await;
        for id in ids {
            let own = format!("document.querySelector('#conditions-section li[data-id=\"{id}\"]')");
            self.browser.until(&format!("{own} && document.getElementById('summary').dataset.tone !== 'good'")).await;
            let status = front.get_json("/api/v1/status").await;
            let conditions = status["conditions"].as_array().unwrap();
            let found = conditions.iter().find(|own| own["id"] == *id).unwrap_or_else(|| panic!("{what}: {status}"));
            let shown = self.browser.value(&format!("{own}.textContent")).await;
            for name in ["text", "remedy"] {
                let wanted = found[name].as_str().unwrap().replace('`', "");
                assert!(shown.as_str().unwrap().contains(&wanted), "{what}: {shown} lacks {wanted}");
            }
        }
        self.shots += 1;
        self.browser.picture(&format!("condition-{:02}-{}", self.shots, what.replace(' ', "-"))).await;
    }
}

/// Sends the same request again and again.
async fn keep_asking(front: &Front, method: &str, headers: &str) -> Infallible {
    loop {
        front.ask(method, "/a", headers).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn api(upstream: &Scripted, keys: &str) -> String {
    format!("[upstreams.api]\nbase_url = \"{}\"\n{keys}", upstream.url())
}

const KEYED: &str = "Idempotency-Key: \"a\"\r\n";

/// Faults that a test can cause quickly: each is on the page, with its remedy.
#[tokio::test]
async fn faults_of_the_upstream_and_its_callers_are_on_the_page_with_their_remedy() {
    if !installed() {
        return;
    }
    let mut page = Watched { browser: Browser::start().await, shots: 0 };
    page.browser.set_viewport(1280, false).await;
    let down = Scripted::start(|_| status(503)).await;
    let once = "[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n";
    let front =
        Front::with_admin("", &api(&down, &format!("{once}breaker = {{ failure_threshold = 3, jitter = 0 }}\n")));
    // Shares are of the last ten seconds, so that the requests go on while the page is read.
    tokio::select! {
        () = page.shows("a breaker is open", &front, &["breaker-open", "requests-refused"]) => {}
        _ = keep_asking(&front, "GET", "") => {}
    }
    front.admin("POST", "/api/v1/breakers/api/any/close", "", "{\"for_ms\": 60000}").await;
    page.shows("an operator forces it closed", &front, &["breaker-forced"]).await;
    let front = Front::with_admin("", &api(&down, &format!("{once}breaker = {{ enabled = false }}\n")));
    front.ask("POST", "/a", "").await;
    tokio::select! {
        () = page.shows("a write is unknown", &front, &["writes-unsettled", "requests-failing"]) => {}
        _ = keep_asking(&front, "GET", "") => {}
    }
    let limited = api(&down, &format!("{once}limits = [{{ requests = 1, period = \"1h\" }}]\n"));
    let front = Front::with_admin("", &limited);
    tokio::select! {
        () = page.shows("a limit is reached", &front, &["requests-refused"]) => {}
        _ = keep_asking(&front, "GET", "triage-deadline-ms: 1000\r\n") => {}
    }
    let busy = Scripted::start(|_| {
        Reply::Bytes(b"HTTP/1.1 429 Wait\r\nretry-after: 600\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let front = Front::with_admin("", &api(&busy, once));
    front.ask("GET", "/a", "").await;
    page.shows("the upstream asks for a pause", &front, &["upstream-paused"]).await;
    let stuck = Scripted::start(|_| Reply::Hang).await;
    let front = Front::with_admin("", &api(&stuck, "[upstreams.api.defaults]\nconcurrency = 1\n"));
    tokio::select! {
        () = page.shows("the concurrency limit is reached", &front, &["requests-refused"]) => {}
        _ = keep_asking(&front, "GET", "triage-deadline-ms: 3000\r\n") => {}
        _ = keep_asking(&front, "GET", "triage-deadline-ms: 400\r\n") => {}
    }
}

#[tokio::test]
async fn faults_of_policies_are_on_the_page_with_their_remedy() {
    if !installed() {
        return;
    }
    let mut page = Watched { browser: Browser::start().await, shots: 20 };
    page.browser.set_viewport(1280, false).await;
    let upstream = Scripted::start(|_| status(404)).await;
    let folder = tempfile::tempdir().unwrap();
    let next = folder.path().join("next.wasm");
    let toml = format!(
        "[policies]\ndir = \"{}\"\npoll = \"50ms\"\n{}",
        folder.path().display(),
        api(&upstream, &format!("candidate.policy = \"{}\"\n", next.display()))
    );
    let front = Front::with_admin("", &toml);
    let trap = Guest::new().decide(TRAP).build();
    let drop_in = |name: &str, bytes: &[u8]| {
        fs::write(folder.path().join("new.tmp"), bytes).unwrap();
        fs::rename(folder.path().join("new.tmp"), folder.path().join(name)).unwrap();
    };
    drop_in("http-standard.wasm", b"#!/bin/sh");
    page.shows("a policy is refused", &front, &["policy-refused"]).await;
    drop_in("next.wasm", &trap);
    while front.get_json("/api/v1/policies/api").await["candidate"]["state"] != "given-up" {
        front.ask("GET", "/a", "").await;
    }
    page.shows("a candidate is given up", &front, &["candidate-given-up"]).await;
    let mut other = trap;
    other.extend_from_slice(&[0, 2, 1, b'x']);
    drop_in("http-standard.wasm", &other);
    while front.get_json("/api/v1/policies/api").await["quarantined"].as_array().unwrap().len() < 2 {
        front.ask("GET", "/a", "").await;
    }
    page.shows("a policy is rolled back", &front, &["policy-rolled-back"]).await;
}

#[tokio::test]
async fn faults_of_shared_state_are_on_the_page_with_their_remedy() {
    if !installed() {
        return;
    }
    let mut page = Watched { browser: Browser::start().await, shots: 30 };
    page.browser.set_viewport(1280, false).await;
    let upstream = Scripted::start(|_| ok("", "{}")).await;
    let host = |redis: &RedisServer| {
        Front::with_admin("", &format!("[state]\nurl = \"{}\"\n{}", redis.url(), api(&upstream, "")))
    };
    let mut redis = RedisServer::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let front = host(&redis);
    assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    page.shows("Redis may evict", &front, &["state-evicts"]).await;
    redis.kill();
    let refused = front.send("POST", "/a", KEYED, "{}").await;
    assert_eq!(refused.status(), "503", "{}", refused.text());
    page.shows("Redis is gone", &front, &["state-down"]).await;
    let full = RedisServer::start();
    let front = host(&full);
    assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    let _: Value = json!(full.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]));
    front.send("POST", "/a", KEYED, "{}").await;
    page.shows("Redis is full", &front, &["state-refuses"]).await;
}
