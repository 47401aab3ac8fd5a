//! The key around a course: begin, and settle the record by what became of the effect.

use super::{
    Exchange,
    answer::{self, Outgoing},
    condition,
    exchange::{MaybeHold, Progress},
    upstream_key::KeySends,
};
use crate::{
    error::{EFFECT_UNKNOWN, Problem},
    idempotency::{
        self, Begun, ClaimOwner, Ended, Ending, Fence, Fingerprint, Hold, Opening, RecordError, RecordId, Retention,
        Stored,
    },
    overload::Held,
    policy::contract::Effect,
    telemetry::{Account, KeyResult},
    upstream::Body,
};
use http::Response;
use tokio::time::{Instant, timeout_at};

/// How a request starts.
enum Start {
    /// With an attempt.
    Fresh,
    /// It may have been sent before: find out first. Since when.
    Reconcile(Instant),
}

impl Start {
    /// The same for a request that may have been sent at `since` too.
    fn or_since(self, since: Instant) -> Self {
        match self {
            Self::Fresh => Self::Reconcile(since),
            Self::Reconcile(own) => Self::Reconcile(own.max(since)),
        }
    }
}

impl Exchange {
    /// Runs the request to its answer.
    pub(super) async fn run(mut self: Box<Self>, account: Account) -> Response<Body> {
        let fence = Fence::draw(&self.shared.entropy);
        let mut progress = Progress::new(ClaimOwner::Request(fence), account);
        let response = match self.keyed(fence, &mut progress).await {
            Ok(response) => response,
            Err(problem) => {
                progress.account.refused(&problem);
                problem.into_response()
            }
        };
        progress.account.close(response.status().as_u16());
        match self.held.take().filter(Held::is_limited) {
            Some(held) => response.map(|body| answer::holding(body, held)),
            None => response,
        }
    }

    async fn keyed(&mut self, fence: Fence, progress: &mut Progress) -> Result<Response<Body>, Problem> {
        let mut hold: MaybeHold = None;
        let mut start = Start::Fresh;
        if let (Some(keyed), Some(tenant), Some(fingerprint)) = (&self.key, &self.tenant, self.fingerprint) {
            let id = RecordId::of(tenant, &self.service.settings.name, &keyed.key);
            let maybe_sent = keyed.maybe_sent;
            let own = Some(*tenant).filter(|tenant| !tenant.is_every_caller());
            self.carry_upstream_key(id.as_bytes());
            let settings = &self.service.settings.idempotency;
            // The turn that comes along is that of the record's own fingerprint.
            let with_turn = self.equal.is_some_and(|equal| !equal.by_condition);
            let opening = Opening::new(fence, fingerprint, maybe_sent, settings)
                .with_turn(with_turn)
                .of_tenant(own)
                .with_upstream_key(self.upstream_key.map(|key| key.tag));
            // Before the store is asked: the age that it tells is at least as great by then.
            let asked = Instant::now();
            let begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
            progress.account.keyed(result(&begun));
            match begun.map_err(problem)? {
                Begun::New(held) => hold = Some(held),
                Begun::Reconcile { hold: held, sent_ago, doubtful } => {
                    progress.doubtful = doubtful;
                    let earlier = held.keyed_sends();
                    progress.key_sends = KeySends::reconciled(self.upstream_key, earlier, asked);
                    hold = Some(held);
                    start = Start::Reconcile(Instant::now().checked_sub(sent_ago).unwrap_or(self.started));
                }
                Begun::Replay(stored) => return self.replay(&stored),
                Begun::InFlight { retry_after } => return Err(Problem::InFlight { retry_after }),
                Begun::Mismatch => return Err(Problem::KeyReused),
            }
        } else if self.has_own_record() {
            let id = RecordId::draw(&self.shared.entropy);
            self.carry_upstream_key(id.as_bytes());
            let settings = &self.service.settings.idempotency;
            let opening = Opening::new(fence, Fingerprint::of_record(id), false, settings);
            hold = Some(Hold::unwritten(&self.shared.records, self.shared.clock, id, opening));
        } else {
            self.carry_upstream_key(&fence.0.to_be_bytes());
        }
        // Equal requests one at a time, so that none adopts what a twin made.
        progress.turn = match self.equal {
            Some(_) if hold.as_ref().is_some_and(Hold::has_turn) => hold.as_mut().and_then(Hold::take_turn),
            Some(equal) => {
                let turn = self.shared.records.turn(equal.fingerprint);
                let turn = tokio::select! {
                    turn = timeout_at(self.deadline, turn) => turn.map_err(|_| Problem::DeadlineBeforeSend)?,
                    // Its key is free at once for a caller that comes back, unless an earlier owner sent something.
                    () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
                };
                Some(turn.map_err(problem)?)
            }
            None => None,
        };
        if let Some(equal) = self.equal.filter(|equal| equal.by_condition && self.endpoint().granted)
            && let Some(sent_ago) = self.begin_condition(equal.fingerprint, progress).await?
        {
            // Others' sends carried no key of this request's.
            progress.key_sends = KeySends::reconciled(self.upstream_key, None, Instant::now());
            start = start.or_since(Instant::now().checked_sub(sent_ago).unwrap_or(self.started));
        }
        if let Some(hold) = &mut hold {
            progress.owner = ClaimOwner::Record(hold.id());
            hold.intend(self.intent());
        }
        let result = match start {
            Start::Fresh => self.course(progress, &mut hold).await,
            Start::Reconcile(since) => {
                progress.last_sent = Some(since);
                progress.ever_unknown = true;
                progress.unsettled = true;
                self.reconcile(progress, &mut hold).await
            }
        };
        let response = self.settle(result, progress, hold).await;
        condition::end(progress).await;
        Ok(response)
    }

    /// Whether it runs under a record that no key names. A body that was not kept cannot be compared, nor sent again.
    fn has_own_record(&self) -> bool {
        self.effect == Effect::Unsafe && self.key.is_none() && self.repeatable()
    }

    fn replay(&self, stored: &Stored) -> Result<Response<Body>, Problem> {
        let limit_bytes = self.service.settings.idempotency.max_response_bytes;
        match stored {
            Stored::Answer(answer) => Ok(answer::replayed(answer, self)),
            Stored::TooLarge { status } => Err(Problem::NotKept { status: status.as_u16(), limit_bytes }),
        }
    }

    /// Whether the record holds a proof of absence that its caller needs: the caller will say again that the request may have
    /// been sent, and without the record that proof would take as long again.
    fn keeps_proof(&self, progress: &Progress) -> bool {
        progress.ever_unknown && progress.attempts == 0 && self.key.as_ref().is_some_and(|keyed| keyed.maybe_sent)
    }

    /// Finishes, releases or keeps the record, by what became of the effect.
    async fn settle(
        &self,
        result: Result<Outgoing, Problem>,
        progress: &mut Progress,
        hold: MaybeHold,
    ) -> Response<Body> {
        let Some(hold) = hold else {
            return match result {
                Ok(outgoing) => outgoing.into_response(self, progress),
                Err(problem) => answer::refused(problem, self, progress),
            };
        };
        let sent_ago = progress.last_sent.map_or(std::time::Duration::ZERO, |sent| sent.elapsed());
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
            keyed: self.key.is_some(),
            keeps_proof: self.keeps_proof(progress),
            ending,
        });
        let outgoing = match (retention, result) {
            (Retention::Finish, Ok(outgoing)) => outgoing,
            (retention, result) => {
                if retention == Retention::Release {
                    let _ = hold.release().await;
                } else {
                    hold.leave_unknown(sent_ago);
                    self.shared.settlement.wake();
                }
                return match result {
                    Ok(outgoing) => outgoing.into_response(self, progress),
                    Err(problem) => answer::refused(problem, self, progress),
                };
            }
        };
        let most = self.service.settings.idempotency.max_response_bytes;
        let (response, stored) = outgoing.store(self, progress, most).await;
        // A store that fails now leaves the record unknown: the next request with the key looks before it sends.
        if let Err(error) = hold.finish(stored).await {
            tracing::warn!(%error, endpoint = %self.endpoint().described.name, "a finished request could not be recorded");
        }
        response
    }
}

fn result(begun: &Result<Begun, RecordError>) -> KeyResult {
    match begun {
        Ok(Begun::New(_)) => KeyResult::New,
        Ok(Begun::Replay(_)) => KeyResult::Replay,
        Ok(Begun::InFlight { .. }) => KeyResult::InFlight,
        Ok(Begun::Mismatch) => KeyResult::Mismatch,
        Ok(Begun::Reconcile { .. }) => KeyResult::Reconcile,
        Err(_) => KeyResult::Failed,
    }
}

pub(super) fn problem(error: RecordError) -> Problem {
    match error {
        RecordError::Full { .. } | RecordError::NoRoom { .. } => Problem::KeysFull,
        RecordError::Lost | RecordError::Unavailable { .. } => Problem::StoreUnavailable,
    }
}
