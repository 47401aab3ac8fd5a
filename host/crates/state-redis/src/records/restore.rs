//! Restores this host's copy on a server that has lost its data: claims first, because without them a verification may adopt what
//! another request made, then records.
//!
//! For [`RESTORE_TIME`] after a loss no host begins a keyed write, takes a fingerprint lock or makes a claim, so that each finds what
//! the others restored. Every script is fenced by the era: it changes nothing on a server that has lost its data again.

use super::{
    Inner, RecordError, nonsense,
    scripts::{self, InEra, Restoring, ScriptReply},
    unavailable,
};
use crate::{
    LinkError,
    idempotency::{RecordId, record::StateFields},
};
use futures_util::{StreamExt as _, stream};
use std::{sync::Weak, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Time for all hosts to restore their copies: each checks the server once a second, and reconnects soon after.
pub(super) const RESTORE_TIME: Duration = Duration::from_secs(3);

/// Between two attempts to restore the remaining records.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long to retry a record under which another request is running.
const BUSY_TIME: Duration = Duration::from_mins(3);
/// Concurrent script calls.
const MAX_CONCURRENT_CALLS: usize = 64;

/// Result of restoring one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestoreResult {
    /// Restored.
    Restored,
    /// Not needed: the server's record is as good.
    Nothing,
    /// Another request is running under the record: try again later.
    Busy,
}

/// Restores after each loss, as long as the records exist.
pub(super) async fn watch(records: Weak<Inner>) {
    let Some(mut eras) = records.upgrade().map(|inner| inner.link.eras()) else { return };
    // Compare the number of eras instead of relying on `changed`: a loss may precede this task's first read. The first era needs no
    // restore, because it began before this host had any record.
    let mut served = 1;
    let mut busy: Vec<RecordId> = Vec::new();
    let mut busy_until = Instant::now();
    loop {
        // A missed change is found in the next round.
        let _ = timeout(RETRY_INTERVAL, eras.changed()).await;
        let Some(inner) = records.upgrade() else { return };
        // Read the number before the era: if the era changes in between, the next round sees its number.
        let number = *eras.borrow_and_update();
        let Some(now) = inner.link.known_era() else { continue };
        let whole = number > served;
        if Instant::now() >= busy_until {
            busy.clear();
        }
        if !whole && busy.is_empty() {
            continue;
        }
        let ids = if whole { inner.ledger.records() } else { std::mem::take(&mut busy) };
        match inner.give_back(&now, whole, &ids).await {
            Ok(left) => {
                busy = left;
                if whole {
                    busy_until = Instant::now() + BUSY_TIME;
                    served = number;
                }
            }
            Err(error) => {
                if !whole {
                    busy = ids;
                }
                tracing::debug!(%error, "this host's records could not be restored in shared state yet");
                drop(inner);
                sleep(RETRY_INTERVAL / 10).await;
            }
        }
    }
}

impl Inner {
    /// Waits until [`RESTORE_TIME`] after the last loss has passed.
    pub(super) async fn restored(&self) {
        if let Some(lost) = self.link.lost_data() {
            let left = RESTORE_TIME.saturating_sub(self.clock.now().since(lost.at));
            if !left.is_zero() {
                sleep(left).await;
            }
        }
    }

    /// Restores records, and in a new era all claims before them. Returns the records under which another request is running.
    async fn give_back(&self, era: &str, is_new: bool, ids: &[RecordId]) -> Result<Vec<RecordId>, RecordError> {
        let claims = if is_new { self.ledger.claims() } else { Vec::new() };
        let count = claims.len();
        if is_new && (count > 0 || !ids.is_empty()) {
            // The parts' markers are still those of the era before.
            self.recognise().await?;
        }
        let in_era = self.in_era(era);
        let mut steps = stream::iter(claims)
            .map(|(name, owner, left)| async move {
                let step = scripts::claim(self.keys(), name, owner, Some(left), in_era);
                self.run(&step).await.and_then(|value| fenced("claim", &value).map(drop))
            })
            .buffer_unordered(MAX_CONCURRENT_CALLS);
        while let Some(step) = steps.next().await {
            step?;
        }
        drop(steps);
        let mut back = 0_usize;
        let mut busy = Vec::new();
        let mut steps = stream::iter(ids.to_vec())
            .map(|id| async move { self.restore_one(era, id).await.map(|gave| (id, gave)) })
            .buffer_unordered(MAX_CONCURRENT_CALLS);
        while let Some(step) = steps.next().await {
            match step? {
                (_, RestoreResult::Restored) => back += 1,
                (id, RestoreResult::Busy) => busy.push(id),
                (_, RestoreResult::Nothing) => {}
            }
        }
        if count > 0 || back > 0 {
            tracing::info!(claims = count, records = back, "this host's records were restored in shared state");
        }
        Ok(busy)
    }

    /// Restores one record.
    pub(super) async fn restore_one(&self, era: &str, id: RecordId) -> Result<RestoreResult, RecordError> {
        let Some(record) = self.ledger.record(id) else { return Ok(RestoreResult::Nothing) };
        if record.is_doubtful() {
            return Ok(RestoreResult::Nothing);
        }
        let fields = record.fields();
        let sealed = match fields.state {
            StateFields::Done { stored, .. } => self.seal(id, &stored.open())?,
            _ => Vec::new(),
        };
        let with = Restoring {
            era,
            sealed,
            asked: fields.intent.map(|intent| self.asked(id, intent)),
            host: self.heartbeat.host,
            lost_ago: self.lost_ago(),
            now: self.clock.now(),
        };
        let asked = Instant::now();
        let value = self.run(&scripts::restore(self.keys(), id, &record, with)).await?;
        Ok(match fenced("restore", &value)? {
            "done" => {
                if record.host().is_some() {
                    self.heartbeat.renewed(self, id, asked);
                }
                RestoreResult::Restored
            }
            "busy" => RestoreResult::Busy,
            _ => RestoreResult::Nothing,
        })
    }

    /// Whether the server has lost data since this host's record got its state, so that the record may be lost there.
    pub(super) fn may_be_lost(&self, id: RecordId) -> bool {
        let lost = self.link.lost_data();
        lost.zip(self.ledger.record(id)).is_some_and(|(lost, record)| record.since() <= lost.at)
    }

    /// Restores a record that the server no longer has. None: this host has no copy, or the server has lost nothing since the record got
    /// its state. The record has then expired or belongs to another owner.
    pub(super) async fn restore_lost(&self, id: RecordId) -> Result<Option<RestoreResult>, RecordError> {
        let era = self.link.era(self.call_timeout()).await.map_err(unavailable)?;
        if !self.may_be_lost(id) {
            // The loss may be undetected yet: check the server now.
            self.recognise().await?;
            if !self.may_be_lost(id) {
                return Ok(None);
            }
        }
        let era = self.link.known_era().unwrap_or(era);
        self.restore_one(&era, id).await.map(Some)
    }

    /// The same. True: the record was restored.
    pub(super) async fn give_back_own(&self, id: RecordId) -> Result<bool, RecordError> {
        Ok(self.restore_lost(id).await? == Some(RestoreResult::Restored))
    }

    /// The fence for scripts that touch no record; none on a Cluster, where such a script may not touch a part's marker too.
    pub(super) fn in_era<'a>(&self, era: &'a str) -> InEra<'a> {
        InEra((!self.link.is_cluster()).then_some(era))
    }
}

/// The first word of a reply; an error if the server has lost its data again.
fn fenced<'a>(script: &'static str, value: &'a super::Value) -> Result<&'a str, RecordError> {
    match ScriptReply::of(value).map(|answer| answer.word) {
        Some("strange") => Err(unavailable(LinkError::Down)),
        Some(word) => Ok(word),
        None => Err(nonsense(script)),
    }
}
