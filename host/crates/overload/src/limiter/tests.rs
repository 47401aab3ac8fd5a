//! Which samples move the limit, and which do not.

use super::*;
use proptest::prelude::*;

const MS: u64 = 1000;

fn sample(endpoint: &str, sent: u64, outcome: SampleOutcome) -> Sample<'_> {
    Sample { endpoint, harmless: Duration::from_millis(100), sent: Timestamp(sent), outcome }
}

/// A hundred responses a second, with a number of attempts under way.
struct Course {
    limiter: Limiter,
    now: u64,
}

impl Course {
    fn new() -> Self {
        Self { limiter: Limiter::default(), now: 3_600_000_000 }
    }

    fn runs(&mut self, seconds: u64, under_way: usize, took_ms: impl Fn(u64) -> (&'static str, u64, SampleOutcome)) {
        while self.limiter.under_way() < under_way {
            self.limiter.begin();
        }
        for number in 0..seconds * 100 {
            self.now += 10 * MS;
            let (endpoint, took, outcome) = took_ms(number);
            self.limiter.observe(&sample(endpoint, self.now - took * MS, outcome), Timestamp(self.now));
        }
        while self.limiter.under_way() > 0 {
            self.limiter.end();
        }
    }
}

#[test]
fn late_answers_lower_the_limit_and_prompt_ones_raise_it() {
    let mut course = Course::new();
    course.runs(5, 10, |_| ("any", 100, SampleOutcome::Answered));
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
    course.runs(1, 90, |_| ("any", 900, SampleOutcome::Answered));
    let low = course.limiter.limit();
    assert!((15..25).contains(&low), "a hundred a second for twice the usual 100 ms: {low}");
    course.runs(10, 10, |_| ("any", 100, SampleOutcome::Answered));
    assert!(course.limiter.limit() > 2 * low, "{} after {low}", course.limiter.limit());
}

/// A harmless response time is no reason to refuse, even if it is longer than usual.
#[test]
fn quick_answers_are_never_late() {
    let mut course = Course::new();
    course.runs(5, 1, |_| ("any", 1, SampleOutcome::Answered));
    course.runs(60, 9, |_| ("any", 90, SampleOutcome::Answered));
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
}

#[test]
fn a_few_that_hang_are_no_overload() {
    let mut course = Course::new();
    course.runs(5, 20, |_| ("any", 200, SampleOutcome::Answered));
    course.runs(60, 400, |number| match number % 10 {
        0..3 => ("any", 5000, SampleOutcome::TimedOut),
        3 => ("any", 4000, SampleOutcome::Answered),
        _ => ("any", 200, SampleOutcome::Answered),
    });
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
}

#[test]
fn endpoints_of_different_pace_are_no_slowdown() {
    let mut course = Course::new();
    let mixed = |slow: u64| {
        move |number: u64| {
            if number % 10 < slow {
                ("create", 3000, SampleOutcome::Answered)
            } else {
                ("read", 5, SampleOutcome::Answered)
            }
        }
    };
    course.runs(30, 400, mixed(1));
    course.runs(30, 400, mixed(9));
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
}

#[test]
fn uninformative_samples_leave_the_limit_as_it_is() {
    let mut course = Course::new();
    course.runs(5, 20, |_| ("any", 100, SampleOutcome::Answered));
    course.runs(30, 400, |_| ("any", 3000, SampleOutcome::Uninformative));
    // A caller's short deadline ends an attempt early, so it shows nothing about lateness.
    course.runs(30, 400, |_| ("any", 150, SampleOutcome::TimedOut));
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
    course.runs(10, 400, |_| ("any", 5000, SampleOutcome::TimedOut));
    assert_eq!(course.limiter.limit(), MIN_LIMIT as usize);
}

#[test]
fn few_samples_say_nothing() {
    let mut course = Course::new();
    course.runs(5, 20, |_| ("any", 100, SampleOutcome::Answered));
    course.limiter.begin();
    for _ in 0..100 {
        course.now += 2_000 * MS;
        course.limiter.observe(&sample("any", course.now - 1500 * MS, SampleOutcome::Answered), Timestamp(course.now));
    }
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
}

#[test]
fn a_limit_that_has_fallen_rises_again_however_few_are_sent() {
    let mut course = Course::new();
    course.runs(5, 20, |_| ("any", 100, SampleOutcome::Answered));
    course.runs(10, 400, |_| ("any", 5000, SampleOutcome::TimedOut));
    assert_eq!(course.limiter.limit(), MIN_LIMIT as usize);
    for _ in 0..100 {
        course.now += 2_000 * MS;
        course.limiter.observe(&sample("any", course.now - 100 * MS, SampleOutcome::Answered), Timestamp(course.now));
    }
    assert_eq!(course.limiter.limit(), MAX_LIMIT as usize);
}

proptest! {
    /// For any sequence of events, the limit stays within its bounds and attempts are counted.
    #[test]
    fn the_limit_stays_within_its_bounds(
        events in proptest::collection::vec((0..6_u8, 0..2_000_u64, 0..9_000_u64), 1..600),
    ) {
        let mut limiter = Limiter::default();
        let (mut now, mut taken) = (3_600_000_000_u64, 0_usize);
        for (event, step_ms, took_ms) in events {
            now += step_ms * MS;
            match event {
                0 | 1 => {
                    limiter.begin();
                    taken += 1;
                }
                2 => limiter.pressed(Timestamp(now)),
                kind => {
                    let outcome = [SampleOutcome::Answered, SampleOutcome::TimedOut, SampleOutcome::Uninformative][usize::from(kind) - 3];
                    for _ in 0..12 {
                        limiter.observe(&sample("any", now - took_ms * MS, outcome), Timestamp(now));
                    }
                    limiter.end();
                    taken = taken.saturating_sub(1);
                }
            }
            prop_assert_eq!(limiter.under_way(), taken);
            prop_assert!((MIN_LIMIT as usize..=MAX_LIMIT as usize).contains(&limiter.limit()));
        }
    }
}
