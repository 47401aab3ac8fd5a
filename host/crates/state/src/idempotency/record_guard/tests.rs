#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::{
    clock::Timestamp,
    idempotency::{
        Arrived, Claimant, EntryTerm, Fingerprint, FingerprintLock, HeartbeatLease, Identity, Key, KeyTag, Leaving,
        Ownership, Postponed, RecordId, RecordStatus, Renewed, RequestDigest, Resolution, Resolved, StoredBody, Tenant,
        Ticket, Unsettled, records::Reply, unanswered::Terms,
    },
    memory::records::{Limits, MemoryRecords},
};
use bytes::Bytes;
use futures_util::{FutureExt, task::noop_waker_ref};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::{
    cell::Cell,
    task::{Context, Poll},
};

const LOCK: Duration = Duration::from_secs(150);

/// A store whose replies take polls: one before each effect and one after it, so that a caller can be cancelled on either side.
#[derive(Debug)]
struct Slow(Arc<MemoryRecords>, Option<Renewing>);

/// A store that asks its owners to renew their entries, and that answers so.
#[derive(Debug, Clone, Copy)]
struct Renewing {
    lease: Duration,
    answer: Renewed,
}

impl Slow {
    fn reply<'a, T: Send + 'a>(
        &self,
        effect: impl FnOnce(&MemoryRecords) -> Result<T, RecordError> + Send + 'a,
    ) -> Reply<'a, T> {
        let records = Arc::clone(&self.0);
        Reply::Right(
            async move {
                tokio::task::yield_now().await;
                let result = effect(&records);
                tokio::task::yield_now().await;
                result
            }
            .boxed(),
        )
    }
}

fn now<T>(reply: Reply<'_, T>) -> Result<T, RecordError> {
    reply.now_or_never().expect("memory answers at once")
}

impl Records for Slow {
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        self.reply(move |records| now(records.begin(id, opening)))
    }
    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
        self.reply(move |records| now(records.sent(id, fence, intent)))
    }
    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()> {
        self.reply(move |records| now(records.finish(id, fence, stored)))
    }
    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()> {
        self.reply(move |records| now(records.release(id, fence)))
    }
    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving) {
        self.0.abandon_record(id, fence, leaving);
    }
    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving) {
        self.0.record_unknown(id, opening, leaving);
    }
    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived> {
        self.reply(move |records| now(records.arrive(arriving)))
    }
    fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>> {
        self.reply(move |records| now(records.recheck_orphan(ticket)))
    }
    fn lease(&self) -> Option<Duration> {
        self.1.map(|renewing| renewing.lease)
    }
    fn keep_alive(&self, ticket: Ticket, lock: Duration, term: EntryTerm) -> Reply<'_, Renewed> {
        match self.1 {
            Some(renewing) => self.reply(move |_| Ok(renewing.answer)),
            None => self.reply(move |records| now(records.keep_alive(ticket, lock, term))),
        }
    }
    fn write_listed(&self, ticket: Ticket, opening: BeginRequest, arrived_at: Timestamp) -> bool {
        self.0.write_listed(ticket, opening, arrived_at)
    }
    fn abandon(&self, ticket: Ticket) {
        self.0.abandon(ticket);
    }
    fn answered(&self, ticket: Ticket, forget: bool) {
        self.0.answered(ticket, forget);
    }
    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
        self.reply(move |records| now(records.claim(name, owner, keep)))
    }
    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
        self.reply(move |records| now(records.claimant(name, owner)))
    }
    fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock> {
        self.0.lock_fingerprint(fingerprint)
    }
    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
        self.reply(move |records| now(records.unsettled(limit)))
    }
    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
        self.reply(move |records| now(records.unsettled_one(id)))
    }
    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
        self.reply(move |records| now(records.due(limit)))
    }
    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed> {
        self.reply(move |records| now(records.postpone(id, wait, longest_age)))
    }
    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        self.reply(move |records| now(records.take(id, lease)))
    }
    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
        self.reply(move |records| now(records.status(id)))
    }
    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
        self.reply(move |records| now(records.resolve(id, resolution)))
    }
}

fn id() -> RecordId {
    let headers =
        HeaderMap::from_iter([(http::HeaderName::from_static("idempotency-key"), HeaderValue::from_static("k"))]);
    RecordId::of(&Tenant::of(&headers, &[]), "up", &Key::parse(&headers).unwrap().unwrap())
}

fn opening(fence: u128) -> BeginRequest {
    let request =
        Identity { upstream: "up", endpoint: "create", method: &Method::POST, path_and_query: "/", body: b"row" };
    let settings = crate::idempotency::Settings { lock: LOCK, keep: Duration::from_hours(1), ..Default::default() };
    BeginRequest::new(FencingToken(fence), Fingerprint::of(&request), false, &settings)
}

fn stored() -> Stored {
    Stored::Answer(StoredBody {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"hospital 7"),
        class: "applied",
        policy: "p@1".into(),
    })
}

struct Setup {
    clock: Clock,
    memory: Arc<dyn Records>,
    slow: Arc<dyn Records>,
}

impl Setup {
    fn new() -> Self {
        let clock = Clock::system();
        let memory = Arc::new(MemoryRecords::new(clock, Limits::default()));
        Self { clock, slow: Arc::new(Slow(Arc::clone(&memory), None)), memory }
    }

    fn begin(&self, fence: u128) -> BeginOutcome {
        begin(&self.memory, self.clock, id(), opening(fence)).now_or_never().unwrap().unwrap()
    }

    fn guard(&self, fence: u128) -> RecordGuard {
        match self.begin(fence) {
            BeginOutcome::New(guard) | BeginOutcome::Reconcile { guard, .. } => guard,
            other => panic!("no hold: {other:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finish,
    Release,
}

/// Runs an owner and drops it after so many polls. Returns its sends, and whether it ended.
fn owner_dropped_after(polls: usize, setup: &Setup, fence: u128, end: End) -> (u32, bool) {
    let sends = Cell::new(0);
    let mut owner = Box::pin(async {
        let (BeginOutcome::New(mut guard) | BeginOutcome::Reconcile { mut guard, .. }) =
            begin(&setup.slow, setup.clock, id(), opening(fence)).await.unwrap()
        else {
            panic!("no hold")
        };
        assert_eq!(guard.claim(ClaimName::of("up", "7")).await.unwrap(), Claim::Ours);
        guard.sent().await.unwrap();
        sends.set(sends.get() + 1);
        tokio::task::yield_now().await;
        match end {
            End::Finish => guard.finish(stored()).await.unwrap(),
            End::Release => guard.release().await.unwrap(),
        }
    });
    let mut context = Context::from_waker(noop_waker_ref());
    let ended = (0..polls).any(|_| owner.as_mut().poll(&mut context) == Poll::Ready(()));
    drop(owner);
    (sends.get(), ended)
}

/// More polls than an owner takes to its end.
const POLLS: usize = 16;

#[tokio::test(start_paused = true)]
async fn an_owner_may_be_cancelled_at_every_await() {
    let mut ended = 0;
    for polls in 0..POLLS {
        let setup = Setup::new();
        let (sends, end) = owner_dropped_after(polls, &setup, 1, End::Finish);
        ended += u32::from(end);
        let next = setup.begin(2);
        match next {
            BeginOutcome::New(_) => assert_eq!((sends, end), (0, false), "after {polls} polls"),
            BeginOutcome::Reconcile { sent_ago, .. } => {
                assert_eq!((sends, end, sent_ago), (1, false, Duration::ZERO), "after {polls} polls");
            }
            BeginOutcome::Replay(answer) => assert_eq!((sends, &*answer), (1, &stored()), "after {polls} polls"),
            other => panic!("wedged after {polls} polls: {other:?}"),
        }
    }
    assert!(ended > 2, "the owner ended within {POLLS} polls");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_release_is_a_release_or_unknown() {
    for polls in 0..POLLS {
        let setup = Setup::new();
        let (sends, ended) = owner_dropped_after(polls, &setup, 1, End::Release);
        match setup.begin(2) {
            BeginOutcome::New(_) => {}
            BeginOutcome::Reconcile { .. } => assert_eq!((sends, ended), (1, false), "after {polls} polls"),
            other => panic!("wedged after {polls} polls: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_reconciler_never_makes_the_unknown_new() {
    for polls in 0..POLLS {
        let setup = Setup::new();
        let mut first = setup.guard(1);
        first.sent().await.unwrap();
        drop(first);
        tokio::time::advance(Duration::from_mins(1)).await;
        let (sends, _) = owner_dropped_after(polls, &setup, 2, End::Finish);
        match setup.begin(3) {
            BeginOutcome::Reconcile { sent_ago, .. } => {
                let age = if sends == 0 { 60 } else { 0 };
                assert_eq!(sent_ago, Duration::from_secs(age), "after {polls} polls");
            }
            BeginOutcome::Replay(_) => assert_eq!(sends, 1, "after {polls} polls"),
            other => panic!("after {polls} polls: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_the_record_back() {
    for (case, send) in [("before", false), ("after", true)] {
        let setup = Setup::new();
        let mut guard = setup.guard(1);
        let owner = std::panic::AssertUnwindSafe(async move {
            if send {
                guard.sent().await.unwrap();
            }
            panic!("on purpose, {case} the send");
        });
        assert!(owner.catch_unwind().await.is_err());
        let next = setup.begin(2);
        assert!(
            if send { matches!(next, BeginOutcome::Reconcile { .. }) } else { matches!(next, BeginOutcome::New(_)) },
            "{case}: {next:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_ran_out_sends_nothing() {
    let setup = Setup::new();
    let mut guard = setup.guard(1);
    tokio::time::advance(LOCK.checked_sub(Duration::from_millis(1)).unwrap()).await;
    assert_eq!(guard.lock_left(), Duration::from_millis(1));
    guard.sent().await.unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(guard.lock_left(), Duration::ZERO);
    assert!(matches!(guard.sent().await, Err(RecordError::Lost)));
    let BeginOutcome::Reconcile { guard: successor, .. } = setup.begin(2) else { panic!("not taken over") };
    drop(guard);
    assert!(matches!(setup.begin(3), BeginOutcome::InFlight { .. }), "the late owner took nothing from its successor");
    successor.finish(stored()).await.unwrap();
    assert!(matches!(setup.begin(4), BeginOutcome::Replay(_)));
}

#[tokio::test(start_paused = true)]
async fn leaving_says_when_the_last_byte_went_out() {
    let setup = Setup::new();
    let mut guard = setup.guard(1);
    guard.sent().await.unwrap();
    tokio::time::advance(Duration::from_secs(30)).await;
    guard.leave_unknown(Duration::from_secs(25));
    let BeginOutcome::Reconcile { sent_ago, guard, .. } = setup.begin(2) else { panic!("not unknown") };
    assert_eq!(sent_ago, Duration::from_secs(25));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_repetition_finds_its_own_claims() {
    let setup = Setup::new();
    let first = setup.guard(1);
    let name = ClaimName::of("up", "batch/created/7");
    assert_eq!(first.claim(name).await.unwrap(), Claim::Ours);
    drop(first);
    assert_eq!(setup.guard(2).claim(name).await.unwrap(), Claim::Ours);
    let stranger = setup.memory.claim(name, ClaimOwner::Request(FencingToken(9)), LOCK).await.unwrap();
    assert_eq!(stranger, Claim::Taken);
}

/// A request without a key leaves a record only if it ends unknown; whatever its end, no record is held meanwhile.
#[tokio::test(start_paused = true)]
async fn an_unwritten_record_is_written_only_for_what_is_unknown() {
    let setup = Setup::new();
    let entropy = crate::rng::Rng::seeded(1);
    let begin = || {
        let id = RecordId::draw(&entropy);
        let opening = BeginRequest { fingerprint: Fingerprint::of_record(id), ..opening(1) };
        RecordGuard::unwritten(&setup.slow, setup.clock, id, opening)
    };
    let unsettled = || now(setup.memory.unsettled(10)).unwrap();
    drop(begin());
    begin().leave_unknown(Duration::ZERO);
    let mut released = begin();
    released.sent().await.unwrap();
    assert!(!released.is_written());
    released.release().await.unwrap();
    assert!(unsettled().is_empty(), "what was not sent, or is known, leaves nothing");
    let mut unknown = begin();
    let id = unknown.id();
    unknown.sent().await.unwrap();
    unknown.leave_unknown(Duration::from_secs(3));
    let found: Vec<_> = unsettled().iter().map(|one| (one.id, one.sent_ago)).collect();
    assert_eq!(found, [(id, Duration::from_secs(3))]);
    let mut cut_off = begin();
    cut_off.sent().await.unwrap();
    drop(cut_off);
    assert_eq!(unsettled().len(), 2, "a send that was cut off is unknown");
    // Its record is one like every other: the next owner finds out.
    let opening = BeginRequest { fingerprint: Fingerprint::of_record(id), ..opening(2) };
    let begun = crate::idempotency::begin(&setup.memory, setup.clock, id, opening).await.unwrap();
    assert!(
        matches!(begun, BeginOutcome::Reconcile { sent_ago, .. } if sent_ago == Duration::from_secs(3)),
        "{begun:?}"
    );
}

/// A process that was stopped past its lock or its host's heartbeat takes no further step of its send when it wakes.
#[tokio::test(start_paused = true)]
async fn a_send_goes_on_while_its_host_counts_as_alive_and_no_longer() {
    let setup = Setup::new();
    let heartbeat = Arc::new(HeartbeatLease::default());
    let lease = Duration::from_secs(15);
    let renew =
        move |heartbeat: &HeartbeatLease, clock: Clock| heartbeat.renewed(clock.now().after(lease), || clock.now());
    let mut guard = setup.guard(1);
    guard.on_host(Some(HostLease::new(&heartbeat, None)));
    assert!(matches!(guard.sent().await, Err(RecordError::Lost)), "a heartbeat that was never renewed");
    guard.on_host(Some(HostLease::new(&heartbeat, renew(&heartbeat, setup.clock))));
    guard.sent().await.unwrap();
    let (clock, renewing) = (setup.clock, Arc::clone(&heartbeat));
    let renewed = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        renew(&renewing, clock);
    });
    let began = tokio::time::Instant::now();
    let steps = Cell::new(0);
    let send = std::future::poll_fn(|_| {
        steps.set(steps.get() + 1);
        Poll::<()>::Pending
    });
    assert_eq!(RecordGuard::while_held([Some(&guard), None], send).await, None);
    assert_eq!(began.elapsed().as_secs(), 25, "10 s until it was renewed, and a lease");
    renewed.await.unwrap();
    let before = steps.get();
    // Another host may have taken over meanwhile: a heartbeat that is renewed again does not give the record back.
    for case in ["after the end", "after a later renewal"] {
        let late = RecordGuard::while_held([Some(&guard), None], async { steps.set(before + 100) }).now_or_never();
        assert_eq!(late, Some(None), "{case}");
        assert_eq!(steps.get(), before, "a step was taken {case}");
        assert!(matches!(guard.sent().await, Err(RecordError::Lost)), "a send was marked {case}");
        renew(&heartbeat, setup.clock);
    }
    let other = Setup::new();
    let mut next = other.guard(1);
    next.on_host(Some(HostLease::new(&heartbeat, renew(&heartbeat, other.clock))));
    next.sent().await.unwrap();
}

const ENTRY_LEASE: Duration = Duration::from_millis(7500);
const ENTRY_LOCK: Duration = Duration::from_secs(20);

/// A write without a key whose entry is renewed, at a store that answers its renewals so.
async fn listed(answer: Renewed) -> (Arc<Entry>, RecordGuard) {
    let clock = Clock::system();
    let memory = Arc::new(MemoryRecords::new(clock, Limits::default()));
    let records: Arc<dyn Records> = Arc::new(Slow(memory, Some(Renewing { lease: ENTRY_LEASE, answer })));
    let digest = RequestDigest::from_bytes([9; 32]);
    let id = RecordId::draw_beside(&crate::rng::Rng::seeded(1), digest);
    let opening = BeginRequest { lock: ENTRY_LOCK, fingerprint: Fingerprint::of_record(id), ..opening(1) };
    let terms = Terms { lease: ENTRY_LEASE, kept: Duration::from_mins(10) };
    let ticket = Ticket { digest, id, owner: FencingToken(1), terms };
    let arriving = Arriving { ticket, opening, fingerprint_lock: None, max: 10, intent: None };
    let entry = Entry::asking(&records, clock, &arriving);
    assert!(matches!(records.arrive(arriving.clone()).await.unwrap(), Arrived::Listed { .. }));
    entry.keep_alive();
    let guard = RecordGuard::listed(&records, clock, &arriving, Arc::clone(&entry), None, true);
    (entry, guard)
}

/// Its host is stopped for longer than the lock, and wakes: another host may have proved its write absent meanwhile.
#[tokio::test(start_paused = true)]
async fn the_lock_of_a_place_that_lapsed_does_not_come_back() {
    let (entry, mut guard) = listed(Renewed::ALL).await;
    sleep(ENTRY_LOCK * 3).await;
    guard.sent().await.unwrap();
    assert!(guard.lock_left() > ENTRY_LOCK.saturating_sub(ENTRY_LEASE), "renewed in time: {:?}", guard.lock_left());
    let lease = guard.lease();
    let steps = Cell::new(0);
    let send = std::future::poll_fn(|_| {
        steps.set(steps.get() + 1);
        Poll::<()>::Pending
    });
    {
        let mut send = pin!(RecordGuard::while_held([Some(&guard), None], send));
        assert!(send.as_mut().now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(100)).await;
        // The renewal is the first to run when the host wakes, and the store says that the entry and the record are the owner's.
        sleep(ENTRY_LEASE).await;
        assert_eq!(
            entry.ownership().await,
            Ownership::Held,
            "the answer may be handed out: no other request was given the entry"
        );
        assert_eq!(send.await, None);
    }
    assert_eq!(steps.get(), 1, "a step of the send was taken");
    assert_eq!((guard.lock_left(), lease.left()), (Duration::ZERO, Duration::ZERO));
    assert!(matches!(guard.sent().await, Err(RecordError::Lost)));
}

/// The store has lost the record, or it is another owner's: what remains of the lock is all that there is.
#[tokio::test(start_paused = true)]
async fn the_lock_of_a_record_that_is_not_held_is_not_renewed() {
    for entry_is_ours in [true, false] {
        let (entry, guard) = listed(Renewed { entry: entry_is_ours, lock: false }).await;
        sleep(ENTRY_LOCK.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(guard.lock_left(), Duration::from_secs(1), "{entry_is_ours}");
        assert_eq!(entry.ownership().await == Ownership::Held, entry_is_ours);
    }
    let (_entry, guard) = listed(Renewed { entry: false, lock: true }).await;
    sleep(ENTRY_LOCK * 2).await;
    assert!(
        guard.lock_left() > ENTRY_LOCK.saturating_sub(ENTRY_LEASE),
        "its send goes on for the request that has the entry"
    );
}

/// An orphan's record is begun anew by the request that takes it over, however long that has waited.
#[tokio::test(start_paused = true)]
async fn an_adopted_record_is_locked_from_its_own_begin() {
    let (entry, lapsed) = listed(Renewed { entry: true, lock: false }).await;
    sleep(ENTRY_LOCK * 2).await;
    let setup = Setup::new();
    let adopted = setup.guard(2).renewed_by(Arc::clone(&entry));
    assert_eq!((lapsed.lock_left(), adopted.lock_left()), (Duration::ZERO, LOCK));
}

/// The upstream counts its key's age from the first send, also while the store's reply is on its way.
#[tokio::test(start_paused = true)]
async fn the_time_that_a_begin_takes_is_part_of_the_keys_age() {
    let setup = Setup::new();
    let opening = |fence| opening(fence).with_upstream_key(Some(KeyTag::from_bytes([1; 16])));
    let begun = begin(&setup.memory, setup.clock, id(), opening(1)).await.unwrap();
    let BeginOutcome::New(mut guard) = begun else { panic!("{begun:?}") };
    guard.sent().await.unwrap();
    drop(guard);
    let mut next = std::pin::pin!(begin(&setup.slow, setup.clock, id(), opening(2)));
    for poll in ["before the effect", "after it"] {
        assert!(next.as_mut().now_or_never().is_none(), "{poll}");
    }
    tokio::time::advance(Duration::from_secs(5)).await;
    let begun = next.await.unwrap();
    let BeginOutcome::Reconcile { guard, .. } = begun else { panic!("{begun:?}") };
    assert_eq!(guard.keyed_sends().map(|sends| sends.first_ago), Some(Duration::from_secs(5)));
}
