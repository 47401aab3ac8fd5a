//! The cost of orphan tracking for a write without a key that ends normally: `cargo bench --bench orphans`.
//!
//! A call passes through the whole host in-process (routing, admission, policy, attempt, record, response), but through no socket.
//! Criterion measures one setting after the other, so on a busy machine noise exceeds the difference between its two figures. The first
//! line of output therefore alternates both settings and compares the thread's processor time.

#![allow(clippy::unwrap_used, missing_docs)]

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use std::{env, hint::black_box, sync::Arc, time::Duration};
use tokio::runtime::{Builder, Runtime};
use triage::Host;
use triage_config as config;
use triage_core::{
    clock::{self, Clock},
    rng::Rng,
};
use triage_engine::contract::Failure;
use triage_state::{
    idempotency::{
        Arriving, BeginRequest, Entry, FencingToken, Fingerprint, Identity, Likeness, RecordId, Records, Settings,
        Ticket, unanswered::Terms,
    },
    memory::records::{Limits, MemoryRecords},
};
use triage_upstream::{Inbound, Outbound, Transport, full};

/// The program's allocator: tracking allocates, so another one would measure another program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A row of about 300 bytes for the hospital API.
const ROW: &str = r#"{"name": "General Hospital of the Northern District", "address": "12 Long Street, 10117 Somewhere, in the country", "phone": "+49 30 1234567", "email": "desk@hospital.example", "website": "https://hospital.example", "beds": 420, "creation_batch_id": "7d3c5a52-0000-4000-8000-000000000001", "active": true}"#;

/// An upstream that responds at once.
#[derive(Debug)]
struct Answers;

impl Transport for Answers {
    fn send(&self, _: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json"),
            ("content-length", "310"),
            ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
            ("server", "uvicorn"),
            ("location", "/hospitals/7"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let body = full(Bytes::from_static(&ROW.as_bytes()[..310.min(ROW.len())]));
        Box::pin(std::future::ready(Ok(Inbound { status: StatusCode::CREATED, headers, body })))
    }
}

fn host(orphans: &str) -> Host {
    let text = format!(
        "[upstreams.api]\nbase_url = \"http://api.invalid\"\nidempotency = {{ orphans = \"{orphans}\" }}\n\
         [upstreams.api.defaults]\nbreaker = {{ enabled = false }}\n"
    );
    let settings = config::from_toml(&text).unwrap();
    Host::with_transports(&settings, Clock::system(), Rng::system(), vec![Arc::new(Answers)]).unwrap()
}

fn request() -> Request<Bytes> {
    Request::post("/hospitals/")
        .header("content-type", "application/json")
        .header("authorization", "Bearer 0123456789abcdef0123456789abcdef")
        .body(Bytes::from_static(ROW.as_bytes()))
        .unwrap()
}

async fn post(host: &Host) {
    black_box(host.call(request()).await.into_body().collect().await.unwrap());
}

/// Whether the next equal request adopts a response that was not read. Otherwise both settings would be the same.
async fn adopts(host: &Host) -> bool {
    drop(host.call(request()).await);
    let answer = host.call(request()).await;
    let is_adopted = answer.headers().contains_key("triage-adopted");
    answer.into_body().collect().await.unwrap();
    is_adopted
}

/// Calls between two readings of the processor time.
const CALLS: u32 = 200;
/// Pairs of readings, one for each setting.
const ROUNDS: usize = 1_000;

/// Prints the processor time of one call in both settings, and the difference of successive rounds.
fn in_turns() {
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = runtime();
    let [off, kept] = [host("off"), host("10m")];
    assert_eq!([runtime.block_on(adopts(&off)), runtime.block_on(adopts(&kept))], [false, true]);
    let round = |host: &Host| {
        let before = clock::thread_time();
        for _ in 0..CALLS {
            runtime.block_on(post(host));
        }
        clock::thread_time().saturating_sub(before).as_secs_f64() * 1e6 / f64::from(CALLS)
    };
    let mut rounds: Vec<[f64; 2]> = (0..ROUNDS + ROUNDS / 10).map(|_| [round(&off), round(&kept)]).collect();
    rounds.drain(..ROUNDS / 10);
    let quartiles = |of: fn(&[f64; 2]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[ROUNDS * quarter / 4])
    };
    let [off, kept] = [quartiles(|round| round[0])[1], quartiles(|round| round[1])[1]];
    let [low, median, high] = quartiles(|round| round[1] - round[0]);
    println!(
        "unkeyed write in turns: off {off:.2} us, kept {kept:.2} us, difference {median:.2} us (quartiles {low:.2} to {high:.2})"
    );
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn whole(criterion: &mut Criterion) {
    in_turns();
    let mut group = criterion.benchmark_group("unkeyed write");
    group.measurement_time(Duration::from_secs(10));
    for (name, orphans) in [("orphans off", "off"), ("orphans kept", "10m")] {
        let (runtime, host) = (runtime(), host(orphans));
        group.bench_function(name, |bench| bench.iter(|| runtime.block_on(post(&host))));
    }
    group.finish();
}

fn place(criterion: &mut Criterion) {
    let clock = Clock::system();
    let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(clock, Limits::default()));
    let (entropy, settings) = (Rng::system(), Settings::default());
    let terms = Terms { lease: Duration::MAX, kept: Duration::from_mins(10) };
    criterion.bench_function("place among equal requests, taken and given back", |bench| {
        bench.iter(|| {
            let identity = Identity {
                upstream: "api",
                endpoint: "any",
                method: &Method::POST,
                path_and_query: "/hospitals/",
                body: ROW.as_bytes(),
            };
            let digest =
                records.digest(&Likeness { distinguishing_headers: &[], asking: &[], identity, fingerprint: None });
            let id = RecordId::draw_beside(&entropy, digest);
            let owner = FencingToken::draw(&entropy);
            let opening = BeginRequest::new(owner, Fingerprint::of_record(id), false, &settings);
            let ticket = Ticket { digest, id, owner, terms };
            let arriving = Arriving { ticket, opening, fingerprint_lock: None, max: 10_000, intent: None };
            let entry = Entry::asking(&records, clock, &arriving);
            black_box(records.arrive(arriving).now_or_never().unwrap().unwrap());
            entry.answered(true);
        });
    });
}

criterion_group!(benches, whole, place);
criterion_main!(benches);
