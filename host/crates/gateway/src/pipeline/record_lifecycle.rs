//! The life of a request's record: begun before the retry loop; finished, released or kept after it, by the state of the effect.

use super::{
    RequestContext,
    request_context::{MaybeGuard, Progress},
    response::{self, CallerResponse},
    upstream_key::KeySends,
};
use crate::{
    error::{EFFECT_UNKNOWN, Problem},
    idempotency::{
        self, BeginOutcome, BeginRequest, Ended, Ending, Entry, FencingToken, RecordError, RecordGuard, RecordId,
        Retention, Stored,
    },
    telemetry::KeyResult,
    upstream::Body,
};
use http::Response;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How a request starts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// With an attempt.
    Fresh,
    /// With a verification: the request may have been sent before, last at this time.
    Reconcile(Instant),
}

impl Start {
    /// This start, for a request that may also have been sent at `since`.
    pub(super) fn or_since(self, since: Instant) -> Self {
        match self {
            Self::Fresh => Self::Reconcile(since),
            Self::Reconcile(own) => Self::Reconcile(own.max(since)),
        }
    }

    pub(super) fn since(sent_ago: Duration, started: Instant) -> Self {
        Self::Reconcile(Instant::now().checked_sub(sent_ago).unwrap_or(started))
    }

    pub(super) fn is_fresh(self) -> bool {
        matches!(self, Self::Fresh)
    }
}

/// The data that a request begins with.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) guard: MaybeGuard,
    pub(super) start: Start,
    /// The entry among equal requests without a key.
    pub(super) entry: Option<Arc<Entry>>,
    /// Whether equal requests with waiting callers are listed too.
    pub(super) others: bool,
}

/// The result of beginning a request's record.
#[derive(Debug)]
pub(super) enum Begins {
    /// The request may go on.
    With(Box<Beginning>),
    /// The record already has a response.
    Answered(Response<Body>),
}

impl Begins {
    pub(super) fn with(guard: MaybeGuard, start: Start, entry: Option<Arc<Entry>>, others: bool) -> Self {
        Self::With(Box::new(Beginning { guard, start, entry, others }))
    }

    /// Without an entry among equal requests.
    pub(super) fn unlisted(guard: MaybeGuard, start: Start) -> Self {
        Self::with(guard, start, None, false)
    }
}

impl RequestContext {
    /// Begins the request's record: by its key, or among equal requests without a key. A safe request has none.
    pub(super) async fn begin(&mut self, fence: FencingToken, progress: &mut Progress) -> Result<Begins, Problem> {
        let (Some(keyed), Some(tenant), Some(fingerprint)) = (&self.key, &self.tenant, self.fingerprint) else {
            if self.has_own_record() {
                return self.arrive(fence, progress).await;
            }
            self.carry_upstream_key(&fence.0.to_be_bytes());
            return Ok(Begins::unlisted(None, Start::Fresh));
        };
        let id = RecordId::of(tenant, &self.service.settings.name, &keyed.key);
        let maybe_sent = keyed.maybe_sent;
        let own = Some(*tenant).filter(|tenant| !tenant.is_every_caller());
        self.carry_upstream_key(id.as_bytes());
        let settings = &self.service.settings.idempotency;
        // The store takes the lock of the record's own fingerprint together with the record. A condition's lock is taken separately.
        let with_fingerprint_lock = self.equal.is_some_and(|equal| !equal.by_condition);
        let opening = BeginRequest::new(fence, fingerprint, maybe_sent, settings)
            .with_fingerprint_lock(with_fingerprint_lock)
            .of_tenant(own)
            .with_upstream_key(self.upstream_key.map(|key| key.tag));
        // Read the clock before asking the store: an age counted back from this moment is never understated.
        let asked = Instant::now();
        let begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
        progress.recorder.keyed(result(&begun));
        match begun.map_err(problem)? {
            BeginOutcome::New(guard) => Ok(Begins::unlisted(Some(guard), Start::Fresh)),
            BeginOutcome::Reconcile { guard, sent_ago, doubtful } => {
                progress.doubtful = doubtful;
                progress.key_sends = KeySends::reconciled(self.upstream_key, guard.keyed_sends(), asked);
                Ok(Begins::unlisted(Some(guard), Start::since(sent_ago, self.started)))
            }
            BeginOutcome::Replay(stored) => self.replay(&stored).map(Begins::Answered),
            BeginOutcome::InFlight { retry_after } => Err(Problem::InFlight { retry_after }),
            BeginOutcome::Mismatch => Err(Problem::KeyReused),
        }
    }

    pub(super) fn replay(&self, stored: &Stored) -> Result<Response<Body>, Problem> {
        let limit_bytes = self.service.settings.idempotency.max_response_bytes;
        match stored {
            Stored::Answer(answer) => Ok(response::replayed(answer, self)),
            Stored::TooLarge { status } => Err(Problem::NotKept { status: status.as_u16(), limit_bytes }),
        }
    }

    /// Takes the fingerprint lock: equal requests run one at a time, so that none adopts what another one made.
    pub(super) async fn take_lock(&self, progress: &mut Progress, guard: &mut MaybeGuard) -> Result<(), Problem> {
        if let Some(fingerprint_lock) = guard.as_mut().and_then(RecordGuard::take_fingerprint_lock) {
            progress.lock = Some(fingerprint_lock);
        }
        let Some(equal) = self.equal.filter(|_| progress.lock.is_none()) else { return Ok(()) };
        let fingerprint_lock = self.shared.records.lock_fingerprint(equal.fingerprint);
        let fingerprint_lock = tokio::select! {
            fingerprint_lock = timeout_at(self.deadline, fingerprint_lock) => fingerprint_lock.map_err(|_| Problem::DeadlineBeforeSend)?,
            // This frees the key at once for a caller that repeats its request, unless an earlier owner sent something.
            () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
        };
        progress.lock = Some(fingerprint_lock.map_err(problem)?);
        Ok(())
    }

    /// Whether the record holds a proof of absence that the caller still needs. A caller with `Triage-Maybe-Sent` sends that header
    /// with its next request too; without the record, the proof would take as long again.
    fn keeps_proof(&self, progress: &Progress) -> bool {
        progress.ever_unknown && progress.attempts == 0 && self.key.as_ref().is_some_and(|keyed| keyed.maybe_sent)
    }

    /// Leaves the record to its next owner or to a verification without a caller.
    fn leave_unknown(&self, mut guard: RecordGuard, sent_ago: Duration) {
        if !guard.is_marked_by_sends() {
            guard.intend(self.intent());
        }
        guard.leave_unknown(sent_ago);
        self.shared.settlement.wake();
    }

    /// Finishes, releases or keeps the record, by the state of the effect, and makes the response.
    pub(super) async fn settle(
        &self,
        result: Result<CallerResponse, Problem>,
        progress: &mut Progress,
        guard: MaybeGuard,
        entry: Option<Arc<Entry>>,
    ) -> Response<Body> {
        let Some(guard) = guard else {
            return match result {
                Ok(outgoing) => outgoing.into_response(self, progress),
                Err(problem) => response::refused(problem, self, progress),
            };
        };
        let sent_ago = progress.last_sent.map_or(Duration::ZERO, |sent| sent.elapsed());
        let ending = match &result {
            Ok(_) => Ending::Answered,
            Err(problem) => {
                let effect_unknown = problem.reason() == EFFECT_UNKNOWN;
                Ending::Refused { maybe_sent: problem.sent(), effect_unknown }
            }
        };
        let retention = idempotency::retention(&Ended {
            effect: self.effect,
            granted: self.endpoint().granted,
            class: progress.class,
            unsettled: progress.unsettled,
            // The next equal request may adopt the result of a request without a key.
            keyed: self.key.is_some() || entry.is_some(),
            keeps_proof: self.keeps_proof(progress),
            ending,
        });
        let outgoing = match (retention, result) {
            (Retention::Finish, Ok(outgoing)) => outgoing,
            (retention, result) => {
                if retention == Retention::Release {
                    let _ = guard.release().await;
                    over(entry.as_ref());
                } else {
                    self.leave_unknown(guard, sent_ago);
                }
                let response = match result {
                    Ok(outgoing) => outgoing.into_response(self, progress),
                    Err(problem) => response::refused(problem, self, progress),
                };
                return self.deliver_unknown(response, entry, progress);
            }
        };
        if let Some(entry) = entry {
            return self.deliver(outgoing, entry, guard, progress).await;
        }
        let most = self.service.settings.idempotency.max_response_bytes;
        let (response, stored) = outgoing.store(self, progress, most).await;
        // If the store fails now, the record stays unknown: the next request with the key verifies before it sends.
        if let Err(error) = guard.finish(stored).await {
            tracing::warn!(%error, endpoint = %self.endpoint().described.name, "the record of a finished request \
                                                                                could not be stored");
        }
        response
    }
}

/// Ends the request's own record when it adopts an orphan's. A record that was begun with the entry has ended with it.
pub(super) fn hand_over(guard: MaybeGuard) {
    if let Some(guard) = guard {
        guard.end_after_adoption();
    }
}

/// Ends the entry: nothing is left to adopt.
fn over(entry: Option<&Arc<Entry>>) {
    if let Some(entry) = entry {
        entry.answered(true);
    }
}

fn result(begun: &Result<BeginOutcome, RecordError>) -> KeyResult {
    match begun {
        Ok(BeginOutcome::New(_)) => KeyResult::New,
        Ok(BeginOutcome::Replay(_)) => KeyResult::Replay,
        Ok(BeginOutcome::InFlight { .. }) => KeyResult::InFlight,
        Ok(BeginOutcome::Mismatch) => KeyResult::Mismatch,
        Ok(BeginOutcome::Reconcile { .. }) => KeyResult::Reconcile,
        Err(_) => KeyResult::Failed,
    }
}

pub(super) fn problem(error: RecordError) -> Problem {
    match error {
        RecordError::Full { .. } | RecordError::NoCapacity { .. } => Problem::KeysFull,
        RecordError::Lost | RecordError::Unavailable { .. } => Problem::StoreUnavailable,
    }
}
