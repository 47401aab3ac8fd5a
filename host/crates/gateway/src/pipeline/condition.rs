//! The record of a condition (such as `If-None-Exist`): if one request with the condition ends unknown, the next one verifies before it
//! sends.
//!
//! Fingerprint locks keep requests with one condition apart while their hosts live. The record outlives the lock. A host killed after the
//! send, or a deadline before the effect was known, leaves the record unknown for as long as the upstream may still commit. The next
//! request with the condition then begins with a verification, whichever caller and key it has.

use super::{
    RequestContext,
    record_lifecycle::{Start, problem},
    request_context::Progress,
    upstream_key::KeySends,
};
use crate::{
    error::Problem,
    idempotency::{self, BeginOutcome, BeginRequest, FencingToken, Fingerprint, RecordId},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long an unknown effect is remembered beyond `commit-within`, and how long a lock outlasts its request.
const UNKNOWN_MARGIN: Duration = Duration::from_secs(5);
/// The first and the longest wait between two attempts to take a record that an earlier owner still holds. An owner that has just ended
/// releases it at once; the lock of a killed one must expire.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const MAX_WAIT: Duration = Duration::from_secs(1);

impl RequestContext {
    /// Takes the record of the request's condition, if it has one. Returns the start, which is a verification if an earlier request with the
    /// condition ended unknown.
    ///
    /// # Errors
    /// As [`RequestContext::begin_condition`].
    pub(super) async fn after_equal_condition(&self, start: Start, progress: &mut Progress) -> Result<Start, Problem> {
        let condition = self.equal.filter(|equal| equal.by_condition && self.endpoint().granted);
        let Some(equal) = condition.filter(|_| progress.condition.is_none()) else { return Ok(start) };
        let Some(sent_ago) = self.begin_condition(equal.fingerprint, progress).await? else { return Ok(start) };
        // The sends of other requests did not carry this request's upstream key.
        progress.key_sends = KeySends::reconciled(self.upstream_key, None, Instant::now());
        Ok(start.or_since(Instant::now().checked_sub(sent_ago).unwrap_or(self.started)))
    }

    /// Takes the condition's record. Returns the time since the last send with this condition whose effect is unknown; none if there is
    /// none.
    ///
    /// # Errors
    /// [`Problem::InFlight`] if an earlier request may still be sending.
    async fn begin_condition(
        &self,
        condition: Fingerprint,
        progress: &mut Progress,
    ) -> Result<Option<Duration>, Problem> {
        let id = RecordId::of_condition(condition);
        let mut wait = FIRST_WAIT;
        loop {
            let fence = FencingToken::draw(&self.shared.entropy);
            let opening = BeginRequest {
                // The lock outlasts the deadline, after which nothing is sent.
                lock: self.remaining().saturating_add(UNKNOWN_MARGIN),
                keep: self.endpoint().described.commit_within.unwrap_or_default().saturating_add(UNKNOWN_MARGIN),
                ..BeginRequest::new(fence, condition, false, &self.service.settings.idempotency)
            };
            let begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
            match begun.map_err(problem)? {
                BeginOutcome::New(guard) => {
                    progress.condition = Some(guard);
                    return Ok(None);
                }
                BeginOutcome::Reconcile { guard, sent_ago, .. } => {
                    progress.condition = Some(guard);
                    return Ok(Some(sent_ago));
                }
                BeginOutcome::InFlight { retry_after } if wait >= self.remaining() => {
                    return Err(Problem::InFlight { retry_after });
                }
                BeginOutcome::InFlight { .. } => {
                    tokio::select! {
                        () = sleep(wait) => wait = (wait * 2).min(MAX_WAIT),
                        () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
                    }
                }
                // Cannot happen: the record is never finished, and its id is made from its fingerprint.
                BeginOutcome::Replay(_) | BeginOutcome::Mismatch => return Err(Problem::StoreUnavailable),
            }
        }
    }
}

/// Ends the condition's record: unknown if the request's effect is unknown, else released.
pub(super) async fn end(progress: &mut Progress) {
    let Some(guard) = progress.condition.take() else { return };
    if progress.unsettled {
        guard.leave_unknown(progress.last_sent.map_or(Duration::ZERO, |sent| sent.elapsed()));
    } else if let Err(error) = guard.release().await {
        // Harmless: the next request with the condition verifies an effect that was known here.
        tracing::debug!(%error, "the record of a condition could not be released");
    }
}
