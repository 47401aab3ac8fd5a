//! Settles unknown writes in the background: lists those that are due and verifies each.

use super::SharedVerifications;
use crate::{host::Host, idempotency::RecordId};

impl Host {
    /// Settles unknown writes, and sends notices of them. Never ends. When it is dropped, the next run or another host continues its
    /// verifications.
    pub async fn settle_writes(&self) {
        let shared = SharedVerifications::default();
        self.shared.settlement.run(|limit| self.due(limit), |id| self.verify(id, &shared)).await;
    }

    /// Due writes; none if the store does not respond.
    async fn due(&self, limit: usize) -> Vec<RecordId> {
        let due = self.shared.records.due(limit).await;
        due.inspect_err(|error| tracing::debug!(%error, "the list of due writes could not be fetched"))
            .unwrap_or_default()
    }
}
