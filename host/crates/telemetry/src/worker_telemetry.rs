//! Telemetry of each worker, so that workers share nothing while requests run.

use super::{
    AllEndpointCounters, EndpointMeters, Exporter, RequestId, RequestTimeline, TraceContext,
    endpoint_counters::EndpointCounters,
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
    /// Locked only to move a timeline in, and without contention unless an operator reads.
    timelines: Mutex<Timelines>,
}

/// Timelines in two rings, so that ordinary requests do not displace those with trouble.
#[derive(Debug, Default)]
struct Timelines {
    ordinary: VecDeque<RequestTimeline>,
    troubled: VecDeque<RequestTimeline>,
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

    pub(super) fn keep(&self, timeline: RequestTimeline, is_troubled: bool) {
        if let Some(exporter) = &self.exporter
            && timeline.trace.is_some_and(|trace| trace.is_sampled())
        {
            exporter.take(timeline.clone());
        }
        if self.keep == 0 {
            return;
        }
        let mut timelines = self.timelines.lock();
        let ring = if is_troubled { &mut timelines.troubled } else { &mut timelines.ordinary };
        let oldest = if ring.len() >= self.keep { ring.pop_front() } else { None };
        ring.push_back(timeline);
        drop(timelines);
        drop(oldest);
    }

    fn find(&self, id: RequestId) -> Option<RequestTimeline> {
        let timelines = self.timelines.lock();
        timelines.troubled.iter().chain(&timelines.ordinary).find(|timeline| timeline.id == id).cloned()
    }

    fn latest(&self, most: usize, troubled_only: bool) -> Vec<RequestTimeline> {
        let timelines = self.timelines.lock();
        let troubled = timelines.troubled.iter().rev().take(most);
        let ordinary = timelines.ordinary.iter().rev().take(if troubled_only { 0 } else { most });
        troubled.chain(ordinary).cloned().collect()
    }
}

/// Telemetry of all workers.
#[derive(Debug)]
pub struct WorkersTelemetry {
    entropy: Rng,
    keep: usize,
    exporter: Option<Arc<Exporter>>,
    nowhere: Arc<EndpointMeters>,
    all: Mutex<Vec<Arc<WorkerTelemetry>>>,
}

impl WorkersTelemetry {
    /// Without workers yet. `keep`: number of timelines of each kind per worker. `exporter` gets the sampled ones.
    pub fn new(entropy: Rng, keep: usize, exporter: Option<Arc<Exporter>>, meters: &AllEndpointCounters) -> Self {
        Self { entropy, keep, exporter, nowhere: Arc::clone(meters.unmatched()), all: Mutex::default() }
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
            timelines: Mutex::default(),
        });
        all.push(Arc::clone(&worker));
        worker
    }

    /// The timeline of a request, if it is still kept.
    pub fn timeline(&self, id: RequestId) -> Option<RequestTimeline> {
        self.all.lock().iter().find_map(|worker| worker.find(id))
    }

    /// The latest timelines, the latest first. `troubled_only`: only requests with trouble, such as a refusal, a retry, a clamp, a failure
    /// or a disconnected caller.
    pub fn latest(&self, most: usize, troubled_only: bool) -> Vec<RequestTimeline> {
        let mut latest: Vec<RequestTimeline> =
            self.all.lock().iter().flat_map(|worker| worker.latest(most, troubled_only)).collect();
        latest.sort_by_key(|timeline| std::cmp::Reverse(timeline.began));
        latest.truncate(most);
        latest
    }
}
