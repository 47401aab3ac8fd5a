#![allow(clippy::unwrap_used)]
use super::{
    facts::{Reach, StateFacts, UnsettledFacts},
    *,
};
use crate::telemetry::{Event, Traffic};
use std::time::Duration;

const NOW: u64 = 1_764_300_000_000;

fn calm() -> Facts {
    Facts { now_unix_ms: NOW, ..Facts::default() }
}

fn state() -> StateFacts {
    StateFacts {
        reach: Reach::Up,
        may_evict: false,
        prefix: "triage".to_owned(),
        writes_alone: false,
        lost_ago: None,
        refused: None,
        timed_out: 0,
    }
}

fn with_state(change: impl FnOnce(&mut StateFacts)) -> Facts {
    let mut own = state();
    change(&mut own);
    Facts { state: Some(own), ..calm() }
}

fn traffic(requests: u64, refused: &[(&'static str, u64)], failed: u64) -> Facts {
    let traffic = Traffic { upstream: "api".to_owned(), requests, refused: refused.to_vec(), failed };
    Facts { traffic: vec![traffic], ..calm() }
}

fn refused_connection(kind: &'static str, subject: &str) -> Event {
    Event { number: 1, unix_ms: NOW, kind, subject: subject.to_owned(), text: "it has 50 % of them".to_owned() }
}

fn conditions(facts: &Facts) -> Vec<Condition> {
    Tracker::default().update(facts).0
}

fn only(facts: &Facts) -> Condition {
    let mut all = conditions(facts);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

#[test]
fn a_calm_host_has_no_condition() {
    assert_eq!(conditions(&calm()), []);
    assert_eq!(conditions(&with_state(|_| {})), []);
    assert_eq!(conditions(&traffic(1_000, &[], 0)), []);
}

#[test]
fn each_fault_of_the_host_or_of_shared_state_is_a_condition_that_names_effect_and_remedy() {
    let cases: [(&str, Facts, &str, &str); 14] = [
        ("not-ready", Facts { unready: Some("the host is starting"), ..calm() }, "the host is starting", "log"),
        ("memory-full", Facts { is_memory_full: true, ..calm() }, "refuses requests", "server.memory_limit"),
        ("state-down", with_state(|own| own.reach = Reach::Down), "503 store-unavailable", "state.url"),
        (
            "state-down",
            with_state(|own| (own.reach, own.writes_alone) = (Reach::Down, true)),
            "another host may repeat one",
            "state.url",
        ),
        (
            "state-unauthorized",
            with_state(|own| own.reach = Reach::Unauthorized),
            "name or password",
            "state.password_file",
        ),
        ("state-refuses", with_state(|own| own.refused = Some("OOM".to_owned())), "is full", "maxmemory"),
        ("state-refuses", with_state(|own| own.refused = Some("NOPERM".to_owned())), "(NOPERM)", "permissions"),
        ("state-slow", with_state(|own| own.timed_out = 1), "no answer in time", "state.timeout"),
        ("state-evicts", with_state(|own| own.may_evict = true), "may be lost", "noeviction"),
        (
            "state-lost-data",
            with_state(|own| own.lost_ago = Some(Duration::from_secs(60))),
            "504 effect-unknown",
            "redis-cli HDEL triage:census lost",
        ),
        (
            "writes-unsettled",
            Facts { unsettled: UnsettledFacts { count: 2, unverified: 0, oldest_unix_ms: NOW }, ..calm() },
            "2 writes have an unknown effect: the host verifies them by itself.",
            "triage records list",
        ),
        (
            "peer-limited",
            Facts { refused_connections: vec![refused_connection("peer-limited", "10.0.0.7")], ..calm() },
            "The host closes connections of 10.0.0.7: it has 50 % of them.",
            "server.peer_share",
        ),
        (
            "descriptors-exhausted",
            Facts { refused_connections: vec![refused_connection("exhausted", "api")], ..calm() },
            "Requests to api get 503 overloaded",
            "LimitNOFILE",
        ),
        ("traces-dropped", Facts { traces_dropped: 1, ..calm() }, "lost", "telemetry.otlp.endpoint"),
    ];
    for (id, facts, text, remedy) in cases {
        let condition = only(&facts);
        assert_eq!(condition.id.name(), id);
        assert!(condition.text.contains(text), "{id}: {}", condition.text);
        assert!(condition.remedy.contains(remedy), "{id}: {}", condition.remedy);
        for words in [&condition.text, &condition.remedy] {
            assert!(words.ends_with('.') && !words.starts_with(char::is_lowercase), "{id}: {words}");
        }
    }
}

#[test]
fn a_write_that_no_host_verifies_is_critical_and_as_old_as_its_last_byte() {
    let unsettled = UnsettledFacts { count: 1, unverified: 1, oldest_unix_ms: NOW - 90_000 };
    let condition = only(&Facts { unsettled, ..calm() });
    assert_eq!((condition.severity, condition.since_unix_ms), (Severity::Critical, NOW - 90_000));
    assert_eq!(condition.text, "1 write has an unknown effect: no host verifies them.");
}

#[test]
fn one_refused_request_of_a_thousand_is_a_warning_and_most_of_them_are_critical() {
    let few = only(&traffic(1_000, &[("rate-limited", 1)], 0));
    assert_eq!((few.id, few.severity), (ConditionId::RequestsRefused, Severity::Warning));
    assert_eq!(few.text, "The host refuses less than 1 % of the requests to api: rate-limited.");
    let many = only(&traffic(1_000, &[("rate-limited", 90), ("overloaded", 500)], 0));
    assert_eq!(many.severity, Severity::Critical);
    assert_eq!(many.text, "The host refuses about 60 % of the requests to api: overloaded, rate-limited.");
    assert!(many.remedy.starts_with("The upstream is slower than usual"), "{}", many.remedy);
    // Counters are read one after the other, so that a sample can hold more refusals than requests.
    assert!(only(&traffic(1, &[("overloaded", 5)], 0)).text.contains("nearly all"));
}

#[test]
fn one_request_is_no_critical_condition_and_a_repetition_never_is() {
    assert_eq!(only(&traffic(1, &[], 1)).severity, Severity::Warning);
    assert_eq!(only(&traffic(1, &[("rate-limited", 1)], 0)).severity, Severity::Warning);
    assert_eq!(only(&traffic(5, &[("rate-limited", 5)], 0)).severity, Severity::Critical);
    assert_eq!(only(&traffic(50, &[("in-flight", 50)], 0)).severity, Severity::Warning);
}

#[test]
fn failures_below_one_percent_are_incidents_and_above_it_a_condition() {
    assert_eq!(conditions(&traffic(1_000, &[], 9)), []);
    let failing = only(&traffic(1_000, &[], 400));
    assert_eq!((failing.id, failing.severity), (ConditionId::RequestsFailing, Severity::Critical));
    assert_eq!(failing.text, "About 40 % of the requests to api fail.");
}

#[test]
fn the_texts_do_not_change_while_a_share_moves_a_little() {
    let text = |failed| only(&traffic(1_000, &[], failed)).text;
    assert_eq!(text(380), text(420));
}

#[test]
fn a_refused_reload_stays_a_condition() {
    let text = "line 3: deadline: got \"x\"".to_owned();
    let event = Event { number: 7, unix_ms: NOW - 5, kind: "reload-refused", subject: "config".to_owned(), text };
    let condition = only(&Facts { reload_refused: Some(event), ..calm() });
    assert_eq!((condition.id, condition.since_unix_ms), (ConditionId::ReloadRefused, NOW - 5));
    assert!(condition.text.ends_with("line 3: deadline: got \"x\"."), "{}", condition.text);
}

#[test]
fn a_condition_keeps_its_start_and_a_new_one_has_its_own() {
    let mut tracker = Tracker::default();
    let down = |now| Facts { now_unix_ms: now, ..with_state(|own| own.reach = Reach::Down) };
    assert_eq!(tracker.update(&down(10)).1, Some(StateChange::Lost));
    let (conditions, change) = tracker.update(&down(20));
    assert_eq!((conditions[0].since_unix_ms, change), (10, None));
    let up = Facts { now_unix_ms: 30, ..with_state(|_| {}) };
    assert_eq!(tracker.update(&up), (Vec::new(), Some(StateChange::Back { since_unix_ms: 10 })));
    assert_eq!(tracker.update(&down(40)).0[0].since_unix_ms, 40);
    // A server that refuses the password is not back.
    let refused = Facts { now_unix_ms: 50, ..with_state(|own| own.reach = Reach::Unauthorized) };
    assert_eq!(tracker.update(&refused).1, None);
    assert_eq!(tracker.update(&Facts { now_unix_ms: 60, ..up }).1, Some(StateChange::Back { since_unix_ms: 40 }));
}

#[test]
fn the_most_severe_condition_comes_first() {
    let facts = Facts {
        unready: Some("the host is starting"),
        traces_dropped: 1,
        traffic: traffic(100, &[("overloaded", 1)], 50).traffic,
        ..with_state(|own| (own.reach, own.may_evict) = (Reach::Down, true))
    };
    let ids: Vec<&str> = conditions(&facts).iter().map(|condition| condition.id.name()).collect();
    assert_eq!(
        ids,
        ["not-ready", "state-down", "requests-failing", "requests-refused", "state-evicts", "traces-dropped"]
    );
}

#[test]
fn the_book_lists_every_condition() {
    use strum::VariantArray as _;
    let page = include_str!("../../../../docs/src/operation/conditions.md");
    for id in ConditionId::VARIANTS {
        assert!(page.contains(&format!("`{}`", id.name())), "{} is missing", id.name());
    }
}
