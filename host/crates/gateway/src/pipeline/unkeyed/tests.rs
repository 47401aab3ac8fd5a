#![allow(clippy::unwrap_used)]

//! Entries that lapse, at a store that its hosts reach over a network.

use super::*;
use crate::{
    Host,
    clock::Clock,
    config,
    idempotency::{
        Claim, ClaimName, Claimant, EntryTerm, FingerprintLock, Intent, Leaving, Postponed, RecordError, RecordStatus,
        Records, Renewed, Resolution, Resolved, StoreBegin, Unsettled,
        records::{Reply, forwarded::forwarded, ready_reply},
    },
    policy::contract::{Failure, FailureKind},
    rng::Rng,
    state::memory::records::{Limits, MemoryRecords},
    upstream::{self, Inbound, Outbound, Transport},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::time::timeout;

const LEASE: Duration = Duration::from_millis(7500);
const ANSWERED_AFTER: Duration = Duration::from_secs(10);
const TEXT: &str = "[upstreams.api]\nbase_url = \"http://api.invalid\"\n[upstreams.api.defaults]\n\
                    retry = { max_attempts = 1 }\nattempt_timeout = \"30s\"\ndeadline = \"60s\"\n";

/// A store whose owners renew their entries. `renewals` is its reply to each renewal; none: it cannot be reached.
#[derive(Debug)]
struct Leased {
    records: MemoryRecords,
    clock: Clock,
    renewals: Mutex<Option<Renewed>>,
    arrived: Mutex<Option<Arriving>>,
}

impl Leased {
    fn new(clock: Clock) -> Arc<Self> {
        let records = MemoryRecords::new(clock, Limits::default());
        Arc::new(Self { records, clock, renewals: Mutex::new(Some(Renewed::ALL)), arrived: Mutex::default() })
    }

    /// A request at another host, equal to the last one here.
    async fn another(&self) -> Arrived {
        let arriving = self.arrived.lock().clone().unwrap();
        let id = RecordId::draw_beside(&Rng::seeded(9), arriving.ticket.digest);
        let ticket = Ticket { id, owner: FencingToken(9), ..arriving.ticket };
        self.records.arrive(Arriving { ticket, ..arriving }).await.unwrap()
    }
}

impl Records for Leased {
    forwarded!();
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        self.records.begin(id, opening)
    }
    fn lease(&self) -> Option<Duration> {
        Some(LEASE)
    }
    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived> {
        *self.arrived.lock() = Some(arriving.clone());
        let (ticket, opening) = (arriving.ticket, arriving.opening);
        let arrived = self.records.arrive(arriving).now_or_never().unwrap();
        if matches!(arrived, Ok(Arrived::Listed { .. })) {
            self.records.write_listed(ticket, opening, self.clock.now());
        }
        ready_reply(arrived)
    }
    fn keep_alive(&self, _: Ticket, _: Duration, _: EntryTerm) -> Reply<'_, Renewed> {
        let unavailable = || RecordError::Unavailable { source: "it is cut off".into(), maybe_done: false };
        ready_reply(self.renewals.lock().ok_or_else(unavailable))
    }
}

/// How the upstream handles each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// It creates the row, and responds late.
    Make,
    /// It resets the connection late.
    Reset,
    /// It refuses the connection.
    Refuse,
}

#[derive(Debug)]
struct Late {
    rows: AtomicUsize,
    does: Does,
}

impl Late {
    fn that(does: Does) -> Arc<Self> {
        Arc::new(Self { rows: AtomicUsize::new(0), does })
    }
}

impl Transport for Late {
    fn send(&self, _: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let row = self.rows.fetch_add(1, Relaxed) + 1;
        Box::pin(async move {
            if self.does == Does::Refuse {
                return Err(Failure::new(FailureKind::Connect, false));
            }
            sleep(ANSWERED_AFTER).await;
            if self.does == Does::Reset {
                return Err(Failure::new(FailureKind::Reset, true));
            }
            let body = upstream::full(Bytes::from(row.to_string()));
            Ok(Inbound { status: StatusCode::CREATED, headers: HeaderMap::new(), body })
        })
    }
}

/// A host with this upstream and this store.
fn host(upstream: &Arc<Late>, store: &Arc<Leased>) -> Host {
    let settings = config::from_toml(TEXT).unwrap();
    let transport: Arc<dyn Transport> = Arc::<Late>::clone(upstream);
    let mut host = Host::with_transports(&settings, Clock::system(), Rng::seeded(1), vec![transport]).unwrap();
    Arc::get_mut(&mut host.shared).unwrap().records = Arc::<Leased>::clone(store);
    host
}

fn post() -> http::request::Builder {
    Request::post("/rows")
}

/// The response to a write: its status, whether it was adopted, and its body.
async fn send(host: &Host, request: http::request::Builder) -> (u16, bool, Bytes) {
    let response = host.call(request.body(Bytes::from_static(b"row")).unwrap()).await;
    let (status, adopted) = (response.status().as_u16(), response.headers().contains_key(ADOPTED));
    (status, adopted, response.into_body().collect().await.unwrap().to_bytes())
}

/// Another host may reach the store when this one does not, and may have given the effect to another request.
#[tokio::test(start_paused = true)]
async fn an_answer_whose_place_has_lapsed_unconfirmed_is_not_handed_out() {
    for (renewals, status) in [(Some(Renewed::ALL), 201), (None, 504)] {
        let (upstream, store) = (Late::that(Does::Make), Leased::new(Clock::system()));
        let host = host(&upstream, &store);
        *store.renewals.lock() = renewals;
        let (first, adopted, _) = send(&host, post()).await;
        assert_eq!((first, adopted), (status, false), "{renewals:?}");
        // Both callers got a response, so the next request is a new one.
        *store.renewals.lock() = Some(Renewed::ALL);
        assert_eq!(send(&host, post()).await, (201, false, Bytes::from_static(b"2")), "{renewals:?}");
        assert_eq!(upstream.rows.load(Relaxed), 2);
    }
}

/// The counterpart: if the first caller leaves, the next request gets its response, unless the entry was given away.
#[tokio::test(start_paused = true)]
async fn an_adopted_answer_is_not_replayed_where_the_place_was_given_to_another_request() {
    for is_taken in [false, true] {
        let (upstream, store) = (Late::that(Does::Make), Leased::new(Clock::system()));
        let host = Arc::new(host(&upstream, &store));
        let caller = timeout(Duration::from_secs(1), send(&host, post()));
        assert!(caller.await.is_err(), "it was answered");
        let next = {
            let host = Arc::clone(&host);
            tokio::spawn(async move { send(&host, post()).await })
        };
        sleep(Duration::from_millis(500)).await;
        if is_taken {
            // The second request's host stands still, and a third request arrives at another host.
            *store.renewals.lock() = None;
        }
        sleep(Duration::from_secs(8)).await;
        if is_taken {
            *store.renewals.lock() = Some(Renewed { entry: false, lock: true });
            assert!(matches!(store.another().await, Arrived::Adopted(_)));
            // By then the second request has started again.
            sleep(Duration::from_secs(2)).await;
            *store.renewals.lock() = Some(Renewed::ALL);
        }
        let expected = if is_taken { (201, false, "2") } else { (201, true, "1") };
        let (status, adopted, body) = next.await.unwrap();
        assert_eq!((status, adopted, &*body), (expected.0, expected.1, expected.2.as_bytes()));
    }
}

/// A caller that got the early 504 may check and count the effect itself, so no other request may have it. An early 504 that does not
/// arrive leaves an orphan.
#[tokio::test(start_paused = true)]
async fn no_request_adopts_a_write_whose_caller_got_the_early_504() {
    for (does, unsettled) in [(Does::Make, 0), (Does::Reset, 1)] {
        for is_answered_early in [true, false] {
            let (upstream, store) = (Late::that(does), Leased::new(Clock::system()));
            let host = host(&upstream, &store);
            let hurried = post().header("prefer", "wait=2").body(Bytes::from_static(b"row")).unwrap();
            let early = host.call(hurried).await;
            let retry_after = early.headers()["triage-retry-after-unknown"].as_bytes();
            assert_eq!((early.status().as_u16(), retry_after), (504, &b"no"[..]));
            if is_answered_early {
                early.into_body().collect().await.unwrap();
            } else {
                drop(early);
            }
            let listed = store.another().await;
            let case = format!("{does:?}, early answer: {is_answered_early}");
            assert_eq!(matches!(listed, Arrived::Adopted(_)), !is_answered_early, "{case}: {listed:?}");
            sleep(ANSWERED_AFTER).await;
            let left = store.unsettled(10).await.unwrap();
            assert_eq!(left.len(), unsettled, "{case}: {left:?}");
        }
    }
}

/// A refusal leaves nothing to adopt, even if its caller does not receive it.
#[tokio::test(start_paused = true)]
async fn only_what_can_be_adopted_counts_as_left() {
    for (does, expected) in [(Does::Refuse, 0), (Does::Make, 1)] {
        let store = Leased::new(Clock::system());
        let host = host(&Late::that(does), &store);
        let answer = host.call(post().body(Bytes::from_static(b"row")).unwrap()).await;
        assert_eq!(answer.status().is_success(), expected == 1, "{answer:?}");
        drop(answer);
        let meters = host.shared.meters.all();
        let left = meters.iter().flat_map(|meters| meters.all());
        let left: u64 = left.map(|meter| meter.orphans.all()[OrphanResult::Left as usize].read()).sum();
        assert_eq!(left, expected, "{does:?}");
        assert_eq!(matches!(store.another().await, Arrived::Adopted(_)), expected == 1, "{does:?}");
    }
}
