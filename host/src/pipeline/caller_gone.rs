//! Whether a request's caller is still there.

use crate::idempotency::Entry;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Cancelled when the caller has gone.
#[derive(Debug, Clone)]
pub(crate) struct CallerGone {
    token: CancellationToken,
    entry: Arc<Mutex<Option<Arc<Entry>>>>,
}

/// The caller, as long as it waits: dropping this is its leaving.
#[must_use = "the caller has gone once it is dropped"]
pub(crate) struct Waits(Option<CallerGone>);

impl CallerGone {
    pub(crate) fn new() -> Self {
        Self { token: CancellationToken::new(), entry: Arc::default() }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The place that becomes an orphan at the very moment of the caller's leaving: its next request may come at once.
    pub(crate) fn takes(&self, entry: &Arc<Entry>) {
        *self.entry.lock() = Some(Arc::clone(entry));
        if self.is_cancelled() {
            entry.abandon();
        }
    }

    /// The place of its request, once it has one.
    pub(crate) fn entry(&self) -> Option<Arc<Entry>> {
        self.entry.lock().clone()
    }

    pub(crate) fn guard(self) -> Waits {
        Waits(Some(self))
    }
}

impl Waits {
    /// The caller waits no longer for what comes of its request, but for an answer that says so: what was not sent is given up. Its
    /// place is not.
    pub(crate) fn no_longer(&self) {
        if let Some(gone) = &self.0 {
            gone.token.cancel();
        }
    }

    /// The caller has its answer, as far as this host's own code goes.
    pub(crate) fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let Some(gone) = &self.0 else { return };
        gone.token.cancel();
        if let Some(entry) = gone.entry() {
            entry.abandon();
        }
    }
}
