//! Claims on resources, and the locks that keep equal requests apart.

use super::{
    FINISH_RETRY_WAITS, Inner,
    fingerprint_lock::QueueTicket,
    nonsense,
    scripts::{self, ScriptReply},
};
use crate::{
    idempotency::{Claim, ClaimName, ClaimOwner, Claimant, FencingToken, Fingerprint, FingerprintLock, RecordError},
    memory::records::fingerprint_locks::LockToken as LocalLockToken,
};
use std::{sync::Arc, time::Duration};

impl Inner {
    pub(super) async fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Result<Claim, RecordError> {
        let step = |era: scripts::InEra<'_>| scripts::claim(self.keys(), name, owner, Some(keep), era);
        let value = self.in_this_era(&FINISH_RETRY_WAITS, step).await?;
        match ScriptReply::of(&value).map(|answer| answer.word) {
            Some("ours") => {
                self.ledger.claimed(name, owner, keep);
                Ok(Claim::Ours)
            }
            Some("taken") => Ok(Claim::Taken),
            _ => Err(nonsense("claim")),
        }
    }

    pub(super) async fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Result<Claimant, RecordError> {
        let step = |era: scripts::InEra<'_>| scripts::claim(self.keys(), name, owner, None, era);
        let value = self.in_this_era(&FINISH_RETRY_WAITS, step).await?;
        match ScriptReply::of(&value).map(|answer| answer.word) {
            Some("ours") => Ok(Claimant::Asker),
            Some("taken") => Ok(Claimant::Other),
            Some("free") => Ok(Claimant::Nobody),
            _ => Err(nonsense("claim")),
        }
    }

    pub(super) async fn lock_fingerprint(
        self: Arc<Self>,
        fingerprint: Fingerprint,
        local_lock: LocalLockToken,
    ) -> Result<FingerprintLock, RecordError> {
        let local_lock = match local_lock {
            LocalLockToken::First(guard) => guard,
            LocalLockToken::Queued(waiting) => waiting.wait().await?,
        };
        let queue_ticket = QueueTicket::new(&self, fingerprint, FencingToken::draw(&self.entropy));
        Ok(queue_ticket.wait().await?.hold(Some(local_lock)))
    }
}
