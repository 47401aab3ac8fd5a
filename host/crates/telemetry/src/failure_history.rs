//! The failures that opened a breaker: of what, how many, and which requests show it.
//!
//! A breaker counts failures and forgets their causes. After a minute of an outage the refused requests outnumber the failed ones, so an
//! operator who asks why a breaker is open finds refusals only. This history keeps the causes of the latest failures of each group, and
//! the first and the latest failure of its last trip.

use super::RequestId;
use crate::contract::{Failure, FailureKind, FailureReason};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

/// Failures kept for each group: more than `breaker.failure_threshold` usually allows, so that a trip's first failure is among them.
const MAX_FAILURES: usize = 64;
/// Failures older than this do not explain a trip: twice the longest usual window of a breaker.
const MAX_AGE_MS: u64 = 120_000;
/// Causes that a text names; the others are counted together.
const MAX_CAUSES: usize = 3;

/// What failed in an attempt that a breaker counts as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// The upstream answered with this status.
    Answered(u16),
    /// There was no answer: the kind of the failure, and its exact cause if the host knows it.
    Failed(FailureKind, Option<FailureReason>),
    /// The answer's body broke off, or stayed silent for longer than an attempt may take.
    BodyBroken,
    /// The health call before a probe failed.
    HealthCall,
}

impl FailureCause {
    /// The cause of an attempt without an answer.
    pub fn of(failure: Failure) -> Self {
        Self::Failed(failure.kind, failure.reason)
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => write!(f, "answered {status}"),
            Self::Failed(kind, None) => write!(f, "no answer ({})", kind.name()),
            Self::Failed(kind, Some(reason)) => write!(f, "no answer ({}, {})", kind.name(), reason.name()),
            Self::BodyBroken => f.write_str("the answer's body broke off"),
            Self::HealthCall => f.write_str("the health call failed"),
        }
    }
}

/// One failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Id of its request.
    pub request: RequestId,
    /// Time of the failure, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What failed.
    pub cause: FailureCause,
}

/// The failures that opened a breaker, as far as this host saw them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TripFailures {
    /// The first of them.
    pub first: FailedAttempt,
    /// The latest of them.
    pub latest: FailedAttempt,
    /// Their causes, the most frequent first, and how often each occurred.
    pub causes: Vec<(FailureCause, usize)>,
}

impl TripFailures {
    fn of<'a>(failures: impl Iterator<Item = &'a FailedAttempt>) -> Option<Self> {
        let mut causes: Vec<(FailureCause, usize)> = Vec::new();
        let mut ends: Option<(FailedAttempt, FailedAttempt)> = None;
        for failure in failures {
            ends = Some((ends.map_or(*failure, |(first, _)| first), *failure));
            match causes.iter_mut().find(|(cause, _)| *cause == failure.cause) {
                Some((_, count)) => *count += 1,
                None => causes.push((failure.cause, 1)),
            }
        }
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        ends.map(|(first, latest)| Self { first, latest, causes })
    }
}

impl fmt::Display for TripFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(cause, _)] = self.causes.as_slice() {
            return write!(f, "{cause}");
        }
        let rest: usize = self.causes.iter().skip(MAX_CAUSES).map(|(_, count)| count).sum();
        for (index, (cause, count)) in self.causes.iter().take(MAX_CAUSES).enumerate() {
            write!(f, "{}{count} × {cause}", if index > 0 { ", " } else { "" })?;
        }
        if rest > 0 { write!(f, ", {rest} others") } else { Ok(()) }
    }
}

/// The failures of every group.
#[derive(Debug, Default)]
pub struct FailureHistory {
    groups: Mutex<HashMap<String, Group>>,
}

#[derive(Debug, Default)]
struct Group {
    recent: VecDeque<FailedAttempt>,
    trip: Option<TripFailures>,
}

impl FailureHistory {
    /// Adds a failure of a group.
    pub fn add(&self, group: &str, failure: FailedAttempt) {
        let mut groups = self.groups.lock();
        let recent = match groups.get_mut(group) {
            Some(group) => &mut group.recent,
            None => &mut groups.entry(group.to_owned()).or_default().recent,
        };
        if recent.len() == MAX_FAILURES {
            recent.pop_front();
        }
        recent.push_back(failure);
    }

    /// Keeps the failures that opened the group's breaker: the last `count` of them, or all recent ones. Returns those of the trip before,
    /// which are no longer kept, and those of this trip. Failures are forgotten then, so that the next trip has its own.
    pub(super) fn opened(&self, group: &str, count: Option<usize>, now_unix_ms: u64) -> Trips {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(group) else { return Trips::default() };
        let recent = std::mem::take(&mut group.recent);
        let is_recent = |failure: &&FailedAttempt| now_unix_ms.saturating_sub(failure.unix_ms) <= MAX_AGE_MS;
        let first = recent.len().saturating_sub(count.unwrap_or(usize::MAX));
        let opened_by = TripFailures::of(recent.iter().skip(first).filter(is_recent));
        Trips { before: std::mem::replace(&mut group.trip, opened_by.clone()), now: opened_by }
    }

    /// The failures of a group's last trip; none if this host saw none of them.
    pub fn trip(&self, group: &str) -> Option<TripFailures> {
        self.groups.lock().get(group)?.trip.clone()
    }

    /// The latest failure of a group.
    pub fn latest(&self, group: &str) -> Option<FailedAttempt> {
        let groups = self.groups.lock();
        let group = groups.get(group)?;
        group.recent.back().copied().or_else(|| Some(group.trip.as_ref()?.latest))
    }
}

/// The failures of the trip before, and of this one.
#[derive(Debug, Default)]
pub(super) struct Trips {
    pub(super) before: Option<TripFailures>,
    pub(super) now: Option<TripFailures>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn failed(request: u64, unix_ms: u64, cause: FailureCause) -> FailedAttempt {
        FailedAttempt { request: RequestId(request), unix_ms, cause }
    }

    #[test]
    fn a_trip_names_the_failures_in_a_row_and_not_the_ones_before() {
        let history = FailureHistory::default();
        history.add("api/any", failed(1, 1_000, FailureCause::Failed(FailureKind::Timeout, None)));
        for request in 2..=6 {
            history.add("api/any", failed(request, 1_000 + request, FailureCause::Answered(503)));
        }
        let trip = history.opened("api/any", Some(5), 2_000).now.unwrap();
        assert_eq!((trip.first.request, trip.latest.request), (RequestId(2), RequestId(6)));
        assert_eq!(trip.to_string(), "answered 503");
        assert_eq!(history.latest("api/any"), Some(trip.latest), "a trip is no reason to forget it");
        assert_eq!(history.trip("api/any"), Some(trip));
    }

    #[test]
    fn causes_are_counted_and_the_rare_ones_are_summed() {
        let history = FailureHistory::default();
        for (request, status) in [500, 500, 500, 502, 502, 503, 504].into_iter().enumerate() {
            history.add("api/any", failed(request as u64, 5, FailureCause::Answered(status)));
        }
        let trip = history.opened("api/any", None, 5).now.unwrap();
        assert_eq!(trip.to_string(), "3 × answered 500, 2 × answered 502, 1 × answered 503, 1 others");
    }

    #[test]
    fn the_next_trip_has_its_own_failures() {
        let history = FailureHistory::default();
        history.add("api/any", failed(1, 5, FailureCause::Answered(500)));
        let first = history.opened("api/any", Some(1), 5).now;
        history.add("api/any", failed(2, 60_000, FailureCause::HealthCall));
        let next = history.opened("api/any", Some(5), 60_000);
        assert_eq!(next.before, first);
        assert_eq!(next.now.unwrap().to_string(), "the health call failed");
        // A trip that other hosts saw has no failures here.
        assert_eq!(history.opened("api/any", Some(5), 60_000).now, None);
        assert_eq!(history.trip("api/any"), None);
    }

    #[test]
    fn failures_of_long_ago_explain_nothing_and_the_history_is_bounded() {
        let history = FailureHistory::default();
        for request in 0..1_000 {
            history.add("api/any", failed(request, 0, FailureCause::Answered(500)));
        }
        assert_eq!(history.groups.lock()["api/any"].recent.len(), MAX_FAILURES);
        history.add("api/any", failed(1_000, MAX_AGE_MS + 1, FailureCause::BodyBroken));
        let trip = history.opened("api/any", None, MAX_AGE_MS + 1).now.unwrap();
        assert_eq!((trip.first, trip.causes.len()), (trip.latest, 1), "{trip}");
    }
}
