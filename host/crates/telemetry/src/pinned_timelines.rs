//! Timelines that stay when their ring drops them: those of the requests whose failures opened a breaker.

use super::{RequestId, RequestTimeline};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Pinned ids, each with its timeline once the ring has dropped it. Bounded by its user: two for each group.
#[derive(Debug, Default)]
pub struct PinnedTimelines {
    count: AtomicUsize,
    timelines: Mutex<HashMap<RequestId, Option<RequestTimeline>>>,
}

impl PinnedTimelines {
    /// Pins `ids`, and no longer pins `before`.
    pub(super) fn replace(
        &self,
        before: impl IntoIterator<Item = RequestId>,
        ids: impl IntoIterator<Item = RequestId>,
    ) {
        let mut timelines = self.timelines.lock();
        for id in before {
            timelines.remove(&id);
        }
        for id in ids {
            timelines.entry(id).or_default();
        }
        self.count.store(timelines.len(), Relaxed);
    }

    /// Keeps a timeline that its ring drops, if its id is pinned.
    pub(super) fn keep(&self, dropped: Option<RequestTimeline>) {
        let Some(dropped) = dropped.filter(|_| self.count.load(Relaxed) > 0) else { return };
        if let Some(place) = self.timelines.lock().get_mut(&dropped.id) {
            *place = Some(dropped);
        }
    }

    /// A timeline that its ring has dropped.
    pub(super) fn find(&self, id: RequestId) -> Option<RequestTimeline> {
        self.timelines.lock().get(&id)?.clone()
    }
}
