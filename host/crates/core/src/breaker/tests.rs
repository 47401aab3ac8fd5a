#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use proptest::prelude::*;

fn settings() -> Settings {
    Settings { jitter_percent: 0, probes: 2, probe_lease: Duration::from_secs(10), ..Settings::default() }
}

const START: Timestamp = Timestamp(1_000_000_000);

fn pass(breaker: &mut Breaker, now: Timestamp, settings: &Settings) -> Ticket {
    match breaker.admit(now, settings) {
        Admission::Pass(ticket) => ticket,
        refused @ Admission::Refused { .. } => panic!("{refused:?}"),
    }
}

fn fail(breaker: &mut Breaker, times: u32, now: Timestamp, settings: &Settings) -> Option<Transition> {
    let mut last = None;
    for _ in 0..times {
        let ticket = pass(breaker, now, settings);
        last = breaker.record(&ticket, BreakerSignal::Failure, Duration::ZERO, now, 0, settings);
    }
    last
}

#[test]
fn five_failures_in_a_row_open_it_and_probes_close_it() {
    let settings = settings();
    let mut breaker = Breaker::new(1);
    assert_eq!(fail(&mut breaker, 4, START, &settings), None);
    let late = pass(&mut breaker, START, &settings);
    let opened = fail(&mut breaker, 1, START, &settings);
    assert_eq!(opened, Some(Transition::Opened { why: Trip::Consecutive(5), open_for: Duration::from_secs(60) }));
    assert_eq!(breaker.record(&late, BreakerSignal::Success, Duration::ZERO, START, 0, &settings), None, "stale");
    let before = START.after(Duration::from_millis(59_999));
    assert!(matches!(breaker.admit(before, &settings), Admission::Refused { .. }));
    let now = START.after(Duration::from_secs(60));
    let (first, second) = (pass(&mut breaker, now, &settings), pass(&mut breaker, now, &settings));
    assert!(
        first.is_probe() && matches!(breaker.admit(now, &settings), Admission::Refused { .. }),
        "two probes at most"
    );
    assert_eq!(breaker.record(&first, BreakerSignal::Success, Duration::ZERO, now, 0, &settings), None);
    assert_eq!(
        breaker.record(&second, BreakerSignal::Success, Duration::ZERO, now, 0, &settings),
        Some(Transition::Closed)
    );
}

#[test]
fn a_failed_probe_doubles_the_open_time_up_to_the_cap() {
    let settings = settings();
    let mut breaker = Breaker::new(1);
    fail(&mut breaker, 5, START, &settings);
    let mut now = START;
    for expected in [60, 120, 240, 300, 300] {
        now = now.after(Duration::from_secs(expected));
        assert!(matches!(breaker.admit(now.before(Duration::from_micros(1)), &settings), Admission::Refused { .. }));
        fail(&mut breaker, 1, now, &settings).unwrap();
    }
}

#[test]
fn rates_count_once_the_window_holds_enough() {
    let settings = Settings { consecutive_failures: None, slow_call_after: Some(Duration::from_secs(2)), ..settings() };
    for (signal, took, why) in [
        (BreakerSignal::Failure, Duration::ZERO, Trip::FailureRate(50)),
        (BreakerSignal::Success, Duration::from_secs(3), Trip::SlowRate(80)),
    ] {
        let mut breaker = Breaker::new(1);
        let good = if took.is_zero() { 10 } else { 4 };
        for _ in 0..good {
            let ticket = pass(&mut breaker, START, &settings);
            breaker.record(&ticket, BreakerSignal::Success, Duration::ZERO, START, 0, &settings);
        }
        let mut opened = None;
        for _ in good..20 {
            assert_eq!(opened, None);
            let ticket = pass(&mut breaker, START, &settings);
            opened = breaker.record(&ticket, signal, took, START, 0, &settings);
        }
        assert!(matches!(opened, Some(Transition::Opened { why: tripped, .. }) if tripped == why), "{opened:?}");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Admit,
    Record(usize, u8),
    Drop(usize),
    Forget(usize),
    Recheck(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0_u64..70_000).prop_map(Event::Pass),
        Just(Event::Admit),
        Just(Event::Admit),
        (any::<usize>(), 0_u8..3).prop_map(|(which, signal)| Event::Record(which, signal)),
        any::<usize>().prop_map(Event::Drop),
        any::<usize>().prop_map(Event::Forget),
        any::<usize>().prop_map(Event::Recheck),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Crashed, paused, late and dropped attempts in any order: never more than K unexpired leases, never stuck.
    #[test]
    fn probes_stay_few_and_half_open_never_sticks(events in prop::collection::vec(event(), 1..120), random in any::<u64>()) {
        let settings = Settings { consecutive_failures: Some(2), jitter_percent: 20, ..settings() };
        let (mut breaker, mut now, mut held) = (Breaker::new(random), START, Vec::new());
        for event in events {
            match event {
                Event::Pass(ms) => now = now.after(Duration::from_millis(ms)),
                Event::Admit => {
                    if let Admission::Pass(ticket) = breaker.admit(now, &settings) { held.push(ticket) }
                }
                Event::Record(which, signal) if !held.is_empty() => {
                    let ticket = held.swap_remove(which % held.len());
                    let signal = [BreakerSignal::Success, BreakerSignal::Failure, BreakerSignal::Ignore][usize::from(signal)];
                    let stale = ticket.epoch != breaker.epoch;
                    let before = breaker.clone();
                    breaker.record(&ticket, signal, Duration::ZERO, now, random, &settings);
                    prop_assert!(!stale || breaker == before, "a stale result changed something");
                }
                Event::Drop(which) if !held.is_empty() => {
                    let ticket = held.swap_remove(which % held.len());
                    breaker.give_back(&ticket);
                }
                Event::Forget(which) if !held.is_empty() => { held.swap_remove(which % held.len()); }
                Event::Recheck(which) if !held.is_empty() => {
                    let ticket = held[which % held.len()];
                    breaker.recheck(&ticket, now, &settings);
                }
                _ => {}
            }
            prop_assert!(breaker.leases(now) <= 2, "{} leases", breaker.leases(now));
        }
        // Whatever was left hanging: once every lease and open time is over, successes close it.
        now = now.after(Duration::from_secs(3600));
        for _ in 0..2 {
            let ticket = pass(&mut breaker, now, &settings);
            breaker.record(&ticket, BreakerSignal::Success, Duration::ZERO, now, random, &settings);
        }
        prop_assert_eq!(breaker.state(), BreakerState::Closed);
    }
}

const TEN_MINUTES: Duration = Duration::from_secs(600);

#[test]
fn forced_open_it_refuses_until_the_word_ends_and_then_probes() {
    let settings = settings();
    let mut breaker = Breaker::new(1);
    let before = pass(&mut breaker, START, &settings);
    let opened = Transition::Opened { why: Trip::Forced, open_for: TEN_MINUTES };
    assert_eq!(breaker.force(Force::Open(TEN_MINUTES), START), Some(opened));
    assert!(!breaker.recheck(&before, START, &settings), "who waited since before is not sent");
    assert_eq!(breaker.record(&before, BreakerSignal::Success, Duration::ZERO, START, 0, &settings), None, "stale");
    let last = START.after(TEN_MINUTES).before(Duration::from_micros(1));
    let Admission::Refused { why, .. } = breaker.admit(last, &settings) else { panic!("admitted") };
    assert_eq!(why, Trip::Forced);
    assert!(breaker.is_forced(last) && !breaker.is_forced(START.after(TEN_MINUTES)));
    assert!(pass(&mut breaker, START.after(TEN_MINUTES), &settings).is_probe());
}

#[test]
fn held_closed_it_counts_nothing_until_the_word_ends_and_then_starts_afresh() {
    let settings = settings();
    let mut breaker = Breaker::new(1);
    fail(&mut breaker, 5, START, &settings).unwrap();
    assert_eq!(breaker.force(Force::Close(TEN_MINUTES), START), Some(Transition::Held { hold: TEN_MINUTES }));
    assert_eq!(fail(&mut breaker, 100, START, &settings), None);
    assert_eq!(breaker.view(START, &settings).remaining, Some(TEN_MINUTES));
    let over = START.after(TEN_MINUTES);
    assert!(!breaker.view(over, &settings).forced);
    let late = pass(&mut breaker, START, &settings);
    assert_eq!(fail(&mut breaker, 4, over, &settings), None);
    assert_eq!(breaker.record(&late, BreakerSignal::Failure, Duration::ZERO, over, 0, &settings), None, "stale");
    assert!(fail(&mut breaker, 1, over, &settings).is_some(), "the fifth");
}

#[test]
fn clear_takes_back_only_a_forced_state() {
    let settings = settings();
    let mut breaker = Breaker::new(1);
    fail(&mut breaker, 5, START, &settings).unwrap();
    let tripped = breaker.clone();
    assert_eq!(breaker.force(Force::Clear, START), None);
    assert_eq!(breaker, tripped, "it tripped by itself");
    breaker.force(Force::Open(TEN_MINUTES), START);
    breaker.force(Force::Clear, START);
    assert!(pass(&mut breaker, START, &settings).is_probe(), "its probes decide now");
    breaker.force(Force::Close(TEN_MINUTES), START);
    assert_eq!(breaker.force(Force::Clear, START), Some(Transition::Closed));
    assert!(fail(&mut breaker, 5, START, &settings).is_some(), "it counts again");
    assert_eq!(breaker.force(Force::Reset, START), Some(Transition::Closed));
    assert_eq!(breaker.state(), BreakerState::Closed);
}

proptest! {
    /// Whatever operators and traffic do: an operator's word ends at its time, and what is seen is what the next attempt finds.
    #[test]
    fn a_word_ends_and_the_view_does_not_lie(steps in prop::collection::vec((0..6_u8, 0..200_u64), 1..60)) {
        let settings = settings();
        let mut breaker = Breaker::new(1);
        let (mut now, mut until) = (START, START);
        for (step, seconds) in steps {
            let time = Duration::from_secs(seconds);
            match step {
                0 => now = now.after(time),
                1 => { breaker.force(Force::Open(time), now); until = now.after(time); }
                2 => { breaker.force(Force::Close(time), now); until = now.after(time); }
                3 => { breaker.force(Force::Reset, now); until = now; }
                4 => { breaker.force(Force::Clear, now); until = now; }
                _ => if let Admission::Pass(ticket) = breaker.admit(now, &settings) {
                    breaker.record(&ticket, BreakerSignal::Failure, Duration::ZERO, now, 0, &settings);
                },
            }
            let view = breaker.view(now, &settings);
            prop_assert_eq!(view.forced, now < until);
            let admitted = match breaker.clone().admit(now, &settings) {
                Admission::Pass(ticket) if ticket.is_probe() => BreakerState::HalfOpen,
                Admission::Pass(_) => BreakerState::Closed,
                Admission::Refused { .. } if view.probes > 0 => BreakerState::HalfOpen,
                Admission::Refused { .. } => BreakerState::Open,
            };
            prop_assert_eq!(view.state, admitted);
        }
    }
}

#[test]
fn a_probe_begins_only_where_its_lease_covers_it() {
    let seconds = Duration::from_secs;
    let lease = |probe_lease| Settings { probe_lease, ..settings() };
    for (case, rechecked_ago, attempt, probe_lease, may) in [
        ("at once", seconds(0), seconds(30), seconds(35), true),
        ("after 3 s", seconds(3), seconds(30), seconds(35), true),
        ("stopped for 4 s", seconds(4), seconds(30), seconds(35), false),
        ("stopped for a day", seconds(86_400), seconds(30), seconds(35), false),
        ("a lease that is hardly longer than an attempt", seconds(0), seconds(30), Duration::from_millis(30_100), true),
        ("a lease as long as an attempt", seconds(0), seconds(30), seconds(30), false),
    ] {
        assert_eq!(crate::breaker::lease_covers(rechecked_ago, attempt, &lease(probe_lease)), may, "{case}");
    }
}

#[test]
fn an_open_breaker_stays_open_as_long_as_the_upstream_asks() {
    let settings = Settings { open_for: Duration::from_secs(10), open_for_max: Duration::from_secs(40), ..settings() };
    let mut breaker = Breaker::new(1);
    let Admission::Pass(late) = breaker.admit(START, &settings) else { panic!("closed") };
    fail(&mut breaker, 5, START, &settings);
    let remaining = |breaker: &Breaker| breaker.view(START, &settings).remaining;
    let mut asked = |seconds: u64| {
        let longer = breaker.lengthen(&late, Duration::from_secs(seconds), START, &settings);
        (longer.map(|time| time.as_secs()), remaining(&breaker).map(|time| time.as_secs()))
    };
    assert_eq!(asked(5), (None, Some(10)), "never shorter");
    assert_eq!(asked(25), (Some(25), Some(25)), "an attempt that was under way when it opened");
    assert_eq!(asked(3600), (Some(40), Some(40)), "at most the longest open time");
}

#[test]
fn an_older_attempt_or_a_forced_breaker_lengthens_nothing() {
    let settings = Settings { open_for: Duration::from_secs(10), ..settings() };
    let asked = Duration::from_secs(100);
    let mut breaker = Breaker::new(1);
    let Admission::Pass(ticket) = breaker.admit(START, &settings) else { panic!("closed") };
    assert_eq!(breaker.lengthen(&ticket, asked, START, &settings), None, "it is closed");
    breaker.force(Force::Open(Duration::from_secs(10)), START);
    assert_eq!(breaker.lengthen(&ticket, asked, START, &settings), None, "an operator says how long");
    breaker.force(Force::Reset, START);
    fail(&mut breaker, 5, START, &settings);
    assert_eq!(breaker.lengthen(&ticket, asked, START, &settings), None, "an attempt of an older epoch");
}
