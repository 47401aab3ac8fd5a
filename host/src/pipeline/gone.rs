//! Whether a request's caller is still there.

use crate::idempotency::Entry;
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Cancelled when the caller has gone.
#[derive(Debug, Clone)]
pub(crate) struct CallerGone {
    token: CancellationToken,
    entry: Arc<OnceLock<Arc<Entry>>>,
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
        let _ = self.entry.set(Arc::clone(entry));
        if self.is_cancelled() {
            entry.abandon();
        }
    }

    pub(crate) fn guard(self) -> Waits {
        Waits(Some(self))
    }
}

impl Waits {
    /// The caller has its answer, as far as this host's own code goes.
    pub(crate) fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let Some(gone) = &self.0 else { return };
        gone.token.cancel();
        if let Some(entry) = gone.entry.get() {
            entry.abandon();
        }
    }
}
