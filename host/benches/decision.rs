//! Benchmarks a policy decision and the work around it: `cargo bench --bench decision`.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::RETRY_AFTER};
use std::{hint::black_box, num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::Instant;
use triage_core::{
    breaker,
    clock::Clock,
    rate_limit::Quota,
    retry::budget,
    rng::Rng,
    route::{Router, is_plain},
};
use triage_engine::{
    Engine, LoadOptions, Policy,
    contract::{Attempt, BreakerSignal, Effect, Outcome, Purpose},
    prebuilt,
};
use triage_state::{
    group::{AttemptKind, Report, Settings},
    idempotency::{Fingerprint, Identity},
    memory::admission::MemoryGate,
};
use triage_telemetry::{AllEndpointCounters, Events, RequestRecorder, TimelineEvent, WorkersTelemetry};

fn decisions(criterion: &mut Criterion) {
    let engine = Engine::start().unwrap();
    let load = |name, reuse_instances| {
        let loading = LoadOptions { reuse_instances, ..LoadOptions::default() };
        Policy::load(&engine, prebuilt::embedded(name).unwrap(), &loading).unwrap()
    };
    let nothing = HeaderMap::new();
    let mut three = HeaderMap::new();
    for seconds in [7, 8, 9] {
        three.append(RETRY_AFTER, HeaderValue::from(seconds));
    }
    let mut group = criterion.benchmark_group("decision");
    group.bench_function("builtin, status only", |bench| {
        let policy = Policy::builtin();
        bench.iter(|| decide(&policy, &nothing));
    });
    for (isolation, reused) in [("reused", true), ("fresh", false)] {
        let policy = load("http-standard", reused);
        group.bench_function(format!("{isolation} instance, status only"), |bench| {
            bench.iter(|| decide(&policy, &nothing));
        });
        group
            .bench_function(format!("{isolation} instance, 3 headers"), |bench| bench.iter(|| decide(&policy, &three)));
    }
    let policy = load("hospital-directory", false);
    group.bench_function("fresh instance, hospital-directory", |bench| bench.iter(|| decide(&policy, &nothing)));
    group.finish();
}

fn decide(policy: &Arc<Policy>, headers: &HeaderMap) {
    let nothing = HeaderMap::new();
    let attempt = Attempt {
        endpoint: 1,
        method: &http::Method::GET,
        effect: Effect::Safe,
        purpose: Purpose::Request,
        number: 1,
        prior_unknown: false,
        sent_ago: None,
        elapsed: Duration::from_millis(20),
        remaining: Duration::from_secs(10),
        previous_delay: Duration::ZERO,
        random: 1 << 40,
        now_unix_ms: 1_767_225_600_000,
        keyed: false,
        path: "/hospitals/1",
        request_headers: &nothing,
        request_body: &[],
        taken: &[],
    };
    let outcome = Outcome::Response { status: StatusCode::SERVICE_UNAVAILABLE, headers, body: &[], complete: true };
    black_box(policy.decide(black_box(&attempt), black_box(&outcome)).unwrap());
}

/// A deadline longer than any reservation of the bench, so that no call is refused.
const HOUR: Duration = Duration::from_secs(3600);

/// The telemetry of an ordinary request: counters, histograms, and its timeline in the ring of kept requests.
fn accounting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("accounting");
    for (name, keep) in [("counters, histograms and the course", 512), ("without the course (admin.explain = 0)", 0)] {
        let meters = AllEndpointCounters::new(1);
        let events = Arc::new(Events::new(Clock::system()));
        let worker = WorkersTelemetry::new(Rng::system(), keep, None, &meters, events).add();
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut account = RequestRecorder::open(&worker);
                account.permit_waited(false, Duration::ZERO);
                let sent = Instant::now();
                account.note_at(sent, || TimelineEvent::Permit { is_probe: false, wait: Duration::ZERO });
                account.note_at(sent, || TimelineEvent::Sent { attempt: 1 });
                account.answered(200, sent, sent.elapsed(), true);
                account.settled();
                black_box(&account);
                account.close(200);
            });
        });
    }
    group.finish();
}

fn around(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("around");
    let count = |count| NonZeroU32::new(count).unwrap();
    let quota = Quota { requests: count(1000), period: Duration::from_millis(1), burst: count(1_000_000) };
    let settings = Settings {
        breaker: Some(breaker::Settings::default()),
        limits: vec![quota, quota],
        budget: budget::Settings::default(),
        leased: false,
        pybreaker: None,
    };
    let gate = MemoryGate::new("bench".to_owned(), settings, Clock::system(), Rng::system());
    group.bench_function("gate: breaker, budget and two limits, acquired and reported", |bench| {
        bench.iter(|| {
            let mut grant = gate.acquire(AttemptKind::First, Duration::ZERO..=HOUR).unwrap();
            black_box(gate.recheck(&mut grant));
            gate.report(&grant, Report::new(BreakerSignal::Success, Duration::from_millis(1)));
        });
    });
    let endpoints = [
        (Some(&Method::GET), "/"),
        (Some(&Method::POST), "/hospitals/"),
        (Some(&Method::GET), "/hospitals/{id}"),
        (None, "/{*rest}"),
    ];
    let router = Router::new(endpoints.into_iter()).unwrap();
    group.bench_function("route", |bench| {
        bench.iter(|| black_box(is_plain("/hospitals/7") && router.find(&Method::GET, "/hospitals/7").is_some()));
    });
    let body = vec![b'x'; 1024];
    group.bench_function("fingerprint of 1 KiB", |bench| {
        bench.iter(|| {
            black_box(Fingerprint::of(&Identity {
                upstream: "hospital",
                endpoint: "create-hospital",
                method: &Method::POST,
                path_and_query: "/hospitals/",
                body: &body,
            }))
        });
    });
    group.finish();
}

criterion_group!(benches, decisions, around, accounting);
criterion_main!(benches);
