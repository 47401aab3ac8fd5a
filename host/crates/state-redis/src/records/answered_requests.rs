//! Entries whose callers have received their responses, until Redis confirms that it has removed them.
//!
//! An entry that Redis still lists becomes an orphan when its lease ends, and the next equal request would adopt an effect that a
//! caller has already received. So this host repeats the call until Redis confirms it, or until the entry has expired there. A new
//! equal request on this host waits for that first.

use super::{Inner, RecordError, scripts};
use crate::{
    LinkError,
    idempotency::{RequestDigest, Ticket},
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

/// Entries that wait, about 150 bytes each: enough for ten seconds without Redis at a thousand writes a second.
const MAX_WAITING: usize = 10_000;
/// Between two retries while Redis cannot be reached.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Longer than any entry is kept, and small enough not to overflow [`Instant`].
const MAX_LIFETIME: Duration = Duration::from_hours(24 * 365);
/// Concurrent script calls.
const MAX_CONCURRENT_CALLS: usize = 64;

/// Ended entries that Redis has not confirmed.
#[derive(Debug, Default)]
pub(super) struct Endings {
    waiting: Mutex<VecDeque<Ending>>,
    more: Arc<Notify>,
    /// Whether the loss of one for lack of space was logged.
    dropped_reported: AtomicBool,
}

/// An entry that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    ticket: Ticket,
    /// Whether to delete its record too.
    forget: bool,
    /// When the entry has expired in Redis.
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
            if !self.dropped_reported.swap(true, Relaxed) {
                tracing::warn!(
                    max = MAX_WAITING,
                    "too many writes were answered that shared state does not know of yet; an equal write may get the \
                     answer of one of them"
                );
            }
        }
        waiting.push_back(ending);
        drop(waiting);
        self.more.notify_one();
    }

    /// Removes and returns up to [`MAX_CONCURRENT_CALLS`] matching entries that have not expired.
    fn take(&self, which: impl Fn(&Ending) -> bool) -> Vec<Ending> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        waiting.retain(|ending| now < ending.until);
        let mut taken = Vec::new();
        waiting.retain(|ending| {
            let is_taken = taken.len() < MAX_CONCURRENT_CALLS && which(ending);
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

/// Reports ended entries to Redis in the background, as long as the records exist.
pub(super) async fn report(records: Weak<Inner>) {
    let Some(more) = records.upgrade().map(|inner| Arc::clone(&inner.endings.more)) else { return };
    loop {
        more.notified().await;
        loop {
            let Some(inner) = records.upgrade() else { return };
            let taken = inner.endings.take(|_| true);
            if taken.is_empty() {
                break;
            }
            if inner.report_all(taken).await.is_err() {
                drop(inner);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

impl Inner {
    /// Reports the end of an entry to Redis, and queues it if that fails.
    pub(super) async fn ended(&self, ending: Ending) {
        if let Err(error) = self.report_all(vec![ending]).await {
            tracing::debug!(%error, "shared state did not get the end of an answered write; the host retries");
        }
    }

    /// Reports the ended entries of this digest, so that a new equal request does not adopt one of them.
    pub(super) async fn report_equals(&self, digest: RequestDigest) -> Result<(), RecordError> {
        let taken = self.endings.take(|ending| ending.ticket.digest == digest);
        if taken.is_empty() { Ok(()) } else { self.report_all(taken).await }
    }

    /// Reports all ended entries once, at shutdown.
    pub(super) async fn report_rest(&self) {
        loop {
            let taken = self.endings.take(|_| true);
            if taken.is_empty() || self.report_all(taken).await.is_err() {
                return;
            }
        }
    }

    async fn report_all(&self, endings: Vec<Ending>) -> Result<(), RecordError> {
        // `Unreported` puts an entry back when it is dropped: the request that runs this may be cancelled meanwhile.
        let reported = endings
            .into_iter()
            .map(|ending| self.report_one(Unreported { endings: &self.endings, ending: Some(ending) }));
        join_all(reported).await.into_iter().collect()
    }

    async fn report_one(&self, mut unreported: Unreported<'_>) -> Result<(), RecordError> {
        let Some(Ending { ticket, forget, .. }) = unreported.ending else { return Ok(()) };
        let step = scripts::answered(self.keys(), &ticket, forget);
        match self.link.run_within(self.call_timeout(), step.script, &step.keys, &step.args).await {
            Ok(_) => {}
            // A retry would get the same reply.
            Err(error @ LinkError::Nonsense { .. }) => tracing::warn!(%error, "the end of an answered write could not \
                                                                               be recorded"),
            // The caller's own script was not sent.
            Err(error) => return Err(RecordError::Unavailable { source: Box::new(error), maybe_done: false }),
        }
        unreported.ending = None;
        Ok(())
    }
}

/// Puts its entry back into the queue when dropped, unless the entry was confirmed.
struct Unreported<'a> {
    endings: &'a Endings,
    ending: Option<Ending>,
}

impl Drop for Unreported<'_> {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            self.endings.put(ending);
        }
    }
}
