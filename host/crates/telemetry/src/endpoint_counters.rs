//! Counters of endpoints: a set for each endpoint and worker, created with the endpoint, so that a request needs no lookup.
//!
//! The counters are our own because a `Family` of `prometheus-client` finds a counter by its labels under a lock, and all threads share it.

use super::histogram::{ANSWERS, DECISIONS, Histogram};
use crate::{
    clock::micros,
    contract::{Class, FailureKind},
    error::REASONS,
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
use strum::VariantNames as _;

/// Maximum of endpoints with counters of their own; further ones count together, as `other`. Each has some hundred time series.
const MAX_ENDPOINTS: usize = 1000;

/// A monotonic counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// The count.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A smoothed duration: an eighth of each new value is mixed in, like the round-trip time of RFC 6298.
#[derive(Debug, Default)]
pub struct Usually {
    micros: AtomicU64,
    /// Whether several endpoints share these counters, so that an average means nothing.
    is_mixed: bool,
}

impl Usually {
    /// Mixes in a new duration.
    pub fn learn(&self, took: Duration) {
        if self.is_mixed {
            return;
        }
        let took = micros(took);
        let smoothed = |before: u64| Some(if before == 0 { took } else { before - before / 8 + took / 8 });
        // In the service only one worker writes here, but a library's callers may be on any thread.
        let _ = self.micros.fetch_update(Relaxed, Relaxed, smoothed);
    }

    /// The smoothed duration; zero before the first value.
    pub fn read(&self) -> Duration {
        Duration::from_micros(self.micros.load(Relaxed))
    }
}

/// Counters for a closed set of values.
#[derive(Debug)]
pub struct Each<const N: usize>([Counter; N]);

impl<const N: usize> Default for Each<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Each<N> {
    /// Adds one for the value of this index; an invalid index counts as the last value.
    pub fn add(&self, index: usize) {
        self.0[index.min(N - 1)].add();
    }

    /// The counters in the order of the values.
    pub fn all(&self) -> &[Counter] {
        &self.0
    }
}

/// Labels of statuses, which are counted by their first digit.
pub const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// Index of a status in [`STATUSES`].
pub fn status(status: u16) -> usize {
    usize::from(status / 100).wrapping_sub(1).min(STATUSES.len() - 1)
}

/// All policy faults, in the order of the counters.
pub const FAULTS: [&str; 7] = ["overran", "waited", "trapped", "instantiate", "configure", "invalid", "other"];

/// The result of a request's begin under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum KeyResult {
    /// The key is new.
    New,
    /// The stored response was replayed.
    Replay,
    /// A request with the key is under way.
    InFlight,
    /// The key was used for another request.
    Mismatch,
    /// The request may have been sent before, with unknown effect.
    Reconcile,
    /// The store refused or failed.
    Failed,
}

/// The result of a write without a key whose caller disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum OrphanResult {
    /// The caller disconnected before the response.
    Left,
    /// The next equal request got its response.
    Answer,
    /// The next equal request had to verify its effect.
    Reconcile,
    /// The write had no effect, so the next equal request was sent.
    Unsent,
    /// The write was still running at the deadline of the next equal request.
    InFlight,
    /// A write was not listed, because the list is full.
    NotKept,
}

impl OrphanResult {
    /// The name in metrics and timelines.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl KeyResult {
    /// The name in metrics and timelines.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The endpoint of a set of counters. Both names are empty for requests that matched no endpoint.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names {
    /// Name of the upstream.
    pub upstream: String,
    /// Name of the endpoint.
    pub endpoint: String,
}

/// The counters of one endpoint on one worker. Aligned, so that workers share no cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// The endpoint.
    pub names: Arc<Names>,
    /// Requests received.
    pub begun: Counter,
    /// Requests ended, with any result.
    pub ended: Counter,
    /// Requests whose caller disconnected before the response.
    pub abandoned: Counter,
    /// Responses by status.
    pub requests: Each<{ STATUSES.len() }>,
    /// Responses that the host generated, by reason.
    pub refusals: Each<{ REASONS.len() }>,
    /// Time to the response's head.
    pub request_time: Histogram,
    /// The same of requests that the host refused without an attempt. They take microseconds, and would hide how long the others take.
    pub refused_time: Histogram,
    /// Attempts with a response, by status.
    pub answered: Each<{ STATUSES.len() }>,
    /// Attempts that failed, by kind.
    pub failed: Each<{ FailureKind::VARIANTS.len() }>,
    /// Time to the head of an attempt's response, or to its failure.
    pub attempt_time: Histogram,
    /// The same, smoothed, for responses other than 429 and 503.
    pub usually_takes: Usually,
    /// Retries, by the class of the outcome before.
    pub retries: Each<{ Class::VARIANTS.len() }>,
    /// Verifications of unknown writes.
    pub verifications: Counter,
    /// Time that attempts waited for their reserved moment.
    pub wait_time: Histogram,
    /// Verdicts by class; settled statuses count as applied.
    pub verdicts: Each<{ Class::VARIANTS.len() }>,
    /// Duration of a policy's calls.
    pub decision_time: Histogram,
    /// Verdicts that the host clamped, by reason.
    pub clamps: Each<{ ClampReason::VARIANTS.len() }>,
    /// Faults of the policy, by kind.
    pub faults: Each<{ FAULTS.len() }>,
    /// Requests with an idempotency key, by result.
    pub keyed: Each<{ KeyResult::VARIANTS.len() }>,
    /// Writes without a key whose callers disconnected, by result.
    pub orphans: Each<{ OrphanResult::VARIANTS.len() }>,
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
            refused_time: Histogram::new(&ANSWERS),
            answered: Each::default(),
            failed: Each::default(),
            attempt_time: Histogram::new(&ANSWERS),
            usually_takes: Usually { micros: AtomicU64::default(), is_mixed },
            retries: Each::default(),
            verifications: Counter::default(),
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

/// The counters of one endpoint, a set for each worker.
#[derive(Debug)]
pub struct EndpointMeters(Box<[Arc<EndpointCounters>]>);

impl EndpointMeters {
    fn new(names: Names, workers: usize, is_mixed: bool) -> Self {
        let names = Arc::new(names);
        Self((0..workers.max(1)).map(|_| Arc::new(EndpointCounters::new(Arc::clone(&names), is_mixed))).collect())
    }

    /// Counters that are not exported, for a policy generation that does not serve yet.
    pub fn unread() -> Arc<Self> {
        Arc::new(Self::new(Names { upstream: String::new(), endpoint: String::new() }, 1, false))
    }

    /// The counters of a worker.
    pub fn of(&self, worker: usize) -> &Arc<EndpointCounters> {
        &self.0[worker % self.0.len()]
    }

    /// The counters of all workers.
    pub fn all(&self) -> &[Arc<EndpointCounters>] {
        &self.0
    }
}

/// The counters of every endpoint that has served.
#[derive(Debug)]
pub struct AllEndpointCounters {
    workers: usize,
    nowhere: Arc<EndpointMeters>,
    other: Arc<EndpointMeters>,
    endpoints: Mutex<BTreeMap<(String, String), Arc<EndpointMeters>>>,
}

impl AllEndpointCounters {
    /// Without endpoints yet. `workers`: number of workers.
    pub fn new(workers: usize) -> Self {
        let of = |name: &str| {
            let names = Names { upstream: name.to_owned(), endpoint: name.to_owned() };
            Arc::new(EndpointMeters::new(names, workers, true))
        };
        Self { workers, nowhere: of(""), other: of("other"), endpoints: Mutex::default() }
    }

    /// The counters of an endpoint. A reload gets the same ones for the same names, and continues to count.
    pub fn of(&self, upstream: &str, endpoint: &str) -> Arc<EndpointMeters> {
        let mut endpoints = self.endpoints.lock();
        let names = (upstream.to_owned(), endpoint.to_owned());
        if endpoints.len() >= MAX_ENDPOINTS && !endpoints.contains_key(&names) {
            return Arc::clone(&self.other);
        }
        let made = || {
            let names = Names { upstream: upstream.to_owned(), endpoint: endpoint.to_owned() };
            Arc::new(EndpointMeters::new(names, self.workers, false))
        };
        Arc::clone(endpoints.entry(names).or_insert_with(made))
    }

    /// The counters of requests that matched no endpoint.
    pub fn unmatched(&self) -> &Arc<EndpointMeters> {
        &self.nowhere
    }

    /// The counters of all endpoints, ordered by name.
    pub fn all(&self) -> Vec<Arc<EndpointMeters>> {
        let endpoints = self.endpoints.lock();
        let mut all = vec![Arc::clone(&self.nowhere)];
        all.extend(endpoints.values().cloned());
        if endpoints.len() >= MAX_ENDPOINTS {
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
        assert_eq!(Class::VARIANTS, ["applied", "already-applied", "not-applied", "throttled", "unknown", "rejected"]);
        let failures =
            ["dns", "connect", "connect-timeout", "tls", "send", "reset", "timeout", "protocol", "body", "exhausted"];
        assert_eq!(FailureKind::VARIANTS, failures);
        let clamps = ["attempts", "deadline", "effect", "body", "grant", "probes", "too-early", "upstream-key"];
        assert_eq!(ClampReason::VARIANTS, clamps);
        assert_eq!(KeyResult::VARIANTS, ["new", "replay", "in-flight", "mismatch", "reconcile", "failed"]);
        assert_eq!(OrphanResult::VARIANTS, ["left", "answer", "reconcile", "unsent", "in-flight", "not-kept"]);
        assert_eq!((KeyResult::Failed.name(), KeyResult::Failed as usize), ("failed", KeyResult::VARIANTS.len() - 1));
        let names = [0, 99, 100, 204, 599, 600, u16::MAX].map(|code| STATUSES[status(code)]);
        assert_eq!(names, ["other", "other", "1xx", "2xx", "5xx", "other", "other"]);
    }

    #[test]
    fn endpoints_beyond_the_most_count_together() {
        let meters = AllEndpointCounters::new(2);
        for number in 0..MAX_ENDPOINTS + 50 {
            meters.of("api", &number.to_string()).of(number).verifications.add();
        }
        let all = meters.all();
        assert_eq!(all.len(), MAX_ENDPOINTS + 2);
        let other: u64 = all[MAX_ENDPOINTS + 1].all().iter().map(|meter| meter.verifications.read()).sum();
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
