//! Plays the same histories on the scripts and on the pure transitions, for the lists of equal requests and their records.

use super::*;
use crate::idempotency::{
    Arriving, EntryTerm, RequestDigest, Ticket,
    unanswered::{Arrival, Terms, Unanswered},
};
use crate::rng::Rng;

const TERMS: Terms = Terms { lease: Duration::from_millis(7500), kept: Duration::from_mins(10) };
const LOCK: Duration = Duration::from_secs(20);
const HOST: HostId = HostId(7);

#[derive(Debug, Clone)]
enum Event {
    Arrive,
    LookAgain(usize),
    /// Whether its caller is connected, and whether the host knows of a loss.
    KeepAlive(usize, bool, bool),
    Abandon(usize),
    Answered(usize, bool),
    /// The owner of an entry begins its record, as after an adoption.
    Begin(usize),
    Sent(usize),
    Finish(usize),
    Leave(usize, Option<u64>),
    Look(usize),
    Pass(u64),
    Lose,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = || 0..6_usize;
    let event = prop_oneof![
        6 => Just(Event::Arrive),
        3 => who().prop_map(Event::LookAgain),
        3 => (who(), any::<bool>(), any::<bool>()).prop_map(|(own, present, lost)| Event::KeepAlive(own, present, lost)),
        4 => who().prop_map(Event::Abandon),
        2 => (who(), any::<bool>()).prop_map(|(own, forget)| Event::Answered(own, forget)),
        4 => who().prop_map(Event::Begin),
        2 => who().prop_map(Event::Sent),
        2 => who().prop_map(Event::Finish),
        2 => (who(), prop::option::of(0..30_u64)).prop_map(|(own, ago)| Event::Leave(own, ago)),
        2 => who().prop_map(Event::Look),
        6 => prop_oneof![0..12_u64, 15..40_u64, 580..620_u64].prop_map(Event::Pass),
        1 => Just(Event::Lose),
    ];
    prop::collection::vec(event, 1..60)
}

struct Lists {
    world: World,
    list: Unanswered,
    records: HashMap<RecordId, Record>,
    /// All owners of an entry, also former ones.
    owners: Vec<Ticket>,
}

impl Lists {
    fn opening(ticket: &Ticket) -> BeginRequest {
        let fingerprint = Fingerprint::of_record(ticket.id);
        BeginRequest {
            fence: ticket.owner,
            host: Some(HOST),
            fingerprint,
            lock: LOCK,
            keep_answer: TERMS.kept,
            ..opening(0, 0)
        }
    }

    fn about(&self) -> Circumstances {
        let lost_ago = self.world.lost_ago();
        Circumstances { cap: 100, lost_ago, host: HOST, one_node: true, era: "e".to_owned() }
    }

    /// All entries are in one part.
    fn part() -> u8 {
        9
    }

    fn facts(&self, id: RecordId) -> StoreFacts {
        let host = self.records.get(&id).and_then(Record::host);
        let host_until = host.and_then(|host| self.world.hosts.get(&(Self::part(), host)).copied());
        StoreFacts { lost: self.world.lost, host_until }
    }

    fn beat(&mut self) {
        let now = self.world.now;
        self.world.hosts.insert((Self::part(), HOST), now.after(HOST_LEASE));
    }

    fn owner(&self, ago: usize) -> Option<Ticket> {
        self.owners.iter().rev().nth(ago).copied()
    }

    fn is_owner(&self, ticket: &Ticket) -> bool {
        self.list.clone().remove(ticket.id, ticket.owner)
    }

    fn arrive(&mut self) -> Result<(), TestCaseError> {
        let (now, lost, drawn) = (self.world.now, self.world.lost, self.world.drawn + 1);
        self.world.drawn = drawn;
        let digest = RequestDigest::from_bytes([9; 32]);
        let id = RecordId::draw_beside(&Rng::seeded(drawn as u64), digest);
        let ticket = Ticket { digest, id, owner: FencingToken(drawn), terms: TERMS };
        let intent = World::intent(ticket.owner);
        let asked = Some(World::asked(&intent));
        let opening = Self::opening(&ticket);
        let arriving = Arriving { ticket, opening, fingerprint_lock: None, max: 1000, intent: Some(Arc::new(intent)) };
        let about = self.about();
        let value = self.world.value(scripts::arrive(&self.world.keys.clone(), &arriving, asked, &about));
        let answer = ScriptReply::of(&value).unwrap();
        match self.list.arrive(id, ticket.owner, TERMS, now) {
            Arrival::Adopted(adopted) => {
                prop_assert_eq!((answer.word, answer.id()), ("adopted", Some(adopted)));
                self.owners.push(Ticket { id: adopted, ..ticket });
            }
            Arrival::Listed { others } => {
                let (begin, record) = Record::listed(&opening, TERMS.kept, arriving.intent, lost, now);
                let expected = match begin {
                    RecordBegin::Reconcile { sent_ago, .. } => ("reconcile", Some(sent_ago)),
                    _ => ("new", None),
                };
                prop_assert_eq!((answer.word, answer.duration()), expected);
                prop_assert_eq!(answer.others(), others);
                self.records.insert(id, record);
                self.owners.push(ticket);
            }
            Arrival::Full => prop_assert_eq!(answer.word, "full"),
        }
        Ok(())
    }

    fn change(
        &mut self,
        id: RecordId,
        change: impl FnOnce(&mut Record, Timestamp) -> Option<RecordRetention>,
    ) -> &'static str {
        let now = self.world.now;
        let fate = self.records.get_mut(&id).and_then(|record| change(record, now));
        if fate == Some(RecordRetention::Forget) {
            self.records.remove(&id);
        }
        if fate.is_some() { "done" } else { "lost" }
    }

    #[allow(clippy::too_many_lines)]
    fn play(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (keys, now) = (self.world.keys.clone(), self.world.now);
        let own = match event {
            Event::Arrive => return self.arrive(),
            Event::Pass(seconds) => {
                self.world.now = now.after(Duration::from_secs(seconds));
                return Ok(());
            }
            Event::Lose => {
                self.world.play(super::Event::Lose)?;
                self.list = Unanswered::default();
                self.records.clear();
                return Ok(());
            }
            Event::LookAgain(own)
            | Event::KeepAlive(own, ..)
            | Event::Abandon(own)
            | Event::Answered(own, _)
            | Event::Begin(own)
            | Event::Sent(own)
            | Event::Finish(own)
            | Event::Leave(own, _)
            | Event::Look(own) => own,
        };
        let Some(ticket) = self.owner(own) else { return Ok(()) };
        let Ticket { id, owner, .. } = ticket;
        match event {
            Event::LookAgain(_) => {
                let value = self.world.value(scripts::recheck_orphan(&keys, &ticket));
                let answer = ScriptReply::of(&value).unwrap();
                self.list.purge_expired(TERMS.kept, now);
                let was_owner = self.is_owner(&ticket);
                let found = self.list.recheck_orphan(id, owner, TERMS, now);
                let word = if found.is_some() {
                    "adopted"
                } else if was_owner {
                    "none"
                } else {
                    "lost"
                };
                prop_assert_eq!(answer.word, word);
                if let Some(adopted) = found {
                    prop_assert_eq!(answer.id(), Some(adopted));
                    self.change(id, |record, now| record.release(owner, now).ok());
                    self.owners.push(Ticket { id: adopted, ..ticket });
                }
            }
            Event::KeepAlive(_, present, lost) => {
                let place = if present { EntryTerm::Lasting } else { EntryTerm::GivenUp };
                let value = self.world.value(scripts::keep_alive(&keys, &ticket, LOCK, place, present && lost));
                let answer = ScriptReply::of(&value).unwrap();
                let held = self
                    .change(id, |record, now| record.keep_alive(owner, LOCK, now).ok().map(|()| RecordRetention::Keep));
                prop_assert_eq!(answer.is_held(), held == "done");
                self.list.purge_expired(TERMS.kept, now);
                let is_ours = if present { self.list.renew(id, owner, TERMS, now) } else { self.is_owner(&ticket) };
                let is_ours = is_ours || (present && lost && self.list.list_again(id, owner, TERMS, now));
                prop_assert_eq!(answer.word == "ours", is_ours);
                if !is_ours {
                    let is_gone = self.list.clone().list_again(id, owner, TERMS, now);
                    prop_assert_eq!(answer.word, if is_gone { "gone" } else { "lost" });
                }
            }
            Event::Abandon(_) => {
                let (word, _) = self.world.ask(scripts::abandon(&keys, &ticket));
                prop_assert_eq!(word == "done", self.list.abandon(id, owner, TERMS, now));
            }
            Event::Answered(_, forget) => {
                let (word, _) = self.world.ask(scripts::answered(&keys, &ticket, forget));
                self.list.purge_expired(TERMS.kept, now);
                let was_ours = self.list.remove(id, owner);
                prop_assert_eq!(word == "done", was_ours);
                if forget && was_ours {
                    self.records.remove(&id);
                } else if forget {
                    self.change(id, |record, now| record.release(owner, now).ok());
                }
            }
            Event::Begin(_) if self.is_owner(&ticket) => {
                let opening = Self::opening(&ticket);
                let (about, facts) = (self.about(), self.facts(id));
                let (word, _) = self.world.ask(scripts::begin(&keys, id, &opening, &about));
                let (begin, record) = Record::begin(self.records.get(&id), &opening, &facts, now);
                let expected = match begin {
                    RecordBegin::New => "new",
                    RecordBegin::Replay(_) => "replay",
                    RecordBegin::InFlight { .. } => "busy",
                    RecordBegin::Mismatch => "mismatch",
                    RecordBegin::Reconcile { .. } => "reconcile",
                };
                prop_assert_eq!(word, expected);
                if let Some(record) = record {
                    self.beat();
                    self.records.insert(id, record);
                }
            }
            Event::Sent(_) => {
                let (word, _) = self.world.ask(scripts::sent(&keys, id, owner, None, HOST));
                let expected =
                    self.change(id, |record, now| record.sent(owner, None, now).ok().map(|()| RecordRetention::Keep));
                if expected == "done" {
                    self.beat();
                }
                prop_assert_eq!(word, expected);
            }
            Event::Finish(_) => {
                // The script differs on purpose, as for keys: a host may finish twice.
                if self.records.get(&id).is_some_and(|record| record.phase() == Phase::Done) {
                    return Ok(());
                }
                let answer = stored("answer");
                let (word, _) = self.world.ask(scripts::finish(&keys, id, owner, codec::encode(&answer)));
                let finish = |record: &mut Record, now| record.finish(owner, Arc::new(answer), now).ok();
                let expected = self.change(id, |record, now| finish(record, now).map(|()| RecordRetention::Keep));
                prop_assert_eq!(word, expected);
            }
            Event::Leave(_, sent) => {
                let leaving = Leaving::at_once(sent.map(Duration::from_secs));
                let (word, _) = self.world.ask(scripts::leave(&keys, id, owner, &leaving, None));
                prop_assert_eq!(word, self.change(id, |record, now| record.leave(owner, &leaving, now).ok()));
            }
            Event::Look(_) => {
                let value = self.world.value(scripts::get(&keys, id, self.world.lost_ago()));
                let answer = ScriptReply::of(&value).unwrap();
                let record = self.records.get(&id);
                let unsettled = record.and_then(|record| record.unknown_for(&self.facts(id), now));
                prop_assert_eq!(answer.duration(), unsettled);
                let is_verified = record.is_some_and(|record| record.verified_for(&self.facts(id), now).is_some());
                if is_verified {
                    prop_assert_eq!(answer.duration_at(2), Some(Duration::ZERO));
                } else if unsettled.is_some() {
                    let due = record.and_then(Record::due);
                    prop_assert_eq!(answer.duration_at(2), due.map(|due| due.since(now)));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn the_scripts_of_equal_requests_do_what_the_transitions_do() {
    let server = RedisServer::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let played = runner.run(&events(), |events| {
        let mut connection = server.connection();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let mut world = World::new(connection);
        world.mark();
        let mut lists = Lists { world, list: Unanswered::default(), records: HashMap::new(), owners: Vec::new() };
        events.into_iter().try_for_each(|event| lists.play(event))
    });
    played.unwrap_or_else(|error| panic!("{error}"));
}

fn arriving(fence: u128) -> Arriving {
    let digest = RequestDigest::from_bytes([9; 32]);
    let id = RecordId::draw_beside(&Rng::seeded(fence as u64), digest);
    let ticket = Ticket { digest, id, owner: FencingToken(fence), terms: TERMS };
    Arriving { ticket, opening: Lists::opening(&ticket), fingerprint_lock: None, max: 1000, intent: None }
}

/// An orphan of one host's caller is adopted by another host's caller, and no entry is adopted twice.
#[tokio::test]
async fn a_caller_adopts_the_orphan_of_another_hosts_caller() {
    use crate::idempotency::Arrived;
    let server = RedisServer::start();
    let ((one, clock), (other, other_clock)) = (host(&server, Some([7; 32])), host(&server, Some([7; 32])));
    let left = arriving(1);
    assert!(matches!(one.arrive(left.clone()).await.unwrap(), Arrived::Listed { others: false, .. }));
    assert!(matches!(other.arrive(arriving(2)).await.unwrap(), Arrived::Listed { others: true, .. }));
    assert_eq!(other.recheck_orphan(arriving(2).ticket).await.unwrap(), None, "its caller is there");
    let entry = crate::idempotency::Entry::asking(&one, clock, &left);
    let hold = crate::idempotency::RecordGuard::listed(&one, clock, &left, Arc::clone(&entry), None, true);
    entry.abandon();
    hold.finish(stored("patient 7")).await.unwrap();
    one.flushed().await;
    let found = other.recheck_orphan(arriving(2).ticket).await.unwrap();
    assert_eq!(found, Some(left.ticket.id));
    let Arrived::Listed { others: true, .. } = other.arrive(arriving(3)).await.unwrap() else { panic!("twice") };
    let opening = BeginRequest { fence: FencingToken(2), ..left.opening };
    let begun = begin(&other, other_clock, left.ticket.id, opening).await.unwrap();
    assert!(matches!(&begun, BeginOutcome::Replay(kept) if **kept == stored("patient 7")), "{begun:?}");
    // The caller has the response, so only the third request's entry is left.
    other.answered(Ticket { id: left.ticket.id, ..arriving(2).ticket }, true);
    other.answered(arriving(3).ticket, true);
    other.flushed().await;
    let left: Vec<String> = server.ask(&["KEYS", "*idem-*unanswered*"]);
    assert_eq!(left, Vec::<String>::new());
    let records: Vec<String> = server.ask(&["KEYS", "*idem-*:all"]);
    assert_eq!(records, Vec::<String>::new());
}

/// An entry does not last longer when the server's clock is set back by a day.
#[test]
fn a_clock_that_is_set_back_prolongs_no_place() {
    let server = RedisServer::start();
    let mut world = World::new(server.connection());
    world.mark();
    let about = Circumstances { cap: 100, lost_ago: None, host: HOST, one_node: true, era: "e".to_owned() };
    let keys = world.keys.clone();
    let arrive = |world: &mut World, fence| world.ask(scripts::arrive(&keys, &arriving(fence), None, &about)).0;
    assert_eq!(arrive(&mut world, 1), "new");
    world.now = START.before(Duration::from_hours(24));
    assert_eq!(arrive(&mut world, 2), "new", "its owner may live");
    world.now = world.now.after(TERMS.lease);
    assert_eq!(arrive(&mut world, 3), "adopted");
}

/// How long the server is suspended and misses that callers have their responses: two seconds longer than earlier retries lasted.
const OUTAGE: Duration = Duration::from_secs(10);

/// The server learns late that a caller has its response. No equal request adopts it, at this host or another one.
#[tokio::test]
async fn an_answered_write_is_no_orphan_after_an_outage_that_hid_the_answer() {
    use crate::idempotency::Arrived;
    let server = RedisServer::start();
    let link = |url: &str| link_within(url, "100ms");
    let (one, _) = records_of(link(&server.url()).0, Clock::system(), None, 1000);
    let (other, _) = records_of(link(&server.url()).0, Clock::system(), None, 1000);
    let short = |fence| {
        let mut arriving = arriving(fence);
        arriving.ticket.terms.lease = Duration::from_secs(1);
        arriving
    };
    assert!(matches!(one.arrive(short(1)).await.unwrap(), Arrived::Listed { .. }));
    assert!(matches!(other.arrive(short(2)).await.unwrap(), Arrived::Listed { others: true, .. }));
    server.stop();
    one.answered(short(1).ticket, true);
    sleep(OUTAGE).await;
    assert_eq!(one.0.endings.len(), 1, "it waits");
    assert!(matches!(one.arrive(short(3)).await, Err(RecordError::Unavailable { maybe_done: false, .. })));
    server.go_on();
    // The host reports the end of the first entry before it arrives; the second entry's lease has ended.
    let found = retried(|| one.arrive(short(4))).await;
    assert!(matches!(found, Arrived::Adopted(id) if id == short(2).ticket.id), "{found:?}");
    while one.0.endings.len() > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    let found = retried(|| other.arrive(short(5))).await;
    assert!(matches!(found, Arrived::Listed { others: true, .. }), "{found:?}");
    let listed: Vec<String> = server.ask(&["KEYS", "*idem-*:all"]);
    let ids: Vec<Vec<u8>> =
        listed.iter().flat_map(|key| server.ask::<Vec<Vec<u8>>>(&["ZRANGE", key, "0", "-1"])).collect();
    assert!(!ids.iter().any(|id| id == short(1).ticket.id.as_bytes()), "its record went too");
}

/// Retries until the suspended server replies.
async fn retried<'a, T>(ask: impl Fn() -> Reply<'a, T>) -> T {
    for _ in 0..100 {
        if let Ok(answer) = ask().await {
            return answer;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not answer");
}

/// The server loses its data while an unkeyed write with a waiting caller is under way. The entry is listed again and the record is
/// restored, so that the response is delivered, an unknown write is kept, and an orphan is not sent again.
#[tokio::test]
async fn a_place_that_the_server_has_lost_is_listed_again() {
    use crate::idempotency::{Arrived, Entry, Ownership, RecordGuard};
    let server = RedisServer::start();
    let ((one, clock), (other, _)) = (host(&server, Some([7; 32])), host(&server, Some([7; 32])));
    let left = Arriving { intent: Some(Arc::new(World::intent(FencingToken(2)))), ..arriving(1) };
    let entry = Entry::asking(&one, clock, &left);
    assert!(matches!(one.arrive(left.clone()).await.unwrap(), Arrived::Listed { .. }));
    let mut hold = RecordGuard::listed(&one, clock, &left, Arc::clone(&entry), None, true);
    hold.sent().await.unwrap();
    entry.keep_alive();
    let () = server.ask(&["FLUSHALL"]);
    // Until it was renewed twice.
    sleep(TERMS.lease).await;
    assert_eq!(entry.ownership().await, Ownership::Held);
    let next = other.arrive(arriving(2)).await.unwrap();
    assert!(matches!(next, Arrived::Listed { others: true, .. }), "{next:?}");
    hold.leave_unknown(Duration::ZERO);
    entry.abandon();
    one.flushed().await;
    let unsettled = other.unsettled(10).await.unwrap();
    assert!(unsettled.iter().any(|unsettled| unsettled.id == left.ticket.id), "{unsettled:?}");
    let next = other.arrive(arriving(3)).await.unwrap();
    assert!(matches!(next, Arrived::Adopted(id) if id == left.ticket.id), "{next:?}");
}

/// A late renewal does not list an entry again that its owner has ended, or that another request had adopted.
#[tokio::test]
async fn a_place_that_ended_is_not_listed_again() {
    use crate::idempotency::{Arrived, Renewed};
    let server = RedisServer::start();
    let (one, _) = host(&server, None);
    for (fence, forget) in [(1, true), (2, false)] {
        let ticket = arriving(fence).ticket;
        assert!(matches!(one.arrive(arriving(fence)).await.unwrap(), Arrived::Listed { .. }));
        one.answered(ticket, forget);
        one.flushed().await;
        let renewed = one.keep_alive(ticket, LOCK, EntryTerm::Lasting).await.unwrap();
        assert_eq!(renewed, Renewed { entry: false, lock: !forget });
    }
}
