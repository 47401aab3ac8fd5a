//! What it costs a write without a key, which ends normally, that its answer could be adopted. `cargo bench --bench orphans`.

#![allow(clippy::unwrap_used, missing_docs)]

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use std::{hint::black_box, sync::Arc, time::Duration};
use tokio::runtime::{Builder, Runtime};
use triage::{
    Host,
    clock::Clock,
    config,
    entropy::Entropy,
    idempotency::{
        Arriving, Entry, Fence, Fingerprint, Identity, Likeness, Opening, RecordId, Records, Settings, Ticket,
        unanswered::Terms,
    },
    policy::contract::Failure,
    store::memory::records::{Limits, MemoryRecords},
    upstream::{Inbound, Outbound, Transport, full},
};

/// A row of about 300 bytes, as the hospital API takes it.
const ROW: &str = r#"{"name": "General Hospital of the Northern District", "address": "12 Long Street, 10117 Somewhere, in the country", "phone": "+49 30 1234567", "email": "desk@hospital.example", "website": "https://hospital.example", "beds": 420, "creation_batch_id": "7d3c5a52-0000-4000-8000-000000000001", "active": true}"#;

/// An upstream that answers at once.
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
    Host::with_transports(&settings, Clock::system(), Entropy::system(), vec![Arc::new(Answers)]).unwrap()
}

async fn post(host: &Host) {
    let request = Request::post("/hospitals/")
        .header("content-type", "application/json")
        .header("authorization", "Bearer 0123456789abcdef0123456789abcdef")
        .body(Bytes::from_static(ROW.as_bytes()))
        .unwrap();
    black_box(host.call(request).await.into_body().collect().await.unwrap());
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn whole(criterion: &mut Criterion) {
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
    let (entropy, settings) = (Entropy::system(), Settings::default());
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
            let digest = records.digest(&Likeness { tenant: &[], asking: &[], identity, fingerprint: None });
            let id = RecordId::draw_beside(&entropy, digest);
            let owner = Fence::draw(&entropy);
            let opening = Opening::new(owner, Fingerprint::of_record(id), false, &settings);
            let ticket = Ticket { digest, id, owner, terms };
            let arriving = Arriving { ticket, opening, turn: None, max: 10_000, intent: None };
            let entry = Entry::asking(&records, clock, &arriving);
            black_box(records.arrive(arriving).now_or_never().unwrap().unwrap());
            entry.answered(true);
        });
    });
}

criterion_group!(benches, whole, place);
criterion_main!(benches);
