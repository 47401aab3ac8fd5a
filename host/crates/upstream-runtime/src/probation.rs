//! Counts the faults of a policy generation from its first decision on, and decides whether it may keep serving.

use crate::clock::Timestamp;
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Decisions until a generation counts as good, and the length of each later window.
const WINDOW_DECISIONS: u32 = 1000;
/// The time until a generation counts as good with fewer decisions.
const PROBATION_TIME: Duration = Duration::from_secs(60);
/// Faults in a window before the share is checked: one or two may be chance.
const MIN_FAULTS: u32 = 3;
/// The percentage of faults at which a generation is bad.
const MAX_FAULT_PERCENT: u32 = 1;
/// The number of overruns in a window from which a generation is bad, whatever their share of the calls: each overrun blocks a core for
/// milliseconds that other endpoints need.
const MAX_OVERRUNS: u32 = 3;

/// The result of a policy call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecisionResult {
    /// A valid verdict.
    Decided,
    /// A trap, or an invalid verdict.
    Failed,
    /// Stopped at its CPU budget.
    Overran,
}

/// The judgement on a generation after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// No change.
    Watched,
    /// The generation is good: from now on it is the rollback target.
    Good,
    /// The generation fails too often.
    Bad {
        /// Faults in this window.
        faults: u32,
        /// Decisions in this window.
        decisions: u32,
    },
}

/// One window of decisions. Pure.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: Option<Timestamp>,
    decisions: u32,
    faults: u32,
    overruns: u32,
    good: bool,
    bad: bool,
}

impl Window {
    fn decided(&mut self, result: DecisionResult, now: Timestamp) -> Judgement {
        if self.bad {
            return Judgement::Watched;
        }
        let since = *self.since.get_or_insert(now);
        self.decisions += 1;
        self.faults += u32::from(result != DecisionResult::Decided);
        self.overruns += u32::from(result == DecisionResult::Overran);
        let often = self.faults >= MIN_FAULTS && self.faults * 100 >= self.decisions * MAX_FAULT_PERCENT;
        if often || self.overruns >= MAX_OVERRUNS {
            self.bad = true;
            return Judgement::Bad { faults: self.faults, decisions: self.decisions };
        }
        if self.decisions < WINDOW_DECISIONS && now.since(since) < PROBATION_TIME {
            return Judgement::Watched;
        }
        let first = !self.good;
        *self = Self { good: true, ..Self::default() };
        if first { Judgement::Good } else { Judgement::Watched }
    }
}

/// The probation of one generation.
#[derive(Debug, Default)]
pub struct Probation {
    window: Mutex<Window>,
    suspended: AtomicBool,
}

impl Probation {
    /// Counts a decision.
    pub fn decided(&self, result: DecisionResult, now: Timestamp) -> Judgement {
        self.window.lock().decided(result, now)
    }

    /// Whether the generation is good.
    pub fn is_good(&self) -> bool {
        self.window.lock().good
    }

    /// Marks the generation as good, by an operator's command.
    pub fn promote(&self) {
        *self.window.lock() = Window { good: true, ..Window::default() };
    }

    /// Decisions and faults of the current window.
    pub fn counts(&self) -> (u32, u32) {
        let window = self.window.lock();
        (window.decisions, window.faults)
    }

    /// Suspends a generation without a rollback target: the built-in policy decides instead.
    pub fn suspend(&self) {
        self.suspended.store(true, Ordering::Relaxed);
    }

    /// Whether the generation is suspended.
    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(ms: u64) -> Timestamp {
        Timestamp(ms * 1000)
    }

    fn run(outcomes: impl IntoIterator<Item = bool>) -> Vec<Judgement> {
        conducted(
            outcomes.into_iter().map(|failed| if failed { DecisionResult::Failed } else { DecisionResult::Decided }),
        )
    }

    fn conducted(result: impl IntoIterator<Item = DecisionResult>) -> Vec<Judgement> {
        let probation = Probation::default();
        let judged = result.into_iter().zip(0..).map(|(result, ms)| probation.decided(result, at(ms)));
        judged.filter(|judgement| *judgement != Judgement::Watched).collect()
    }

    #[test]
    fn a_thousand_decisions_make_it_good_once() {
        assert_eq!(run(vec![false; 5000]), [Judgement::Good]);
    }

    #[test]
    fn so_does_a_minute() {
        let probation = Probation::default();
        assert_eq!(probation.decided(DecisionResult::Decided, at(0)), Judgement::Watched);
        assert_eq!(probation.decided(DecisionResult::Decided, at(59_999)), Judgement::Watched);
        assert_eq!(probation.decided(DecisionResult::Decided, at(60_000)), Judgement::Good);
    }

    #[test]
    fn two_percent_of_faults_are_found_within_the_stretch() {
        let judged = run((0..1000).map(|n| n % 50 == 49));
        assert_eq!(judged, [Judgement::Bad { faults: 3, decisions: 150 }]);
    }

    #[test]
    fn the_third_fault_in_a_row_ends_it_and_only_once() {
        assert_eq!(run(vec![true; 100]), [Judgement::Bad { faults: 3, decisions: 3 }]);
    }

    #[test]
    fn rare_faults_are_borne() {
        assert_eq!(run((0..10_000).map(|n| n % 500 == 499)), [Judgement::Good]);
    }

    #[test]
    fn rare_overruns_are_not() {
        let overruns =
            (0..10_000).map(|n| if n % 300 == 299 { DecisionResult::Overran } else { DecisionResult::Decided });
        assert_eq!(conducted(overruns), [Judgement::Bad { faults: 3, decisions: 900 }]);
    }

    #[test]
    fn overruns_of_long_ago_are_forgotten() {
        let overruns =
            (0..10_000).map(|n| if n % 500 == 499 { DecisionResult::Overran } else { DecisionResult::Decided });
        assert_eq!(conducted(overruns), [Judgement::Good]);
    }

    #[test]
    fn a_good_one_is_watched_on() {
        let judged = run((0..2000).map(|n| n >= 1000));
        assert_eq!(judged, [Judgement::Good, Judgement::Bad { faults: 3, decisions: 3 }]);
    }

    proptest! {
        #[test]
        fn bad_means_the_share_was_reached(outcomes in proptest::collection::vec(any::<bool>(), 0..3000)) {
            for judgement in run(outcomes) {
                if let Judgement::Bad { faults, decisions } = judgement {
                    prop_assert!(faults >= MIN_FAULTS && faults * 100 >= decisions * MAX_FAULT_PERCENT);
                }
            }
        }
    }
}
