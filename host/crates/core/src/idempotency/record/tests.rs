#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::idempotency::{Identity, stored_response::StoredBody};
use crate::idempotency::{fingerprint::KeyTag, stored_response::Stored};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

const LOCK: Duration = Duration::from_secs(150);
const KEEP: Duration = Duration::from_hours(1);

fn at(seconds: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_secs(10_000 + seconds))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn opening(fence: u128, body: &[u8]) -> BeginRequest {
    let request = Identity { upstream: "up", endpoint: "create", method: &Method::POST, path_and_query: "/", body };
    let settings = crate::idempotency::Settings { lock: LOCK, keep: KEEP, ..Default::default() };
    BeginRequest::new(FencingToken(fence), Fingerprint::of(&request), false, &settings)
}

fn answer() -> Arc<Stored> {
    Arc::new(Stored::Answer(StoredBody {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"hospital 7"),
        class: "applied",
        policy: "p@1".into(),
    }))
}

fn new() -> Record {
    let (begin, record) = Record::begin(None, &opening(1, b"a"), &StoreFacts::default(), at(0));
    assert_eq!(begin, RecordBegin::New);
    record.unwrap()
}

fn sent() -> Record {
    let mut record = new();
    record.sent(FencingToken(1), None, at(5)).unwrap();
    record
}

fn begin(record: &Record, fence: u128, now: Timestamp) -> RecordBegin {
    Record::begin(Some(record), &opening(fence, b"a"), &StoreFacts::default(), now).0
}

#[test]
fn another_payload_is_a_mismatch_in_every_phase() {
    let mut done = sent();
    done.finish(FencingToken(1), answer(), at(6)).unwrap();
    let mut unknown = sent();
    unknown.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(6)).unwrap();
    for (case, record) in [("new", new()), ("in flight", sent()), ("unknown", unknown), ("done", done)] {
        let (begin, write) = Record::begin(Some(&record), &opening(2, b"b"), &StoreFacts::default(), at(10));
        assert_eq!((begin, write), (RecordBegin::Mismatch, None), "{case}");
    }
    assert_eq!(
        Record::begin(Some(&sent()), &opening(2, b"b"), &StoreFacts::default(), at(200)).0,
        RecordBegin::Mismatch,
        "lock ran out"
    );
}

#[test]
fn one_under_way_asks_for_patience_that_grows_up_to_the_lock() {
    for (now, wait) in [(0, 1), (1, 1), (5, 5), (60, 60), (100, 50), (149, 1)] {
        assert_eq!(begin(&sent(), 2, at(now)), RecordBegin::InFlight { retry_after: seconds(wait) }, "after {now} s");
    }
}

#[test]
fn a_lock_that_ran_out_is_new_before_and_unknown_after_a_send() {
    assert_eq!(begin(&new(), 2, at(149)), RecordBegin::InFlight { retry_after: seconds(1) });
    assert_eq!(begin(&new(), 2, at(150)), RecordBegin::New);
    assert_eq!(
        begin(&sent(), 2, at(150)),
        RecordBegin::Reconcile { sent_ago: seconds(0), doubtful: false },
        "it may have been sending until then"
    );
    assert_eq!(begin(&sent(), 2, at(160)), RecordBegin::Reconcile { sent_ago: seconds(10), doubtful: false });
}

#[test]
fn an_owner_that_leaves_says_when_it_last_sent() {
    for (case, ago, now, age) in
        [("its word", 10, 100, 70), ("never before its mark", 1000, 100, 155 - 60), ("until now", 0, 100, 60)]
    {
        let mut record = new();
        record.sent(FencingToken(1), None, at(65)).unwrap();
        assert_eq!(
            record.leave(FencingToken(1), &Leaving::at_once(Some(seconds(ago))), at(now)),
            Ok(RecordRetention::Keep),
            "{case}"
        );
        assert_eq!(
            begin(&record, 2, at(160)),
            RecordBegin::Reconcile { sent_ago: seconds(age), doubtful: false },
            "{case}"
        );
    }
}

#[test]
fn an_owner_that_sent_nothing_leaves_nothing() {
    assert_eq!(new().leave(FencingToken(1), &Leaving::at_once(None), at(1)), Ok(RecordRetention::Forget));
    assert_eq!(
        sent().leave(FencingToken(1), &Leaving::at_once(None), at(6)),
        Ok(RecordRetention::Forget),
        "dropped while it waited for its mark"
    );
}

#[test]
fn a_reconciler_that_sends_nothing_does_not_make_the_record_younger() {
    let (begun, record) = Record::begin(Some(&sent()), &opening(2, b"a"), &StoreFacts::default(), at(160));
    assert_eq!(begun, RecordBegin::Reconcile { sent_ago: seconds(10), doubtful: false });
    let vanished = record.clone().unwrap();
    assert_eq!(
        begin(&vanished, 3, at(400)),
        RecordBegin::Reconcile { sent_ago: seconds(250), doubtful: false },
        "vanished"
    );
    let mut left = record.clone().unwrap();
    assert_eq!(left.leave(FencingToken(2), &Leaving::at_once(None), at(200)), Ok(RecordRetention::Keep));
    assert_eq!(begin(&left, 3, at(400)), RecordBegin::Reconcile { sent_ago: seconds(250), doubtful: false }, "left");
    let mut sender = record.unwrap();
    sender.sent(FencingToken(2), None, at(170)).unwrap();
    assert_eq!(
        begin(&sender, 3, at(400)),
        RecordBegin::Reconcile { sent_ago: seconds(90), doubtful: false },
        "sent again and vanished"
    );
}

#[test]
fn a_caller_that_may_have_sent_it_begins_in_reconcile() {
    let maybe = BeginRequest { maybe_sent: true, ..opening(2, b"a") };
    assert_eq!(
        Record::begin(None, &maybe, &StoreFacts::default(), at(0)).0,
        RecordBegin::Reconcile { sent_ago: Duration::ZERO, doubtful: true }
    );
    assert_eq!(
        Record::begin(Some(&new()), &maybe, &StoreFacts::default(), at(200)).0,
        RecordBegin::Reconcile { sent_ago: Duration::ZERO, doubtful: true }
    );
    assert!(
        matches!(Record::begin(Some(&new()), &maybe, &StoreFacts::default(), at(1)).0, RecordBegin::InFlight { .. }),
        "under way here is known better"
    );
}

#[test]
fn only_the_holder_changes_a_record() {
    let other = FencingToken(2);
    for record in [new(), sent()] {
        let mut touched = record.clone();
        assert_eq!(touched.sent(other, None, at(6)), Err(Lost));
        assert_eq!(touched.finish(other, answer(), at(6)), Err(Lost));
        assert_eq!(touched.release(other, at(6)), Err(Lost));
        assert_eq!(touched.leave(other, &Leaving::at_once(None), at(6)), Err(Lost));
        assert_eq!(touched, record);
    }
}

#[test]
fn a_lock_that_ran_out_sends_nothing_but_may_still_finish() {
    assert_eq!(sent().sent(FencingToken(1), None, at(150)), Err(Lost));
    assert_eq!(new().sent(FencingToken(1), None, at(150)), Err(Lost));
    let mut late = sent();
    assert_eq!(late.finish(FencingToken(1), answer(), at(155)), Ok(()));
    assert_eq!(begin(&late, 2, at(156)), RecordBegin::Replay(answer()));
    let (_, successor) = Record::begin(Some(&sent()), &opening(2, b"a"), &StoreFacts::default(), at(160));
    assert_eq!(successor.unwrap().finish(FencingToken(1), answer(), at(161)), Err(Lost));
}

#[test]
fn records_expire_a_keep_after_they_were_last_touched() {
    let mut done = sent();
    done.finish(FencingToken(1), answer(), at(10)).unwrap();
    let mut unknown = sent();
    unknown.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(20)).unwrap();
    for (case, record, expires) in
        [("new", new(), 150), ("sent", sent(), 3750), ("done", done, 3610), ("unknown", unknown, 3620)]
    {
        assert_eq!(record.expires(), at(expires), "{case}");
        assert_eq!(begin(&record, 2, at(expires)), RecordBegin::New, "{case}");
        assert!(case == "new" || begin(&record, 2, at(expires - 1)) != RecordBegin::New, "{case}");
    }
}

#[test]
fn an_administrator_resolves_only_writes_without_a_living_owner() {
    let mut unknown = sent();
    unknown.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(20)).unwrap();
    assert_eq!(unknown.unsettled(&StoreFacts::default(), at(30)), Some(seconds(10)));
    assert_eq!(unknown.clone().resolve(None, &StoreFacts::default(), at(30)), Some(RecordRetention::Forget));
    assert_eq!(unknown.resolve(Some(answer().into()), &StoreFacts::default(), at(30)), Some(RecordRetention::Keep));
    assert_eq!(begin(&unknown, 2, at(31)), RecordBegin::Replay(answer()));
    assert_eq!(unknown.resolve(None, &StoreFacts::default(), at(32)), None, "settled");
    assert_eq!(sent().resolve(None, &StoreFacts::default(), at(30)), None, "under way");
    assert_eq!(
        sent().resolve(None, &StoreFacts::default(), at(150)),
        Some(RecordRetention::Forget),
        "its owner vanished"
    );
    assert_eq!(new().resolve(None, &StoreFacts::default(), at(10)), None, "nothing sent");
}

/// The request of a write that a host can verify.
fn asked() -> Arc<Intent> {
    let request = crate::idempotency::KeptRequest {
        fingerprint: opening(1, b"a").fingerprint,
        method: Method::POST,
        path_and_query: "/".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        keyed: true,
    };
    Arc::new(Intent { upstream: "up".to_owned(), endpoint: "create".to_owned(), request: Some(request) })
}

fn held(record: &Record, fence: u128, now: Timestamp) -> Record {
    Record::begin(Some(record), &opening(fence, b"a"), &StoreFacts::default(), now).1.expect("it is taken over")
}

#[test]
fn a_write_is_given_up_once_and_not_again_after_each_try_of_its_caller() {
    let at_once = |sent_ago| Leaving { intent: Some(asked()), ..Leaving::at_once(sent_ago) };
    let mut record = sent();
    record.leave(FencingToken(1), &at_once(Some(Duration::ZERO)), at(20)).unwrap();
    assert_eq!(record.due(), Some(at(20)));
    let mut verified = held(&record, 2, at(21));
    verified.leave(FencingToken(2), &Leaving { verify_in: None, ..at_once(None) }, at(22)).unwrap();
    assert_eq!(verified.due(), None, "it is given up");
    // Its caller verifies and sends nothing: no host verifies it again.
    let mut tried = held(&verified, 3, at(30));
    assert_eq!(tried.due(), None);
    tried.leave(FencingToken(3), &at_once(None), at(31)).unwrap();
    assert_eq!((tried.due(), tried.intent().is_some_and(|intent| intent.request.is_some())), (None, false));
    assert_eq!(tried.postpone(seconds(1), seconds(1), &StoreFacts::default(), at(40)), Postponed::NotUnsettled);
    // What is sent again is another send to find out about.
    let mut again = held(&tried, 4, at(50));
    again.sent(FencingToken(4), Some(asked()), at(51)).unwrap();
    assert!(again.due().is_some());
    again.leave(FencingToken(4), &at_once(Some(Duration::ZERO)), at(52)).unwrap();
    assert_eq!(again.due(), Some(at(52)));
    // A host that could not verify it gives it up as well.
    assert_eq!(again.postpone(seconds(1), seconds(1), &StoreFacts::default(), at(60)), Postponed::GivenUp);
    let mut tried = held(&again, 5, at(61));
    tried.leave(FencingToken(5), &at_once(None), at(62)).unwrap();
    assert_eq!(tried.due(), None);
}

#[test]
fn a_write_stays_unknown_while_it_is_verified() {
    let facts = StoreFacts::default();
    let of = |record: &Record, now| (record.unknown_for(&facts, now), record.verified_for(&facts, now));
    let mut unknown = sent();
    unknown.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(20)).unwrap();
    assert_eq!(of(&unknown, at(30)), (Some(seconds(10)), None));
    let mut verified = held(&unknown, 2, at(30));
    assert_eq!(of(&verified, at(35)), (Some(seconds(15)), Some(seconds(15))));
    assert_eq!(verified.unsettled(&facts, at(35)), None, "an operator settles what is not worked on");
    assert_eq!(of(&verified, at(180)), (Some(seconds(160)), None), "its holder has ended");
    verified.sent(FencingToken(2), None, at(36)).unwrap();
    assert_eq!(of(&verified, at(37)), (None, None), "it is under way");
    let lost = StoreFacts { lost: Some(at(1)), ..facts };
    let assumed = Record::begin(None, &opening(3, b"a"), &lost, at(2)).1.unwrap();
    assert_eq!(of(&assumed, at(3)), (None, None), "only a loss says that it may have been sent");
}

/// A key that the store does not know may have been among those that it lost, for one lifetime.
#[test]
fn after_a_loss_an_unknown_key_is_looked_up() {
    let lost = at(1000);
    let begun = |now| Record::begin(None, &opening(1, b"a"), &StoreFacts { lost: Some(lost), host_until: None }, now).0;
    // Until the locks of that time are over, somebody may be sending still.
    assert_eq!(begun(at(1000)), RecordBegin::Reconcile { sent_ago: Duration::ZERO, doubtful: true });
    assert_eq!(begun(at(1000).after(LOCK)), RecordBegin::Reconcile { sent_ago: Duration::ZERO, doubtful: true });
    let later = Duration::from_secs(75);
    assert_eq!(begun(at(1000).after(LOCK).after(later)), RecordBegin::Reconcile { sent_ago: later, doubtful: true });
    let over = at(1000).after(KEEP).after(LOCK);
    assert!(matches!(begun(over.before(Duration::from_micros(1))), RecordBegin::Reconcile { .. }));
    assert_eq!(begun(over), RecordBegin::New, "every record of that time is over");
}

#[test]
fn the_record_knows_which_key_every_send_carried_since_when() {
    let [one, other] = [1, 2].map(|byte| KeyTag::from_bytes([byte; 16]));
    // What each owner in turn carries, and what is known then.
    for (case, owners, known) in [
        ("one key", vec![Some(one), Some(one)], Some(one)),
        ("none", vec![None, None], None),
        ("a key after none", vec![None, Some(one)], None),
        ("none after a key", vec![Some(one), None, Some(one)], None),
        ("another key", vec![Some(one), Some(other), Some(one)], None),
    ] {
        let mut record: Option<Record> = None;
        let mut now = 0;
        for (fence, key) in (1..).zip(owners) {
            let opening = opening(fence, b"a").with_upstream_key(key);
            let mut held = Record::begin(record.as_ref(), &opening, &StoreFacts::default(), at(now)).1.unwrap();
            held.sent(FencingToken(fence), None, at(now + 1)).unwrap();
            held.sent(FencingToken(fence), None, at(now + 2)).unwrap();
            assert_eq!(
                held.leave(FencingToken(fence), &Leaving::at_once(Some(Duration::ZERO)), at(now + 3)),
                Ok(RecordRetention::Keep)
            );
            record = Some(held);
            now += 10;
        }
        let expected = known.map(|key| KeyedSends { key, first_ago: seconds(now - 1) });
        assert_eq!(record.unwrap().keyed_sends(at(now)), expected, "{case}: counted from the first send");
    }
}

#[test]
fn sends_that_the_record_does_not_know_carried_no_key() {
    let key = KeyTag::from_bytes([1; 16]);
    let opening = BeginRequest { maybe_sent: true, upstream_key: Some(key), ..opening(1, b"a") };
    let mut record = Record::begin(None, &opening, &StoreFacts::default(), at(0)).1.unwrap();
    record.sent(FencingToken(1), None, at(1)).unwrap();
    assert_eq!(record.keyed_sends(at(2)), None, "the caller may have sent it before");
    let mut fresh =
        Record::begin(None, &BeginRequest { maybe_sent: false, ..opening }, &StoreFacts::default(), at(0)).1.unwrap();
    assert_eq!(fresh.keyed_sends(at(2)), None, "nothing was sent");
    fresh.sent(FencingToken(1), None, at(1)).unwrap();
    assert_eq!(fresh.keyed_sends(at(2)), Some(KeyedSends { key, first_ago: seconds(1) }));
}

/// A host that stopped its heartbeat holds nothing any more; it may have been sending until then, and no later.
#[test]
fn a_lock_ends_with_its_hosts_heartbeat() {
    let lived = |seconds| StoreFacts { lost: None, host_until: Some(at(seconds)) };
    let on_host = |fence, body| BeginRequest { host: Some(HostId(1)), ..opening(fence, body) };
    let (_, held) = Record::begin(None, &on_host(1, b"a"), &StoreFacts::default(), at(0));
    let fresh = held.unwrap();
    let mut sent = fresh.clone();
    sent.sent(FencingToken(1), None, at(5)).unwrap();
    let begin = |record, facts: &StoreFacts, now| Record::begin(Some(record), &on_host(2, b"a"), facts, at(now)).0;
    for record in [&fresh, &sent] {
        assert_eq!(begin(record, &lived(20), 19), RecordBegin::InFlight { retry_after: seconds(1) });
        assert!(matches!(begin(record, &lived(100), 60), RecordBegin::InFlight { .. }), "its host renewed");
        assert!(matches!(begin(record, &StoreFacts::default(), 60), RecordBegin::InFlight { .. }), "no host is known");
        assert_eq!(record.unsettled(&lived(20), at(19)), None);
    }
    assert_eq!(begin(&fresh, &lived(20), 20), RecordBegin::New);
    assert_eq!(begin(&sent, &lived(20), 50), RecordBegin::Reconcile { sent_ago: seconds(30), doubtful: false });
    assert_eq!(
        begin(&sent, &lived(900), 170),
        RecordBegin::Reconcile { sent_ago: seconds(20), doubtful: false },
        "no longer than its lock"
    );
    assert_eq!(sent.unsettled(&lived(20), at(50)), Some(seconds(30)));
    // Its successor fences it off.
    let (_, successor) = Record::begin(Some(&sent), &on_host(2, b"a"), &lived(20), at(50));
    assert_eq!(successor.unwrap().finish(FencingToken(1), answer(), at(51)), Err(Lost));
    // A holder without a host is not bound by the heartbeat of any.
    let (_, local) = Record::begin(None, &opening(1, b"a"), &StoreFacts::default(), at(0));
    assert!(matches!(begin(&local.unwrap(), &lived(20), 50), RecordBegin::InFlight { .. }));
}

/// A store that returned with older data may lack a renewal, or the mark of a send.
#[test]
fn after_a_loss_neither_a_lease_nor_a_missing_mark_of_before_counts() {
    let on_host = |fence| BeginRequest { host: Some(HostId(1)), ..opening(fence, b"a") };
    let (_, held) = Record::begin(None, &on_host(1), &StoreFacts::default(), at(0));
    let held = held.unwrap();
    let facts = StoreFacts { lost: Some(at(30)), host_until: Some(at(20)) };
    let begun = |now| Record::begin(Some(&held), &on_host(2), &facts, at(now)).0;
    assert!(matches!(begun(44), RecordBegin::InFlight { .. }), "it may have renewed until the loss");
    assert_eq!(begun(45), RecordBegin::Reconcile { sent_ago: seconds(0), doubtful: true }, "its mark may be lost");
    let later = StoreFacts { lost: Some(at(0)), host_until: Some(at(20)) };
    let (_, held) = Record::begin(None, &on_host(1), &StoreFacts::default(), at(1));
    let begun = Record::begin(Some(&held.unwrap()), &on_host(2), &later, at(40)).0;
    assert_eq!(begun, RecordBegin::New, "begun after the loss, nothing of it is missing");
}

/// Only a send or an operator's word ends the doubt that a loss leaves.
#[test]
fn a_doubt_ends_by_a_send_or_an_operator_and_not_by_time() {
    let facts = StoreFacts { lost: Some(at(1000)), host_until: None };
    let begin = |record: Option<&Record>, fence, maybe_sent, now| {
        Record::begin(record, &BeginRequest { maybe_sent, ..opening(fence, b"a") }, &facts, at(now))
    };
    let is_doubtful = |begin: &RecordBegin| matches!(begin, RecordBegin::Reconcile { doubtful: true, .. });
    let (begun, held) = begin(None, 1, false, 1010);
    assert!(is_doubtful(&begun));
    let held = held.unwrap();
    assert!(is_doubtful(&begin(Some(&held), 2, false, 1010 + 150).0), "its holder vanished");
    let mut left = held.clone();
    left.leave(FencingToken(1), &Leaving::at_once(None), at(1020)).unwrap();
    assert!(is_doubtful(&begin(Some(&left), 2, false, 1030).0), "it found nothing out");
    assert!(
        is_doubtful(&begin(Some(&left), 2, true, 1030).0),
        "its caller may have had no answer to a request that sent nothing"
    );
    assert!(is_doubtful(&begin(None, 1, true, 1010).0));
    let mut cleared = left.clone();
    assert_eq!(cleared.resolve(None, &facts, at(1030)), Some(RecordRetention::Keep));
    assert_eq!(begin(Some(&cleared), 2, false, 1040).0, RecordBegin::New, "an operator says that it was not");
    assert_eq!(cleared.phase(), Phase::New);
    let mut sent = held;
    sent.sent(FencingToken(1), None, at(1015)).unwrap();
    assert!(!is_doubtful(&begin(Some(&sent), 2, false, 1010 + 150).0), "it was sent after all");
    sent.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(1020)).unwrap();
    assert!(!is_doubtful(&begin(Some(&sent), 2, false, 1030).0));
}

/// A host that took a caller's word before a loss knows no more than the word: it gives nothing back that would pass for a send.
#[test]
fn a_callers_word_is_not_given_back_as_a_send() {
    let maybe = BeginRequest { maybe_sent: true, ..opening(1, b"a") };
    let mut unanswered = Record::begin(None, &maybe, &StoreFacts::default(), at(0)).1.unwrap();
    unanswered.leave(FencingToken(1), &Leaving::at_once(None), at(10)).unwrap();
    let lost = StoreFacts { lost: Some(at(20)), host_until: None };
    assert_eq!(Record::restore(None, &unanswered, &lost, at(25)), Err(NotRestored::Kept));
    let (begun, _) = Record::begin(Some(&unanswered), &opening(2, b"a"), &lost, at(25));
    assert!(matches!(begun, RecordBegin::Reconcile { doubtful: true, .. }), "{begun:?}");
    let mut sent = Record::begin(None, &maybe, &StoreFacts::default(), at(0)).1.unwrap();
    sent.sent(FencingToken(1), None, at(5)).unwrap();
    sent.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(10)).unwrap();
    assert!(Record::restore(None, &sent, &lost, at(25)).is_ok(), "it was sent after all");
}

/// A store that returned with older data may lack the later states of a record: another owner's begin, mark and send.
#[test]
fn after_a_loss_an_unknown_or_cleared_record_may_be_outdated() {
    let key = KeyTag::from_bytes([1; 16]);
    let begin = |record: &Record, facts: &StoreFacts, now| {
        Record::begin(Some(record), &opening(9, b"a").with_upstream_key(Some(key)), facts, at(now))
    };
    let mut unknown =
        Record::begin(None, &opening(1, b"a").with_upstream_key(Some(key)), &StoreFacts::default(), at(0)).1.unwrap();
    unknown.sent(FencingToken(1), None, at(5)).unwrap();
    unknown.leave(FencingToken(1), &Leaving::at_once(Some(Duration::ZERO)), at(10)).unwrap();
    let before = StoreFacts { lost: Some(at(0)), host_until: None };
    let mut cleared = Record::begin(None, &opening(1, b"a"), &before, at(1)).1.unwrap();
    cleared.leave(FencingToken(1), &Leaving::at_once(None), at(2)).unwrap();
    assert_eq!(cleared.resolve(None, &before, at(10)), Some(RecordRetention::Keep));
    for (case, record, doubtful) in [("unknown", &unknown, false), ("cleared", &cleared, true)] {
        let lost = StoreFacts { lost: Some(at(300)), host_until: None };
        // The owner that is missing may have been sending until its lock ended.
        for (now, ago) in [(310, 0), (450, 0), (460, 10)] {
            let (begun, held) = begin(record, &lost, now);
            assert_eq!(begun, RecordBegin::Reconcile { sent_ago: seconds(ago), doubtful }, "{case} after {now} s");
            assert_eq!(held.unwrap().keyed_sends(at(now)), None, "{case}: the missing owner may have sent another key");
        }
    }
    assert_eq!(begin(&unknown, &before, 310).0, RecordBegin::Reconcile { sent_ago: seconds(300), doubtful: false });
    assert_eq!(begin(&cleared, &before, 310).0, RecordBegin::New, "cleared after the loss");
}

/// A host that died before it sent tells nothing of what the caller sent by another way.
#[test]
fn a_caller_that_may_have_sent_it_is_believed_after_a_dead_host() {
    let key = Some(KeyTag::from_bytes([1; 16]));
    let on_host = |fence| BeginRequest { host: Some(HostId(1)), upstream_key: key, ..opening(fence, b"a") };
    let unsent = Record::begin(None, &on_host(1), &StoreFacts::default(), at(0)).1.unwrap();
    let dead = StoreFacts { lost: None, host_until: Some(at(15)) };
    assert_eq!(Record::begin(Some(&unsent), &on_host(2), &dead, at(20)).0, RecordBegin::New);
    let maybe = BeginRequest { maybe_sent: true, ..on_host(2) };
    let (begun, held) = Record::begin(Some(&unsent), &maybe, &dead, at(20));
    assert_eq!(begun, RecordBegin::Reconcile { sent_ago: Duration::ZERO, doubtful: true });
    let mut held = held.unwrap();
    held.sent(FencingToken(2), None, at(21)).unwrap();
    assert_eq!(held.keyed_sends(at(22)), None, "what the caller sent may have carried no key");
}
