//! The host's side of settling: it lists due writes and verifies them, as [`crate::settlement`] asks.

use super::{Host, SharedVerifications};
use crate::idempotency::RecordId;

impl Host {
    /// Settles unknown writes in the background, and tells of them. Never ends; the server runs it on one of its workers, a
    /// program that uses the host as a library on a task of its own. Dropping it leaves what it was verifying to the next run or
    /// to another host.
    pub async fn settle_writes(&self) {
        let shared = SharedVerifications::default();
        self.shared.settlement.run(|limit| self.due(limit), |id| self.verify(id, &shared)).await;
    }

    /// Writes that are due; none while the store does not answer.
    async fn due(&self, limit: usize) -> Vec<RecordId> {
        let due = self.shared.records.due(limit).await;
        due.inspect_err(|error| tracing::debug!(%error, "due writes could not be listed")).unwrap_or_default()
    }
}
