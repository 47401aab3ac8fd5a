#![allow(clippy::unwrap_used)]
use super::*;
use crate::{
    breaker::{Admission, Breaker, Force, Settings, Transition, Trip},
    clock::Timestamp,
    contract::BreakerSignal,
};
use proptest::prelude::*;

fn settings() -> Settings {
    Settings { baseline_percent: Some(5), ..Settings::default() }
}

fn counts(calls: u64, failures: u64) -> Counts {
    Counts { calls_milli: calls * 1000, failures_milli: failures * 1000, slow_milli: 0 }
}

/// A breaker and its time.
struct Played {
    breaker: Breaker,
    settings: Settings,
    now: Timestamp,
    chance: u64,
    /// Between two calls: ten a second.
    apart: Duration,
}

impl Played {
    fn new(settings: Settings) -> Self {
        Self {
            breaker: Breaker::new(1),
            settings,
            now: Timestamp(1_000_000_000),
            chance: 7,
            apart: Duration::from_millis(100),
        }
    }

    /// One call of which so many of a thousand fail. The trip, if it comes to one.
    fn call(&mut self, failing_milli: u64) -> Option<Trip> {
        self.now = self.now.after(self.apart);
        // Knuth's MMIX.
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let failed = (self.chance >> 33) % 1000 < failing_milli;
        self.record(if failed { BreakerSignal::Failure } else { BreakerSignal::Success })
    }

    fn record(&mut self, signal: BreakerSignal) -> Option<Trip> {
        let Admission::Pass(ticket) = self.breaker.admit(self.now, &self.settings) else { return None };
        match self.breaker.record(&ticket, signal, Duration::ZERO, self.now, 0, &self.settings) {
            Some(Transition::Opened { why, .. }) => Some(why),
            _ => None,
        }
    }

    /// The first trip within so many calls, and at which of them.
    fn calls(&mut self, failing_milli: u64, most: u64) -> Option<(u64, Trip)> {
        (1..=most).find_map(|number| Some((number, self.call(failing_milli)?)))
    }

    fn usual(&self) -> Option<u32> {
        self.breaker.view(self.now, &self.settings).usual_milli
    }
}

#[test]
fn the_bound_is_that_of_hoeffding() {
    let tenth = Baseline::new(100, 5, None);
    // 20 * (0.5 ln 5 + 0.5 ln (0.5/0.9)).
    assert!((tenth.surprise(20_000, 10_000) - 10.216_5).abs() < 1e-3, "{}", tenth.surprise(20_000, 10_000));
    assert!(tenth.surprise(20_000, 2_000).abs() < 1e-9 && tenth.surprise(20_000, 0).abs() < 1e-9, "not above it");
    let never = Baseline::new(1, 5, Some(50));
    assert!(!never.is_exceeded(&counts(20, 1)) && !never.is_exceeded(&counts(20, 3)), "three of twenty may be chance");
    assert!(never.is_exceeded(&counts(20, 4)));
    assert!(!never.is_exceeded(&counts(10_000, 500)), "below the distance that is too far");
    assert_eq!([1, 300, 999].map(|milli| Baseline::new(milli, 5, Some(100)).in_row()), [3, 14, 15_992]);
}

/// The tripwire of the feature, and what it is for.
#[test]
fn an_endpoint_that_hardly_ever_fails_trips_at_a_tenth_and_without_a_baseline_does_not() {
    let mut played = Played::new(settings());
    assert_eq!(played.calls(1, 20_000), None);
    assert_eq!(played.usual(), Some(1));
    let (calls, why) = played.calls(100, 5_000).unwrap();
    assert!(calls < 600 && matches!(why, Trip::Unusual(5..=10, 1)), "{calls}: {why}");
    assert!(why.to_string().ends_with("% of calls failed; 0.1 % is usual"), "{why}");
    let mut off = Played::new(Settings::default());
    off.calls(1, 20_000);
    assert_eq!((off.calls(100, 5_000), off.usual()), (None, None));
}

#[test]
fn an_endpoint_that_usually_fails_does_not_trip_at_its_usual_and_does_at_more() {
    let mut played = Played::new(settings());
    // What is usual is not known at once, and until then the fixed limits hold.
    while played.usual().is_none() {
        let failed = played.now.0 / 100_000 % 10 < 3;
        played.now = played.now.after(Duration::from_millis(100));
        played.record(if failed { BreakerSignal::Failure } else { BreakerSignal::Success });
    }
    assert_eq!(played.calls(300, 864_000), None, "a day of it");
    assert!(played.usual().is_some_and(|usual| (280..320).contains(&usual)), "{:?}", played.usual());
    assert!(played.calls(600, 1_000).is_some());
}

/// Failing ever more, a little at a time, teaches it nothing beyond the fixed limit.
#[test]
fn slow_poisoning_trips_at_the_fixed_limit_at_the_latest() {
    for apart in [100, 500].map(Duration::from_millis) {
        let mut played = Played { apart, ..Played::new(settings()) };
        let two_hours = (7200.0 / apart.as_secs_f64()) as u64;
        let tripped = (0..=50).find_map(|share| played.calls(share * 10, two_hours));
        assert!(tripped.is_some(), "a call each {apart:?}: not at 50 %");
    }
}

/// Where the fixed limit is nearer than what is usual and the distance, it holds as if nothing had been learned: sixty
/// calls in a window of which 65 % fail, where 45 % are usual, may be chance.
#[test]
fn beside_a_usual_share_near_it_the_fixed_limit_holds_without_a_look_at_chance() {
    let apart = Duration::from_millis(500);
    let settings = Settings { window: Duration::from_secs(30), consecutive_failures: None, ..settings() };
    let mut played = Played { apart, ..Played::new(settings) };
    // In turns, so that no window holds half of them.
    for call in 0..4000 {
        let failed = call % 20 % 2 == 0 && call % 20 != 0;
        played.now = played.now.after(apart);
        assert_eq!(played.record(if failed { BreakerSignal::Failure } else { BreakerSignal::Success }), None);
    }
    assert_eq!(played.usual(), Some(450));
    let (calls, why) = played.calls(650, 1000).unwrap();
    assert!(calls < 100 && matches!(why, Trip::FailureRate(50..)), "{calls}: {why}");
}

/// A larger distance never makes a breaker hastier about what is usual, and without a fixed limit nothing caps it.
#[test]
fn a_cap_is_the_operators_and_changes_nothing_about_what_is_usual() {
    let rows = [5, 20, 45].map(|above| Baseline::new(400, above, Some(50)));
    assert!(rows.iter().all(|row| row.in_row() == rows[0].in_row() && row.usual_milli == 400), "{rows:?}");
    assert_eq!(Baseline::new(700, 5, Some(50)).usual_milli, 500);
    let off = Baseline::new(700, 5, None);
    assert!(!off.is_exceeded(&counts(1000, 740)) && off.is_exceeded(&counts(10_000, 7500)), "{off:?}");
    assert!(!off.is_capped && !Baseline::new(990, 5, None).is_capped, "there is no fixed limit to hold");
}

#[test]
fn a_trip_teaches_nothing_and_a_reset_forgets() {
    let mut played = Played::new(settings());
    played.calls(1, 20_000);
    played.calls(1000, 100).unwrap();
    assert_eq!(played.usual(), Some(1), "what tripped it is not usual");
    played.now = played.now.after(Duration::from_secs(70));
    played.record(BreakerSignal::Success);
    let (calls, _) = played.calls(100, 5_000).unwrap();
    assert!(calls < 200 && played.usual() == Some(1), "nor is it forgotten with the trip: {calls}");
    played.breaker.force(Force::Reset, played.now);
    assert_eq!(played.usual(), None);
}

proptest! {
    #[test]
    fn more_failures_never_seem_likelier(usual in 0_u32..1000, calls in 1_u64..5000, failures in 0_u64..5000, ceiling in prop::option::of(1_u32..=100)) {
        let baseline = Baseline::new(usual, 5, ceiling);
        let failures = failures.min(calls - 1);
        let (fewer, more) = (baseline.surprise(calls * 1000, failures * 1000), baseline.surprise(calls * 1000, (failures + 1) * 1000));
        prop_assert!(fewer.is_finite() && more.is_finite() && fewer >= 0.0 && more + 1e-9 >= fewer, "{fewer}, then {more}");
        prop_assert!(!baseline.is_exceeded(&counts(calls, failures)) || baseline.is_exceeded(&counts(calls, failures + 1)));
        let most = ceiling.unwrap_or(100) * 10;
        prop_assert!(baseline.limit_milli <= most.max(1), "{baseline:?} above {most}");
    }

    #[test]
    fn the_usual_failures_stay_a_share_and_fade(seen in prop::collection::vec((0_u32..100_000, 0_u32..100_000, 0_u64..10_000), 1..50)) {
        let (mut usual, mut now) = (Usual::default(), Timestamp(1_000_000_000));
        for (calls, failures, after) in seen {
            now = now.after(Duration::from_secs(after));
            usual.learn(Bucket::of(calls, failures.min(calls)), now);
            prop_assert!(usual.failures_milli <= usual.calls_milli);
            prop_assert!(usual.share_milli().is_none_or(|share| (1..=1000).contains(&share)));
        }
        usual.learn(Bucket::of(0, 0), now.after(FADING_TIME));
        prop_assert_eq!((usual.calls_milli, usual.failures_milli), (0, 0));
    }
}
