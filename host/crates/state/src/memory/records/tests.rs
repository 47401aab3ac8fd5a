#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::fixtures::{KEEP, LOCK, id, opening, stored};
use crate::idempotency::{BeginOutcome, Entry as Place, RecordGuard, Tenant, begin, record::RecordBegin};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use std::collections::HashMap;
use tokio::time::advance;

#[path = "tests/history.rs"]
mod history;

fn limits(records: usize) -> Limits {
    Limits { records, ..Limits::default() }
}

fn begin_now(records: &MemoryRecords, n: u16, fence: u128) -> Result<RecordBegin, RecordError> {
    Ok(records.begin_now(id(n), &opening(fence, 0))?.begin)
}

fn finish_now(records: &MemoryRecords, n: u16, fence: u128, body: &str) {
    assert_eq!(begin_now(records, n, fence).unwrap(), RecordBegin::New, "key {n}");
    records.finish(id(n), FencingToken(fence), stored(body)).into_inner().unwrap();
}

trait AtHand<T> {
    fn into_inner(self) -> Result<T, RecordError>;
}

impl<T> AtHand<T> for Reply<'_, T> {
    fn into_inner(self) -> Result<T, RecordError> {
        self.now_or_never().expect("memory answers at once")
    }
}

/// Each assertion fails if idempotency silently does nothing.
#[tokio::test(start_paused = true)]
async fn a_key_is_sent_once_and_replayed_as_it_was() {
    let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(Clock::system(), Limits::default()));
    let begin = |fence| begin(&records, Clock::system(), id(1), opening(fence, 0));
    let BeginOutcome::New(mut guard) = begin(1).await.unwrap() else { panic!("the first is not new") };
    guard.sent().await.unwrap();
    assert!(matches!(begin(2).await.unwrap(), BeginOutcome::InFlight { .. }), "the second is let through");
    guard.finish(stored("hospital 7")).await.unwrap();
    let BeginOutcome::Replay(replay) = begin(3).await.unwrap() else { panic!("the third is not replayed") };
    assert_eq!(*replay, stored("hospital 7"));
    advance(KEEP).await;
    assert!(matches!(begin(4).await.unwrap(), BeginOutcome::New(_)), "kept for longer than it should be");
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_new_keys_are_refused_and_none_is_forgotten() {
    let records = MemoryRecords::new(Clock::system(), limits(3));
    for n in [1, 2, 3] {
        finish_now(&records, n, n.into(), "x");
        advance(Duration::from_secs(1)).await;
    }
    begin_now(&records, 4, 4).unwrap_err();
    assert!(matches!(begin_now(&records, 1, 5).unwrap(), RecordBegin::Replay(_)), "the oldest is not sent again");
    advance(KEEP.saturating_sub(Duration::from_secs(3))).await;
    assert_eq!(begin_now(&records, 4, 6).unwrap(), RecordBegin::New, "the oldest has expired");
    assert!(matches!(begin_now(&records, 3, 7).unwrap(), RecordBegin::Replay(_)), "the youngest has not");
}

#[tokio::test(start_paused = true)]
async fn live_records_never_make_room() {
    let records = MemoryRecords::new(Clock::system(), limits(3));
    begin_now(&records, 1, 1).unwrap();
    begin_now(&records, 2, 2).unwrap();
    records.sent(id(2), FencingToken(2), None).into_inner().unwrap();
    begin_now(&records, 3, 3).unwrap();
    records.sent(id(3), FencingToken(3), None).into_inner().unwrap();
    records.abandon_record(id(3), FencingToken(3), Leaving::at_once(Some(Duration::ZERO)));
    let full = begin_now(&records, 4, 4).unwrap_err();
    assert_eq!(
        full.to_string(),
        "idempotency records hold 3 entries, the maximum, and all are in use; try again later or raise the limit"
    );
    assert!(
        matches!(begin_now(&records, 3, 5).unwrap(), RecordBegin::Reconcile { .. }),
        "what is there needs no space"
    );
    advance(LOCK).await;
    assert_eq!(
        begin_now(&records, 4, 6).unwrap(),
        RecordBegin::New,
        "a crashed owner that sent nothing takes no space"
    );
    assert!(begin_now(&records, 5, 7).is_err(), "one that sent does");
}

/// Writes without a key leave half of the records to keys.
#[tokio::test(start_paused = true)]
async fn unknown_writes_without_a_key_leave_room_for_keys() {
    let clock = Clock::system();
    let events = Arc::new(Events::new(clock));
    let records = MemoryRecords::new(clock, limits(4)).with_events(Arc::clone(&events));
    let leave = |n: u16| {
        records.record_unknown(id(n), opening(n.into(), 0), Leaving::at_once(Some(Duration::ZERO)));
    };
    leave(1);
    leave(2);
    assert!(events.after(0).is_empty(), "there was space for two");
    leave(3);
    leave(4);
    assert_eq!(records.len(), 2);
    let reported: Vec<_> = events.after(0).into_iter().map(|event| (event.kind, event.text)).collect();
    assert!(
        matches!(&reported[..], [("write-unrecorded", text)] if text.contains("half of the 4 allowed")),
        "{reported:?}"
    );
    for n in [5, 6] {
        finish_now(&records, n, n.into(), "x");
    }
    begin_now(&records, 7, 7).unwrap_err();
    // Settling a record frees space again.
    assert_eq!(records.resolve(id(1), Resolution::NotApplied).into_inner().unwrap(), Resolved::Done);
    leave(8);
    assert_eq!(records.unsettled(10).into_inner().unwrap().len(), 2);
}

/// Bytes of a finished record.
fn taken(body: &str) -> usize {
    RECORD_BYTES + Compact::from(stored(body)).size()
}

#[tokio::test(start_paused = true)]
async fn answers_take_a_bounded_room() {
    let body = "x".repeat(10_000);
    let capacity = 10 * taken(&body) + 20 * taken("");
    let records =
        MemoryRecords::new(Clock::system(), Limits { bytes: capacity, tenant_bytes: capacity, ..limits(1000) });
    for n in 1..=20 {
        assert_eq!(begin_now(&records, n, n.into()).unwrap(), RecordBegin::New);
    }
    for n in 1..=20 {
        records.finish(id(n), FencingToken(n.into()), stored(&body)).into_inner().unwrap();
        assert!(records.bytes() <= capacity, "after {n}");
    }
    assert_eq!(records.len(), 20, "none is forgotten");
    let kept = |n| matches!(begin_now(&records, n, 99).unwrap(), RecordBegin::Replay(kept) if matches!(*kept, Stored::Answer(_)));
    let whole = (1..=20).filter(|n| kept(*n)).collect::<Vec<_>>();
    assert_eq!(whole, (1..=10).collect::<Vec<_>>(), "the others leave their status");
    advance(KEEP).await;
    assert!(records.sweep() && records.is_empty() && records.bytes() == 0);
}

/// Under endless keyed writes, new keys are refused before memory is used up, and known keys still get their responses.
#[tokio::test(start_paused = true)]
async fn new_keys_are_refused_before_the_memory_is_used_up() {
    let capacity = 1 << 20;
    let records =
        MemoryRecords::new(Clock::system(), Limits { bytes: capacity, tenant_bytes: capacity, ..limits(1_000_000) });
    let admitted = (0..60_000).take_while(|n| begin_now(&records, *n, 1 + u128::from(*n)).is_ok()).count() as u16;
    assert!((100..59_999).contains(&admitted), "{admitted} keys in a mebibyte");
    assert!(records.bytes() <= capacity / 8 * 7);
    let refused = begin_now(&records, admitted, 99).unwrap_err();
    assert!(matches!(refused, RecordError::NoCapacity { .. }), "{refused}");
    assert!(matches!(begin_now(&records, 0, 99).unwrap(), RecordBegin::InFlight { .. }), "a known key needs no space");
    for n in 0..admitted {
        records.finish(id(n), FencingToken(1 + u128::from(n)), stored("done")).into_inner().unwrap();
    }
    assert!(matches!(begin_now(&records, 0, 99).unwrap(), RecordBegin::Replay(kept) if *kept == stored("done")));
    advance(KEEP).await;
    assert_eq!(begin_now(&records, admitted, 100).unwrap(), RecordBegin::New, "what has expired frees space");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_fills_its_share_leaves_the_others_theirs() {
    let capacity = 1 << 20;
    let records = MemoryRecords::new(
        Clock::system(),
        Limits { bytes: capacity, tenant_bytes: capacity / 2, ..limits(1_000_000) },
    );
    let tenant = |name: &str| {
        let header = HeaderName::from_static("x-tenant");
        let headers = HeaderMap::from_iter([(header.clone(), HeaderValue::from_str(name).unwrap())]);
        Some(Tenant::of(&headers, std::slice::from_ref(&header)))
    };
    let begin = |n: u16, name| records.begin_now(id(n), &opening(n.into(), 0).of_tenant(tenant(name)));
    let admitted = (1..60_000).take_while(|n| begin(*n, "greedy").is_ok()).count() as u16;
    assert!(begin(admitted + 1, "greedy").is_err());
    assert_eq!(begin(admitted + 2, "modest").unwrap().begin, RecordBegin::New);
    records.abandon_record(id(1), FencingToken(1), Leaving::at_once(None));
    assert_eq!(begin(admitted + 3, "greedy").unwrap().begin, RecordBegin::New, "what it gives back it may take again");
}

/// An orphan counts against the limit of the tenant whose caller left.
#[tokio::test(start_paused = true)]
async fn an_orphan_counts_against_its_tenant() {
    use crate::idempotency::{Arrived, Arriving, RequestDigest, Ticket, unanswered::Terms};
    let header = HeaderName::from_static("x-tenant");
    let tenant = |name: &str| {
        let values = [(header.clone(), HeaderValue::from_str(name).unwrap())];
        Some(Tenant::of_values(std::slice::from_ref(&header), &values))
    };
    let limits = Limits { bytes: 1 << 20, tenant_bytes: 1 << 14, ..limits(1_000) };
    let clock = Clock::system();
    let memory = Arc::new(MemoryRecords::new(clock, limits));
    let records: Arc<dyn Records> = Arc::clone(&memory) as _;
    let leave = |n: u16, name: &'static str| {
        let digest = RequestDigest::from_bytes([n as u8; 32]);
        let terms = Terms { lease: Duration::MAX, kept: KEEP };
        let ticket = Ticket { digest, id: id(n), owner: FencingToken(n.into()), terms };
        let arriving =
            Arriving { ticket, opening: opening(n.into(), 0), fingerprint_lock: None, max: 1_000, intent: None };
        let entry = Place::asking(&records, clock, &arriving);
        assert!(matches!(records.arrive(arriving).into_inner().unwrap(), Arrived::Listed { .. }));
        let tenant = tenant(name);
        entry.charged_to(Box::new(move || tenant));
        entry.abandon();
        memory.shard(id(n)).get(&id(n)).is_some()
    };
    let kept = (1..250).take_while(|n| leave(*n, "greedy")).count();
    assert!((8..240).contains(&kept), "{kept}");
    assert!(leave(250, "modest"));
}

#[tokio::test(start_paused = true)]
async fn an_administrator_lists_and_settles() {
    let records = MemoryRecords::new(Clock::system(), Limits::default());
    for n in 1..=4_u16 {
        begin_now(&records, n, n.into()).unwrap();
        records.sent(id(n), FencingToken(n.into()), None).into_inner().unwrap();
        if n < 4 {
            records.abandon_record(id(n), FencingToken(n.into()), Leaving::at_once(Some(Duration::ZERO)));
        }
        advance(Duration::from_secs(10)).await;
    }
    let listed = records.unsettled(2).into_inner().unwrap();
    let ages: Vec<_> = listed.iter().map(|unsettled| (unsettled.id, unsettled.sent_ago.as_secs())).collect();
    assert_eq!(ages, [(id(1), 40), (id(2), 30)]);
    let resolve = |n, resolution| records.resolve(id(n), resolution).into_inner().unwrap();
    assert_eq!(resolve(1, Resolution::Applied(stored("by hand"))), Resolved::Done);
    assert_eq!(resolve(2, Resolution::NotApplied), Resolved::Done);
    assert_eq!(resolve(4, Resolution::NotApplied), Resolved::NotUnsettled, "under way");
    assert_eq!(resolve(9, Resolution::Applied(stored("none"))), Resolved::NotUnsettled, "no record");
    assert_eq!(records.bytes(), 3 * RECORD_BYTES + Compact::from(stored("by hand")).size());
    assert_eq!(begin_now(&records, 1, 11).unwrap(), RecordBegin::Replay(Arc::new(stored("by hand"))));
    assert_eq!(begin_now(&records, 2, 12).unwrap(), RecordBegin::New);
    let left: Vec<_> = records.unsettled(10).into_inner().unwrap().iter().map(|unsettled| unsettled.id).collect();
    assert_eq!(left, [id(3)]);
}

#[test]
fn of_many_threads_one_is_new_and_the_limit_holds() {
    const THREADS: u128 = 8;
    let records = MemoryRecords::new(Clock::system(), limits(40));
    let news = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (records, news) = (&records, &news);
            scope.spawn(move || {
                for n in 0..40_u16 {
                    let fence = u128::from(n) << 64 | thread;
                    // The first 20 are left unknown.
                    // Another thread's extra key may hold the last place for a moment.
                    let begun = (0..1_000_000).find_map(|_| {
                        let begun = begin_now(records, n, fence);
                        std::thread::yield_now();
                        begun.is_ok().then_some(begun)
                    });
                    match begun.unwrap_or_else(|| begin_now(records, n, fence)) {
                        Ok(RecordBegin::New) => {
                            news.fetch_add(1, Relaxed);
                            records.sent(id(n), FencingToken(fence), None).into_inner().unwrap();
                            if n < 20 {
                                records.abandon_record(
                                    id(n),
                                    FencingToken(fence),
                                    Leaving::at_once(Some(Duration::ZERO)),
                                );
                            } else {
                                records.finish(id(n), FencingToken(fence), stored("x")).into_inner().unwrap();
                            }
                        }
                        Ok(RecordBegin::Reconcile { .. }) => {
                            records.abandon_record(id(n), FencingToken(fence), Leaving::at_once(None));
                        }
                        Ok(RecordBegin::Replay(_) | RecordBegin::InFlight { .. }) => {
                            let crowded = begin_now(records, n + 40, fence);
                            assert!(crowded.is_err() || n < 39, "key {n} had space behind it: {crowded:?}");
                            if let Ok(RecordBegin::New) = crowded {
                                records.abandon_record(id(n + 40), FencingToken(fence), Leaving::at_once(None));
                            }
                        }
                        other => panic!("key {n}: {other:?}"),
                    }
                    assert!(records.len() <= 40);
                }
            });
        }
    });
    assert_eq!(news.load(Relaxed), 40, "each key was begun");
    assert_eq!(records.unsettled(100).into_inner().unwrap().len(), 20, "no unknown record was forgotten");
    let bytes: usize = (0..40).filter_map(|n| Some(records.shard(id(n)).get(&id(n))?.stored()?.size())).sum();
    assert_eq!(records.bytes(), bytes + 40 * RECORD_BYTES);
    for shard in &records.shards {
        shard.lock().check();
    }
}

/// A caller leaves while its request adopts an older orphan: nothing was sent under the request's own record, so it is deleted.
#[tokio::test]
async fn a_request_that_takes_an_orphan_over_leaves_no_record_of_its_own() {
    use crate::idempotency::{Arrived, Arriving, RequestDigest, Ticket, unanswered::Terms};
    let digest = RequestDigest::from_bytes([9; 32]);
    let arriving = |fence: u16| {
        let terms = Terms { lease: Duration::MAX, kept: Duration::from_mins(10) };
        let ticket = Ticket { digest, id: id(fence), owner: FencingToken(fence.into()), terms };
        let opening = BeginRequest { fingerprint: Fingerprint::of_record(ticket.id), ..opening(fence.into(), 0) };
        Arriving { ticket, opening, fingerprint_lock: None, max: 10, intent: None }
    };
    for is_repeated in [true, false] {
        let clock = Clock::system();
        let memory = Arc::new(MemoryRecords::new(clock, Limits::default()));
        let records: Arc<dyn Records> = Arc::clone(&memory) as _;
        let older = Place::asking(&records, clock, &arriving(1));
        assert!(matches!(records.arrive(arriving(1)).await.unwrap(), Arrived::Listed { .. }));
        let own = Place::asking(&records, clock, &arriving(2));
        if is_repeated {
            assert!(matches!(records.arrive(arriving(2)).await.unwrap(), Arrived::Listed { .. }));
        }
        older.abandon();
        own.abandon();
        assert!(records.status(id(2)).await.unwrap().is_some(), "tripwire: its caller's leaving wrote it");
        if is_repeated {
            assert_eq!(records.recheck_orphan(arriving(2).ticket).await.unwrap(), Some(id(1)));
        } else {
            assert!(
                matches!(records.arrive(arriving(2)).await.unwrap(), Arrived::Adopted(adopted) if adopted == id(1))
            );
            own.adopts(id(1));
        }
        assert_eq!(records.status(id(2)).await.unwrap(), None, "repeated: {is_repeated}");
        assert!(records.status(id(1)).await.unwrap().is_some(), "repeated: {is_repeated}");
        assert_eq!(memory.held.load(Relaxed), 1, "repeated: {is_repeated}");
    }
}
