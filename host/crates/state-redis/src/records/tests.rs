#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Plays the same histories on the scripts and on the pure transitions; and tests the whole store on a server.

use super::{
    scripts::{Restoring, ScriptCall},
    *,
};
use crate::rng::Rng;
use crate::{
    Address, Settings,
    clock::Timestamp,
    fixtures::{id as any_id, opening, stored},
    idempotency::{
        BeginOutcome, KeyTag, KeyedSends, begin,
        record::{
            HOST_LEASE, HostId, NotRestored, Phase, Record, RecordRetention, StateFields, StoreFacts, share_without_key,
        },
    },
    test_server::{RedisCluster, RedisServer},
};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

#[path = "tests/unanswered.rs"]
mod unanswered;

/// Replaces the server's clock: the tests give the time as the last argument.
const NOW: &str = "local now = tonumber(ARGV[#ARGV])\n";

const START: Timestamp = Timestamp(1_800_000_000_000_000);

#[derive(Debug, Clone)]
enum Event {
    Begin {
        key: u16,
        payload: u8,
        maybe_sent: bool,
        upstream_key: Option<u8>,
        host: u64,
    },
    /// A host renews its heartbeat in the part of a key.
    Beat(u16, u64),
    /// The server restarts with all its data; hosts count this as a loss.
    FailOver,
    /// A host copies a record.
    Note(u16),
    /// The host restores its copy.
    Restore(u16),
    /// The last call again, because its reply was lost.
    BeginAgain(u16),
    Sent(u16, u8),
    Finish(u16, u8),
    Release(u16, u8),
    Leave(u16, u8, Option<u64>, Option<u64>),
    /// A write that began without a record ends with unknown effect.
    Unknown(u16, Option<u64>),
    Resolve(u16, bool),
    Look(u16),
    Due,
    Take(u16),
    Postpone(u16, u64),
    Pass(u64),
    Lose,
}

const KEYS: u16 = 4;

/// Ids of the histories are in two parts only, so that they reach a part's limits.
fn id(number: u16) -> RecordId {
    let mut bytes = *any_id(number).as_bytes();
    if number < KEYS {
        bytes[31] = (number % 2) as u8;
    }
    RecordId::from_bytes(bytes)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // 0: the last owner; more: an owner that was taken over.
    let owner = || (0..KEYS, prop_oneof![4 => Just(0_u8), 1 => 1..3_u8]);
    let upstream_key = prop_oneof![6 => Just(Some(0_u8)), 1 => Just(Some(1)), 1 => Just(None)];
    let event = prop_oneof![
        8 => (0..KEYS, prop_oneof![9 => Just(0_u8), 1 => Just(1)], prop::bool::weighted(0.1), upstream_key, 0..2_u64)
            .prop_map(|(key, payload, maybe_sent, upstream_key, host)| Event::Begin {
                key,
                payload,
                maybe_sent,
                upstream_key,
                host,
            }),
        3 => (0..KEYS, 0..2_u64).prop_map(|(key, host)| Event::Beat(key, host)),
        1 => Just(Event::FailOver),
        3 => (0..KEYS).prop_map(Event::Note),
        3 => (0..KEYS).prop_map(Event::Restore),
        2 => (0..KEYS).prop_map(Event::BeginAgain),
        6 => owner().prop_map(|(key, ago)| Event::Sent(key, ago)),
        2 => owner().prop_map(|(key, ago)| Event::Finish(key, ago)),
        2 => owner().prop_map(|(key, ago)| Event::Release(key, ago)),
        4 => (owner(), prop::option::of(0..400_u64), prop::option::of(0..400_u64))
            .prop_map(|((key, ago), sent, verify)| Event::Leave(key, ago, sent, verify)),
        1 => (0..KEYS, prop::option::of(0..400_u64)).prop_map(|(key, verify)| Event::Unknown(key, verify)),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, applied)| Event::Resolve(key, applied)),
        3 => (0..KEYS).prop_map(Event::Look),
        2 => Just(Event::Due),
        4 => (0..KEYS).prop_map(Event::Take),
        2 => (0..KEYS, 0..400_u64).prop_map(|(key, longest)| Event::Postpone(key, longest)),
        5 => prop_oneof![0..30_u64, 100..400_u64, 80_000..100_000_u64].prop_map(Event::Pass),
        2 => Just(Event::Lose),
    ];
    prop::collection::vec(event, 1..60)
}

/// The scripts' server and the model.
struct World {
    connection: redis::Connection,
    keys: Keys,
    now: Timestamp,
    lost: Option<Timestamp>,
    records: HashMap<u16, Record>,
    fences: HashMap<u16, Vec<FencingToken>>,
    last: HashMap<u16, BeginRequest>,
    /// End of each heartbeat's lease, by part and host.
    hosts: HashMap<(u8, HostId), Timestamp>,
    /// Hosts' copies of records.
    noted: HashMap<u16, Record>,
    /// Owners whose request is stored.
    written: HashSet<FencingToken>,
    /// The last script's reply about the upstream's key, and about doubt.
    keyed_sends: Option<KeyedSends>,
    doubtful: bool,
    drawn: u128,
    max_kept_requests: usize,
}

impl World {
    fn new(connection: redis::Connection) -> Self {
        Self {
            connection,
            keys: Keys::new("t"),
            now: START,
            lost: None,
            records: HashMap::new(),
            fences: HashMap::new(),
            last: HashMap::new(),
            hosts: HashMap::new(),
            noted: HashMap::new(),
            written: HashSet::new(),
            keyed_sends: None,
            doubtful: false,
            drawn: 0,
            max_kept_requests: scripts::MAX_KEPT_REQUESTS,
        }
    }

    fn ask(&mut self, step: ScriptCall) -> (String, Option<Vec<u8>>) {
        let value = self.value(step);
        let answer = ScriptReply::of(&value).unwrap_or_else(|| panic!("{value:?}"));
        self.keyed_sends = answer.keyed_sends();
        self.doubtful = answer.doubtful();
        (answer.word.to_owned(), answer.bytes().map(<[u8]>::to_vec))
    }

    fn value(&mut self, step: ScriptCall) -> Value {
        let source = step.script.source().replace(include_str!("clock.lua"), NOW);
        assert!(source.starts_with(NOW), "the script reads another clock");
        let limit = |most: usize| format!("local max_kept_requests = {most}\n");
        let source = source.replace(&limit(scripts::MAX_KEPT_REQUESTS), &limit(self.max_kept_requests));
        let mut command = redis::cmd("EVAL");
        command.arg(source).arg(step.keys.len()).arg(&step.keys).arg(&step.args).arg(self.now.0.to_string());
        command.query(&mut self.connection).unwrap()
    }

    /// The owner's request; every other owner's has contents to keep.
    fn intent(fence: FencingToken) -> Intent {
        let request = KeptRequest {
            fingerprint: opening(1, 0).fingerprint,
            method: http::Method::POST,
            path_and_query: format!("/{}", fence.0),
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
            keyed: true,
        };
        let request = Some(request).filter(|_| fence.0.is_multiple_of(2));
        Intent { upstream: "up".to_owned(), endpoint: format!("create-{}", fence.0), request }
    }

    fn asked(intent: &Intent) -> Asked {
        let request = intent.request.as_ref().map(codec::encode_request);
        Asked { name: format!("{}/{}", intent.upstream, intent.endpoint), request }
    }

    fn mark(&mut self) {
        for part in 0..PARTS {
            let (word, _) = self.ask(scripts::mark(&self.keys.clone(), part, "e", false));
            assert_eq!(word, "marked");
        }
    }

    fn fence(&self, key: u16, ago: u8) -> FencingToken {
        let drawn = self.fences.get(&key).map_or(&[][..], Vec::as_slice);
        drawn.iter().rev().nth(ago.into()).copied().unwrap_or(FencingToken(u128::MAX))
    }

    /// Applies the pure transition to the key's record; `None`: another owner has it.
    fn change(
        &mut self,
        key: u16,
        change: impl FnOnce(&mut Record, Timestamp) -> Option<RecordRetention>,
    ) -> &'static str {
        let now = self.now;
        let fate = self.records.get_mut(&key).and_then(|record| change(record, now));
        if fate == Some(RecordRetention::Forget) {
            self.records.remove(&key);
        }
        if fate.is_some() { "done" } else { "lost" }
    }

    fn facts(&self, key: u16) -> StoreFacts {
        let host = self.records.get(&key).and_then(Record::host);
        let host_until = host.and_then(|host| self.hosts.get(&(scripts::part_of(id(key)), host)).copied());
        StoreFacts { lost: self.lost, host_until }
    }

    /// The other unexpired records in the key's part.
    fn beside(&self, key: u16) -> impl Iterator<Item = &Record> {
        let others = self.records.iter().filter(move |(other, record)| {
            **other != key && scripts::part_of(id(**other)) == scripts::part_of(id(key)) && !record.expired(self.now)
        });
        others.map(|(_, record)| record)
    }

    /// Whether the part has space for the request of this record.
    fn fits(&self, key: u16) -> bool {
        self.beside(key).filter(|record| record.due().is_some()).count() < self.max_kept_requests
    }

    /// The request, or only its names without space.
    fn fitting(&self, key: u16, intent: Intent) -> Arc<Intent> {
        Arc::new(if self.fits(key) { intent } else { intent.without_request() })
    }

    fn host_of(&self, key: u16) -> HostId {
        self.records.get(&key).and_then(Record::host).unwrap_or(HostId(0))
    }

    fn beat(&mut self, key: u16, host: HostId) {
        let (now, part) = (self.now, scripts::part_of(id(key)));
        self.hosts.insert((part, host), now.after(HOST_LEASE));
        self.hosts.retain(|(of, _), until| *of != part || now < until.after(Duration::from_hours(1)));
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.lost.map(|lost| self.now.since(lost))
    }

    fn begin(&mut self, key: u16, opening: BeginRequest) -> Result<(), TestCaseError> {
        self.last.insert(key, opening);
        let host = opening.host.expect("each opening has a host");
        let about = Circumstances { cap: 100, lost_ago: self.lost_ago(), host, one_node: true, era: "e".to_owned() };
        let (word, rest) = self.ask(scripts::begin(&self.keys.clone(), id(key), &opening, &about));
        let (begin, record) = Record::begin(self.records.get(&key), &opening, &self.facts(key), self.now);
        let micros = |duration: Duration| duration.as_micros().to_string().into_bytes();
        let doubtful = matches!(begin, RecordBegin::Reconcile { doubtful: true, .. });
        let (expected, with) = match begin {
            RecordBegin::New => ("new", Vec::new()),
            RecordBegin::Replay(answer) => ("replay", codec::encode(&answer)),
            RecordBegin::InFlight { retry_after } => ("busy", micros(retry_after)),
            RecordBegin::Mismatch => ("mismatch", Vec::new()),
            RecordBegin::Reconcile { sent_ago, .. } => ("reconcile", micros(sent_ago)),
        };
        prop_assert_eq!(self.doubtful, doubtful);
        prop_assert_eq!((word.as_str(), rest.unwrap_or_default()), (expected, with));
        if let Some(record) = record {
            prop_assert_eq!(self.keyed_sends, record.keyed_sends(self.now));
            self.beat(key, host);
            self.records.insert(key, record);
            let drawn = self.fences.entry(key).or_default();
            if drawn.last() != Some(&opening.fence) {
                drawn.push(opening.fence);
            }
        }
        Ok(())
    }

    /// Compares the status that a caller reads.
    fn check_status(&mut self, key: u16) -> Result<(), TestCaseError> {
        let value = self.value(scripts::status(&self.keys.clone(), id(key), self.lost_ago()));
        let answer = ScriptReply::of(&value).unwrap();
        let micros = |duration: Duration| duration.as_micros().to_string().into_bytes();
        let (word, bytes, is_sent) =
            match self.records.get(&key).and_then(|record| record.status(&self.facts(key), self.now)) {
                None => ("none", None, None),
                Some(RecordStatus::Done(stored)) => ("done", Some(codec::encode(&stored)), None),
                Some(RecordStatus::Unknown { sent_ago }) => ("unknown", Some(micros(sent_ago)), None),
                Some(RecordStatus::UnderWay { for_now, is_sent }) => {
                    ("under-way", Some(micros(for_now)), Some(if is_sent { "1" } else { "0" }))
                }
            };
        prop_assert_eq!((answer.word, answer.bytes().map(<[u8]>::to_vec), answer.text(1)), (word, bytes, is_sent));
        Ok(())
    }

    #[allow(clippy::too_many_lines)] // An arm for each event.
    fn play(&mut self, event: Event) -> Result<(), TestCaseError> {
        let keys = self.keys.clone();
        match event {
            Event::Pass(seconds) => self.now = self.now.after(Duration::from_secs(seconds)),
            // Markers and records are gone.
            Event::Lose => {
                redis::cmd("FLUSHALL").exec(&mut self.connection).unwrap();
                self.mark();
                self.records.clear();
                self.hosts.clear();
                self.lost = Some(self.now);
            }
            Event::FailOver => self.lost = Some(self.now),
            Event::Beat(key, host) => {
                let (word, _) = self.ask(scripts::heartbeat(&keys, scripts::part_of(id(key)), HostId(host)));
                prop_assert_eq!(word, "done");
                self.beat(key, HostId(host));
            }
            Event::Begin { key, payload, maybe_sent, upstream_key, host } => {
                self.drawn += 1;
                let upstream_key = upstream_key.map(|key| KeyTag::from_bytes([key; 16]));
                let host = Some(HostId(host));
                let opening = BeginRequest { host, maybe_sent, upstream_key, ..opening(self.drawn, payload) };
                self.begin(key, opening)?;
            }
            Event::BeginAgain(key) => {
                if let Some(opening) = self.last.get(&key).copied() {
                    self.begin(key, opening)?;
                }
            }
            Event::Sent(key, ago) => {
                let fence = self.fence(key, ago);
                // A second mark by the same owner does not write the request again.
                let intent = Some(Self::intent(fence)).filter(|_| !self.written.contains(&fence));
                let (host, asked) = (self.host_of(key), intent.as_ref().map(Self::asked));
                let (word, _) = self.ask(scripts::sent(&keys, id(key), fence, asked, host));
                let intent = intent.map(|intent| self.fitting(key, intent));
                let sent = |record: &mut Record, now| record.sent(fence, intent, now).ok();
                let expected = self.change(key, |record, now| sent(record, now).map(|()| RecordRetention::Keep));
                if expected == "done" {
                    self.written.insert(fence);
                    self.beat(key, host);
                }
                prop_assert_eq!(word, expected);
            }
            Event::Finish(key, ago) => {
                let fence = self.fence(key, ago);
                // The script differs here on purpose: a host that lost the reply may finish twice. See `finish.lua`.
                if self.records.get(&key).is_some_and(|record| record.phase() == Phase::Done) {
                    return Ok(());
                }
                let answer = stored(&format!("answer {}", self.drawn));
                let (word, _) = self.ask(scripts::finish(&keys, id(key), fence, codec::encode(&answer)));
                let finish = |record: &mut Record, now| record.finish(fence, answer, now).ok();
                let expected = self.change(key, |record, now| finish(record, now).map(|()| RecordRetention::Keep));
                prop_assert_eq!(word, expected);
            }
            Event::Release(key, ago) => {
                let fence = self.fence(key, ago);
                let (word, _) = self.ask(scripts::release(&keys, id(key), fence));
                prop_assert_eq!(word, self.change(key, |record, now| record.release(fence, now).ok()));
            }
            Event::Leave(key, ago, sent, verify) => {
                let (fence, seconds) = (self.fence(key, ago), |own: Option<u64>| own.map(Duration::from_secs));
                let intent = Some(Self::intent(fence)).filter(|_| !self.written.contains(&fence));
                let asked = intent.as_ref().map(Self::asked);
                let leaving = Leaving {
                    sent_ago: seconds(sent),
                    verify_in: seconds(verify),
                    intent: intent.map(|own| self.fitting(key, own)),
                };
                let (word, _) = self.ask(scripts::leave(&keys, id(key), fence, &leaving, asked));
                prop_assert_eq!(word, self.change(key, |record, now| record.leave(fence, &leaving, now).ok()));
            }
            Event::Unknown(key, verify) => {
                self.drawn += 1;
                let (opening, intent) = (opening(self.drawn, 0), Self::intent(FencingToken(self.drawn)));
                let (sent_ago, verify_in) = (Some(Duration::from_secs(7)), verify.map(Duration::from_secs));
                let asked = Some(Self::asked(&intent));
                let leaving = Leaving { sent_ago, verify_in, intent: Some(self.fitting(key, intent)) };
                let cap = if self.drawn.is_multiple_of(2) { 100 } else { 2 };
                let (word, _) = self.ask(scripts::unknown(&keys, id(key), &opening, &leaving, asked, cap));
                let now = self.now;
                let is_there = self.records.get(&key).is_some_and(|record| !record.expired(now));
                let unsettled = self.beside(key).filter(|record| record.phase() == Phase::Sent).count();
                let expected = if is_there {
                    "there"
                } else if self.beside(key).count() >= cap || unsettled >= share_without_key(cap) {
                    "full"
                } else {
                    "done"
                };
                prop_assert_eq!(word, expected);
                if expected == "done" {
                    self.records.insert(key, Record::unknown(&opening, &leaving, now));
                }
            }
            Event::Resolve(key, applied) => {
                let answer = applied.then(|| stored("by hand"));
                let (facts, sealed) = (self.facts(key), answer.as_ref().map(codec::encode));
                let (word, _) = self.ask(scripts::resolve(&keys, id(key), sealed, self.lost_ago()));
                let resolved = self.change(key, |record, now| record.resolve(answer.map(Into::into), &facts, now));
                prop_assert_eq!(word == "done", resolved == "done");
            }
            Event::Look(key) => {
                self.check_status(key)?;
                let value = self.value(scripts::get(&keys, id(key), self.lost_ago()));
                let answer = ScriptReply::of(&value).unwrap();
                let record = self.records.get(&key);
                let unsettled = record.and_then(|record| record.unknown_for(&self.facts(key), self.now));
                prop_assert_eq!(answer.word == "unsettled", unsettled.is_some());
                prop_assert_eq!(answer.duration(), unsettled);
                let Some(record) = record.filter(|_| unsettled.is_some()) else { return Ok(()) };
                let intent = record.intent().map(|own| (own.upstream.clone(), own.endpoint.clone()));
                prop_assert_eq!(answer.text(1).and_then(name_of), intent);
                let due = match record.verified_for(&self.facts(key), self.now) {
                    Some(_) => Some(Duration::ZERO),
                    None => record.due().map(|due| due.since(self.now)),
                };
                prop_assert_eq!(answer.duration_at(2), due);
            }
            Event::Note(key) => {
                if let Some(record) = self.records.get(&key) {
                    self.noted.insert(key, record.clone());
                }
            }
            Event::Restore(key) => self.restore(key)?,
            Event::Due => self.due()?,
            Event::Take(key) => self.take(key)?,
            Event::Postpone(key, longest) => {
                let (wait, longest) = (Duration::from_secs(60), Duration::from_secs(longest));
                let (word, _) = self.ask(scripts::postpone(&keys, id(key), wait, longest, self.lost_ago()));
                let (facts, now) = (self.facts(key), self.now);
                let record = self.records.get_mut(&key);
                let postponed = record.map(|record| record.postpone(wait, longest, &facts, now));
                let expected = match postponed {
                    Some(Postponed::Later) => "later",
                    Some(Postponed::GivenUp) => "given-up",
                    Some(Postponed::NotUnsettled) | None => "not-unsettled",
                };
                prop_assert_eq!(word, expected);
            }
        }
        Ok(())
    }

    fn restore(&mut self, key: u16) -> Result<(), TestCaseError> {
        let Some(noted) = self.noted.get(&key).cloned() else { return Ok(()) };
        let mut fitting = noted.clone();
        if !self.fits(key) {
            fitting.drop_request();
        }
        let fields = noted.fields();
        // A host does not restore doubtful records.
        if noted.is_doubtful() || matches!(fields.state, StateFields::Cleared { .. }) {
            return Ok(());
        }
        let host = noted.host().unwrap_or(HostId(0));
        let with = Restoring {
            era: "e",
            sealed: noted.stored().map(|kept| codec::encode(&kept.open())).unwrap_or_default(),
            asked: fields.intent.map(|intent| Self::asked(intent)),
            host,
            lost_ago: self.lost_ago(),
            now: self.now,
        };
        let (word, _) = self.ask(scripts::restore(&self.keys.clone(), id(key), &noted, with));
        let restored = Record::restore(self.records.get(&key), &fitting, &self.facts(key), self.now);
        let expected = match &restored {
            Ok(_) => "done",
            Err(NotRestored::Kept) => "kept",
            Err(NotRestored::Busy) => "busy",
        };
        prop_assert_eq!(word, expected);
        if let Ok(record) = restored {
            if record.host().is_some() {
                self.beat(key, host);
            }
            self.records.insert(key, record);
        }
        Ok(())
    }

    fn due(&mut self) -> Result<(), TestCaseError> {
        let keys = self.keys.clone();
        let mut found = Vec::new();
        for part in 0..PARTS {
            let value = self.value(scripts::due(&keys, part, 100));
            found.extend(super::super::reply::list(&value).unwrap().iter().filter_map(record_id));
        }
        let now = self.now;
        let is_due = |record: &Record| record.due().is_some_and(|due| due <= now) && record.expires() > now;
        let due = self.records.iter().filter(|(_, record)| is_due(record)).map(|(key, _)| id(*key));
        let mut due: Vec<_> = due.collect();
        found.sort_unstable();
        due.sort_unstable();
        prop_assert_eq!(found, due);
        Ok(())
    }

    fn take(&mut self, key: u16) -> Result<(), TestCaseError> {
        const LEASE: Duration = Duration::from_secs(40);
        let keys = self.keys.clone();
        let value = self.value(scripts::take(&keys, id(key), LEASE, self.lost_ago()));
        let answer = ScriptReply::of(&value).unwrap();
        let (facts, now) = (self.facts(key), self.now);
        let taken = self.records.get_mut(&key).and_then(|record| record.take(LEASE, &facts, now));
        prop_assert_eq!(answer.word == "taken", taken.is_some());
        let Some(taken) = taken else { return Ok(()) };
        let request = codec::decode_request(answer.bytes().unwrap()).ok();
        prop_assert_eq!(request.as_ref(), taken.request.as_ref());
        prop_assert_eq!(answer.text(1), Some(&*Self::asked(&taken).name));
        Ok(())
    }
}

#[test]
fn the_scripts_do_what_the_transitions_do() {
    let server = RedisServer::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let played = runner.run(&(events(), 0..3_usize), |(events, max_kept_requests)| {
        let mut connection = server.connection();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let mut world = World { max_kept_requests, ..World::new(connection) };
        world.mark();
        events.into_iter().try_for_each(|event| world.play(event))
    });
    played.unwrap_or_else(|error| panic!("{error}"));
}

/// Cases that random histories may miss. The transitions' own tests define the results.
#[test]
fn the_scripts_do_what_the_transitions_do_in_named_cases() {
    let begin = |maybe_sent, host| Event::Begin { key: 0, payload: 0, maybe_sent, upstream_key: Some(0), host };
    let cases = [
        (
            "an unknown record from before a loss",
            vec![begin(false, 0), Event::Sent(0, 0), Event::Leave(0, 0, Some(0), None)],
            vec![Event::Pass(300), Event::FailOver, Event::Pass(10), begin(false, 1), Event::Sent(0, 0)],
        ),
        (
            "a cleared one",
            vec![Event::Lose, begin(false, 0), Event::Leave(0, 0, None, None), Event::Resolve(0, false)],
            vec![Event::Pass(300), Event::FailOver, Event::Pass(10), begin(false, 1), Event::Sent(0, 0)],
        ),
        (
            "a dead host's unsent record, and a caller that may have sent it",
            vec![begin(false, 0), Event::Pass(20)],
            vec![begin(true, 1), Event::Sent(0, 0), Event::Leave(0, 0, Some(0), None), begin(false, 1)],
        ),
    ];
    let server = RedisServer::start();
    for (case, before, after) in cases {
        let mut connection = server.connection();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let mut world = World::new(connection);
        world.mark();
        for event in before.into_iter().chain(after) {
            world.play(event).unwrap_or_else(|error| panic!("{case}: {error}"));
        }
    }
}

/// A write without space raises an event: unkeyed writes may use half of the records, and kept requests have a limit of their own.
#[tokio::test]
async fn a_write_without_room_in_the_server_raises_an_event() {
    let server = RedisServer::start();
    // A part holds three records; unkeyed ones are refused when two are unsettled.
    let (records, _, events) = records_with(&server.url(), Some([7; 32]), 48);
    let inner = Arc::clone(&records.0);
    let in_part = |number: u8| {
        let mut bytes = [number; 32];
        bytes[31] = 3;
        RecordId::from_bytes(bytes)
    };
    let leaving = |request: u128| Leaving {
        intent: Some(Arc::new(World::intent(FencingToken(request)))),
        ..Leaving::at_once(Some(Duration::ZERO))
    };
    for number in 1..4 {
        records.record_unknown(in_part(number), opening(number.into(), 0), leaving(1));
    }
    let kinds = || events.after(0).iter().map(|event| (event.kind, event.subject.clone())).collect::<Vec<_>>();
    let unsettled = async || records.unsettled(10).await.unwrap().len();
    while unsettled().await < 2 || kinds().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(kinds(), [("write-unrecorded", "up/create-1".to_owned())]);
    let text = events.after(0)[0].text.clone();
    assert!(text.contains("half of the 48 allowed") && text.contains("triage records list"), "{text}");
    let begun = records.begin(in_part(9), opening(9, 0)).await.unwrap();
    assert!(matches!(begun.begin, RecordBegin::New), "a key found no space: {begun:?}");
    // Fill the part's kept requests.
    let due = format!("triage:{{idem-{:x}}}:due", scripts::part_of(in_part(9)));
    for number in 0..scripts::MAX_KEPT_REQUESTS {
        let () = server.ask(&["ZADD", &due, "9e15", &number.to_string()]);
    }
    records.abandon_record(in_part(9), FencingToken(9), leaving(2));
    while kinds().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(kinds()[1], ("write-unverified", "up/create-2".to_owned()));
    let left = inner.unsettled_one(in_part(9)).await.unwrap().unwrap();
    assert_eq!((left.endpoint, left.verified_in), (Some(("up".to_owned(), "create-2".to_owned())), None));
}

/// A record's lease is the one that its own begin renewed: an earlier lease may have expired.
#[tokio::test]
async fn a_begin_renews_the_lease_that_it_hands_out() {
    let server = RedisServer::start();
    let (records, clock) = records_at(&server.url(), None);
    for what in ["the first of all", "renewed"] {
        let begun = records.begin(id(1), opening(1, 0)).await.unwrap();
        assert!(begun.host.unwrap().term().until() > clock.now(), "{what}");
    }
}

/// The records of one host of a fleet.
fn host(server: &RedisServer, key: Option<[u8; 32]>) -> (Arc<dyn Records>, Clock) {
    host_at(&server.url(), key)
}

fn host_at(url: &str, key: Option<[u8; 32]>) -> (Arc<dyn Records>, Clock) {
    let (records, clock) = records_at(url, key);
    (Arc::new(records), clock)
}

fn records_at(url: &str, key: Option<[u8; 32]>) -> (RedisRecords, Clock) {
    let (records, clock, _) = records_with(url, key, 1000);
    (records, clock)
}

fn records_with(url: &str, key: Option<[u8; 32]>, max_records: usize) -> (RedisRecords, Clock, Arc<Events>) {
    let (link, clock) = link_to(url);
    let (records, events) = records_of(link, clock, key, max_records);
    (records, clock, events)
}

fn link_to(url: &str) -> (RedisConnection, Clock) {
    link_within(url, "5s")
}

fn link_within(url: &str, timeout: &str) -> (RedisConnection, Clock) {
    let address = Address::parse(url).unwrap();
    let shared = Settings { timeout: crate::units::duration(timeout).unwrap(), ..Settings::new(address) };
    let clock = Clock::system();
    (RedisConnection::open(&shared, clock, Rng::system()).unwrap(), clock)
}

fn records_of(
    link: RedisConnection,
    clock: Clock,
    key: Option<[u8; 32]>,
    max_records: usize,
) -> (RedisRecords, Arc<Events>) {
    let sealer = Sealer::new(key.as_slice());
    let events = Arc::new(Events::new(clock));
    let records = RedisRecords::new(link, clock, Rng::system(), sealer, max_records, Arc::clone(&events));
    (records, events)
}

/// Each assertion fails if hosts silently share nothing.
#[tokio::test]
async fn a_host_does_not_send_the_write_of_another_host() {
    let server = RedisServer::start();
    let ((one, clock), (other, other_clock)) = (host(&server, Some([7; 32])), host(&server, Some([7; 32])));
    let on_one = |fence| begin(&one, clock, id(1), opening(fence, 0));
    let on_other = |fence| begin(&other, other_clock, id(1), opening(fence, 0));
    let BeginOutcome::New(mut guard) = on_one(1).await.unwrap() else { panic!("the first is not new") };
    guard.sent().await.unwrap();
    assert!(matches!(on_other(2).await.unwrap(), BeginOutcome::InFlight { .. }), "the second is let through");
    guard.finish(stored("patient 7")).await.unwrap();
    let BeginOutcome::Replay(replay) = on_other(3).await.unwrap() else { panic!("the third is not replayed") };
    assert_eq!(*replay, stored("patient 7"));
    let held: Vec<String> = server.ask(&["KEYS", "*"]);
    for key in held.iter().filter(|key| key.contains(&id(1).to_string())) {
        let fields: Vec<Vec<u8>> = server.ask(&["HVALS", key]);
        assert!(!fields.concat().windows(7).any(|part| part == b"patient"), "{key} can be read");
    }
    // One host leaves a write unknown, and another verifies it.
    let BeginOutcome::New(mut guard) = begin(&one, clock, id(2), opening(4, 0)).await.unwrap() else {
        panic!("not new")
    };
    guard.sent().await.unwrap();
    guard.leave_unknown(Duration::from_secs(1));
    one.flushed().await;
    let unsettled = other.unsettled(10).await.unwrap();
    assert_eq!(unsettled.iter().map(|unsettled| unsettled.id).collect::<Vec<_>>(), [id(2)]);
    let begun = begin(&other, other_clock, id(2), opening(5, 0)).await.unwrap();
    let BeginOutcome::Reconcile { guard, sent_ago, .. } = begun else { panic!("{begun:?}") };
    assert!(sent_ago <= Duration::from_secs(60), "{sent_ago:?}");
    // A resource has one owner.
    let name = ClaimName::of("up", "7");
    assert_eq!(guard.claim(name).await.unwrap(), Claim::Ours);
    let stranger = ClaimOwner::Request(FencingToken(9));
    assert_eq!(one.claim(name, stranger, Duration::from_secs(60)).await.unwrap(), Claim::Taken);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn twins_of_two_hosts_go_one_after_the_other() {
    let server = RedisServer::start();
    let ((one, _), (other, _)) = (host(&server, None), host(&server, None));
    let fingerprint = opening(1, 0).fingerprint;
    let first = one.lock_fingerprint(fingerprint).await.unwrap();
    let mut second = tokio::spawn(other.lock_fingerprint(fingerprint));
    let opened = one.begin(id(1), opening(2, 0).with_fingerprint_lock(true)).await.unwrap();
    assert!(opened.fingerprint_lock.is_none(), "the reply has a lock that another host holds");
    assert!((&mut second).now_or_never().is_none(), "two at once");
    assert!(first.holds());
    drop(first);
    let second = second.await.unwrap().unwrap();
    assert!(second.holds());
    drop(second);
    other.flushed().await;
    let opened = one.begin(id(2), opening(3, 0).with_fingerprint_lock(true)).await.unwrap();
    assert!(
        opened.fingerprint_lock.is_some_and(|fingerprint_lock| fingerprint_lock.holds()),
        "a turn that is free did not come along"
    );
}

/// Without an encryption key, only the status of a response leaves the process.
#[tokio::test]
async fn without_a_key_only_the_status_is_kept() {
    let server = RedisServer::start();
    let (records, clock) = host(&server, None);
    let BeginOutcome::New(guard) = begin(&records, clock, id(1), opening(1, 0)).await.unwrap() else {
        panic!("not new")
    };
    guard.finish(stored("patient 7")).await.unwrap();
    let begun = begin(&records, clock, id(1), opening(2, 0)).await.unwrap();
    let BeginOutcome::Replay(kept) = begun else { panic!("{begun:?}") };
    assert_eq!(*kept, Stored::TooLarge { status: http::StatusCode::OK });
}

/// After a server returns empty, earlier keys are verified and not sent as new.
#[tokio::test]
async fn a_server_that_comes_back_empty_makes_unknown_keys_doubtful() {
    let mut server = RedisServer::start();
    let (records, clock) = host(&server, None);
    // The host ends, so that it does not restore its record.
    let (gone, gone_clock) = host(&server, None);
    let begun = begin(&gone, gone_clock, id(1), opening(1, 0)).await.unwrap();
    let BeginOutcome::New(mut guard) = begun else { panic!("{begun:?}") };
    guard.sent().await.unwrap();
    assert!(!doubtful(&records, 2, 3).await, "the other host knows the server");
    server.kill();
    drop((guard, gone));
    server.restart();
    // Nothing may be sent until the server is reached again; then the key is in doubt.
    let begun = loop {
        match begin(&records, clock, id(1), opening(2, 0)).await {
            Ok(begun) => break begun,
            Err(RecordError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(matches!(begun, BeginOutcome::Reconcile { doubtful: true, .. }), "{begun:?}");
}

/// Whether a new record is in doubt: it may have been sent before.
async fn doubtful(records: &Arc<dyn Records>, number: u16, fence: u128) -> bool {
    match records.begin(id(number), opening(fence, 0)).await.unwrap().begin {
        RecordBegin::New => false,
        RecordBegin::Reconcile { .. } => true,
        other => panic!("{other:?}"),
    }
}

/// A script on an emptied server detects the loss, before the next check of the server.
#[tokio::test]
async fn a_flush_is_noticed_by_the_next_step_of_every_host() {
    let server = RedisServer::start();
    let ((one, _), (other, _)) = (host(&server, None), host(&server, None));
    // Several records of each host in each part: an unused part could not show a loss.
    for number in 0..40 {
        let records = if number % 2 == 0 { &one } else { &other };
        assert!(!doubtful(records, number, number.into()).await, "{number} is new");
    }
    for round in 1..4_u16 {
        let () = server.ask(&[if round == 1 { "FLUSHALL" } else { "FLUSHDB" }]);
        for number in 0..4 {
            let records = if (number + round) % 2 == 0 { &one } else { &other };
            let number = round * 100 + number;
            assert!(doubtful(records, number, number.into()).await, "round {round}: {number} passes for new");
        }
    }
}

/// One node of a Cluster was emptied, or a part evicted, with its marker.
#[tokio::test]
async fn a_part_that_is_gone_is_noticed_by_every_host() {
    let server = RedisServer::start();
    let ((one, _), (other, _)) = (host(&server, None), host(&server, None));
    assert!(!doubtful(&one, 1, 1).await && !doubtful(&other, 2, 2).await);
    let held: Vec<String> = server.ask(&["KEYS", "*idem-*"]);
    assert!(held.iter().any(|key| key.ends_with(":server")), "{held:?}");
    for key in held {
        let () = server.ask(&["DEL", &key]);
    }
    // The first host detects the loss; the other one must not rely on its earlier state.
    assert!(doubtful(&one, 3, 3).await);
    assert!(doubtful(&other, 4, 4).await);
    // A later host reads the loss.
    let (third, _) = host(&server, None);
    assert!(doubtful(&third, 5, 5).await);
}

/// A call that was never sent needs no cleanup. Otherwise each request would cause five calls to a server that is down.
#[tokio::test]
async fn a_begin_that_was_never_sent_needs_no_cleanup() {
    let mut server = RedisServer::start();
    let (records, clock) = records_at(&server.url(), None);
    let inner = Arc::clone(&records.0);
    let records: Arc<dyn Records> = Arc::new(records);
    drop(begin(&records, clock, id(1), opening(1, 0)).await.unwrap());
    server.kill();
    let mut refused = 0;
    while refused < 10 {
        let before = inner.behind.len();
        let error =
            begin(&records, clock, id(2), opening(2, 0).with_fingerprint_lock(true)).await.map(drop).unwrap_err();
        if !error.may_be_done() {
            refused += 1;
            assert!(inner.behind.len() <= before, "{refused}: {error:?}");
        }
    }
}

/// Evicted keys may have been records.
#[tokio::test]
async fn an_eviction_is_noticed_by_the_next_step() {
    let server = RedisServer::with(&["--maxmemory-policy", "allkeys-random"]);
    let (records, _) = host(&server, None);
    assert!(!doubtful(&records, 1, 1).await);
    let () = server.ask(&["SET", "other", &"x".repeat(10_000)]);
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let _ = redis::cmd("SET").arg("a").arg("b").exec(&mut server.connection());
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let stats: String = server.ask(&["INFO", "stats"]);
    assert!(!stats.contains("evicted_keys:0\r"), "nothing was evicted");
    assert!(doubtful(&records, 2, 2).await);
}

/// A full server refuses to begin a record, so that no write is sent whose response it could not store.
#[tokio::test]
async fn a_full_server_begins_no_record() {
    let server = RedisServer::with(&[]);
    let (records, clock) = host(&server, None);
    let first = begin(&records, clock, id(1), opening(1, 0)).await.unwrap();
    assert!(matches!(first, BeginOutcome::New(_)), "{first:?}");
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = begin(&records, clock, id(2), opening(2, 0)).await;
    assert!(refused.is_err(), "{refused:?}");
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let begun = begin(&records, clock, id(2), opening(2, 0)).await.unwrap();
    assert!(matches!(begun, BeginOutcome::New(_)), "nothing was written: {begun:?}");
}

/// Records, claims and locks on three masters: each script uses one hash slot, and the next script on a node detects its loss.
#[tokio::test]
async fn a_cluster_keeps_records_and_tells_what_it_lost() {
    let cluster = RedisCluster::start();
    let ((one, clock), (other, other_clock)) = (host_at(&cluster.url(), Some([7; 32])), host_at(&cluster.url(), None));
    for number in 0..20 {
        let opening = opening(number.into(), 0).with_fingerprint_lock(true);
        let begun = begin(&one, clock, id(number), opening).await.unwrap();
        let BeginOutcome::New(mut guard) = begun else { panic!("{number}: {begun:?}") };
        assert!(guard.take_fingerprint_lock().is_none(), "the queue may lie on another node");
        let fingerprint_lock = one.lock_fingerprint(opening.fingerprint).await.unwrap();
        guard.sent().await.unwrap();
        assert!(fingerprint_lock.holds());
        assert_eq!(guard.claim(ClaimName::of("up", &number.to_string())).await.unwrap(), Claim::Ours);
        if number % 2 == 0 {
            guard.finish(stored("patient 7")).await.unwrap();
        } else {
            guard.leave_unknown(Duration::from_secs(1));
        }
    }
    one.flushed().await;
    assert_eq!(other.unsettled(100).await.unwrap().len(), 10);
    let begun = begin(&one, clock, id(0), opening(100, 0)).await.unwrap();
    assert!(matches!(&begun, BeginOutcome::Replay(replay) if **replay == stored("patient 7")), "{begun:?}");
    let begun = begin(&other, other_clock, id(1), opening(101, 0)).await.unwrap();
    assert!(matches!(begun, BeginOutcome::Reconcile { .. }), "{begun:?}");
    let () = cluster.0[1].ask(&["FLUSHALL"]);
    let mut met = 0;
    for number in 200..248 {
        met += u32::from(doubtful(&other, number, number.into()).await);
    }
    assert!(met > 0, "no part lies on the emptied node");
    // Then the loss holds for all nodes.
    assert!(doubtful(&one, 300, 300).await || doubtful(&one, 301, 301).await);
}

/// An operator may delete a loss from the server's identity, which every host follows.
#[tokio::test]
async fn an_operator_may_say_that_nothing_was_lost() {
    let server = RedisServer::start();
    let ((one, _), (other, _)) = (host(&server, None), host(&server, None));
    assert!(!doubtful(&one, 1, 1).await && !doubtful(&other, 2, 2).await);
    let () = server.ask(&["FLUSHALL"]);
    assert!(doubtful(&one, 3, 3).await && doubtful(&other, 4, 4).await);
    let removed: i64 = server.ask(&["HDEL", "triage:census", "lost"]);
    assert_eq!(removed, 1);
    for (records, from) in [(&one, 1000), (&other, 2000)] {
        let mut tried = from;
        while doubtful(records, tried, tried.into()).await {
            tried += 1;
            assert!(tried < from + 900, "it is still doubted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A lock does not last longer when the server's clock is set back by a day.
#[test]
fn a_clock_that_is_set_back_prolongs_no_lock() {
    let server = RedisServer::start();
    let mut world = World::new(server.connection());
    world.mark();
    let host = HostId(1);
    let about = Circumstances { cap: 100, lost_ago: None, host, one_node: true, era: "e".to_owned() };
    let keys = world.keys.clone();
    let begin = |world: &mut World, fence| world.ask(scripts::begin(&keys, id(1), &opening(fence, 0), &about));
    assert_eq!(begin(&mut world, 1).0, "new");
    assert_eq!(world.ask(scripts::sent(&keys, id(1), FencingToken(1), None, host)).0, "done");
    world.now = START.before(Duration::from_hours(24));
    let (word, wait) = begin(&mut world, 2);
    assert_eq!(word, "busy");
    // The heartbeat's lease is a day ahead, so the lock's own end decides.
    let wait: u64 = String::from_utf8(wait.unwrap()).unwrap().parse().unwrap();
    let lock = opening(1, 0).lock;
    assert!(Duration::from_micros(wait) <= lock, "{wait}");
    world.now = world.now.after(lock);
    assert_eq!(begin(&mut world, 3).0, "reconcile");
    assert_eq!(world.ask(scripts::finish(&keys, id(1), FencingToken(1), vec![0])).0, "lost");
}

/// A killed host's keys are free when its heartbeat's lease ends, long before its locks do.
#[tokio::test]
async fn a_dead_hosts_heartbeat_ends_its_locks() {
    let server = RedisServer::start();
    let (records, clock) = records_at(&server.url(), None);
    let inner = Arc::clone(&records.0);
    let records: Arc<dyn Records> = Arc::new(records);
    let try_begin = |key, fence| begin(&records, clock, id(key), opening(fence, 0));
    assert!(matches!(try_begin(0, 1).await.unwrap(), BeginOutcome::New(_)));
    // Another host is killed after it has sent one of two writes.
    let dead = HostId(99);
    let era = inner.link.era(inner.call_timeout()).await.unwrap();
    let about = Circumstances { cap: 100, lost_ago: None, host: dead, one_node: true, era };
    for (key, fence) in [(1, 2), (2, 3)] {
        inner.run(&scripts::begin(inner.keys(), id(key), &opening(fence, 0), &about)).await.unwrap();
    }
    done("sent", &inner.run(&scripts::sent(inner.keys(), id(1), FencingToken(2), None, dead)).await.unwrap()).unwrap();
    assert!(matches!(try_begin(1, 4).await.unwrap(), BeginOutcome::InFlight { .. }), "its heartbeat still holds");
    for part in 0..PARTS {
        let hosts = format!("triage:{{idem-{part:x}}}:hosts");
        let () = server.ask(&["ZADD", &hosts, "XX", "1", &dead.to_string()]);
    }
    let begun = try_begin(1, 5).await.unwrap();
    let BeginOutcome::Reconcile { guard, .. } = begun else { panic!("{begun:?}") };
    assert!(matches!(try_begin(2, 6).await.unwrap(), BeginOutcome::New(_)), "nothing was sent");
    // The host was only suspended: its late call is fenced off.
    let late = inner.run(&scripts::sent(inner.keys(), id(1), FencingToken(2), None, dead)).await.unwrap();
    assert!(matches!(done("sent", &late), Err(RecordError::Lost)));
    guard.finish(stored("by its successor")).await.unwrap();
}

/// A heartbeat is renewed as long as a record is held, and no longer.
#[tokio::test]
async fn a_heartbeat_is_renewed_while_a_record_is_held() {
    let server = RedisServer::start();
    let (records, clock) = records_at(&server.url(), None);
    let (inner, records): (_, Arc<dyn Records>) = (Arc::clone(&records.0), Arc::new(records));
    let begun = begin(&records, clock, id(1), opening(1, 0)).await.unwrap();
    let BeginOutcome::New(guard) = begun else { panic!("{begun:?}") };
    let hosts = format!("triage:{{idem-{:x}}}:hosts", scripts::part_of(id(1)));
    let lease = || server.ask::<f64>(&["ZSCORE", &hosts, &inner.heartbeat.host.to_string()]);
    let first = lease();
    while lease() <= first {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(inner.heartbeat.needed().count(), 1);
    guard.release().await.unwrap();
    assert_eq!(inner.heartbeat.needed().count(), 0);
}

/// Hosts keep a record, a claim and a lock over a loss of data.
#[tokio::test]
async fn hosts_restore_records_claims_and_locks_after_a_loss() {
    let server = RedisServer::start();
    let ((one, clock), (other, other_clock)) = (host(&server, Some([7; 32])), host(&server, Some([7; 32])));
    let BeginOutcome::New(mut guard) = begin(&one, clock, id(1), opening(1, 0)).await.unwrap() else {
        panic!("not new")
    };
    let BeginOutcome::New(done) = begin(&one, clock, id(2), opening(2, 0)).await.unwrap() else { panic!("not new") };
    done.finish(stored("patient 7")).await.unwrap();
    let BeginOutcome::New(mut left) = begin(&one, clock, id(3), opening(3, 0)).await.unwrap() else {
        panic!("not new")
    };
    left.sent().await.unwrap();
    left.leave_unknown(Duration::from_secs(1));
    let (name, stranger) = (ClaimName::of("up", "7"), ClaimOwner::Request(FencingToken(9)));
    assert_eq!(guard.claim(name).await.unwrap(), Claim::Ours);
    let fingerprint = opening(1, 1).fingerprint;
    let fingerprint_lock = one.lock_fingerprint(fingerprint).await.unwrap();
    assert!(!doubtful(&other, 9, 9).await, "the other host knows the server");
    let mut next = tokio::spawn(other.lock_fingerprint(fingerprint));
    let () = server.ask(&["FLUSHALL"]);
    // The other host asks for all of them; it waits for the restore.
    let on_other = |key, fence| begin(&other, other_clock, id(key), opening(fence, 0));
    assert!(matches!(on_other(1, 11).await.unwrap(), BeginOutcome::InFlight { .. }));
    assert!(matches!(on_other(2, 12).await.unwrap(), BeginOutcome::Replay(answer) if *answer == stored("patient 7")));
    let begun = on_other(3, 13).await.unwrap();
    assert!(matches!(begun, BeginOutcome::Reconcile { doubtful: false, .. }), "{begun:?}");
    assert_eq!(other.claim(name, stranger, Duration::from_secs(60)).await.unwrap(), Claim::Taken);
    assert_eq!(other.claimant(name, stranger).await.unwrap(), Claimant::Other);
    assert_eq!(other.claimant(name, ClaimOwner::Record(id(1))).await.unwrap(), Claimant::Asker);
    assert!(fingerprint_lock.holds() && (&mut next).now_or_never().is_none(), "the turn passed on");
    guard.sent().await.unwrap();
    guard.finish(stored("patient 8")).await.unwrap();
    assert!(matches!(on_other(1, 14).await.unwrap(), BeginOutcome::Replay(_)));
    drop(fingerprint_lock);
    assert!(next.await.unwrap().unwrap().holds());
}

/// A host restores its records also after a loss right after its start.
#[tokio::test]
async fn a_host_that_has_just_started_gives_back_what_it_knows() {
    let server = RedisServer::start();
    let (link, clock) = link_to(&server.url());
    // Read the era before any task waits for the next one.
    link.era(Duration::from_secs(5)).await.unwrap();
    let young: Arc<dyn Records> = Arc::new(records_of(link, clock, Some([7; 32]), 1000).0);
    let BeginOutcome::New(done) = begin(&young, clock, id(1), opening(1, 0)).await.unwrap() else { panic!("not new") };
    done.finish(stored("patient 7")).await.unwrap();
    let () = server.ask(&["FLUSHALL"]);
    let (other, clock) = host(&server, Some([7; 32]));
    // Both hosts have detected the loss.
    assert!(matches!(
        begin(&young, clock, id(2), opening(2, 0)).await,
        Ok(BeginOutcome::Reconcile { doubtful: true, .. })
    ));
    let begun = begin(&other, clock, id(1), opening(3, 0)).await.unwrap();
    assert!(matches!(&begun, BeginOutcome::Replay(answer) if **answer == stored("patient 7")), "{begun:?}");
}

/// A doubtful request that an operator settled as not applied is not in doubt again: its record is kept as cleared.
#[tokio::test]
async fn a_doubt_that_an_operator_clears_does_not_come_back() {
    let server = RedisServer::start();
    let (records, clock) = host(&server, None);
    assert!(!doubtful(&records, 1, 1).await);
    let () = server.ask(&["FLUSHALL"]);
    let try_begin = |fence| begin(&records, clock, id(5), opening(fence, 0));
    let begun = try_begin(2).await.unwrap();
    let BeginOutcome::Reconcile { guard, doubtful: true, .. } = begun else { panic!("{begun:?}") };
    guard.leave_unknown(Duration::ZERO);
    records.flushed().await;
    let begun = try_begin(3).await.unwrap();
    let BeginOutcome::Reconcile { guard, doubtful: true, .. } = begun else {
        panic!("it is in doubt no more: {begun:?}")
    };
    guard.leave_unknown(Duration::ZERO);
    records.flushed().await;
    assert_eq!(records.resolve(id(5), Resolution::NotApplied).await.unwrap(), Resolved::Done);
    let begun = try_begin(4).await.unwrap();
    assert!(matches!(begun, BeginOutcome::New(_)), "{begun:?}");
}
