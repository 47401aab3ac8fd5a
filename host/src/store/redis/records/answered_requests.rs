//! Places whose callers have their answers, until the server knows that they ended.
//!
//! A place that the server still lists counts as an orphan once its lease is over, and the next equal request would be given an
//! effect that a caller has counted. So the server is told again until it says that it knows, or would have forgotten the place by
//! itself. A request of this host that is equal to one of them comes after that.

use super::{Inner, RecordError, scripts};
use crate::{
    idempotency::{RequestDigest, Ticket},
    store::redis::LinkError,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// Places that wait, about 150 bytes each: ten seconds of a server that cannot be reached, at a thousand writes a second.
const MAX_WAITING: usize = 10_000;
/// Between two tries while the server cannot be reached.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Longer than any place is kept, and far from the end of time.
const MAX_LIFETIME: Duration = Duration::from_hours(24 * 365);
/// Steps under way at once.
const AT_ONCE: usize = 64;

/// What the server was not told yet.
#[derive(Debug, Default)]
pub(super) struct Endings {
    waiting: Mutex<VecDeque<Ending>>,
    more: Arc<Notify>,
    /// Whether one that had no room was told of.
    told_dropped: AtomicBool,
}

/// A place that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    ticket: Ticket,
    /// Its record goes too.
    forget: bool,
    /// When the server has forgotten the place by itself.
    until: Instant,
}

impl Ending {
    pub(super) fn of(ticket: Ticket, forget: bool) -> Self {
        let lasts = ticket.terms.kept.saturating_add(ticket.terms.lease);
        Self { ticket, forget, until: Instant::now() + lasts.min(MAX_LIFETIME) }
    }
}

impl Endings {
    pub(super) fn put(&self, ending: Ending) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
            if !self.told_dropped.swap(true, Relaxed) {
                tracing::warn!(
                    max = MAX_WAITING,
                    "more writes were answered than this host keeps until shared state is told; an equal write may be given \
                     the answer of one of them"
                );
            }
        }
        waiting.push_back(ending);
        drop(waiting);
        self.more.notify_one();
    }

    /// Takes some that are still of use.
    fn take(&self, which: impl Fn(&Ending) -> bool) -> Vec<Ending> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        waiting.retain(|ending| now < ending.until);
        let mut taken = Vec::new();
        waiting.retain(|ending| {
            let is_taken = taken.len() < AT_ONCE && which(ending);
            if is_taken {
                taken.push(*ending);
            }
            !is_taken
        });
        taken
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// Tells the server again, until the records are gone.
pub(super) async fn tell(records: Weak<Inner>) {
    let Some(more) = records.upgrade().map(|inner| Arc::clone(&inner.endings.more)) else { return };
    loop {
        more.notified().await;
        loop {
            let Some(inner) = records.upgrade() else { return };
            let taken = inner.endings.take(|_| true);
            if taken.is_empty() {
                break;
            }
            if inner.tell_all(taken).await.is_err() {
                drop(inner);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

impl Inner {
    /// Tells the server that a place ended. What it does not take waits.
    pub(super) async fn ended(&self, ending: Ending) {
        if let Err(error) = self.tell_all(vec![ending]).await {
            tracing::debug!(%error, "shared state was not told of a place that ended; it is told again");
        }
    }

    /// Tells the server what it does not know yet of equal requests: one that comes must not be given the effect of one of them.
    pub(super) async fn tell_of_equals(&self, digest: RequestDigest) -> Result<(), RecordError> {
        let taken = self.endings.take(|ending| ending.ticket.digest == digest);
        if taken.is_empty() { Ok(()) } else { self.tell_all(taken).await }
    }

    /// Tells the server all that it may not know, once.
    pub(super) async fn tell_rest(&self) {
        loop {
            let taken = self.endings.take(|_| true);
            if taken.is_empty() || self.tell_all(taken).await.is_err() {
                return;
            }
        }
    }

    async fn tell_all(&self, endings: Vec<Ending>) -> Result<(), RecordError> {
        // Put back by its drop too: the request that tells for its equals may be given up meanwhile.
        let told =
            endings.into_iter().map(|ending| self.tell_one(Untold { endings: &self.endings, ending: Some(ending) }));
        join_all(told).await.into_iter().collect()
    }

    async fn tell_one(&self, mut untold: Untold<'_>) -> Result<(), RecordError> {
        let Some(Ending { ticket, forget, .. }) = untold.ending else { return Ok(()) };
        let step = scripts::answered(self.keys(), &ticket, forget);
        match self.link.run_within(self.patience(), step.script, &step.keys, &step.args).await {
            Ok(_) => {}
            // It does not get better.
            Err(error @ LinkError::Nonsense { .. }) => tracing::warn!(%error, "a place could not be ended"),
            // What comes after it was not asked.
            Err(error) => return Err(RecordError::Unavailable { source: Box::new(error), maybe_done: false }),
        }
        untold.ending = None;
        Ok(())
    }
}

/// An ending that waits again when this is dropped.
struct Untold<'a> {
    endings: &'a Endings,
    ending: Option<Ending>,
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            self.endings.put(ending);
        }
    }
}
