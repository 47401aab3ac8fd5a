//! Telemetry of each worker, so that workers share nothing while requests run.

use super::{
    AllEndpointCounters, EndpointMeters, Events, Exporter, RequestId, RequestRow, RequestTimeline, TraceContext,
    endpoint_counters::EndpointCounters, refusal_runs::RefusalRuns,
};
use crate::rng::Rng;
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};

/// Telemetry of one worker.
#[derive(Debug)]
pub struct WorkerTelemetry {
    /// Index of the worker, from 0.
    pub index: usize,
    /// Number of timelines of each kind to keep for `triage explain`; 0: none are recorded.
    keep: usize,
    entropy: Rng,
    exporter: Option<Arc<Exporter>>,
    nowhere: Arc<EndpointMeters>,
    events: Arc<Events>,
    /// Locked only to move a timeline in, and without contention unless an operator reads.
    timelines: Mutex<Timelines>,
}

/// Timelines in three rings: ordinary requests do not displace those with trouble, and requests that the host refused without an attempt do
/// not displace the failures that caused the refusals.
#[derive(Debug, Default)]
struct Timelines {
    ordinary: VecDeque<RequestTimeline>,
    troubled: VecDeque<RequestTimeline>,
    refused: VecDeque<RequestTimeline>,
    runs: RefusalRuns,
}

/// The ring that keeps a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Ordinary,
    /// A retry, a failure, a clamp or a caller that left.
    Troubled,
    /// The host refused the request without an attempt.
    Refused,
}

impl Timelines {
    fn all(&self) -> impl Iterator<Item = &RequestTimeline> {
        self.troubled.iter().chain(&self.refused).chain(&self.ordinary)
    }
}

impl WorkerTelemetry {
    /// A new id for a request.
    pub fn id(&self) -> RequestId {
        RequestId(self.entropy.next())
    }

    /// Whether events are recorded.
    pub fn explains(&self) -> bool {
        self.keep > 0 || self.exporter.is_some()
    }

    /// A new trace for a request without one, if traces are exported and this request is sampled.
    pub(super) fn begin_trace(&self, id: RequestId) -> Option<TraceContext> {
        let exporter = self.exporter.as_ref()?;
        let wanted = exporter.samples(id);
        wanted.then(|| TraceContext::begin((u128::from(self.entropy.next()) << 64) | u128::from(id.0)))
    }

    pub(super) fn unmatched(&self) -> &Arc<EndpointCounters> {
        self.nowhere.of(self.index)
    }

    pub(super) fn keep(&self, timeline: RequestTimeline, ring: Ring) {
        if let Some(exporter) = &self.exporter
            && timeline.trace.is_some_and(|trace| trace.is_sampled())
        {
            exporter.take(timeline.clone());
        }
        if self.keep == 0 {
            return;
        }
        let row = (ring == Ring::Refused).then(|| RequestRow::from(&timeline));
        let mut timelines = self.timelines.lock();
        if let Some(row) = row {
            timelines.runs.add(row);
        }
        let ring = match ring {
            Ring::Refused => &mut timelines.refused,
            Ring::Troubled => &mut timelines.troubled,
            Ring::Ordinary => &mut timelines.ordinary,
        };
        let oldest = if ring.len() >= self.keep { ring.pop_front() } else { None };
        ring.push_back(timeline);
        drop(timelines);
        self.events.pinned().keep(oldest);
    }

    fn find(&self, id: RequestId) -> Option<RequestTimeline> {
        self.timelines.lock().all().find(|timeline| timeline.id == id).cloned()
    }

    /// Adds this worker's rows that are wanted. Refusals are folded into runs.
    fn add_rows(
        &self,
        (most, troubled_only): (usize, bool),
        wanted: impl Fn(&RequestRow) -> bool + Copy,
        rows: &mut Vec<RequestRow>,
        runs: &mut RefusalRuns,
    ) {
        let timelines = self.timelines.lock();
        let add = |ring: &VecDeque<RequestTimeline>, rows: &mut Vec<RequestRow>| {
            rows.extend(ring.iter().rev().map(RequestRow::from).filter(wanted).take(most));
        };
        add(&timelines.troubled, rows);
        if !troubled_only {
            add(&timelines.ordinary, rows);
        }
        runs.join(&timelines.runs);
    }
}

/// Telemetry of all workers.
#[derive(Debug)]
pub struct WorkersTelemetry {
    entropy: Rng,
    keep: usize,
    exporter: Option<Arc<Exporter>>,
    nowhere: Arc<EndpointMeters>,
    events: Arc<Events>,
    all: Mutex<Vec<Arc<WorkerTelemetry>>>,
}

impl WorkersTelemetry {
    /// Without workers yet. `keep`: number of timelines of each kind per worker. `exporter` gets the sampled ones.
    pub fn new(
        entropy: Rng,
        keep: usize,
        exporter: Option<Arc<Exporter>>,
        meters: &AllEndpointCounters,
        events: Arc<Events>,
    ) -> Self {
        Self { entropy, keep, exporter, nowhere: Arc::clone(meters.unmatched()), events, all: Mutex::default() }
    }

    /// Adds a worker.
    pub fn add(&self) -> Arc<WorkerTelemetry> {
        let mut all = self.all.lock();
        let worker = Arc::new(WorkerTelemetry {
            index: all.len(),
            keep: self.keep,
            entropy: self.entropy.clone(),
            exporter: self.exporter.clone(),
            nowhere: Arc::clone(&self.nowhere),
            events: Arc::clone(&self.events),
            timelines: Mutex::default(),
        });
        all.push(Arc::clone(&worker));
        worker
    }

    /// The timeline of a request, if it is still kept.
    pub fn timeline(&self, id: RequestId) -> Option<RequestTimeline> {
        let kept = self.all.lock().iter().find_map(|worker| worker.find(id));
        kept.or_else(|| self.events.pinned().find(id))
    }

    /// The latest requests, the latest first. Equal refusals of requests that were not sent are one row. `troubled_only`: only requests with
    /// trouble, such as a refusal, a retry, a clamp, a failure or a disconnected caller. Only rows that are `wanted` count.
    pub fn latest(
        &self,
        most: usize,
        troubled_only: bool,
        wanted: impl Fn(&RequestRow) -> bool + Copy,
    ) -> Vec<RequestRow> {
        let (mut rows, mut runs) = (Vec::new(), RefusalRuns::default());
        for worker in self.all.lock().iter() {
            worker.add_rows((most, troubled_only), wanted, &mut rows, &mut runs);
        }
        rows.extend(runs.rows().into_iter().filter(wanted));
        rows.sort_by_key(|row| std::cmp::Reverse(row.began));
        rows.truncate(most);
        rows
    }
}
