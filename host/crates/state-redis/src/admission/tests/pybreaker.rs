//! How the scripts react to writes of Python workers, and what they mirror. The tests set the time.

use super::*;
use crate::{
    breaker,
    contract::BreakerSignal,
    group::{AttemptKind, Pybreaker, Report, Settings},
    retry::budget,
    {
        Keys, Script, Value,
        admission::{
            scripts::{self, Acquired, Frame, Go, ProbeTicket, SavedUp},
            shared_breaker::SharedBreakerState,
        },
        test_server::RedisServer,
    },
};
use std::time::Duration;

const KEYS: [&str; 4] =
    ["pybreaker:state", "pybreaker:fail_counter", "pybreaker:success_counter", "pybreaker:opened_at"];
const OPEN_FOR: Duration = Duration::from_secs(10);

/// A group, and the Python workers' four keys.
struct Stage {
    server: RedisServer,
    frame: Frame,
    /// The tests' clock, in microseconds.
    now: u64,
}

fn settings(namespace: Option<&str>) -> Settings {
    let breaker = breaker::Settings {
        failure_rate_percent: None,
        open_for: OPEN_FOR,
        open_for_max: 2 * OPEN_FOR,
        jitter_percent: 0,
        ..breaker::Settings::default()
    };
    let pybreaker = Some(Pybreaker { namespace: namespace.map(str::to_owned) });
    Settings { breaker: Some(breaker), limits: vec![], budget: budget::Settings::default(), leased: false, pybreaker }
}

impl Stage {
    /// A fleet of one host.
    fn new() -> Self {
        Self::of(&settings(None), 1)
    }

    fn of(settings: &Settings, quorum: u32) -> Self {
        let frame = Frame::new(&Keys::new("test"), "api/get", "here", quorum, settings);
        Self { server: RedisServer::start(), frame, now: 1_700_000_000_900_000 }
    }

    fn run(&self, script: &'static Script, own: &[String]) -> (SharedBreakerState, Vec<Value>) {
        let arguments = self.frame.arguments(Some(self.now), 0, &scripts::Memory::default(), own);
        let mut command = redis::cmd("EVAL");
        command.arg(script.source()).arg(self.frame.keys.len()).arg(&self.frame.keys).arg(arguments);
        let answer = command.query(&mut self.server.connection()).unwrap();
        let (shared, own) = scripts::split_reply(&answer).unwrap();
        (shared, own.to_vec())
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds * 1_000_000;
    }

    fn send_heartbeat(&self) -> State {
        self.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default())).0.state
    }

    fn row(&self) -> u32 {
        let (_, own) = self.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default()));
        scripts::heartbeat_reply(&own).unwrap().failures_in_row
    }

    /// The ticket for one attempt, if admitted.
    fn ask(&self) -> Option<ProbeTicket> {
        let own = scripts::acquire(AttemptKind::First, &(Duration::ZERO..=Duration::ZERO), &SavedUp::default(), 0);
        let (shared, own) = self.run(&scripts::ACQUIRE, &own);
        match scripts::acquired(&own).unwrap() {
            Acquired::Go(Go { lease, .. }) => Some(ProbeTicket { epoch: shared.epoch, lease }),
            _ => None,
        }
    }

    fn report(&self, ticket: &ProbeTicket, signal: BreakerSignal) -> State {
        self.run(
            &scripts::REPORT,
            &scripts::report(&SavedUp::default(), Some((ticket, &Report::new(signal, Duration::ZERO))), false),
        )
        .0
        .state
    }

    fn call(&self, signal: BreakerSignal) -> State {
        self.report(&self.ask().expect("a permit"), signal)
    }

    fn trip(&self) {
        for _ in 0..5 {
            self.call(BreakerSignal::Failure);
        }
    }

    fn force(&self, force: breaker::Force) -> State {
        self.run(&scripts::FORCE, &scripts::force(force)).0.state
    }

    /// Writes keys as a Python worker does.
    fn set(&self, values: [Option<&str>; 4]) {
        for (key, value) in KEYS.iter().zip(values) {
            let () = match value {
                Some(value) => self.server.ask(&["SET", key, value]),
                None => self.server.ask(&["DEL", key]),
            };
        }
    }

    fn put(&self, key: usize, value: &str) {
        let () = self.server.ask(&["SET", KEYS[key], value]);
    }

    /// The four keys, `-` for a missing one.
    fn shown(&self) -> String {
        let values: Vec<Option<String>> = self.server.ask(&[&["MGET"][..], &KEYS].concat());
        values.into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned())).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn each_phase_is_shown_as_pybreaker_would_write_it() {
    let mut stage = Stage::new();
    stage.send_heartbeat();
    assert_eq!(stage.shown(), "closed 0 0 -", "at first");
    for failures in 1..=4 {
        stage.call(BreakerSignal::Failure);
        assert_eq!(stage.shown(), format!("closed {failures} 0 -"), "as it counts");
    }
    stage.call(BreakerSignal::Failure);
    assert_eq!(stage.shown(), "open 5 0 1700000000", "open");
    stage.pass(9);
    stage.send_heartbeat();
    assert_eq!(stage.shown(), "open 5 0 1700000009", "as of now");
    stage.pass(1);
    let probe = stage.ask().expect("the probe's permit");
    assert_eq!(stage.shown(), "open 5 0 1700000010", "half-open");
    assert!(matches!(stage.report(&probe, BreakerSignal::Failure), State::Open { .. }));
    assert_eq!(stage.shown(), "open 5 0 1700000010", "open again");
    stage.pass(20);
    stage.call(BreakerSignal::Success);
    assert_eq!(stage.shown(), "closed 0 0 1700000030", "closed, both counters 0");
    for key in KEYS {
        assert_eq!(stage.server.ask::<i64>(&["TTL", key]), -1, "{key}");
    }
}

#[test]
fn a_change_by_python_is_an_external_event() {
    type Case = (&'static str, bool, [Option<&'static str>; 4], &'static str, &'static str);
    let opened = "y";
    let cases: [Case; 9] = [
        ("it opens", false, [Some("open"), Some("5"), Some("0"), Some("1700000000")], opened, "open 5 0 1700000000"),
        ("it opens and its time is lost", false, [Some("open"), Some("5"), None, None], opened, "open 5 0 1700000000"),
        (
            "it opens, by a time that is none",
            false,
            [Some("open"), Some("5"), Some("0"), Some("1.7e9")],
            opened,
            "open 5 0 1700000000",
        ),
        (
            "it probes",
            true,
            [Some("half-open"), Some("5"), Some("0"), Some("1699999000")],
            opened,
            "open 5 0 1700000000",
        ),
        (
            "it probes what was closed",
            false,
            [Some("half-open"), Some("5"), Some("0"), Some("1699999000")],
            opened,
            "open 5 0 1700000000",
        ),
        (
            "it closes",
            true,
            [Some("closed"), Some("0"), Some("0"), Some("1700000000")],
            "closed",
            "closed 0 0 1700000000",
        ),
        (
            "it opens what is open",
            true,
            [Some("open"), Some("6"), Some("0"), Some("1700000000")],
            "c5",
            "open 6 0 1700000000",
        ),
        ("nobody knows the word", false, [Some("half_open"), Some("0"), Some("0"), None], "closed", "closed 0 0 -"),
        ("its keys are gone", true, [None, None, None, None], "c5", "open 5 0 1700000000"),
    ];
    for (name, open, written, expected, shown) in cases {
        let stage = Stage::new();
        stage.send_heartbeat();
        let before = if open {
            stage.trip();
            assert!(matches!(stage.send_heartbeat(), State::Open { .. }), "{name}");
            stage.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default())).0
        } else {
            stage.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default())).0
        };
        stage.set(written);
        let after = stage.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default())).0;
        let got = match after.state {
            State::Open { why, left } => {
                assert_eq!(left, OPEN_FOR, "{name}: the settings' own time");
                super::super::shared_breaker::word(why)
            }
            State::Closed => "closed".to_owned(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(got, expected, "{name}");
        assert_eq!(after.epoch != before.epoch, after.state != before.state, "{name}: a new epoch for a new state");
        assert_eq!(stage.shown(), shown, "{name}");
    }
}

/// A host meets an existing breaker of Python workers; another host enables the mirror later.
#[test]
fn at_the_first_look_open_wins() {
    let mut stage = Stage::new();
    stage.set([Some("open"), Some("5"), Some("0"), Some("1699999990")]);
    assert!(matches!(stage.send_heartbeat(), State::Open { .. }), "theirs");
    let mut alone = settings(None);
    alone.pybreaker = None;
    let with = std::mem::replace(&mut stage.frame, Frame::new(&Keys::new("test"), "api/get", "here", 1, &alone));
    stage.pass(10);
    stage.call(BreakerSignal::Success);
    assert_eq!(stage.send_heartbeat(), State::Closed);
    assert_eq!(stage.shown(), "open 5 0 1700000000", "not shown where it is off");
    stage.trip();
    stage.set([Some("closed"), Some("0"), Some("0"), Some("1700000000")]);
    // The state mirrored before the mirror was disabled is too old to rely on.
    let () = stage.server.ask(&["HSET", &with.keys[0], "py", "closed"]);
    stage.frame = with;
    assert!(matches!(stage.send_heartbeat(), State::Open { .. }), "ours");
    assert_eq!(stage.shown(), "open 5 0 1700000010");
}

#[test]
fn an_operators_word_stands_against_python() {
    let mut stage = Stage::new();
    let opened = stage.force(breaker::Force::Open(Duration::from_secs(60)));
    assert!(matches!(opened, State::Open { .. }));
    for word in ["closed", "half-open"] {
        stage.put(0, word);
        assert_eq!(stage.send_heartbeat(), opened, "{word}");
        assert_eq!(stage.shown(), "open 0 0 1700000000", "{word}");
    }
    let held = stage.force(breaker::Force::Close(Duration::from_secs(60)));
    stage.set([Some("open"), Some("5"), Some("0"), Some("1700000000")]);
    assert_eq!(stage.send_heartbeat(), held);
    assert_eq!(stage.shown(), "closed 0 0 1700000000", "held closed");
    stage.pass(60);
    stage.set([Some("open"), Some("5"), Some("0"), Some("1700000060")]);
    assert!(matches!(stage.send_heartbeat(), State::Open { .. }), "its time is over");
}

#[test]
fn failures_in_a_row_are_counted_together() {
    let stage = Stage::new();
    stage.send_heartbeat();
    stage.put(1, "4");
    assert_eq!(stage.row(), 4, "theirs");
    assert!(matches!(stage.call(BreakerSignal::Failure), State::Open { .. }), "the fifth");
    let stage = Stage::new();
    for _ in 0..3 {
        stage.call(BreakerSignal::Failure);
    }
    stage.put(1, "0");
    assert_eq!(stage.row(), 0, "a success of theirs");
    // Successes that a host has saved up count as older.
    stage.call(BreakerSignal::Failure);
    stage.put(1, "3");
    let epoch = stage.run(&scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default())).0.epoch;
    let saved_up = SavedUp { epoch, successes: 2, firsts: 0 };
    stage.put(1, "5");
    stage.run(&scripts::HEARTBEAT, &scripts::heartbeat(&saved_up));
    assert_eq!((stage.row(), stage.shown().as_str()), (2, "closed 2 0 -"), "two more of theirs");
    for (word, row) in [("-3", 2), ("x", 2), ("1.5", 2), ("99999999999999", 2), ("", 2), ("9999999999", 1_000_000_000)]
    {
        stage.put(1, word);
        assert_eq!(stage.row(), row, "{word}");
        assert_eq!(stage.shown(), format!("closed {row} 0 -"), "{word}");
    }
}

/// For the quorum, Python workers count as one host.
#[test]
fn python_counts_as_one_that_saw_failures() {
    let mut stage = Stage::of(&settings(None), 2);
    let other = Frame::new(&Keys::new("test"), "api/get", "there", 2, &settings(None));
    let here = std::mem::replace(&mut stage.frame, other);
    stage.send_heartbeat();
    stage.frame = here;
    stage.send_heartbeat();
    for _ in 0..6 {
        stage.call(BreakerSignal::Failure);
    }
    assert_eq!(stage.send_heartbeat(), State::Closed, "one host of two");
    stage.put(1, "7");
    assert!(matches!(stage.call(BreakerSignal::Failure), State::Open { .. }), "and Python");
}

/// Without requests at Triage, workers would wait for its probe for ever.
#[test]
fn a_probe_without_requests_is_left_to_python() {
    let mut stage = Stage::new();
    stage.trip();
    for (seconds, shown) in [(10, "1700000010"), (19, "1700000029"), (1, "1700000029"), (60, "1700000029")] {
        stage.pass(seconds);
        stage.send_heartbeat();
        assert_eq!(stage.shown(), format!("open 5 0 {shown}"), "{seconds} s later");
    }
    let probe = stage.ask().expect("the probe's permit");
    assert_eq!(stage.shown(), "open 5 0 1700000090", "a probe is under way");
    stage.put(0, "closed");
    assert_eq!(stage.send_heartbeat(), State::Closed, "Python was faster");
    assert_eq!(stage.report(&probe, BreakerSignal::Failure), State::Closed, "of an older epoch");
}

#[test]
fn worker_keys_of_another_type_break_no_host() {
    let stage = Stage::new();
    for key in KEYS {
        let () = stage.server.ask(&["LPUSH", key, "x"]);
    }
    assert_eq!(stage.send_heartbeat(), State::Closed);
    assert_eq!(stage.send_heartbeat(), State::Closed);
    stage.trip();
    assert_eq!(stage.shown(), "open 5 0 1700000000");
}

#[test]
fn on_a_cluster_a_groups_keys_lie_where_the_namespace_says() {
    let frame = Frame::new(&Keys::new("test"), "api/get", "here", 1, &settings(Some("{hospital}:v1")));
    let all = ["test:{hospital}:api/get:gate", "{hospital}:v1:pybreaker:state"];
    assert_eq!([&frame.keys[0], &frame.keys[3]], all);
    assert_eq!(
        Frame::new(&Keys::new("test"), "api/get", "here", 1, &settings(Some("x"))).keys[0],
        "test:{api/get}:gate"
    );
}
