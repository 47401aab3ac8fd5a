#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Plays the same histories on the script and on the pure transitions; and tests the script on values of other programs.

use super::*;
use crate::{
    clock::{Clock, Timestamp},
    digest::Digest,
    rng::Rng,
    rollout::{
        PolicyRef, Why,
        protocol::{Agreement, MAX_GENERATION},
    },
    {
        Address, Keys,
        test_server::{RedisCluster, RedisServer},
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

const START: u64 = 1_800_000_000_000_000;

#[derive(Debug, Clone)]
enum Event {
    Say { host: u8, generation: u64, staged: Option<u8>, known: Option<(u64, u64)>, word: Said },
    Pass(u64),
    SetBack(u64),
    Lose,
}

#[derive(Debug, Clone)]
enum Said {
    Beat,
    /// Whether it is promoted, and which other hosts are known to be live.
    Announce(u8, bool, u8),
    Refuse(u8),
    /// Of the present generation, or of another generation or policy.
    RollBack(u8, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let said = prop_oneof![
        8 => Just(Said::Beat),
        4 => (0..5_u8, prop::bool::weighted(0.2), 0..4_u8)
            .prop_map(|(digest, promoted, other)| Said::Announce(digest, promoted, other)),
        1 => (0..40_u8).prop_map(Said::Refuse),
        3 => (0..8_u8, any::<bool>()).prop_map(|(meant, fault)| Said::RollBack(meant, fault)),
    ];
    let known = prop::option::weighted(0.1, (0..2_u64, 0..8_u64));
    prop_oneof![
        12 => (0..3_u8, 0..5_u64, prop::option::of(0..40_u8), known, said)
            .prop_map(|(host, generation, staged, known, word)| Event::Say { host, generation, staged, known, word }),
        4 => prop_oneof![0..3_000_u64, 20_000..40_000_u64].prop_map(Event::Pass),
        1 => (0..60_000_u64).prop_map(Event::SetBack),
        1 => Just(Event::Lose),
    ]
}

/// The script's server and the model.
struct World {
    connection: redis::Connection,
    keys: [String; 2],
    pure: Agreement,
    now: Timestamp,
    proposals: u64,
    outcomes: BTreeSet<String>,
}

impl World {
    fn new(server: &RedisServer, case: u32) -> Self {
        let keys = ["agreement", "hosts"].map(|what| Keys::new("t").tagged(format!("policy-{case}"), what));
        Self {
            connection: server.connection(),
            keys,
            pure: Agreement::default(),
            now: Timestamp(START),
            proposals: 0,
            outcomes: BTreeSet::new(),
        }
    }

    fn ask(&mut self, host_status: &HostStatus, known: &FleetState, word: &Message) -> MessageReply {
        let arguments = arguments(Some(self.now.0), "t:events", "api", host_status, known, word);
        let mut command = redis::cmd("EVAL");
        command.arg(AGREEMENT.source()).arg(2).arg(&self.keys).arg(arguments);
        let answer: Value = command.query(&mut self.connection).unwrap();
        read(&answer).unwrap_or_else(|| panic!("{answer:?}"))
    }

    /// Number of published messages.
    fn published(&mut self) -> u64 {
        let reported: String = redis::cmd("INFO").arg("commandstats").query(&mut self.connection).unwrap();
        let calls = reported.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    }

    /// The state of the model, as hosts read it.
    fn view(&self) -> FleetStatus {
        let Agreement { state, proposal, aborted, members } = &self.pure;
        let hosts = members.iter().map(|(name, member)| Host {
            name: name.clone(),
            silent: self.now.since(member.last_message_at),
            generation: member.generation,
            staged: member.staged,
        });
        let proposed = proposal.as_ref().map(|own| Proposed {
            id: own.id,
            digest: own.digest,
            by: own.by.clone(),
            promoted: own.promoted,
            left: own.until.since(self.now),
        });
        FleetStatus { state: state.clone(), proposed, aborted: aborted.clone(), hosts: hosts.collect() }
    }

    fn play(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Pass(ms) => self.now = self.now.after(Duration::from_millis(*ms)),
            Event::SetBack(ms) => self.now = self.now.before(Duration::from_millis(*ms)),
            Event::Lose => {
                redis::cmd("DEL").arg(&self.keys).exec(&mut self.connection).unwrap();
                self.pure = Agreement::default();
            }
            Event::Say { host, generation, staged, known, word } => {
                let id = |number: u8| 1000 + u64::from(number);
                let digest = |of: u8| Digest::of(&[of]);
                let known = known.map_or_else(FleetState::default, |(line, generation)| FleetState {
                    // Of the fleet's line, or of another one.
                    line: if line == 0 { self.pure.state.line } else { 5 },
                    generation,
                    chosen: PolicyRef::Artifact(digest(generation as u8)),
                    before: (generation % 2 == 0).then_some(PolicyRef::Configured),
                    why: Why::Announced,
                    by: "k.1_-".to_owned(),
                    quarantined: vec![digest(77); usize::from(generation > 3)],
                });
                let word = match word {
                    Said::Beat => Message::Heartbeat,
                    Said::Announce(of, promoted, other) => {
                        self.proposals += 1;
                        let others = (0..2).filter(|host| *other == *host).map(|host| format!("host-{host}")).collect();
                        let (id, digest, from) = (1000 + self.proposals % 40, digest(*of), digest(other % 2));
                        Message::Announce { id, digest, promoted: *promoted, from, others }
                    }
                    Said::Refuse(number) => {
                        Message::Refuse { id: id(*number), step: "load", reason: "it traps, \"so\" to say".to_owned() }
                    }
                    Said::RollBack(meant, fault) => Message::RollBack {
                        generation: self.pure.state.generation + u64::from(*meant == 6),
                        chosen: if *meant == 7 { PolicyRef::Artifact(digest(66)) } else { self.pure.state.chosen },
                        why: if *fault { Why::Fault } else { Why::Operator },
                    },
                };
                // Stage the open proposal often, so that some switches happen.
                let current = self.pure.proposal.as_ref().map(|proposal| proposal.id);
                let staged = staged.and_then(|number| if number % 2 == 0 { current } else { Some(id(number)) });
                let host_status = HostStatus { host: format!("host-{host}"), generation: *generation, staged };
                let (outcome, is_news) = self.pure.apply(&host_status, &known, &word, self.now);
                self.outcomes.insert(format!("{outcome:?}"));
                let published = self.published();
                let heard = self.ask(&host_status, &known, &word);
                prop_assert_eq!(self.published() - published, u64::from(is_news), "published after {:?}", event);
                prop_assert_eq!(heard, MessageReply { outcome, flawed: false, view: self.view() }, "after {:?}", event);
            }
        }
        Ok(())
    }
}

#[test]
fn one_history_goes_alike_in_the_pure_transitions_and_in_redis() {
    let server = RedisServer::start();
    let mut runner = TestRunner::new(ProptestConfig { cases: 400, ..ProptestConfig::default() });
    let (case, switched, outcomes) = (Cell::new(0), Cell::new(0), RefCell::new(BTreeSet::new()));
    runner
        .run(&prop::collection::vec(event(), 1..80), |events| {
            case.set(case.get() + 1);
            let mut world = World::new(&server, case.get());
            for event in &events {
                world.play(event)?;
            }
            outcomes.borrow_mut().append(&mut world.outcomes);
            switched.set(switched.get() + world.pure.state.generation);
            Ok(())
        })
        .unwrap();
    let all = ["Aborted", "Busy", "Done", "Gathering", "NoOther", "Quarantined", "Serving", "Stale"];
    assert_eq!(outcomes.into_inner().iter().collect::<Vec<_>>(), all);
    assert!(switched.get() > 400, "histories in which something happens: {}", switched.get());
}

fn announce(id: u64, of: &[u8]) -> Message {
    let (digest, from) = (Digest::of(of), Digest::of(b"configured"));
    Message::Announce { id, digest, promoted: false, from, others: Vec::new() }
}

fn own() -> HostStatus {
    HostStatus { host: "own".to_owned(), generation: 5, staged: None }
}

fn known() -> FleetState {
    let chosen = PolicyRef::Artifact(Digest::of(b"good"));
    FleetState { line: 9, generation: 5, chosen, why: Why::Announced, by: "own".to_owned(), ..FleetState::default() }
}

/// A program that writes to the server can choose a digest, and nothing else: values that are no digest, no number or too long are
/// discarded, and this host's copy is written back.
#[test]
fn a_host_discards_invalid_fields_and_writes_its_copy_back() {
    let server = RedisServer::start();
    let mut world = World::new(&server, 0);
    let huge = "a".repeat(1 << 20);
    let digest = Digest::of(b"x").to_string();
    let list = vec![digest.as_str(); 33].join(" ");
    for (field, value) in [
        ("ge", "-1"),
        ("ge", "1e9"),
        ("ge", "99999999999999999999999"),
        ("ge", ""),
        ("ge", "0x10"),
        ("ge", "05"),
        ("ge", "0"),
        ("ln", ""),
        ("ln", "9"),
        ("ln", "000000000000000G"),
        ("ge", &huge),
        ("ch", "garbage"),
        ("ch", &digest.to_uppercase()),
        ("ch", "oci://evil.example/a"),
        ("ch", &huge),
        ("be", "?"),
        ("wy", "x"),
        ("by", "a b\nc"),
        ("qu", &list),
        ("qu", &format!("{digest}  {digest}")),
        ("pi", "1"),
        ("pi", "00000000000000aa"),
        ("ai", "00000000000000aa"),
        ("pu", &huge),
    ] {
        world.ask(&own(), &known(), &Message::Heartbeat);
        redis::cmd("HSET").arg(&world.keys[0]).arg(field).arg(value).exec(&mut world.connection).unwrap();
        let heard = world.ask(&own(), &known(), &Message::Heartbeat);
        let short: String = value.chars().take(40).collect();
        assert!(heard.flawed, "{field} {short}");
        assert_eq!((heard.view.state, heard.view.proposed), (known(), None), "{field} {short}");
        assert!(!world.ask(&own(), &known(), &Message::Heartbeat).flawed, "{field} {short}: it is mended");
    }
    // A proposal and an aborted one, each with one invalid word.
    let whole = [
        [("pi", "00000000000000aa"), ("pd", &digest), ("pb", "x"), ("pp", "1"), ("pf", &digest), ("pu", "1")].to_vec(),
        [("ai", "00000000000000aa"), ("ad", &digest), ("ab", "x"), ("as", "load"), ("ar", "no")].to_vec(),
    ];
    let bad: [&[u8]; 5] = [b"", b"\xff", b"A b\n", huge.as_bytes(), b"?1"];
    for fields in &whole {
        for spoilt in 0..fields.len() {
            for value in
                bad.iter().skip(usize::from(spoilt == 0)).filter(|value| fields[spoilt].0 != "ar" || value.len() > 9)
            {
                world.ask(&own(), &known(), &Message::Heartbeat);
                for (at, (field, good)) in fields.iter().enumerate() {
                    let value = if at == spoilt { *value } else { good.as_bytes() };
                    redis::cmd("HSET").arg(&world.keys[0]).arg(field).arg(value).exec(&mut world.connection).unwrap();
                }
                let heard = world.ask(&own(), &known(), &Message::Heartbeat);
                let (field, short) = (fields[spoilt].0, String::from_utf8_lossy(&value[..value.len().min(20)]));
                assert!(heard.flawed, "{field} {short}");
                let FleetStatus { state, proposed, aborted, .. } = heard.view;
                assert_eq!((state, proposed, aborted), (known(), None, None), "{field} {short}");
            }
        }
    }
    // A reason is text of another host and its component: any bytes must leave the reply readable.
    for (reason, expected) in [(&b"\xffno\x1b[2J"[..], "\u{fffd}no [2J"), (&b""[..], ""), (&[0xff; 2000][..], "")] {
        for (field, value) in &whole[1] {
            redis::cmd("HSET").arg(&world.keys[0]).arg(field).arg(value).exec(&mut world.connection).unwrap();
        }
        redis::cmd("HSET").arg(&world.keys[0]).arg("ar").arg(reason).exec(&mut world.connection).unwrap();
        let heard = world.ask(&own(), &known(), &Message::Heartbeat);
        let reported = heard.view.aborted.unwrap().reason;
        assert!(
            !heard.flawed && reported.starts_with(expected) && reported.chars().count() <= MAX_REASON_CHARS,
            "{reported}"
        );
    }
    for value in ["", "1 2", "-1 5 ", "1 -5 ", "99999999999999999999 5 ", &huge] {
        redis::cmd("HSET").arg(&world.keys[1]).arg("other").arg(value).exec(&mut world.connection).unwrap();
        let heard = world.ask(&own(), &known(), &Message::Heartbeat);
        assert!(heard.flawed && heard.view.hosts.len() == 1, "{heard:?}");
    }
    for key in 0..2 {
        redis::cmd("SET").arg(&world.keys[key]).arg("a string").exec(&mut world.connection).unwrap();
        let heard = world.ask(&own(), &known(), &Message::Heartbeat);
        assert!(heard.flawed, "{key}");
        assert_eq!(heard.view.state, known());
    }
}

/// A fleet can switch even from the highest generation.
#[test]
fn an_absurd_generation_can_still_be_followed_by_another_policy() {
    let server = RedisServer::start();
    let mut world = World::new(&server, 0);
    let last = FleetState { generation: MAX_GENERATION, ..known() };
    world.ask(&own(), &last, &Message::Heartbeat);
    let announce = announce(1, b"next");
    let heard = world.ask(&own(), &last, &announce);
    assert_eq!((heard.outcome, heard.flawed), (MessageOutcome::Done, false));
    let state = heard.view.state;
    assert_eq!((state.generation, state.chosen), (MAX_GENERATION, PolicyRef::Artifact(Digest::of(b"next"))));
    let back = |chosen| Message::RollBack { generation: MAX_GENERATION, chosen, why: Why::Operator };
    let stale = world.ask(&own(), &state, &back(last.chosen));
    assert_eq!(stale.outcome, MessageOutcome::Stale, "of one generation's number, but of another policy");
    let heard = world.ask(&own(), &state, &back(state.chosen));
    assert_eq!((heard.outcome, heard.view.state.chosen), (MessageOutcome::Done, last.chosen));
}

/// A foreign reply is an error, and no panic.
#[test]
fn an_answer_that_is_none_is_none() {
    let text = |word: &str| Value::BulkString(word.into());
    for answer in [
        Value::Nil,
        Value::Array(Vec::new()),
        Value::Array(vec![text("done"); 19]),
        Value::Array(vec![Value::Int(1); 40]),
    ] {
        assert_eq!(read(&answer), None, "{answer:?}");
    }
}

/// Each change is published, and nothing else.
#[test]
fn only_a_change_of_the_agreement_is_published() {
    let server = RedisServer::start();
    let mut world = World::new(&server, 0);
    let mut listening = server.connection();
    let mut channel = listening.as_pubsub();
    channel.subscribe("t:events").unwrap();
    channel.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let none = FleetState::default();
    let chosen = PolicyRef::Artifact(Digest::of(b"x"));
    let back = |generation| Message::RollBack { generation, chosen, why: Why::Fault };
    let own = |host: &str, staged| HostStatus { host: host.to_owned(), generation: 0, staged };
    let mut said = 0;
    for (host_status, word, is_news) in [
        (own("a", None), Message::Heartbeat, false),
        (own("b", None), Message::Heartbeat, false),
        (own("a", None), announce(1, b"x"), true),
        (own("a", None), announce(2, b"y"), false),
        (own("a", Some(1)), Message::Heartbeat, false),
        (own("b", Some(1)), Message::Heartbeat, true),
        (own("b", None), back(9), false),
        (own("b", None), back(1), true),
        (own("b", None), announce(3, b"y"), true),
        (own("a", None), Message::Refuse { id: 3, step: "load", reason: String::new() }, true),
    ] {
        world.ask(&host_status, &none, &word);
        assert_eq!(world.pure.apply(&host_status, &none, &word, world.now).1, is_news, "{word:?}");
        said += usize::from(is_news);
        // Messages arrive in order, so all earlier ones precede this.
        let () = server.ask(&["PUBLISH", "t:events", "end"]);
        let reported = std::iter::from_fn(|| {
            let text: String = channel.get_message().unwrap().get_payload().unwrap();
            (text != "end").then_some(text)
        });
        assert_eq!(reported.collect::<Vec<_>>(), vec!["policy api"; usize::from(is_news)], "{word:?}");
    }
    assert_eq!(said, 5);
}

/// Both keys are on one node of a Cluster, with any name of the upstream.
#[tokio::test]
async fn hosts_agree_on_a_cluster() {
    let cluster = RedisCluster::start();
    let settings = crate::Settings {
        prefix: "test".to_owned(),
        timeout: Duration::from_secs(5),
        ..crate::Settings::new(Address::parse(&cluster.url()).unwrap())
    };
    let link = RedisConnection::open(&settings, Clock::system(), Rng::system()).unwrap();
    for upstream in ["api", "{braces} and blanks", "third"] {
        let agreement = RedisAgreement::new(link.clone(), upstream);
        let host_status = HostStatus { host: "a".to_owned(), generation: 0, staged: None };
        let word = announce(1, b"x");
        let heard = agreement.send(&host_status, &FleetState::default(), &word).await.unwrap();
        assert_eq!((heard.outcome, heard.view.state.generation), (MessageOutcome::Done, 1), "{upstream}");
    }
}
