//! The record of a condition: what one request with the condition leaves unknown, the next one finds out before it sends.
//!
//! Turns keep requests with one condition apart while their hosts live. The record outlives them: a host that was killed after
//! the send, and a request whose deadline ended before its effect was known, leave it unknown for as long as the upstream may
//! still commit. The next request with the condition begins with a verification then, whoever makes it and with whatever key.

use super::{RequestContext, idempotency_key::problem, request_context::Progress};
use crate::{
    error::Problem,
    idempotency::{self, BeginOutcome, BeginRequest, FencingToken, Fingerprint, RecordId},
};
use std::time::Duration;
use tokio::time::sleep;

/// How much longer than `commit-within` an unknown effect is remembered, and how long a lock outlasts its request.
const MARGIN: Duration = Duration::from_secs(5);
/// Between two looks at a record that an earlier holder of the turn still has: one that has just ended gives it back at once, one
/// that was killed when its lock runs out.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl RequestContext {
    /// Takes the condition's record. Since when a request with the condition may have been sent whose effect is unknown; none:
    /// there is none.
    ///
    /// # Errors
    /// [`Problem::InFlight`] where an earlier request may still be sending.
    pub(super) async fn begin_condition(
        &self,
        condition: Fingerprint,
        progress: &mut Progress,
    ) -> Result<Option<Duration>, Problem> {
        let id = RecordId::of_condition(condition);
        let mut wait = FIRST_WAIT;
        loop {
            let fence = FencingToken::draw(&self.shared.entropy);
            let opening = BeginRequest {
                // Nothing is sent past the deadline.
                lock: self.remaining().saturating_add(MARGIN),
                keep: self.endpoint().described.commit_within.unwrap_or_default().saturating_add(MARGIN),
                ..BeginRequest::new(fence, condition, false, &self.service.settings.idempotency)
            };
            let begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
            match begun.map_err(problem)? {
                BeginOutcome::New(hold) => {
                    progress.condition = Some(hold);
                    return Ok(None);
                }
                BeginOutcome::Reconcile { hold, sent_ago, .. } => {
                    progress.condition = Some(hold);
                    return Ok(Some(sent_ago));
                }
                BeginOutcome::InFlight { retry_after } if wait >= self.remaining() => {
                    return Err(Problem::InFlight { retry_after });
                }
                BeginOutcome::InFlight { .. } => {
                    tokio::select! {
                        () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
                        () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
                    }
                }
                // It is never finished, and its id is made from its fingerprint.
                BeginOutcome::Replay(_) | BeginOutcome::Mismatch => return Err(Problem::StoreUnavailable),
            }
        }
    }
}

/// Gives the condition's record back: unknown where what the request did is unknown, else free.
pub(super) async fn end(progress: &mut Progress) {
    let Some(hold) = progress.condition.take() else { return };
    if progress.unsettled {
        hold.leave_unknown(progress.last_sent.map_or(Duration::ZERO, |sent| sent.elapsed()));
    } else if let Err(error) = hold.release().await {
        // The next request with the condition verifies what is known here.
        tracing::debug!(%error, "a condition could not be given back");
    }
}
