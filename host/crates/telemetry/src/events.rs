//! Recent events for operators, in a bounded ring.

use super::{FailedAttempt, FailureCause, FailureHistory, PinnedTimelines, RequestId, TripFailures};
use crate::{
    breaker::{Transition, Trip},
    clock::Clock,
    rounded::Rounded,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};

/// Maximum of events: hours of a quiet host, minutes of a troubled one.
const MAX_EVENTS: usize = 512;
/// Minimal interval of events of a kind that may come in bursts.
const MIN_SELDOM_INTERVAL_MS: u64 = 60_000;

/// All kinds of event.
pub const KINDS: [&str; 31] = [
    "breaker-opened",
    "breaker-closed",
    "breaker-held",
    "policy-installed",
    "policy-refused",
    "policy-good",
    "policy-rolled-back",
    "policy-withdrawn",
    "policy-announced",
    "policy-aborted",
    "policy-switched",
    "policy-behind",
    "policy-flawed",
    "candidate-tried",
    "candidate-differed",
    "candidate-ready",
    "candidate-not-ready",
    "candidate-given-up",
    "state-lost",
    "state-back",
    "overloaded",
    "slowed",
    "write-settled",
    "write-unsettled",
    "write-unrecorded",
    "write-unverified",
    "peer-limited",
    "exhausted",
    "action",
    "reloaded",
    "reload-refused",
];

/// Kinds whose last event is remembered when the ring has dropped it: an operator must see for an hour that a policy was rolled back.
const REMEMBERED: [&str; 9] = [
    "policy-installed",
    "policy-refused",
    "policy-good",
    "policy-rolled-back",
    "policy-withdrawn",
    "candidate-tried",
    "candidate-given-up",
    "reloaded",
    "reload-refused",
];
/// Maximum of remembered events: subjects are names of upstreams, so that only a very large configuration reaches it.
const MAX_REMEMBERED: usize = 4096;

/// An event for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Consecutive number, from 1.
    pub number: u64,
    /// Time of the event, in milliseconds since 1970.
    pub unix_ms: u64,
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// Name of an upstream, or `upstream/group` for a breaker.
    pub subject: String,
    /// Description of the event.
    pub text: String,
}

/// The ring of events, and counters by kind.
#[derive(Debug)]
pub struct Events {
    clock: Clock,
    inner: Mutex<Inner>,
    failures: FailureHistory,
    pinned: PinnedTimelines,
}

#[derive(Debug, Default)]
struct Inner {
    noted: u64,
    ring: VecDeque<Event>,
    /// Number of transitions of each breaker, by group and kind; at most three entries for each group.
    transitions: BTreeMap<(String, &'static str), u64>,
    kinds: BTreeMap<&'static str, u64>,
    /// Time of the last event of each kind that may come in bursts.
    seldom: BTreeMap<&'static str, u64>,
    /// The last event of each of [`REMEMBERED`], by kind and subject.
    remembered: BTreeMap<(&'static str, String), Event>,
}

impl Events {
    /// An empty ring.
    pub fn new(clock: Clock) -> Self {
        Self { clock, inner: Mutex::default(), failures: FailureHistory::default(), pinned: PinnedTimelines::default() }
    }

    /// Adds an event; a full ring drops the oldest.
    pub fn note(&self, kind: &'static str, subject: &str, text: String) {
        debug_assert!(KINDS.contains(&kind), "{kind} is missing in KINDS, and so in the metrics");
        let unix_ms = self.clock.unix_ms();
        let mut inner = self.inner.lock();
        inner.noted += 1;
        *inner.kinds.entry(kind).or_default() += 1;
        let event = Event { number: inner.noted, unix_ms, kind, subject: subject.to_owned(), text };
        let key = (kind, subject.to_owned());
        if REMEMBERED.contains(&kind)
            && (inner.remembered.len() < MAX_REMEMBERED || inner.remembered.contains_key(&key))
        {
            inner.remembered.insert(key, event.clone());
        }
        if inner.ring.len() == MAX_EVENTS {
            inner.ring.pop_front();
        }
        inner.ring.push_back(event);
    }

    /// Adds and logs an event of a kind that abuse could cause by the thousand, at most once a minute.
    pub fn note_seldom(&self, kind: &'static str, subject: &str, text: impl FnOnce() -> String) {
        let now = self.clock.unix_ms();
        {
            let mut inner = self.inner.lock();
            let last = inner.seldom.get(kind).copied();
            if last.is_some_and(|last| now.saturating_sub(last) < MIN_SELDOM_INTERVAL_MS) {
                return;
            }
            inner.seldom.insert(kind, now);
        }
        let text = text();
        tracing::warn!(kind, subject, "{text}");
        self.note(kind, subject, text);
    }

    /// Reports, at most once a minute, that a write without a key has no record. `max_records`: the limit of the store.
    pub fn note_unrecorded(&self, subject: &str, max_records: usize) {
        self.note_seldom("write-unrecorded", subject, || {
            format!(
                "no record is kept of a write without a key that ended unknown or whose caller disconnected: \
                 unsettled records take half of the {max_records} allowed (idempotency.max_records), or their memory \
                 is full; settle old ones (triage records list), or raise the limit"
            )
        });
    }

    /// Reports, at most once a minute, that an unknown write is recorded without its request.
    pub fn note_unverified(&self, subject: &str) {
        self.note_seldom("write-unverified", subject, || {
            "an unknown write is not verified in the background: there is no memory for its request; its caller can \
             repeat it with its key, or an operator settles it (triage records list)"
                .to_owned()
        });
    }

    /// Adds a failure of an attempt, before its breaker counts it.
    pub fn failed(&self, group: &str, request: RequestId, cause: FailureCause) {
        self.failures.add(group, FailedAttempt { request, unix_ms: self.clock.unix_ms(), cause });
    }

    /// The failures of every group, and those that opened its breaker.
    pub fn failures(&self) -> &FailureHistory {
        &self.failures
    }

    /// The timelines of requests whose failures opened a breaker.
    pub fn pinned(&self) -> &PinnedTimelines {
        &self.pinned
    }

    /// The failures that opened a group's breaker now. Their requests stay explainable until its next trip.
    pub fn tripped(&self, group: &str, why: Trip) -> Option<TripFailures> {
        let count = match why {
            Trip::Consecutive(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
            Trip::ProbeFailed => Some(1),
            Trip::FailureRate(_) | Trip::Unusual(..) => None,
            // No failure of an attempt opened it.
            Trip::SlowRate(_) | Trip::Forced | Trip::Pybreaker => Some(0),
        };
        let trips = self.failures.opened(group, count, self.clock.unix_ms());
        let ids = |trip: &Option<TripFailures>| {
            trip.iter().flat_map(|trip| [trip.first.request, trip.latest.request]).collect::<Vec<_>>()
        };
        self.pinned.replace(ids(&trips.before), ids(&trips.now));
        trips.now
    }

    /// The last event of this kind and subject, if [`Events`] remembers the kind.
    pub fn last(&self, kind: &'static str, subject: &str) -> Option<Event> {
        self.inner.lock().remembered.get(&(kind, subject.to_owned())).cloned()
    }

    /// Adds the event of a breaker's transition. `failures`: those that opened it.
    pub fn transition(&self, group: &str, transition: Transition, failures: Option<&TripFailures>) {
        let (kind, text) = match transition {
            Transition::Opened { why, open_for } => {
                let of = failures.map_or_else(String::new, |failures| format!(": {failures}"));
                ("breaker-opened", format!("opened for {}: {why}{of}", Rounded(open_for)))
            }
            Transition::Closed => ("breaker-closed", "closed".to_owned()),
            Transition::Held { hold } => ("breaker-held", format!("held closed for {} by an operator", Rounded(hold))),
        };
        *self.inner.lock().transitions.entry((group.to_owned(), kind)).or_default() += 1;
        self.note(kind, group, text);
    }

    /// The latest event of this kind after a time, if the ring still has it.
    pub fn recent(&self, kind: &'static str, after_unix_ms: u64) -> Option<Event> {
        let inner = self.inner.lock();
        let recent = inner.ring.iter().rev().take_while(|event| event.unix_ms >= after_unix_ms);
        recent.into_iter().find(|event| event.kind == kind).cloned()
    }

    /// The events after this number, the oldest first.
    pub fn after(&self, number: u64) -> Vec<Event> {
        self.inner.lock().ring.iter().filter(|event| event.number > number).cloned().collect()
    }

    /// The latest `most` events, the oldest first.
    pub fn latest(&self, most: usize) -> Vec<Event> {
        let inner = self.inner.lock();
        inner.ring.iter().skip(inner.ring.len().saturating_sub(most)).cloned().collect()
    }

    /// Number of events of each kind. Kinds without an event are included, so that a metric's first increase from 0 is visible.
    pub fn kinds(&self) -> Vec<(&'static str, u64)> {
        let inner = self.inner.lock();
        KINDS.iter().map(|kind| (*kind, inner.kinds.get(kind).copied().unwrap_or_default())).collect()
    }

    /// Number of a breaker's transitions with this kind of event.
    pub fn transitions(&self, group: &str, kind: &'static str) -> u64 {
        self.inner.lock().transitions.get(&(group.to_owned(), kind)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_numbers_have_no_gaps() {
        let events = Events::new(Clock::anchored(5));
        for number in 0..MAX_EVENTS as u64 + 10 {
            events.note("action", "api", number.to_string());
        }
        let kept = events.after(0);
        assert_eq!(kept.len(), MAX_EVENTS);
        assert!(kept.iter().zip(11..).all(|(event, number)| event.number == number));
        assert_eq!(events.after(MAX_EVENTS as u64 + 9).len(), 1);
        assert_eq!(events.latest(3), kept[MAX_EVENTS - 3..]);
    }
}
