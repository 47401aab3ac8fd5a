//! A limiter in front of a simulated upstream, in simulated time.

use super::*;
use proptest::prelude::*;
use std::collections::BinaryHeap;

const MS: u64 = 1000;

/// An upstream that works on so many at once, each for so long, the others in a queue.
struct Upstream {
    slots: usize,
    service_us: u64,
}

/// What came of a run.
#[derive(Debug, Default)]
struct Run {
    answered: u64,
    refused: [u64; 3],
    slowest_us: u64,
}

/// Offers `per_second` requests for `seconds`, each third one of another priority.
fn run(limiter: &mut Limiter, upstream: &Upstream, per_second: u64, from: u64, seconds: u64) -> Run {
    let mut run = Run::default();
    // When a slot becomes free, earliest first.
    let mut free: BinaryHeap<std::cmp::Reverse<u64>> = (0..upstream.slots).map(|_| std::cmp::Reverse(from)).collect();
    let mut done: BinaryHeap<std::cmp::Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut finish = |limiter: &mut Limiter, done: &mut BinaryHeap<std::cmp::Reverse<(u64, u64)>>, until: u64| {
        let mut count = 0;
        while let Some(std::cmp::Reverse((at, sent))) = done.peek().copied() {
            if at > until {
                break;
            }
            done.pop();
            let took = Duration::from_micros(at - sent);
            limiter.observe("any", Timestamp(sent), Sample::Answered(took), Timestamp(at));
            limiter.release();
            count += 1;
        }
        count
    };
    for number in 0..per_second * seconds {
        let now = from + number * 1_000_000 / per_second;
        run.answered += finish(limiter, &mut done, now);
        let priority = [Priority::Low, Priority::Normal, Priority::High][(number % 3) as usize];
        if limiter.admit(priority) {
            let std::cmp::Reverse(begins) = free.pop().unwrap_or(std::cmp::Reverse(now));
            let ends = begins.max(now) + upstream.service_us;
            free.push(std::cmp::Reverse(ends));
            done.push(std::cmp::Reverse((ends, now)));
            run.slowest_us = run.slowest_us.max(ends - now);
        } else {
            run.refused[(number % 3) as usize] += 1;
        }
    }
    run.answered += finish(limiter, &mut done, u64::MAX);
    run
}

/// 20 at once for 20 ms each: 1000 a second.
const DIRECTORY: Upstream = Upstream { slots: 20, service_us: 20 * MS };

#[test]
fn below_capacity_nobody_is_refused_and_the_limit_stays() {
    let mut limiter = Limiter::new(Settings::default());
    let run = run(&mut limiter, &DIRECTORY, 800, 1_000_000, 60);
    assert_eq!(run.refused, [0; 3]);
    assert_eq!(limiter.limit(), BEGIN, "few were under way: nothing was learned of the limit");
}

#[test]
fn at_five_times_the_capacity_goodput_stays_and_low_gives_way_first() {
    let mut limiter = Limiter::new(Settings::default());
    run_calm(&mut limiter);
    let over = run(&mut limiter, &DIRECTORY, 5000, 10_000_000, 120);
    assert!(over.answered >= 120 * 1000 * 95 / 100, "{over:?}");
    assert!(limiter.limit() < 200, "the queue at the upstream is bounded: {}", limiter.limit());
    assert!(over.slowest_us < 250 * MS, "{over:?}");
    let [low, normal, high] = over.refused;
    assert!(low > normal && normal > high, "{over:?}");
    // And back: at once.
    let after = run(&mut limiter, &DIRECTORY, 800, 200_000_000, 5);
    assert!(after.refused.iter().sum::<u64>() * 100 <= 800 * 5, "{after:?}");
}

fn run_calm(limiter: &mut Limiter) {
    run(limiter, &DIRECTORY, 500, 1_000_000, 5);
}

#[test]
fn an_upstream_that_has_become_slower_is_measured_anew() {
    let mut limiter = Limiter::new(Settings::default());
    run_calm(&mut limiter);
    let slower = Upstream { slots: 20, service_us: 100 * MS };
    // 200 a second at most now; 150 are asked for, and at first taken for overload.
    run(&mut limiter, &slower, 400, 10_000_000, 60);
    let after = run(&mut limiter, &slower, 150, 100_000_000, 30);
    assert!(after.refused.iter().sum::<u64>() * 100 <= 150 * 30, "{after:?}, limit {}", limiter.limit());
}

#[test]
fn attempts_without_an_answer_lower_the_limit() {
    let mut limiter = Limiter::new(Settings::default());
    for number in 0..2000 {
        let now = Timestamp(1_000_000 + number * 10 * MS);
        while limiter.admit(Priority::High) {}
        limiter.observe("any", now, Sample::Dropped, now);
        limiter.release();
    }
    assert_eq!(limiter.limit(), Settings::default().min_limit);
}

#[test]
fn two_endpoints_of_different_pace_are_no_slowdown() {
    let mut limiter = Limiter::new(Settings { min_limit: 1, max_limit: 40 });
    for number in 0..20_000_u64 {
        let now = Timestamp(1_000_000 + number * MS);
        while limiter.admit(Priority::High) {}
        // First mostly quick ones, then mostly slow ones.
        let slow = if number < 10_000 { number % 10 == 0 } else { number % 10 != 0 };
        let (name, took) = if slow { ("create", 5000) } else { ("read", 5) };
        limiter.observe(name, now, Sample::Answered(Duration::from_millis(took)), now);
        limiter.release();
    }
    assert_eq!(limiter.limit(), 40);
}

proptest! {
    /// Whatever comes: the bounds hold, places are counted, and every priority gets at least one.
    #[test]
    fn the_limit_stays_within_its_bounds(events in proptest::collection::vec((0..5_u8, 0..200_u64, 0..5000_u64), 1..400), min in 1..20_usize, more in 0..100_usize) {
        let mut limiter = Limiter::new(Settings { min_limit: min, max_limit: min + more });
        let (mut now, mut taken) = (1_000_000_u64, 0_usize);
        for (event, step_ms, took_ms) in events {
            now += step_ms * MS;
            match event {
                0 | 1 => {
                    let priority = [Priority::Low, Priority::High][usize::from(event)];
                    let admitted = limiter.admit(priority);
                    prop_assert!(admitted || taken > 0, "the first is always admitted");
                    taken += usize::from(admitted);
                }
                kind => {
                    let sample = match kind {
                        2 => Sample::Answered(Duration::from_millis(took_ms)),
                        3 => Sample::Dropped,
                        _ => Sample::Silent,
                    };
                    limiter.observe("any", Timestamp(now.saturating_sub(took_ms * MS)), sample, Timestamp(now));
                    if taken > 0 {
                        limiter.release();
                        taken -= 1;
                    }
                }
            }
            prop_assert_eq!(limiter.under_way(), taken);
            prop_assert!((1..=min + more).contains(&limiter.limit()));
        }
    }
}
