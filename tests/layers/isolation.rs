//! Replays go only to the tenant that sent the request.

use super::{Plan, Stage};
use bytes::Bytes;
use http::Request;
use std::sync::Arc;
use triage_config::{self as config, settings::Settings};

fn settings(tenant_header: &str) -> Settings {
    let text = format!(
        r#"
        [upstreams.api]
        base_url = "http://api.invalid"
        idempotency = {{ tenant_header = "{tenant_header}" }}
        "#
    );
    config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn post(path: &str, tenant: Option<&str>, key: &str, body: &'static str) -> Request<Bytes> {
    let mut request = Request::post(path).header("idempotency-key", key);
    if let Some(tenant) = tenant {
        request = request.header("x-tenant", tenant);
    }
    request.body(Bytes::from_static(body.as_bytes())).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_replay_goes_to_the_same_tenant_only() {
    let stage = Stage::new(&settings("x-tenant"), |_| Plan::status(201));
    for (tenant, replay, arrived) in [
        (Some("a"), "", 1),
        (Some("a"), "true", 1),
        (Some("b"), "", 2),
        (Some("b"), "true", 2),
        (None, "", 3),
        (None, "true", 3),
        (Some(""), "", 4),
        (Some("A"), "", 5),
        (Some("a"), "true", 5),
    ] {
        let answer = stage.send(post("/", tenant, "k", "x")).await;
        assert_eq!((answer.status, answer.header("triage-replay")), (201, replay), "{tenant:?}: {answer:?}");
        assert_eq!(stage.arrived(), arrived, "{tenant:?}");
    }
}

/// Other tenants cannot find out whether a key is in use, or for which request.
#[tokio::test(start_paused = true)]
async fn neither_conflict_nor_mismatch_tells_of_another_tenants_key() {
    let stage = Stage::new(&settings("x-tenant"), |_| Plan::status(201).after(super::secs(1)));
    let slow = Arc::clone(&stage);
    let first = tokio::spawn(async move { slow.send(post("/", Some("a"), "k", "x")).await });
    tokio::time::sleep(super::millis(500)).await;
    assert_eq!(stage.send(post("/", Some("a"), "k", "x")).await.problem(), "in-flight");
    assert_eq!(stage.send(post("/", Some("a"), "k", "other")).await.problem(), "key-reused");
    assert_eq!(stage.send(post("/", Some("b"), "k", "other")).await.status, 201);
    assert_eq!(first.await.unwrap().status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_one_upstream_says_nothing_at_another() {
    let text = r#"
        [upstreams.one]
        base_url = "http://one.invalid"
        path_prefix = "/one"
        [upstreams.two]
        base_url = "http://two.invalid"
        path_prefix = "/two"
    "#;
    let settings = config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    let one = Stage::new(&super::api(""), |_| Plan::status(201));
    let two = Stage::new(&super::api(""), |_| Plan::status(202));
    let host = triage::Host::with_transports(
        &settings,
        triage_core::clock::Clock::anchored(0),
        triage_core::rng::Rng::seeded(1),
        vec![Arc::clone(&one.upstream) as _, Arc::clone(&two.upstream) as _],
    )
    .unwrap();
    for (path, status, replay) in [("/one/x", 201, ""), ("/two/x", 202, ""), ("/one/x", 201, "true")] {
        let answer = crate::support::read(host.call(post(path, None, "k", "x")).await).await;
        assert_eq!((answer.status, answer.header("triage-replay")), (status, replay), "{path}: {answer:?}");
    }
}

/// Tripwire: without a tenant header, all callers are one tenant.
#[tokio::test(start_paused = true)]
async fn tripwire_without_tenants_the_key_alone_counts() {
    let stage = Stage::new(&settings("off"), |_| Plan::status(201));
    assert_eq!(stage.send(post("/", Some("a"), "k", "x")).await.header("triage-replay"), "");
    assert_eq!(stage.send(post("/", Some("b"), "k", "x")).await.header("triage-replay"), "true");
}

/// A key with other credentials is another key, and a later caller does not get a session cookie.
#[tokio::test(start_paused = true)]
async fn credentials_keep_keys_apart_and_no_session_is_given_again() {
    let keyed = |name: &'static str, value: &'static str| {
        let request = Request::post("/").header("idempotency-key", "k").header(name, value);
        request.body(Bytes::from_static(b"x")).unwrap()
    };
    for (keeps, cookie) in [("", ""), ("idempotency = { replay_set_cookie = true }", "session=alice")] {
        let text = format!("[upstreams.api]\nbase_url = \"http://api.invalid\"\n{keeps}\n");
        let settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let stage = Stage::new(&settings, |_| Plan::asking(201, &[("set-cookie", "session=alice")]));
        for (name, value, replay, arrived) in [
            ("authorization", "Bearer alice", "", 1),
            ("authorization", "Bearer alice", "true", 1),
            ("authorization", "Bearer bob", "", 2),
            ("cookie", "session=bob", "", 3),
            ("x-request", "neither", "", 4),
        ] {
            let answer = stage.send(keyed(name, value)).await;
            assert_eq!((answer.status, answer.header("triage-replay")), (201, replay), "{name}: {value}: {answer:?}");
            assert_eq!(stage.arrived(), arrived, "{name}: {value}");
            let expected = if replay.is_empty() { "session=alice" } else { cookie };
            assert_eq!(answer.header("set-cookie"), expected, "{name}: {value}");
        }
    }
}

/// An orphan belongs to its tenant, like a key.
#[tokio::test(start_paused = true)]
async fn an_orphan_is_adopted_with_the_same_credentials_only() {
    let stage = Stage::new(&super::api(""), |_| Plan::asking(201, &[("set-cookie", "a=b")]).after(super::secs(2)));
    let write = |token: &'static str| {
        let request = Request::post("/").header("authorization", token);
        request.body(Bytes::from_static(b"x")).unwrap()
    };
    assert!(tokio::time::timeout(super::secs(1), stage.send(write("alice"))).await.is_err());
    tokio::time::sleep(super::secs(5)).await;
    let bob = stage.send(write("bob")).await;
    assert_eq!((bob.header("triage-adopted"), stage.arrived()), ("", 2), "{bob:?}");
    let alice = stage.send(write("alice")).await;
    assert_eq!(
        (alice.header("triage-adopted"), alice.header("set-cookie"), stage.arrived()),
        ("true", "", 2),
        "{alice:?}"
    );
}
