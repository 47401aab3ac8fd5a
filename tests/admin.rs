//! The admin listener: reads, actions and permissions.

use crate::support::{
    BATCH,
    front::{Front, Got, raw},
    scripted::{Reply, Scripted, ok, status},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use triage_admin::openapi;

mod actions;
mod command_tls;
mod explain;

/// A host with an admin listener in front of an upstream that always responds with this status.
async fn stage(answer: u16, defaults: &str) -> (Front, Scripted) {
    let upstream = Scripted::start(move |_| status(answer)).await;
    let toml = format!(
        "[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n{defaults}",
        upstream.url()
    );
    (Front::with_admin("", &toml), upstream)
}

fn problem(got: &Got) -> (String, String) {
    let body: Value = serde_json::from_slice(&got.body).unwrap_or_else(|error| panic!("{error}: {}", got.text()));
    assert_eq!(got.header("content-type"), Some("application/problem+json"), "{body}");
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    (got.status().to_owned(), text("type").replace("urn:triage:admin:", ""))
}

#[tokio::test]
async fn a_tripped_breaker_is_seen_with_its_cause() {
    let (front, _upstream) = stage(500, "breaker = { failure_threshold = 3, jitter = 0 }\n").await;
    let before = front.get_json("/api/v1/breakers").await;
    assert_eq!((&before[0]["state"], &before[0]["why"]), (&json!("closed"), &json!(null)), "{before}");
    for _ in 0..3 {
        front.ask("GET", "/a", "").await;
    }
    let after = front.get_json("/api/v1/breakers").await;
    let breaker = &after[1];
    let reads = (&json!("any (reads)"), &json!("reads"), &json!("open"));
    assert_eq!((&breaker["group"], &breaker["requests"], &breaker["state"]), reads, "{after}");
    let writes = (&json!("any"), &json!("writes"), &json!("closed"));
    assert_eq!((&after[0]["group"], &after[0]["requests"], &after[0]["state"]), writes, "{after}");
    assert_eq!(breaker["why"], "3 failures in a row: answered 500");
    let (first, latest) = (&breaker["first_failure"], &breaker["latest_failure"]);
    assert_eq!((&first["cause"], &latest["cause"]), (&json!("answered 500"), &json!("answered 500")), "{after}");
    assert!(
        first["unix_ms"].as_u64() <= latest["unix_ms"].as_u64() && first["request"] != latest["request"],
        "{after}"
    );
    assert_eq!(breaker["forced"], false);
    let remaining = breaker["remaining_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&remaining), "{after}");
    assert_eq!(front.get_json("/api/v1/status").await["upstreams"][0]["breakers_open"], 1);
    let events = front.get_json("/api/v1/events").await;
    assert_eq!(events[0]["kind"], "breaker-opened", "{events}");
    assert_eq!(events[0]["text"], "opened for 1 min: 3 failures in a row: answered 500");
    let number = events[0]["number"].as_u64().unwrap();
    assert_eq!(front.get_json(&format!("/api/v1/events?after={number}")).await, json!([]));
}

/// Status, page, command line and metrics show one list.
#[tokio::test]
async fn an_open_breaker_is_a_condition_of_the_status_and_of_the_metrics() {
    let (front, _upstream) = stage(500, "breaker = { failure_threshold = 3, jitter = 0 }\n").await;
    assert_eq!(front.get_json("/api/v1/status").await["conditions"], json!([]));
    for _ in 0..3 {
        front.ask("GET", "/a", "").await;
    }
    let status = front.get_json("/api/v1/status").await;
    let open = &status["conditions"][0];
    assert_eq!(
        (&open["id"], &open["severity"], &open["subject"]),
        (&json!("breaker-open"), &json!("critical"), &json!("api/any (reads)"))
    );
    let text = "Breaker api/any (reads) is open: 3 failures in a row: answered 500. Requests to any that only read get 503 breaker-open.";
    assert_eq!(open["text"], text, "{status:#}");
    let remedy = open["remedy"].as_str().unwrap();
    assert!(
        remedy.starts_with("The upstream answers with an error: look at its own log. `triage explain "),
        "{remedy}"
    );
    assert!(open["since_unix_ms"].as_u64() <= status["unix_ms"].as_u64(), "{status:#}");
    let metrics = front.admin("GET", "/metrics", "", "").await.text();
    assert!(metrics.contains("triage_condition{condition=\"breaker-open\",severity=\"critical\"} 1"), "{metrics}");
    assert!(metrics.contains("triage_condition{condition=\"state-down\",severity=\"critical\"} 0"), "{metrics}");
    front.admin("POST", "/api/v1/breakers/api/any/reset", "", "").await;
    let status = front.get_json("/api/v1/status").await;
    assert!(status["conditions"].as_array().unwrap().iter().all(|own| own["id"] != "breaker-open"), "{status:#}");
}

#[tokio::test]
async fn limits_budgets_and_places_show_their_fill() {
    let (front, _upstream) = stage(
        200,
        "concurrency = 7\nlimits = [{ requests = 5, period = \"1h\", burst = 5 }]\nbudget = { floor_per_second = 2 }\n",
    )
    .await;
    for _ in 0..2 {
        assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    }
    let limits = front.get_json("/api/v1/limits").await;
    let expected = json!([{ "endpoint": null, "requests": 5, "period_ms": 3_600_000, "burst": 5, "taken": 2 }]);
    assert_eq!(limits[0]["limits"], expected, "{limits}");
    assert_eq!(limits[0]["concurrency"][0]["places"], 7, "{limits}");
    let budgets = front.get_json("/api/v1/budgets").await;
    assert!(budgets[0]["saved"].as_f64().unwrap() >= 2.0, "{budgets}");
    assert_eq!(budgets[0]["floor_per_second"], 2, "{budgets}");
}

#[tokio::test]
async fn readiness_follows_the_process_and_health_does_not() {
    let (front, _upstream) = stage(200, "").await;
    let address = front.admin_address();
    assert_eq!(front.get_json("/readyz").await, json!({ "ready": true, "why": null }));
    let health = raw(address, b"GET /healthz HTTP/1.1\r\nHost: any.example\r\n\r\n").await;
    assert_eq!((health.status(), health.text().as_str()), ("200", "ok\n"));
    assert!(front.stop());
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "it listens on");
}

/// Callers with half a body use every connection permit. Health is still served, and so is another address.
#[tokio::test]
async fn slow_callers_do_not_block_health() {
    use tokio::io::AsyncWriteExt as _;
    let (front, _upstream) = stage(200, "").await;
    let admin = front.admin_address();
    let mut slow = Vec::new();
    for _ in 0..400 {
        let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
        let _ = stream.write_all(b"POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\ntok").await;
        slow.push(stream);
    }
    for path in ["/healthz", "/readyz"] {
        let got = front.admin("GET", path, "", "").await;
        assert_eq!(got.status(), "200", "{path}: {}", got.text());
    }
    let refused = front.admin("GET", "/metrics", "", "").await;
    assert_eq!(problem(&refused), ("503".to_owned(), "no-place".to_owned()), "the same address has its share");
    // Another address of this machine.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut other = socket.connect(admin).await.unwrap();
    other.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut other, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(slow);
}

/// A draining host still responds to operators: it is alive, but not ready.
#[tokio::test]
async fn a_draining_host_says_so() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    let (address, admin) = (front.address(), front.admin_address());
    let caller = tokio::spawn(async move {
        tokio::net::TcpStream::connect(address).await.unwrap();
        let _ = raw_or_nothing(address).await;
    });
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    let stopping = tokio::task::spawn_blocking(move || front.stop());
    let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut got = raw(admin, request).await;
    while got.status() == "200" {
        got = raw(admin, request).await;
    }
    assert_eq!(got.status(), "503");
    assert!(got.text().contains("the host is stopping; it finishes the requests under way"), "{}", got.text());
    assert!(!stopping.await.unwrap(), "one request was cut off by the drain's limit");
    caller.abort();
}

async fn raw_or_nothing(address: std::net::SocketAddr) -> std::io::Result<usize> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    stream.read(&mut [0; 64]).await
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "a-token-of-the-operators\n").unwrap();
    let keys = format!("read_token_file = \"{}\"\n", file.display());
    let toml = "[upstreams.api]\nbase_url = \"http://api.invalid\"\npolicy = \"builtin\"\npolicy_settings = { api_token = \"s3cret\" }\n";
    let front = Front::with_admin(&keys, toml);
    let bearer = "Authorization: Bearer a-token-of-the-operators\r\n";
    let got = front.admin("GET", "/api/v1/config", bearer, "").await;
    assert_eq!((got.status(), got.header("content-type")), ("200", Some("application/toml")));
    let text = got.text();
    assert!(text.contains("server.workers = 1") && text.contains("api_token = \"(hidden)\""), "{text}");
    assert!(!text.contains("s3cret") && !text.contains("a-token-of-the-operators"), "{text}");
}

#[tokio::test]
async fn roles_decide_who_may_look_and_who_may_act() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("read"), "the-readers-token-0\n").unwrap();
    fs::write(file("write"), "the-writers-token-0\n").unwrap();
    let keys = format!("read_token_file = \"{}\"\nwrite_token_file = \"{}\"\n", file("read"), file("write"));
    let front = Front::with_admin(&keys, "[upstreams.api]\nbase_url = \"http://api.invalid\"\n");
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let (read, write) = (bearer("the-readers-token-0"), bearer("the-writers-token-0"));
    let reset = "/api/v1/breakers/api/any/reset";
    for (what, method, path, headers, expected) in [
        ("probes need no token", "GET", "/readyz", "", ("200", "")),
        ("no token", "GET", "/api/v1/status", "", ("401", "no-token")),
        ("a wrong token", "GET", "/api/v1/status", &*bearer("the-readers-token-1"), ("401", "no-token")),
        ("a reader reads", "GET", "/api/v1/status", &*read, ("200", "")),
        ("a reader acts", "POST", reset, &*read, ("403", "read-only")),
        ("a writer reads", "GET", "/api/v1/status", &*write, ("200", "")),
        ("a writer acts", "POST", reset, &*write, ("200", "")),
        ("nobody acts", "POST", reset, "", ("401", "no-token")),
        ("another site acts", "POST", reset, &*format!("{write}Origin: https://evil.example\r\n"), ("403", "foreign")),
    ] {
        let got = front.admin(method, path, headers, "").await;
        let kind = if got.status() == "200" { String::new() } else { problem(&got).1 };
        assert_eq!((got.status(), kind.as_str()), expected, "{what}");
        if expected.0 == "401" {
            assert_eq!(got.header("www-authenticate"), Some("bearer"), "{what}");
        }
    }
}

#[tokio::test]
async fn without_a_token_a_page_that_leads_its_name_here_is_refused() {
    let (front, _upstream) = stage(200, "").await;
    let request = b"GET /api/v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert_eq!(problem(&raw(front.admin_address(), request).await), ("403".to_owned(), "foreign".to_owned()));
}

#[tokio::test]
async fn the_api_refuses_each_bad_request_with_a_problem() {
    let (front, _upstream) = stage(200, "").await;
    let long = format!("{{\"for_ms\": 1{}}}", " ".repeat(70_000));
    for (method, path, body, expected) in [
        ("GET", "/gone", "", ("404", "not-found")),
        ("GET", "/api/v1/breakers/api/gone", "", ("404", "not-found")),
        ("POST", "/api/v1/breakers/gone/any/open", "", ("404", "not-found")),
        ("POST", "/api/v1/breakers/api/any/explode", "", ("404", "not-found")),
        ("GET", "/api/v1/breakers/api/any/open", "", ("405", "method")),
        ("POST", "/api/v1/status", "", ("405", "method")),
        ("POST", "/api/v1/breakers/api/any/open", "not JSON", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "{\"for_ms\": 0}", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "{\"for_ms\": 86400001}", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "{\"for_ms\": 1.5}", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "{\"for_ms\": -1}", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "[]", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "\r", ("400", "malformed")),
        ("GET", "/api/v1/events?after=9223372036854775808", "", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", "{\"until\": 1}", ("400", "malformed")),
        ("POST", "/api/v1/breakers/api/any/open", &long, ("413", "too-large")),
        ("POST", "/api/v1/records/1234/applied", "", ("400", "malformed")),
        ("GET", "/api/v1/events?after=x", "", ("400", "malformed")),
        ("POST", "/api/v1/policies/gone/rollback", "", ("404", "not-found")),
        ("DELETE", "/api/v1/breakers/api/any/forced", "", ("409", "conflict")),
        ("POST", "/api/v1/policies/api/promote", "", ("409", "conflict")),
        ("POST", "/api/v1/policies/api/rollback", "", ("409", "conflict")),
    ] {
        let got = front.admin(method, path, "", body).await;
        let (status, kind) = problem(&got);
        assert_eq!((&*status, &*kind), expected, "{method} {path} {}", got.text());
    }
}

#[tokio::test]
async fn a_flood_is_answered_with_429_and_callers_do_not_notice() {
    let (front, _upstream) = stage(200, "").await;
    let address = front.admin_address();
    let one = format!("GET /api/v1/breakers HTTP/1.1\r\nHost: {address}\r\n");
    // All at once: one request after the other might stay below the quota on a busy machine.
    let flood = format!("{one}\r\n").repeat(999) + &one + "Connection: close\r\n\r\n";
    let (began, mut served, mut refused) = (Instant::now(), 0, 0);
    while refused == 0 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut answers = String::new();
        let (sent, read) = tokio::join!(writer.write_all(flood.as_bytes()), reader.read_to_string(&mut answers));
        sent.unwrap();
        read.unwrap();
        let heads = |status: &str| answers.matches(&format!("HTTP/1.1 {status}")).count();
        served += heads("200");
        refused += heads("429");
        assert_eq!(answers.matches("retry-after: ").count(), heads("429"), "each refusal says when to come back");
        assert_eq!(heads("200") + heads("429"), 1000, "each is answered");
        // The quota admits 200 at once, and 100 a second.
        assert!(served <= 201 + began.elapsed().as_millis() as usize / 10, "{served} in {:?}", began.elapsed());
    }
    assert_eq!(front.admin("GET", "/healthz", "", "").await.status(), "200", "probes are not counted");
    assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
}

#[test]
fn a_listener_beyond_this_machine_needs_a_token() {
    let toml = "[admin]\nlisten = \"0.0.0.0:0\"\n[upstreams.api]\nbase_url = \"http://api.invalid\"\n";
    let problems = triage_config::from_toml(toml).unwrap_err().to_string();
    assert!(problems.starts_with("admin.listen: got \"0.0.0.0:0\", but no token is set"), "{problems}");
}

#[test]
fn the_error_for_a_port_in_use_names_the_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"{address}\"\n[upstreams.api]\nbase_url = \"http://api.invalid\"\n"
    );
    let error = triage::server::Server::start(&triage_config::from_toml(&toml).unwrap()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "cannot listen on {address} (admin.listen); it must be an address of this machine that no other program, such as \
             another host, listens on: give --admin ADDRESS, or --admin off to do without"
        )
    );
}

/// Every path and method of the document exists, and every response matches its schema.
#[tokio::test]
async fn the_document_says_what_there_is() {
    let document: Value = serde_json::from_str(openapi()).unwrap();
    let (front, _upstream) = stage(200, "").await;
    assert_eq!(front.get_json("/api/v1/openapi.json").await, document);
    let got = front.ask("GET", &format!("/{BATCH}"), "").await;
    let id = got.header("triage-request-id").unwrap();
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(operations.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            let asked = path
                .replace("{upstream}", "api")
                .replace("{endpoint}", "any")
                .replace("requests/{id}", &format!("requests/{id}"));
            let asked = asked.replace("{id}", &"0".repeat(64));
            let got = front.admin(&method.to_uppercase(), &asked, "", "").await;
            let answers = &operation["responses"];
            assert_ne!(got.status(), "405", "{method} {path}");
            assert!(answers.get(got.status()).is_some(), "{method} {path}: {} is not in the document", got.status());
            if got.status() == "200" && got.header("content-type") == Some("application/json") {
                let schema = &answers["200"]["content"]["application/json"]["schema"];
                let body: Value = serde_json::from_slice(&got.body).unwrap();
                conforms(&document, schema, &body, &format!("{method} {path}"));
            }
        }
    }
}

/// Checks a value against the part of JSON Schema that the document uses: types, properties, items, references, alternatives.
pub fn conforms(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{at}: {name}"));
        return conforms(document, schema, value, at);
    }
    if let Some(any) = schema["oneOf"].as_array() {
        let schema = any.iter().find(|one| (one["type"] == "null") == value.is_null()).unwrap();
        return conforms(document, schema, value, at);
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let own = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() && types.contains(&json!("integer")) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&json!(own)), "{at}: {value} is no {types:?}");
    for item in value.as_array().into_iter().flatten() {
        conforms(document, &schema["items"], item, at);
    }
    let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else { return };
    let names = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
    if schema["additionalProperties"] == false {
        assert_eq!(names(object), names(properties), "{at}");
    }
    for (name, schema) in properties {
        conforms(document, schema, object.get(name).unwrap_or(&Value::Null), &format!("{at} {name}"));
    }
}

/// Schemathesis sends valid and invalid requests, and checks every response.
#[tokio::test]
async fn schemathesis_finds_nothing() {
    let program = std::env::var("TRIAGE_TEST_SCHEMATHESIS").unwrap_or_else(|_| "schemathesis".to_owned());
    let quiet = std::process::Stdio::null;
    let found = std::process::Command::new(&program).arg("--version").stdout(quiet()).stderr(quiet()).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("skipped: {program} does not run; `pip install schemathesis`, or set TRIAGE_TEST_SCHEMATHESIS");
        return;
    }
    let (front, _upstream) = stage(200, "").await;
    front.ask("GET", "/a", "").await;
    let url = format!("http://{}", front.admin_address());
    let folder = tempfile::tempdir().unwrap();
    // Its default list lacks 413, with which the host refuses a text above `maxLength`.
    let statuses = "[checks]\nnegative_data_rejection.expected-statuses = [\"4xx\", \"5xx\"]\n";
    std::fs::write(folder.path().join("schemathesis.toml"), statuses).unwrap();
    let run = move || {
        std::process::Command::new(program)
            .args(["run", &format!("{url}/api/v1/openapi.json"), "--url", &url])
            .args(["--rate-limit", "80/s", "--max-examples", "20", "--no-color", "--seed", "1"])
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
