//! Counters of one endpoint: a set for each worker, made when the endpoint is, so that a request looks nothing up.

use super::histogram::{ANSWERS, DECISIONS, Histogram};
use crate::{
    clock::micros,
    error::REASONS,
    policy::contract::{Class, FailureKind},
    retry::ClampReason,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Endpoints that are told apart; those of later generations beyond it count together, as `other`. Each has some hundred time
/// series.
const ENDPOINTS: usize = 1000;

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// How many.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long something usually takes: smoothed as a round trip is (RFC 6298: an eighth of each new one).
#[derive(Debug, Default)]
pub struct Usually {
    micros: AtomicU64,
    /// Endpoints of every kind count here: nothing is usual.
    is_mixed: bool,
}

impl Usually {
    /// Takes one more into account.
    pub fn learn(&self, took: Duration) {
        if self.is_mixed {
            return;
        }
        let took = micros(took);
        let smoothed = |before: u64| Some(if before == 0 { took } else { before - before / 8 + took / 8 });
        // A service's worker is alone here; a library's callers may be on any thread.
        let _ = self.micros.fetch_update(Relaxed, Relaxed, smoothed);
    }

    /// How long; nothing before the first.
    pub fn read(&self) -> Duration {
        Duration::from_micros(self.micros.load(Relaxed))
    }
}

/// Counters by a closed set of values.
#[derive(Debug)]
pub struct Each<const N: usize>([Counter; N]);

impl<const N: usize> Default for Each<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Each<N> {
    /// One more with this value; what is no value counts as the last one.
    pub fn add(&self, index: usize) {
        self.0[index.min(N - 1)].add();
    }

    /// All of them.
    pub fn all(&self) -> &[Counter] {
        &self.0
    }
}

/// Statuses are counted by their first digit.
pub const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// Where a status counts.
pub fn status(status: u16) -> usize {
    usize::from(status / 100).wrapping_sub(1).min(STATUSES.len() - 1)
}

/// Every class, in the order of its counters.
pub const CLASSES: [Class; 6] =
    [Class::Applied, Class::AlreadyApplied, Class::NotApplied, Class::Throttled, Class::Unknown, Class::Rejected];

/// Every failure, in the order of its counters.
pub const FAILURES: [FailureKind; 10] = [
    FailureKind::Dns,
    FailureKind::Connect,
    FailureKind::ConnectTimeout,
    FailureKind::Tls,
    FailureKind::Send,
    FailureKind::Reset,
    FailureKind::Timeout,
    FailureKind::Protocol,
    FailureKind::Body,
    FailureKind::Exhausted,
];

/// Every clamp, in the order of its counters.
pub const LIMITS: [ClampReason; 8] = [
    ClampReason::Attempts,
    ClampReason::Deadline,
    ClampReason::Effect,
    ClampReason::Body,
    ClampReason::Grant,
    ClampReason::Probes,
    ClampReason::TooEarly,
    ClampReason::UpstreamKey,
];

/// Every way in which a policy fails, in the order of its counters.
pub const FAULTS: [&str; 7] = ["overran", "waited", "trapped", "instantiate", "configure", "invalid", "other"];

/// What a key brought, in the order of its counters.
pub const KEYED: [&str; 6] = ["new", "replay", "in-flight", "mismatch", "reconcile", "failed"];

/// What a request's key brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyResult {
    /// Nobody sent it before.
    New,
    /// It was answered before.
    Replay,
    /// It is under way.
    InFlight,
    /// The key belongs to another request.
    Mismatch,
    /// It may have been sent before.
    Reconcile,
    /// The store did not take it.
    Failed,
}

/// What became of writes without a key whose callers had gone, in the order of its counters.
pub const ORPHANS: [&str; 6] = ["left", "answer", "reconcile", "unsent", "in-flight", "not-kept"];

/// What became of a write without a key whose caller has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanResult {
    /// Its caller went before it had the answer.
    Left,
    /// The next equal request was given its answer.
    Answer,
    /// The next equal request had to find out what came of it.
    Reconcile,
    /// It had no effect: the next equal request was sent.
    Unsent,
    /// It was under way for longer than the next equal request had time.
    InFlight,
    /// A write has no place: there are too many.
    NotKept,
}

impl OrphanResult {
    /// The name in metrics and stories.
    pub fn name(self) -> &'static str {
        ORPHANS[self as usize]
    }
}

impl KeyResult {
    /// The name in metrics and stories.
    pub fn name(self) -> &'static str {
        KEYED[self as usize]
    }
}

/// What the counters are of. Empty for requests that found no endpoint.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names {
    /// The upstream.
    pub upstream: String,
    /// The endpoint.
    pub endpoint: String,
}

/// One endpoint's counters on one worker. Aligned, so that it shares no cache line with another.
#[derive(Debug)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// Of what.
    pub names: Arc<Names>,
    /// Requests that came.
    pub begun: Counter,
    /// Requests that are over, whatever became of them.
    pub ended: Counter,
    /// Requests whose caller left before the answer.
    pub abandoned: Counter,
    /// Answers by status.
    pub requests: Each<{ STATUSES.len() }>,
    /// Answers of the host's own by reason.
    pub refusals: Each<{ REASONS.len() }>,
    /// Until the answer's head.
    pub request_time: Histogram,
    /// Attempts that were answered, by status.
    pub answered: Each<{ STATUSES.len() }>,
    /// Attempts that failed, by kind.
    pub failed: Each<{ FAILURES.len() }>,
    /// Until an attempt's head or failure.
    pub attempt_time: Histogram,
    /// The same, smoothed, of those that were answered and not refused.
    pub usually_takes: Usually,
    /// Retries, by the class that led to them.
    pub retries: Each<{ CLASSES.len() }>,
    /// Looks at what became of a write.
    pub probes: Counter,
    /// Waits for the reserved moment.
    pub wait_time: Histogram,
    /// Judgements by class, settled statuses included.
    pub verdicts: Each<{ CLASSES.len() }>,
    /// Calls of a policy.
    pub decision_time: Histogram,
    /// Verdicts that were not followed as given, by why.
    pub clamps: Each<{ LIMITS.len() }>,
    /// Policy faults by kind.
    pub faults: Each<{ FAULTS.len() }>,
    /// Requests with a key, by what it brought.
    pub keyed: Each<{ KEYED.len() }>,
    /// Requests without a key whose callers had gone, by what became of them.
    pub orphans: Each<{ ORPHANS.len() }>,
}

impl EndpointCounters {
    fn new(names: Arc<Names>, is_mixed: bool) -> Self {
        Self {
            names,
            begun: Counter::default(),
            ended: Counter::default(),
            abandoned: Counter::default(),
            requests: Each::default(),
            refusals: Each::default(),
            request_time: Histogram::new(&ANSWERS),
            answered: Each::default(),
            failed: Each::default(),
            attempt_time: Histogram::new(&ANSWERS),
            usually_takes: Usually { micros: AtomicU64::default(), is_mixed },
            retries: Each::default(),
            probes: Counter::default(),
            wait_time: Histogram::new(&ANSWERS),
            verdicts: Each::default(),
            decision_time: Histogram::new(&DECISIONS),
            clamps: Each::default(),
            faults: Each::default(),
            keyed: Each::default(),
            orphans: Each::default(),
        }
    }
}

/// One endpoint's counters, a set for each worker.
#[derive(Debug)]
pub struct EndpointMeters(Box<[Arc<EndpointCounters>]>);

impl EndpointMeters {
    fn new(names: Names, workers: usize, is_mixed: bool) -> Self {
        let names = Arc::new(names);
        Self((0..workers.max(1)).map(|_| Arc::new(EndpointCounters::new(Arc::clone(&names), is_mixed))).collect())
    }

    /// Counters that nobody reads: of a generation that is not in service yet.
    pub fn unread() -> Arc<Self> {
        Arc::new(Self::new(Names { upstream: String::new(), endpoint: String::new() }, 1, false))
    }

    /// A worker's own.
    pub fn of(&self, worker: usize) -> &Arc<EndpointCounters> {
        &self.0[worker % self.0.len()]
    }

    /// All workers'.
    pub fn all(&self) -> &[Arc<EndpointCounters>] {
        &self.0
    }
}

/// The counters of every endpoint that has been in service.
#[derive(Debug)]
pub struct AllEndpointCounters {
    workers: usize,
    nowhere: Arc<EndpointMeters>,
    other: Arc<EndpointMeters>,
    endpoints: Mutex<BTreeMap<(String, String), Arc<EndpointMeters>>>,
}

impl AllEndpointCounters {
    /// None yet, for so many workers.
    pub fn new(workers: usize) -> Self {
        let of = |name: &str| {
            let names = Names { upstream: name.to_owned(), endpoint: name.to_owned() };
            Arc::new(EndpointMeters::new(names, workers, true))
        };
        Self { workers, nowhere: of(""), other: of("other"), endpoints: Mutex::default() }
    }

    /// The counters of an endpoint: the same ones for the same names, so that a reload counts on.
    pub fn of(&self, upstream: &str, endpoint: &str) -> Arc<EndpointMeters> {
        let mut endpoints = self.endpoints.lock();
        let names = (upstream.to_owned(), endpoint.to_owned());
        if endpoints.len() >= ENDPOINTS && !endpoints.contains_key(&names) {
            return Arc::clone(&self.other);
        }
        let made = || {
            let names = Names { upstream: upstream.to_owned(), endpoint: endpoint.to_owned() };
            Arc::new(EndpointMeters::new(names, self.workers, false))
        };
        Arc::clone(endpoints.entry(names).or_insert_with(made))
    }

    /// The counters of requests that found no endpoint.
    pub fn unmatched(&self) -> &Arc<EndpointMeters> {
        &self.nowhere
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<EndpointMeters>> {
        let endpoints = self.endpoints.lock();
        let mut all = vec![Arc::clone(&self.nowhere)];
        all.extend(endpoints.values().cloned());
        if endpoints.len() >= ENDPOINTS {
            all.push(Arc::clone(&self.other));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_in_the_order_of_their_names() {
        assert!(CLASSES.iter().enumerate().all(|(index, class)| *class as usize == index));
        assert!(FAILURES.iter().enumerate().all(|(index, kind)| *kind as usize == index));
        assert!(LIMITS.iter().enumerate().all(|(index, limit)| *limit as usize == index));
        assert_eq!(KeyResult::Failed.name(), "failed");
        let names = [0, 99, 100, 204, 599, 600, u16::MAX].map(|code| STATUSES[status(code)]);
        assert_eq!(names, ["other", "other", "1xx", "2xx", "5xx", "other", "other"]);
    }

    #[test]
    fn endpoints_beyond_the_most_count_together() {
        let meters = AllEndpointCounters::new(2);
        for number in 0..ENDPOINTS + 50 {
            meters.of("api", &number.to_string()).of(number).probes.add();
        }
        let all = meters.all();
        assert_eq!(all.len(), ENDPOINTS + 2);
        let other: u64 = all[ENDPOINTS + 1].all().iter().map(|meter| meter.probes.read()).sum();
        assert_eq!(other, 50);
        let learned = |name: &str| {
            let meters = meters.of("api", name);
            let usually = &meters.of(0).usually_takes;
            usually.learn(Duration::from_secs(8));
            usually.read()
        };
        assert_eq!(
            (learned("7"), learned("another")),
            (Duration::from_secs(8), Duration::ZERO),
            "a mixture has nothing usual"
        );
        assert!(Arc::ptr_eq(&meters.of("api", "7"), &meters.of("api", "7")));
    }
}
