#![allow(clippy::unwrap_used, clippy::float_cmp)]
use super::*;
use proptest::prelude::*;

const START: Timestamp = Timestamp(1_000_000_000);
const SETTINGS: Settings = Settings { floor_per_minute: 6, rise_per_minute: 600 };
const OPEN: f64 = f64::INFINITY;

fn at(ms: u64) -> Timestamp {
    START.after(Duration::from_millis(ms))
}

#[test]
fn limits_of_a_few_an_hour_have_a_floor_too() {
    let (mut rate, ceiling) = (AdaptiveRate::default(), 20.0 / 60.0);
    let lowered = rate.throttled(&SETTINGS, ceiling, rate.decrease_epoch(), START).unwrap();
    assert!(
        (lowered - ceiling * 0.7).abs() < 1e-9 && rate.per_minute(&SETTINGS, ceiling, START) == Some(lowered),
        "{lowered}"
    );
    let dues = [0, 1].map(|_| rate.reserve(lowered, START, START, Duration::MAX).unwrap().due);
    assert!(dues[1].since(dues[0]) > Duration::from_mins(4), "{dues:?}");
}

/// Takes so many a second for so long, then is throttled once.
fn learned(per_second: u64, seconds: u64) -> (AdaptiveRate, Timestamp) {
    let mut rate = AdaptiveRate::default();
    for number in 0..per_second * seconds {
        rate.took(rate.decrease_epoch(), at(number * 1000 / per_second));
    }
    let now = at(seconds * 1000);
    rate.throttled(&SETTINGS, OPEN, rate.decrease_epoch(), now).unwrap();
    (rate, now)
}

#[test]
fn the_first_throttled_answer_leaves_seven_tenths_of_what_was_taken() {
    assert_eq!(AdaptiveRate::default().per_minute(&SETTINGS, OPEN, START), None, "it begins open");
    let (rate, now) = learned(20, 30);
    let per_minute = rate.per_minute(&SETTINGS, OPEN, now).unwrap();
    assert!((per_minute - 840.0).abs() < 10.0, "{per_minute}: 20 a second, lowered");
}

#[test]
fn nothing_taken_yet_is_the_floor() {
    let mut rate = AdaptiveRate::default();
    assert_eq!(rate.throttled(&SETTINGS, OPEN, rate.decrease_epoch(), START), Some(6.0));
}

#[test]
fn one_burst_is_one_decrease_and_so_is_one_window_that_is_used_up() {
    let mut rate = AdaptiveRate::default();
    (0..100).for_each(|number| rate.took(rate.decrease_epoch(), at(number * 50)));
    let (burst, now) = (rate.decrease_epoch(), at(5000));
    rate.throttled(&SETTINGS, OPEN, burst, now).unwrap();
    for number in 0..50 {
        assert_eq!(rate.throttled(&SETTINGS, OPEN, burst, at(5000 + number)), None, "sent before it");
    }
    assert_eq!(rate.throttled(&SETTINGS, OPEN, rate.decrease_epoch(), at(30_000)), None, "nothing was taken since");
    let after = rate.decrease_epoch();
    let mut silent = rate.clone();
    assert!(silent.throttled(&SETTINGS, OPEN, after, at(65_000)).is_some(), "a minute of it is more than a window");
    rate.took(burst, at(39_000));
    rate.rejected(at(39_500));
    assert_eq!(rate.throttled(&SETTINGS, OPEN, after, at(40_000)), None, "neither proves that anything is borne");
    rate.took(after, at(40_000));
    assert!(rate.throttled(&SETTINGS, OPEN, after, at(41_000)).is_some(), "something was taken since");
}

#[test]
fn it_rises_by_its_step_while_the_upstream_answers_and_is_forgotten_in_the_end() {
    let (mut rate, now) = learned(20, 30);
    let before = rate.per_minute(&SETTINGS, OPEN, now).unwrap();
    let minute = now.after(Duration::from_mins(1));
    assert_eq!(rate.per_minute(&SETTINGS, OPEN, minute), Some(before), "silence earns nothing");
    let sent = rate.decrease_epoch();
    (0..=60).for_each(|second| rate.took(sent, now.after(Duration::from_secs(second))));
    assert_eq!(rate.per_minute(&SETTINGS, OPEN, minute), Some(before + 600.0));
    let pause = Duration::from_mins(8);
    rate.took(sent, now.after(pause));
    assert_eq!(rate.per_minute(&SETTINGS, OPEN, now.after(pause)), Some(before + 650.0), "a pause earns little");
    assert_eq!(rate.per_minute(&SETTINGS, 900.0, minute), None, "the limits hold by themselves");
    assert_eq!(rate.per_minute(&SETTINGS, OPEN, now.after(FORGET_AFTER)), None);
}

#[test]
fn places_stand_evenly_and_are_given_back() {
    let mut rate = AdaptiveRate::default();
    let mut reserve = |wait| rate.reserve(600.0, START, START, Duration::from_millis(wait));
    let dues: Vec<_> = (0..3).map(|_| reserve(1000).unwrap()).collect();
    assert_eq!(dues.iter().map(|reservation| reservation.due).collect::<Vec<_>>(), [START, at(100), at(200)]);
    assert_eq!(reserve(299), Err(Duration::from_millis(300)));
    rate.refund(&dues[0], at(50));
    rate.refund(&dues[2], at(50));
    assert_eq!(rate.reserve(600.0, START, START, Duration::MAX).unwrap().due, at(200), "the first has passed");
    rate.refund(&dues[1], at(50));
    assert_eq!(rate.reserve(600.0, at(50), at(50), Duration::MAX).unwrap().due, at(100), "the second lies ahead");
    rate.delay(Duration::from_secs(5));
    assert_eq!(rate.reserve(600.0, START, START, Duration::MAX).unwrap().due, at(5300), "a pause moves the line");
}

#[derive(Debug, Clone)]
enum Event {
    Took,
    Rejected,
    Throttled,
    /// To an attempt of so many decreases ago.
    Late(u64),
    Reserve,
    Passes(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        4 => Just(Event::Took),
        1 => Just(Event::Rejected),
        2 => Just(Event::Throttled),
        1 => (1_u64..4).prop_map(Event::Late),
        4 => Just(Event::Reserve),
        4 => (0_u64..90_000).prop_map(Event::Passes),
    ];
    prop::collection::vec(one, 1..200)
}

proptest! {
    /// Never above the ceiling, never below the floor; no two moments nearer than the rate allows; only news lowers it;
    /// time never does; and whatever was learned, ten minutes after the last decrease it is open again.
    #[test]
    fn the_rate_keeps_its_bounds(
        events in events(), floor in 1_u32..200, rise in 1_u32..5000,
        ceiling in prop_oneof![Just(OPEN), 200.0_f64..3000.0],
    ) {
        let settings = Settings { floor_per_minute: floor, rise_per_minute: rise };
        let (mut rate, mut now, mut last) = (AdaptiveRate::default(), START, None::<(Timestamp, f64)>);
        for event in events {
            let before = rate.per_minute(&settings, ceiling, now);
            match event {
                Event::Took => rate.took(rate.decrease_epoch(), now),
                Event::Rejected => rate.rejected(now),
                Event::Throttled => drop(rate.throttled(&settings, ceiling, rate.decrease_epoch(), now)),
                Event::Late(ago) => {
                    let sent = DecreaseEpoch(rate.decreases.wrapping_sub(ago));
                    rate.took(sent, now);
                    prop_assert_eq!(rate.per_minute(&settings, ceiling, now), before, "it proves nothing of the rate since");
                    prop_assert_eq!(rate.throttled(&settings, ceiling, sent, now), None);
                }
                Event::Reserve => {
                    if let Some(per_minute) = before {
                        let reservation = rate.reserve(per_minute, now, now, Duration::MAX).unwrap();
                        if let Some((due, of)) = last {
                            let apart = reservation.due.since(due).as_secs_f64();
                            prop_assert!(apart + 1e-5 >= 60.0 / of, "{apart} s apart at {of} a minute");
                        }
                        last = Some((reservation.due, per_minute));
                    }
                }
                Event::Passes(ms) => now = now.after(Duration::from_millis(ms)),
            }
            let after = rate.per_minute(&settings, ceiling, now);
            if let Some(after) = after {
                prop_assert!((f64::from(floor)..ceiling).contains(&after), "{after} of {floor} to {ceiling}");
            }
            if !matches!(event, Event::Throttled) {
                prop_assert!(after.unwrap_or(OPEN) >= before.unwrap_or(OPEN), "{event:?}: {before:?}, then {after:?}");
            }
        }
        prop_assert_eq!(rate.per_minute(&settings, ceiling, now.after(FORGET_AFTER)), None);
    }

    /// A refunded reservation goes to the next attempt, so an attempt waits only behind those that still wait. No two reservations are
    /// nearer than the rate allows, and a pause moves all of them.
    #[test]
    fn a_line_is_no_longer_than_those_who_wait_in_it(
        acts in prop::collection::vec((0_u8..8, 0_usize..40, 0_u64..300), 1..300),
    ) {
        const APART: Duration = Duration::from_millis(100);
        let (mut rate, mut now, mut held) = (AdaptiveRate::default(), START, Vec::<Reservation>::new());
        let mut paused = START;
        for (act, which, ms) in acts {
            match act {
                0..=3 => {
                    let from = paused.max(now);
                    let reservation = rate.reserve(600.0, from, now, Duration::MAX).unwrap();
                    let dues: Vec<_> = held.iter().map(|held| held.moved_to(rate.moved).due).collect();
                    let near = dues.iter().find(|due| reservation.due.since(**due).max(due.since(reservation.due)) < APART);
                    prop_assert_eq!(near, None, "{:?} among {:?}", reservation, &dues);
                    let ahead = dues.iter().filter(|due| **due >= from.before(APART)).count() as u32;
                    prop_assert!(reservation.due <= from.after(APART * (ahead + 1)), "{reservation:?} behind {ahead} from {from:?}");
                    held.push(reservation);
                }
                4 | 5 if !held.is_empty() => {
                    let left = held.swap_remove(which % held.len());
                    // What has passed was sent.
                    if left.moved_to(rate.moved).due < now {
                        held.push(left);
                    } else {
                        rate.refund(&left, now);
                    }
                }
                6 => now = now.after(Duration::from_millis(ms)),
                7 => {
                    let until = now.after(Duration::from_millis(ms));
                    rate.delay(until.since(paused.max(now)));
                    paused = paused.max(until);
                }
                _ => {}
            }
        }
    }

    /// Senders with the same rise that share one upstream, and are throttled together, come to equal shares (Chiu and
    /// Jain).
    #[test]
    fn two_senders_come_to_equal_shares(first in 10_u64..40, other in 1_u64..10) {
        let (mut one, mut two) = (learned(first, 10).0, learned(other, 10).0);
        // 100 ms steps, 30 a second in all.
        let (mut owed, mut start) = ([0.0_f64; 2], at(11_000));
        for step in 0..6_000_u64 {
            let now = start.after(Duration::from_millis(step * 100));
            let rates = [&one, &two].map(|rate| rate.per_minute(&SETTINGS, OPEN, now).unwrap_or(6000.0));
            let (sum, epochs) = (rates[0] + rates[1], [one.decrease_epoch(), two.decrease_epoch()]);
            for (index, rate) in [&mut one, &mut two].into_iter().enumerate() {
                owed[index] += rates[index] / 600.0;
                while owed[index] >= 1.0 {
                    owed[index] -= 1.0;
                    rate.took(rate.decrease_epoch(), now);
                }
                if sum > 1800.0 {
                    rate.throttled(&SETTINGS, OPEN, epochs[index], now);
                }
            }
        }
        start = start.after(Duration::from_secs(600));
        let rates = [one, two].map(|rate| rate.per_minute(&SETTINGS, OPEN, start).unwrap_or(6000.0));
        prop_assert!(rates[0] / rates[1] < 1.35 && rates[1] / rates[0] < 1.35, "{rates:?}");
    }
}
