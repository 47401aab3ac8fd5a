//! Every parser of input from outside behind one kind of entry, for fuzzing: none may panic, hang or grow without bound,
//! whatever the bytes. `host/fuzz` calls these, and so do the property tests in `tests/fuzz_inputs.rs`.

use crate::{
    authority,
    config::{self, Inputs},
    decision_log as decision_trace,
    idempotency::{Keyed, search_condition},
    import,
    pipeline::prefer,
    policy::{
        Engine, LoadOptions, Policy,
        contract::{Attempt, Effect, Outcome, Purpose},
        golden_tests, hints, prebuilt,
    },
    route,
    state_redis::records::read_kept,
    upstream::{
        headers,
        redirect::{self, Origin, Route},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// A parser.
pub type Entry = fn(&[u8]);

/// Every one, by name.
pub const ALL: [(&str, Entry); 14] = [
    ("config", config),
    ("environment", environment),
    ("key", key),
    ("condition", condition),
    ("headers", retry_after),
    ("path", path),
    ("authority", authority),
    ("redirect", redirect),
    ("rows", rows),
    ("cases", golden_cases),
    ("component", component),
    ("trace", trace),
    ("kept", kept),
    ("fhir", fhir),
];

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let _ = config::from_toml(&String::from_utf8_lossy(bytes));
}

/// Environment variables: lines of NAME=VALUE.
pub fn environment(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let _ = config::load(&Inputs { environment, ..Inputs::default() });
}

/// `Idempotency-Key`.
pub fn key(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for value in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static("idempotency-key"), value);
        }
    }
    let _ = Keyed::parse(&headers);
}

/// `If-None-Exist`, as requests take turns by it.
pub fn condition(bytes: &[u8]) {
    let once = search_condition::canonical(bytes);
    assert!(once.len() <= 3 * bytes.len(), "a condition grows by its percent-encoding at most");
    assert_eq!(search_condition::canonical(once.as_bytes()), once);
}

/// The hints of a retry, `Prefer` and `Connection`.
pub fn retry_after(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut map = HeaderMap::new();
    for name in ["retry-after", "retry-after-ms", "x-should-retry", "prefer"] {
        map.insert(HeaderName::from_static(name), value.clone());
    }
    let _ = prefer::wait(&map);
    map.insert(http::header::CONNECTION, value);
    let _ = hints::retry_after(&map, 1_767_225_600_000);
    let _ = hints::should_retry(&map);
    headers::strip_hop_by_hop(&mut map);
    assert!(!map.contains_key(http::header::CONNECTION), "it stays whatever it names");
}

/// A request's path, against templates.
pub fn path(bytes: &[u8]) {
    let path = String::from_utf8_lossy(bytes);
    let templates = [(Some(&Method::GET), "/a/{id}"), (None, "/{*rest}")];
    let plain = route::is_plain(&path);
    if let Ok(router) = route::Router::new(templates.into_iter()) {
        let found = router.find(&Method::GET, &path).is_some();
        assert!(found || !plain || path == "/", "a plain path is taken by the catch-all: {path:?}");
    }
}

/// A host with or without a port.
pub fn authority(bytes: &[u8]) {
    if authority::is_valid(bytes) {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        assert!(text.parse::<http::uri::Authority>().is_ok(), "what is valid goes into URLs: {text:?}");
        assert!(authority::is_same(text, text, 80), "{text:?}");
    }
}

/// `Location`, `Content-Location` and `Refresh` of an upstream.
pub fn redirect(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let names = [http::header::LOCATION, http::header::CONTENT_LOCATION, http::header::REFRESH];
    let mut map: HeaderMap = names.iter().map(|name| (name.clone(), value.clone())).collect();
    let origin = Origin { scheme: "https", authority: Some(HeaderValue::from_static("triage.example")) };
    let base_url = http::Uri::from_static("http://up.example/v1");
    let route = Route { base_url: &base_url, path_and_query: "/a/b?c", prefix: "/api", origin: &origin };
    redirect::rewrite(&mut map, &route);
    assert_eq!(map.len(), names.len());
}

/// A CSV file to import.
pub fn rows(bytes: &[u8]) {
    let _ = import::parse(bytes);
}

/// A file of golden cases.
pub fn golden_cases(bytes: &[u8]) {
    let _ = golden_tests::play(&Policy::builtin(), &String::from_utf8_lossy(bytes));
}

/// A component. One that can be loaded by chance has passed every check.
pub fn component(bytes: &[u8]) {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    if let Some(engine) = ENGINE.get_or_init(|| Engine::start().ok()) {
        let _ = Policy::load(engine, bytes, &LoadOptions::default());
    }
}

/// Gives the embedded policy a FHIR server's response: an `OperationOutcome` or a search's `Bundle`. The first line is also the
/// `If-None-Exist` of the request. Every fault of the policy fails the target.
pub fn fhir(bytes: &[u8]) {
    static POLICY: OnceLock<Option<Arc<Policy>>> = OnceLock::new();
    let load = || Policy::load(&Engine::start().ok()?, prebuilt::embedded("fhir")?, &LoadOptions::default()).ok();
    let Some(policy) = POLICY.get_or_init(load) else { return };
    let mut headers = HeaderMap::new();
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(value) = HeaderValue::from_bytes(line) {
        headers.insert(HeaderName::from_static("if-none-exist"), value);
    }
    let endpoint = |name: &str| policy.description().endpoints.iter().position(|endpoint| endpoint.name == name);
    for (name, purpose, status) in [("read", Purpose::Request, 409), ("create", Purpose::Probe, 200)] {
        let (Some(endpoint), Ok(status)) = (endpoint(name), StatusCode::from_u16(status)) else { continue };
        let attempt = Attempt {
            endpoint,
            method: if purpose == Purpose::Probe { &Method::POST } else { &Method::GET },
            effect: if purpose == Purpose::Probe { Effect::Unsafe } else { Effect::Safe },
            purpose,
            number: 1,
            prior_unknown: purpose == Purpose::Probe,
            sent_ago: Some(Duration::from_secs(1)),
            elapsed: Duration::from_secs(1),
            remaining: Duration::from_mins(10),
            previous_delay: Duration::ZERO,
            random: 0,
            now_unix_ms: 1_767_225_600_000,
            keyed: false,
            path: "/Patient",
            request_headers: &headers,
            request_body: &[],
            taken: &[],
        };
        let outcome = Outcome::Response { status, headers: &HeaderMap::new(), body: bytes, complete: true };
        let decided = policy.decide(&attempt, &outcome);
        assert!(decided.is_ok(), "the policy fails: {decided:?}");
    }
}

/// A decision trace, through the native policy.
pub fn trace(bytes: &[u8]) {
    let _ = decision_trace::replay(bytes, &Policy::builtin(), "{}", 1).map(|report| report.to_string());
}

/// A decrypted response or request of a record in shared state.
pub fn kept(bytes: &[u8]) {
    read_kept(bytes);
}
