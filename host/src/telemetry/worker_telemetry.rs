//! A worker's own place for what it tells: nothing in it is shared with another worker while requests run.

use super::{
    AllEndpointCounters, EndpointMeters, Exporter, RequestId, RequestTimeline, TraceContext,
    endpoint_counters::EndpointCounters,
};
use crate::rng::Rng;
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};

/// One worker's.
#[derive(Debug)]
pub struct WorkerTelemetry {
    /// Which worker's, from 0.
    pub index: usize,
    /// Requests of each kind that are kept for explaining; none: steps are not noted.
    keep: usize,
    entropy: Rng,
    exporter: Option<Arc<Exporter>>,
    nowhere: Arc<EndpointMeters>,
    /// Locked for the length of a move, by this worker alone unless somebody asks for an explanation.
    stories: Mutex<Stories>,
}

/// What is kept: ordinary requests do not push out those that somebody will ask about.
#[derive(Debug, Default)]
struct Stories {
    smooth: VecDeque<RequestTimeline>,
    rough: VecDeque<RequestTimeline>,
}

impl WorkerTelemetry {
    /// A new request's id.
    pub fn id(&self) -> RequestId {
        RequestId(self.entropy.next())
    }

    /// Whether steps are noted.
    pub fn explains(&self) -> bool {
        self.keep > 0 || self.exporter.is_some()
    }

    /// A trace for a request that came without one, where traces are exported and this one is to be.
    pub(super) fn begin_trace(&self, id: RequestId) -> Option<TraceContext> {
        let exporter = self.exporter.as_ref()?;
        let wanted = exporter.samples(id);
        wanted.then(|| TraceContext::begin((u128::from(self.entropy.next()) << 64) | u128::from(id.0)))
    }

    pub(super) fn unmatched(&self) -> &Arc<EndpointCounters> {
        self.nowhere.of(self.index)
    }

    pub(super) fn keep(&self, story: RequestTimeline, is_rough: bool) {
        if let Some(exporter) = &self.exporter
            && story.trace.is_some_and(|trace| trace.is_sampled())
        {
            exporter.take(story.clone());
        }
        if self.keep == 0 {
            return;
        }
        let mut stories = self.stories.lock();
        let ring = if is_rough { &mut stories.rough } else { &mut stories.smooth };
        let oldest = if ring.len() >= self.keep { ring.pop_front() } else { None };
        ring.push_back(story);
        drop(stories);
        drop(oldest);
    }

    fn find(&self, id: RequestId) -> Option<RequestTimeline> {
        let stories = self.stories.lock();
        stories.rough.iter().chain(&stories.smooth).find(|story| story.id == id).cloned()
    }

    fn latest(&self, most: usize, rough_alone: bool) -> Vec<RequestTimeline> {
        let stories = self.stories.lock();
        let rough = stories.rough.iter().rev().take(most);
        let smooth = stories.smooth.iter().rev().take(if rough_alone { 0 } else { most });
        rough.chain(smooth).cloned().collect()
    }
}

/// Every worker's desk.
#[derive(Debug)]
pub struct WorkersTelemetry {
    entropy: Rng,
    keep: usize,
    exporter: Option<Arc<Exporter>>,
    nowhere: Arc<EndpointMeters>,
    all: Mutex<Vec<Arc<WorkerTelemetry>>>,
}

impl WorkersTelemetry {
    /// None yet. `keep` is how many requests of each kind a desk keeps; `exporter` gets those that are traced.
    pub fn new(entropy: Rng, keep: usize, exporter: Option<Arc<Exporter>>, meters: &AllEndpointCounters) -> Self {
        Self { entropy, keep, exporter, nowhere: Arc::clone(meters.unmatched()), all: Mutex::default() }
    }

    /// A desk for one more worker.
    pub fn add(&self) -> Arc<WorkerTelemetry> {
        let mut all = self.all.lock();
        let desk = Arc::new(WorkerTelemetry {
            index: all.len(),
            keep: self.keep,
            entropy: self.entropy.clone(),
            exporter: self.exporter.clone(),
            nowhere: Arc::clone(&self.nowhere),
            stories: Mutex::default(),
        });
        all.push(Arc::clone(&desk));
        desk
    }

    /// The course of a request, if it is still kept.
    pub fn story(&self, id: RequestId) -> Option<RequestTimeline> {
        self.all.lock().iter().find_map(|desk| desk.find(id))
    }

    /// The latest requests, the latest first; with `rough_alone` only those that did not go smoothly: refused, repeated,
    /// clamped, abandoned, or answered by a failure.
    pub fn latest(&self, most: usize, rough_alone: bool) -> Vec<RequestTimeline> {
        let mut latest: Vec<RequestTimeline> =
            self.all.lock().iter().flat_map(|desk| desk.latest(most, rough_alone)).collect();
        latest.sort_by_key(|story| std::cmp::Reverse(story.began));
        latest.truncate(most);
        latest
    }
}
