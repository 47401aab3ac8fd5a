//! Callers that do not wait for the end: `Prefer: wait=N`, and the 504's hints for a repetition.

use crate::support::{Answered, World, create, read, settings};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use triage::Host;
use triage_config as config;
use triage_core::{clock::Clock, rng::Rng};
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, InProcess, Options, When};
use triage_upstream::Transport;

async fn create_waiting(world: &World, name: &str, key: Option<&str>, prefer: &str) -> Answered {
    let mut request = create(name, key);
    request.headers_mut().insert("prefer", http::HeaderValue::from_str(prefer).unwrap());
    read(world.host.call(request).await).await
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_short_wait_gets_a_504_in_time_and_the_answer_later() {
    let world = World::new(&settings(), Options::default());
    let began = Instant::now();
    // A create takes 5 s.
    let early = create_waiting(&world, "A", Some("k"), "wait=2").await;
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    let shown = |name: &str| early.header(name).to_owned();
    assert_eq!((early.status, early.problem().as_str()), (504, "effect-unknown"), "{early:?}");
    assert_eq!(shown("preference-applied"), "wait=2");
    assert_eq!((shown("triage-sent"), shown("triage-verdict")), ("maybe".to_owned(), "unknown".to_owned()));
    assert_eq!((shown("triage-retry-after-unknown"), shown("retry-after")), ("same-key".to_owned(), "2".to_owned()));
    assert_eq!(early.json()["retry_after_ms"], 2000);
    let under_way = world.create("A", Some("k")).await;
    assert_eq!((under_way.status, under_way.problem().as_str()), (409, "in-flight"), "the request goes on");
    sleep(Duration::from_secs(5)).await;
    let answer = world.create("A", Some("k")).await;
    assert_eq!((answer.status, answer.header("triage-replay")), (200, "true"), "{answer:?}");
    assert_eq!(world.emulator.hospitals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_time_is_passed_on() {
    let world = World::new(&settings(), Options::default());
    let answer = create_waiting(&world, "A", None, "respond-async, wait=10").await;
    assert_eq!((answer.status, answer.header("preference-applied")), (200, "wait=10"), "{answer:?}");
    assert_eq!(answer.header("triage-retry-after-unknown"), "");
    // A safe request has no result to return for.
    let list = http::Request::get("/hospitals/").header("prefer", "wait=1").body(bytes::Bytes::new()).unwrap();
    assert_eq!(world.send(list).await.header("preference-applied"), "");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_is_given_up_if_nothing_was_sent_and_else_not_to_be_repeated() {
    let world = std::sync::Arc::new(World::new(&settings(), Options::default()));
    let sent = create_waiting(&world, "A", None, "wait=2").await;
    let shown = (sent.problem(), sent.header("triage-retry-after-unknown"), sent.header("retry-after"));
    assert_eq!(shown, ("effect-unknown".to_owned(), "no", ""), "{sent:?}");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.emulator.hospitals().len(), 1, "what was sent goes on");
    let second = world.create("A", None).await;
    assert_eq!(
        (second.status, second.header("triage-adopted")),
        (200, ""),
        "its caller got the record of the first: {second:?}"
    );
    assert_eq!(world.emulator.hospitals().len(), 2);
    // An equal request is running. The second one waits for its lock, and was not sent.
    let first = {
        let world = world.clone();
        tokio::spawn(async move { world.create("B", None).await })
    };
    sleep(Duration::from_secs(1)).await;
    let unsent = create_waiting(&world, "B", None, "wait=2").await;
    assert_eq!((unsent.problem().as_str(), unsent.header("triage-sent")), ("deadline-before-send", "no"), "{unsent:?}");
    assert_eq!(first.await.unwrap().status, 200);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.emulator.hospitals().len(), 3, "it was given up");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_effect_at_the_deadline_says_how_to_come_back() {
    let world = World::new(&settings(), Options::default());
    world.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetBefore).on(
        Call::List,
        When::Always,
        Fault::ResetBefore,
    ));
    for (key, how) in [(Some("k"), "same-key"), (None, "no")] {
        let answer = world.create("A", key).await;
        assert_eq!((answer.problem().as_str(), answer.header("triage-retry-after-unknown")), ("effect-unknown", how));
        assert_eq!(answer.header("retry-after").is_empty(), key.is_none(), "{answer:?}");
    }
}

/// A host whose callers may read their records, with tenants and a path prefix, and a second upstream with the same callers.
fn readable() -> World {
    let toml = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        path_prefix = "/api"
        idempotency = { record_status = true, tenant_header = "x-tenant" }
        [upstreams.other]
        base_url = "http://other.invalid"
        path_prefix = "/other"
        idempotency = { record_status = true, tenant_header = "x-tenant" }
    "#;
    let settings = config::from_toml(toml).unwrap_or_else(|problems| panic!("{problems}"));
    let emulator = Emulator::new(Options::default());
    let transport: Arc<dyn Transport> = Arc::new(InProcess(Arc::clone(&emulator)));
    let clock = Clock::anchored(1_767_225_600_000);
    let transports = vec![Arc::clone(&transport), transport];
    let host = Host::with_transports(&settings, clock, Rng::seeded(7), transports).unwrap();
    World { host, emulator }
}

async fn ask(world: &World, method: &str, path: &str, tenant: &str) -> Answered {
    let request = http::Request::builder().method(method).uri(path).header("x-tenant", tenant);
    world.send(request.body(bytes::Bytes::new()).unwrap()).await
}

/// Sends a create that gets its response early, with its record in `Location`.
async fn early_create(world: &World, tenant: &str, key: Option<&str>) -> Answered {
    let mut request = create("A", key);
    *request.uri_mut() = "/api/hospitals/".parse().unwrap();
    request.headers_mut().insert("prefer", http::HeaderValue::from_static("wait=2"));
    request.headers_mut().insert("x-tenant", http::HeaderValue::from_str(tenant).unwrap());
    world.send(request).await
}

#[tokio::test(start_paused = true)]
async fn a_caller_reads_its_record_from_sent_to_the_answer() {
    let world = readable();
    let early = early_create(&world, "ann", Some("k")).await;
    assert_eq!(early.problem(), "effect-unknown", "{early:?}");
    let location = early.header("location").to_owned();
    assert!(location.starts_with("/api/.triage/records/"), "{location}");
    let pending = ask(&world, "GET", &location, "ann").await;
    assert_eq!((pending.status, pending.header("triage-record-phase")), (202, "sent"), "{pending:?}");
    assert_eq!((pending.json()["phase"].as_str(), pending.json()["under_way"].as_bool()), (Some("sent"), Some(true)));
    assert_eq!((pending.header("retry-after"), pending.header("cache-control")), ("2", "no-store"));
    sleep(Duration::from_secs(5)).await;
    let done = ask(&world, "GET", &location, "ann").await;
    assert_eq!((done.status, done.header("triage-record-phase")), (200, "done"), "{done:?}");
    assert_eq!((done.header("triage-replay"), done.json()["name"].as_str()), ("true", Some("A")));
    // Only creates and verifications reached the upstream.
    let forwarded =
        world.emulator.arrivals().iter().filter(|arrival| format!("{arrival:?}").contains("triage")).count();
    assert_eq!((forwarded, world.emulator.hospitals().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn another_tenant_and_another_id_get_the_same_404() {
    let world = readable();
    let location = early_create(&world, "ann", Some("k")).await.header("location").to_owned();
    let there = ask(&world, "GET", &location, "ann").await;
    assert_eq!(there.status, 202, "tripwire: the record is there");
    let mut other_id = location.clone();
    let digit = if other_id.ends_with('0') { "1" } else { "0" };
    other_id.replace_range(location.len() - 1.., digit);
    let cut = &location[..location.len() - 1];
    let prefix = "/api/.triage/records/";
    let mut seen = Vec::new();
    for (path, tenant, method) in [
        (location.as_str(), "bob", "GET"),
        (&other_id, "ann", "GET"),
        (cut, "ann", "GET"),
        (prefix, "ann", "GET"),
        (&location.replace("/api/", "/other/"), "ann", "GET"),
        (&format!("{prefix}{}", "0".repeat(96)), "ann", "GET"),
        (&format!("{prefix}{}", "ä".repeat(40)).replace('ä', "%C3%A4"), "ann", "GET"),
        ("/api/.triage/", "ann", "GET"),
        ("/api/%2Etriage/records/x", "ann", "GET"),
        (location.as_str(), "ann", "POST"),
        (location.as_str(), "ann", "DELETE"),
    ] {
        let answer = ask(&world, method, path, tenant).await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "no-record"), "{method} {path} as {tenant}");
        seen.push(answer.body);
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "nothing tells one from another");
}

#[tokio::test(start_paused = true)]
async fn a_record_path_that_is_not_enabled_is_a_404_and_not_forwarded() {
    let world = World::new(&settings(), Options::default());
    let mut request = create("A", Some("k"));
    request.headers_mut().insert("prefer", http::HeaderValue::from_static("wait=2"));
    assert_eq!(world.send(request).await.header("location"), "");
    let arrived = world.emulator.arrivals().len();
    for method in ["GET", "POST", "PUT"] {
        let answer = ask(&world, method, "/.triage/records/x", "ann").await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "no-record"), "{method}");
    }
    assert_eq!(world.emulator.arrivals().len(), arrived, "{:?}", world.emulator.arrivals());
    let unkeyed = early_create(&readable(), "ann", None).await;
    let shown = (unkeyed.problem(), unkeyed.header("location"));
    assert_eq!(shown, ("effect-unknown".to_owned(), ""), "its record goes with its answer");
}

/// At its deadline, a write without a key ends unknown and its caller learns that, so no other request gets its record.
#[tokio::test(start_paused = true)]
async fn a_write_without_a_key_that_ends_unknown_has_a_record_that_its_caller_reads() {
    let world = readable();
    let faults = Faults::none().on(Call::Create, When::Always, Fault::ResetBefore);
    world.emulator.set_faults(faults.on(Call::List, When::Always, Fault::ResetBefore));
    let mut request = create("A", None);
    *request.uri_mut() = "/api/hospitals/".parse().unwrap();
    request.headers_mut().insert("x-tenant", http::HeaderValue::from_static("ann"));
    let unknown = world.send(request).await;
    assert_eq!((unknown.problem().as_str(), unknown.header("triage-retry-after-unknown")), ("effect-unknown", "no"));
    let location = unknown.header("location").to_owned();
    assert!(location.starts_with("/api/.triage/records/"), "{unknown:?}");
    let pending = ask(&world, "GET", &location, "ann").await;
    assert_eq!((pending.status, pending.header("triage-record-phase")), (202, "sent"), "{pending:?}");
    assert_eq!(ask(&world, "GET", &location, "bob").await.status, 404);
}

/// Invalid reads do not use up the quota of owners.
#[tokio::test(start_paused = true)]
async fn reads_of_records_are_bounded() {
    let world = readable();
    let location = early_create(&world, "ann", Some("k")).await.header("location").to_owned();
    let malformed = "/api/.triage/records/x";
    for guess in 0..300 {
        let (path, tenant) = if guess % 2 == 0 { (malformed, "ann") } else { (&*location, "bob") };
        assert_eq!(ask(&world, "GET", path, tenant).await.status, 404, "{guess}");
    }
    let mut refused = 0;
    for _ in 0..150 {
        let answer = ask(&world, "GET", &location, "ann").await;
        if answer.status == 429 {
            refused += 1;
            assert_eq!((answer.problem().as_str(), answer.header("retry-after")), ("rate-limited", "1"));
        }
    }
    assert_eq!(refused, 50);
}

#[test]
fn records_are_read_by_tenants_only() {
    let toml = "[upstreams.a]\nbase_url = \"http://a.example\"\nidempotency = { record_status = true, tenant_header = \"off\" }\n";
    let shown = config::from_toml(toml).unwrap_err().to_string();
    assert!(shown.contains("upstreams.a.idempotency.record_status") && shown.contains("tenant_header"), "{shown}");
    // With shared state, the owner's proof needs a secret that all hosts share.
    let toml = "[state]\nurl = \"redis://127.0.0.1:1\"\n[upstreams.a]\nbase_url = \"http://a.example\"\nidempotency = { record_status = true }\n";
    let load = |key: Option<&str>| {
        let file = Some(("triage.toml".to_owned(), toml.to_owned()));
        let environment = key.map(|key| ("TRIAGE_STATE_KEY".to_owned(), key.to_owned())).into_iter().collect();
        config::load(&config::Inputs { file, environment, ..config::Inputs::default() })
    };
    let shown = load(None).unwrap_err().to_string();
    assert!(shown.contains("upstreams.a.idempotency.record_status") && shown.contains("state.key_file"), "{shown}");
    assert!(load(Some(&"ab".repeat(32))).is_ok());
}
