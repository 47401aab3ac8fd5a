//! Tells a detached request that its caller has gone.

use crate::idempotency::Entry;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio_util::sync::CancellationToken;

/// Cancelled when the caller has gone.
#[derive(Debug, Clone)]
pub(crate) struct CallerGone {
    token: CancellationToken,
    /// Whether the caller disconnected, as opposed to a caller that got an early response.
    has_disconnected: Arc<AtomicBool>,
    entry: Arc<Mutex<Option<Arc<Entry>>>>,
}

/// Guards a waiting caller: dropping this means that the caller has left.
#[must_use = "the caller has gone once it is dropped"]
pub(crate) struct Waits(Option<CallerGone>);

impl CallerGone {
    pub(crate) fn new() -> Self {
        Self { token: CancellationToken::new(), has_disconnected: Arc::default(), entry: Arc::default() }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Whether the caller disconnected before it got a response.
    pub(crate) fn has_disconnected(&self) -> bool {
        self.has_disconnected.load(Relaxed)
    }

    pub(crate) async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Sets the entry that becomes an orphan in the moment the caller leaves, since its next request may come at once.
    pub(crate) fn takes(&self, entry: &Arc<Entry>) {
        *self.entry.lock() = Some(Arc::clone(entry));
        if self.is_cancelled() {
            entry.abandon();
        }
    }

    /// The request's entry, once it has one.
    pub(crate) fn entry(&self) -> Option<Arc<Entry>> {
        self.entry.lock().clone()
    }

    pub(crate) fn guard(self) -> Waits {
        Waits(Some(self))
    }
}

impl Waits {
    /// The caller no longer waits for the result, only for an early response: a request that was not sent is given up. Its entry is kept.
    pub(crate) fn no_longer(&self) {
        if let Some(gone) = &self.0 {
            gone.token.cancel();
        }
    }

    /// The caller has its response, as far as this host's own code can tell.
    pub(crate) fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let Some(gone) = &self.0 else { return };
        gone.has_disconnected.store(true, Relaxed);
        gone.token.cancel();
        if let Some(entry) = gone.entry() {
            entry.abandon();
        }
    }
}
