#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::upstream::{Inbound, OutboundBody};
use crate::{
    Host,
    clock::{Clock, Timestamp},
    config,
    idempotency::{
        Arriving, BeginRequest, Claim, ClaimName, ClaimOwner, Claimant, EntryTerm, FencingToken, Fingerprint,
        FingerprintLock, HeartbeatLease, HostLease, Intent, Leaving, Postponed, RecordId, RecordStatus, Records,
        Renewed, Resolution, Resolved, StoreBegin, Stored, Ticket, Unsettled,
        records::{Reply, forwarded::forwarded, ready_reply},
    },
    rng::Rng,
    state::memory::records::{Limits, MemoryRecords},
    upstream::Transport,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Records of a host whose heartbeat is renewed by each begin, and by nothing else.
#[derive(Debug)]
struct UnderHeartbeat {
    records: MemoryRecords,
    clock: Clock,
    lease: Duration,
    heartbeat: Arc<HeartbeatLease>,
}

impl Records for UnderHeartbeat {
    forwarded!();
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        let now = || self.clock.now();
        let term = self.heartbeat.renewed(now().after(self.lease), now);
        let opened = self.records.begin(id, opening).now_or_never().unwrap();
        ready_reply(opened.map(|opened| StoreBegin { host: Some(HostLease::new(&self.heartbeat, term)), ..opened }))
    }
    fn arrive(&self, arriving: Arriving) -> Reply<'_, crate::idempotency::Arrived> {
        self.records.arrive(arriving)
    }
    fn keep_alive(&self, ticket: Ticket, lock: Duration, term: EntryTerm) -> Reply<'_, Renewed> {
        self.records.keep_alive(ticket, lock, term)
    }
    fn write_listed(&self, ticket: Ticket, opening: BeginRequest, arrived_at: Timestamp) -> bool {
        self.records.write_listed(ticket, opening, arrived_at)
    }
}

/// An upstream that answers reads, but no writes.
#[derive(Debug)]
struct Silent;

impl Transport for Silent {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            if request.method == Method::POST {
                std::future::pending::<()>().await;
            }
            Ok(Inbound {
                status: http::StatusCode::OK,
                headers: HeaderMap::new(),
                body: upstream::full(Bytes::from_static(b"fine")),
            })
        })
    }
}

/// A cut-off by the host must not count against the upstream; a timeout must.
#[tokio::test(start_paused = true)]
async fn a_write_that_its_host_cuts_off_is_no_failure_of_the_upstream() {
    let settings = config::from_toml(
        "[upstreams.api]\nbase_url = \"http://api.invalid\"\n[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n\
         attempt_timeout = \"20s\"\ndeadline = \"60s\"\nbreaker = { failure_threshold = 1 }\n",
    )
    .unwrap();
    for (case, lease, read) in [
        ("cut off", Duration::from_secs(15), http::StatusCode::OK),
        ("timed out", Duration::from_hours(1), http::StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let clock = Clock::system();
        let mut host = Host::with_transports(&settings, clock, Rng::seeded(1), vec![Arc::new(Silent)]).unwrap();
        let records = MemoryRecords::new(clock, Limits::default());
        let records = UnderHeartbeat { records, clock, lease, heartbeat: Arc::default() };
        Arc::get_mut(&mut host.shared).unwrap().records = Arc::new(records);
        let write = Request::post("/a").header("idempotency-key", "k").body(Bytes::from_static(b"row")).unwrap();
        let answer = host.call(write).await;
        assert_eq!(answer.status(), http::StatusCode::GATEWAY_TIMEOUT, "{case}: {answer:?}");
        assert_eq!(answer.headers()["triage-verdict"], "unknown", "{case}");
        let answer = host.call(Request::put("/a").body(Bytes::new()).unwrap()).await;
        assert_eq!(answer.status(), read, "{case}: {answer:?}");
    }
}

#[test]
fn only_a_timeout_of_the_upstreams_own_tells_of_its_load() {
    let timed_out = AttemptResult::Failure(Failure::new(FailureKind::Timeout, true));
    assert!(matches!(sample_outcome(&timed_out, false), SampleOutcome::TimedOut));
    assert!(matches!(sample_outcome(&timed_out, true), SampleOutcome::Uninformative));
}

/// A transport whose own task reads the body after this delay, even if the send has ended: as over TLS and HTTP/2, or a program's own
/// client.
#[derive(Debug)]
struct Elsewhere {
    after: Duration,
    results: UnboundedSender<Result<usize, String>>,
}

impl Transport for Elsewhere {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let (after, results) = (self.after, self.results.clone());
        tokio::spawn(async move {
            sleep(after).await;
            let body = match request.body {
                OutboundBody::Bytes(bytes) => upstream::full(bytes),
                OutboundBody::Stream(body) => body,
            };
            let read = body.collect().await.map(|body| body.to_bytes().len());
            results.send(read.map_err(|error| error.to_string())).unwrap();
        });
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_another_task_sends_ends_with_the_record() {
    for (connection, after_s, is_whole) in [
        ("base_url = \"https://api.invalid\"", 0, true),
        ("base_url = \"https://api.invalid\"", 151, false),
        ("base_url = \"http://api.invalid\"", 151, false),
        ("base_url = \"http://api.invalid\"\nhttp2_prior_knowledge = true", 151, false),
    ] {
        let settings = config::from_toml(&format!(
            "[upstreams.api]\n{connection}\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n"
        ));
        let settings = settings.unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(settings.upstreams[0].idempotency.lock, Duration::from_secs(150));
        let (results, mut received) = unbounded_channel();
        let transport = Arc::new(Elsewhere { after: Duration::from_secs(after_s), results });
        let host = Host::with_transports(&settings, Clock::system(), Rng::seeded(1), vec![transport]).unwrap();
        let write = Request::post("/a").header("idempotency-key", "k").body(Bytes::from_static(b"row")).unwrap();
        let _ = host.call(write).await;
        let read = received.recv().await.unwrap();
        assert_eq!(read.as_ref().ok(), is_whole.then_some(&3), "{connection} after {after_s} s: {read:?}");
    }
}
