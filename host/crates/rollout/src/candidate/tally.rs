//! Counts a candidate's decisions, and decides when an operator hears of them. Pure.

use crate::clock::Timestamp;
use std::{collections::HashMap, fmt};

/// Groups of differences that are kept. A candidate chooses its answers, and the upstream its statuses, so their number has no limit of its
/// own; differences beyond are counted together.
const MAX_GROUPS: usize = 64;
/// Decisions that complete a trial: as many as a new generation needs to pass its probation.
const TRIAL_DECISIONS: u64 = 1000;

/// An outcome on which the candidate decided differently. Contains no data of the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Difference {
    /// The endpoint's name in the live policy.
    pub endpoint: String,
    /// The upstream's status, or the failure's name.
    pub outcome: String,
    /// The live policy's decision: class, breaker signal and next action.
    pub live: String,
    /// The candidate's decision, or its fault.
    pub candidate: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, outcome, live, candidate } = self;
        write!(f, "{endpoint} {outcome}: {live}; candidate: {candidate}")
    }
}

/// Equal differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferenceGroup {
    /// Where and how the policies differ.
    pub difference: Difference,
    /// How often they did.
    pub count: u64,
    /// When they last did.
    pub latest: Timestamp,
}

/// A candidate's decision beside the live policy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// A canary decides in the live policy's place, so there is nothing to compare with.
    Alone,
    /// Both decided the same.
    Equal,
    /// They did not.
    Different(Difference),
}

/// Counts of a candidate's decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrialCounts {
    /// Decisions, with faults.
    pub decisions: u64,
    /// Decisions that were compared with the live policy's: all in shadow, none of a canary.
    pub compared: u64,
    /// Compared decisions that were different.
    pub differed: u64,
    /// Decisions that failed: traps, overruns and invalid verdicts. In shadow a fault is a difference too.
    pub faults: u64,
}

impl TrialCounts {
    /// Whether the candidate has decided often enough, without a difference or a fault.
    pub fn is_ready(&self) -> bool {
        self.decisions >= TRIAL_DECISIONS && self.differed == 0 && self.faults == 0
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            decisions: self.decisions + other.decisions,
            compared: self.compared + other.compared,
            differed: self.differed + other.differed,
            faults: self.faults + other.faults,
        }
    }
}

/// A decision that operators hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// The candidate differed for the 1st, 2nd, 4th, 8th ... time.
    Differed { difference: Difference, counts: TrialCounts },
    /// The trial has its decisions. Only once.
    Completed { counts: TrialCounts },
}

/// The decisions of one component on trial.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: TrialCounts,
    groups: HashMap<Difference, (u64, Timestamp)>,
    ungrouped: u64,
    is_completed: bool,
}

impl Tally {
    /// Counts a decision.
    pub(super) fn note(&mut self, comparison: Comparison, is_fault: bool, now: Timestamp) -> Option<Milestone> {
        self.counts.decisions += 1;
        self.counts.faults += u64::from(is_fault);
        self.counts.compared += u64::from(comparison != Comparison::Alone);
        if let Comparison::Different(difference) = comparison {
            self.counts.differed += 1;
            self.group(&difference, now);
            // Ever more rarely, so that a candidate that always differs does not fill the log.
            if self.counts.differed.is_power_of_two() {
                return Some(Milestone::Differed { difference, counts: self.counts });
            }
        }
        if self.counts.decisions < TRIAL_DECISIONS || self.is_completed {
            return None;
        }
        self.is_completed = true;
        Some(Milestone::Completed { counts: self.counts })
    }

    fn group(&mut self, difference: &Difference, now: Timestamp) {
        if let Some((count, latest)) = self.groups.get_mut(difference) {
            *count += 1;
            *latest = now;
        } else if self.groups.len() < MAX_GROUPS {
            self.groups.insert(difference.clone(), (1, now));
        } else {
            self.ungrouped += 1;
        }
    }

    pub(super) const fn counts(&self) -> TrialCounts {
        self.counts
    }

    /// The groups of differences, the most frequent first.
    pub(super) fn groups(&self) -> Vec<DifferenceGroup> {
        let group = |(difference, (count, latest)): (&Difference, &(u64, Timestamp))| DifferenceGroup {
            difference: difference.clone(),
            count: *count,
            latest: *latest,
        };
        let mut groups: Vec<DifferenceGroup> = self.groups.iter().map(group).collect();
        groups.sort_unstable_by(|one, two| two.count.cmp(&one.count).then_with(|| one.difference.cmp(&two.difference)));
        groups
    }

    /// Differences in no group, because there were too many groups.
    pub(super) const fn ungrouped(&self) -> u64 {
        self.ungrouped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1);

    fn difference(outcome: u64) -> Difference {
        let text = |text: &str| text.to_owned();
        Difference {
            endpoint: text("any"),
            outcome: outcome.to_string(),
            live: text("unknown, failure, retry"),
            candidate: text("rejected, ignore, deliver"),
        }
    }

    fn completions(comparison: &Comparison, faults: impl Fn(u64) -> bool, most: u64) -> Vec<(u64, TrialCounts)> {
        let mut tally = Tally::default();
        let noted = (1..=most).filter_map(|decision| match tally.note(comparison.clone(), faults(decision), NOW) {
            Some(Milestone::Completed { counts }) => Some((decision, counts)),
            _ => None,
        });
        noted.collect()
    }

    #[test]
    fn a_trial_completes_once_after_a_thousand_decisions_and_is_ready_if_none_differed() {
        let counts = TrialCounts { decisions: 1000, compared: 1000, ..TrialCounts::default() };
        assert_eq!(completions(&Comparison::Equal, |_| false, 5000), [(1000, counts)]);
        assert!(counts.is_ready());
        assert!(!TrialCounts { decisions: 999, ..counts }.is_ready());
    }

    #[test]
    fn a_canary_completes_by_its_decisions_and_a_fault_makes_it_not_ready() {
        let counts = TrialCounts { decisions: 1000, faults: 1, ..TrialCounts::default() };
        assert_eq!(completions(&Comparison::Alone, |decision| decision == 7, 5000), [(1000, counts)]);
        assert!(!counts.is_ready());
        assert!(TrialCounts { faults: 0, ..counts }.is_ready());
    }

    #[test]
    fn a_trial_in_which_every_decision_differs_completes_too_and_is_not_ready() {
        let completed = completions(&Comparison::Different(difference(503)), |_| false, 5000);
        let counts = TrialCounts { decisions: 1000, compared: 1000, differed: 1000, faults: 0 };
        assert_eq!(completed, [(1000, counts)]);
        assert!(!counts.is_ready());
    }

    #[test]
    fn a_first_difference_at_the_completing_decision_hides_neither() {
        let mut tally = Tally::default();
        for _ in 1..TRIAL_DECISIONS {
            assert_eq!(tally.note(Comparison::Equal, false, NOW), None);
        }
        let first = tally.note(Comparison::Different(difference(503)), false, NOW);
        assert!(matches!(first, Some(Milestone::Differed { counts, .. }) if counts.differed == 1), "{first:?}");
        let then = tally.note(Comparison::Equal, false, NOW);
        assert!(matches!(then, Some(Milestone::Completed { counts }) if counts.differed == 1), "{then:?}");
    }

    #[test]
    fn differences_are_told_ever_more_rarely() {
        let mut tally = Tally::default();
        let reported = (1..=100).filter(|_| {
            matches!(tally.note(Comparison::Different(difference(503)), false, NOW), Some(Milestone::Differed { .. }))
        });
        assert_eq!(reported.collect::<Vec<u32>>(), [1, 2, 4, 8, 16, 32, 64]);
    }

    #[test]
    fn equal_differences_are_one_group_with_their_latest_time_and_the_most_frequent_is_first() {
        let mut tally = Tally::default();
        for (outcome, at) in [(404, 1), (503, 2), (503, 3)] {
            tally.note(Comparison::Different(difference(outcome)), false, Timestamp(at));
        }
        let groups: Vec<_> =
            tally.groups().into_iter().map(|own| (own.difference.outcome, own.count, own.latest.0)).collect();
        assert_eq!(groups, [("503".to_owned(), 2, 3), ("404".to_owned(), 1, 1)]);
    }

    #[test]
    fn groups_are_bounded_and_no_difference_is_lost() {
        let mut tally = Tally::default();
        for outcome in 0..1000 {
            tally.note(Comparison::Different(difference(outcome)), false, NOW);
        }
        let grouped: u64 = tally.groups().iter().map(|group| group.count).sum();
        assert_eq!((tally.groups().len(), grouped + tally.ungrouped()), (MAX_GROUPS, tally.counts().differed));
    }
}
