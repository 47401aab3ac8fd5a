//! One attempt: concurrency permit -> gate permit -> wait -> recheck -> send -> outcome.
//!
//! Drop releases everything acquired here: if the caller leaves at any await, its permits are released, and so is its record as long as
//! nothing was sent.

mod body_watch;
mod send;
mod verification_request;

use super::{
    RequestContext,
    request_context::{AttemptResult, MaybeGuard, Orphan, Progress, UpstreamResponse},
};
use crate::{
    admission::Permit,
    breaker,
    error::Problem,
    idempotency::RecordGuard,
    overload::{Admission, SampleOutcome, Shed},
    policy::contract::{BreakerSignal, Effect, Failure, FailureKind, Probe},
    state::group::{AttemptKind, Recheck, Refusal},
    telemetry::{FailureCause, RequestRecorder, TimelineEvent, WaitedFor},
    upstream::{self, Outbound},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout_at},
};

/// The request of an attempt: the caller's, or a verification.
pub(crate) enum AttemptTarget<'a> {
    Request,
    /// A verification of the request's effect.
    Verification(&'a Probe),
}

/// The result of an attempt that the host did not refuse: it was sent, or sending failed.
pub(crate) struct CompletedAttempt {
    pub(crate) arrival: AttemptResult,
    pub(crate) permit: Permit,
    pub(crate) took: Duration,
    /// When the send began.
    pub(crate) sent_at: Instant,
    /// Whether this host stopped sending because its record's lock may have expired. The upstream's breaker does not count this.
    pub(crate) cut_off: bool,
}

/// The least time before the deadline for an attempt: a wait that would leave less is refused at once.
pub(crate) const MIN_ATTEMPT_TIME: Duration = Duration::from_millis(10);

/// The result of a send that did not end in time: the upstream may have the request.
const TIMED_OUT: Failure = Failure::new(FailureKind::Timeout, true);

impl RequestContext {
    /// Reports a success to the breaker once the response body has ended.
    pub(crate) fn report_success(&self, arrival: &mut AttemptResult, permit: Permit, took: Duration) {
        match arrival {
            AttemptResult::Answer(UpstreamResponse { rest: Some(rest), .. }) => {
                let body = std::mem::replace(rest, upstream::full(Bytes::new()));
                let mut longest = self.endpoint().settings.attempt_timeout;
                if permit.is_probe() {
                    // A half-open probe's lease covers one attempt, head and body together.
                    longest = longest.saturating_sub(took).max(Duration::from_secs(1));
                }
                *rest = body_watch::watch(body, permit, took, longest);
            }
            _ => permit.report(BreakerSignal::Success, took),
        }
    }

    /// Limits the time for the rest of a response body that no longer affects the breaker.
    pub(crate) fn bound(&self, arrival: &mut AttemptResult) {
        if let AttemptResult::Answer(UpstreamResponse { rest: Some(rest), .. }) = arrival {
            let body = std::mem::replace(rest, upstream::full(Bytes::new()));
            *rest = body_watch::bound(body, self.endpoint().settings.attempt_timeout);
        }
    }

    /// The signal that an attempt gives the breaker. A failure is ignored if the caller caused it by a short deadline or a slow upload, or
    /// if this host cut the attempt off. Otherwise one caller with a short deadline could open the breaker for all.
    pub(crate) fn attribute_fault(
        &self,
        signal: BreakerSignal,
        arrival: &AttemptResult,
        took: Duration,
        cut_off: bool,
    ) -> BreakerSignal {
        if cut_off {
            return BreakerSignal::Ignore;
        }
        let AttemptResult::Failure(Failure { kind, sent: true, .. }) = arrival else { return signal };
        let settings = &self.endpoint().settings;
        let callers_deadline = self.deadline < self.started + settings.deadline && took < settings.attempt_timeout;
        let callers_doing = match kind {
            FailureKind::Timeout => callers_deadline || !self.repeatable(),
            FailureKind::Send => !self.repeatable(),
            _ => false,
        };
        if callers_doing { BreakerSignal::Ignore } else { signal }
    }

    /// Makes one attempt. An `Err` is the host's own refusal: nothing was sent.
    pub(crate) async fn attempt(
        &mut self,
        target: AttemptTarget<'_>,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<CompletedAttempt, Problem> {
        let is_request = matches!(target, AttemptTarget::Request);
        if is_request && self.effect == Effect::Unsafe {
            self.wake(&mut progress.recorder).await?;
        }
        let concurrency_permit = if is_request { self.concurrency_permit(&mut progress.recorder).await? } else { None };
        let (mut permit, checked_at) = self.admit(&target, progress).await?;
        let (is_probe, wait) = (permit.is_probe(), permit.wait());
        let admission = if is_request { self.load(&mut permit, progress).await? } else { None };
        let (outbound, limit) = match target {
            AttemptTarget::Request => {
                self.may_send(guard, progress, &permit).await?;
                self.may_probe(&permit, checked_at)?;
                if progress.key_sends.justifies_attempt && !self.key_holds(progress) {
                    return Err(Problem::EffectUnknown);
                }
                progress.attempts += 1;
                let outbound = self.outbound(&progress.recorder, progress.attempts);
                (
                    self.leased(outbound, [guard.as_ref(), progress.condition.as_ref()]),
                    self.endpoint().settings.attempt_timeout,
                )
            }
            AttemptTarget::Verification(probe) => {
                progress.recorder.meter().verifications.add();
                (self.verification_request(probe), self.verification_timeout(probe))
            }
        };
        let began = Instant::now();
        // Not before: a request that the queue or the last checks refuse has no permit.
        progress.recorder.note_at(began, || TimelineEvent::Permit { is_probe, wait });
        let (attempt, verification) = (progress.attempts, progress.verifications);
        let step = || {
            if is_request { TimelineEvent::Sent { attempt } } else { TimelineEvent::VerificationSent { verification } }
        };
        progress.recorder.note_at(began, step);
        let guards = if is_request { [guard.as_ref(), progress.condition.as_ref()] } else { [None, None] };
        let (arrival, cut_off) = self.exchange(outbound, is_request, (began + limit).min(self.deadline), guards).await;
        drop(concurrency_permit);
        if let AttemptResult::Failure(Failure { kind: FailureKind::Exhausted, .. }) = arrival {
            // This host's own failure (no file descriptors): release the permits, report nothing to the breaker.
            if is_request {
                progress.attempts -= 1;
            }
            return Err(self.exhausted());
        }
        if let Some(admission) = admission {
            admission.over(&self.asking(), sample_outcome(&arrival, cut_off));
        }
        let took = began.elapsed();
        permit.blame(progress.recorder.id, cause(&arrival));
        self.note(&arrival, is_request, began, took, progress);
        if matches!(arrival, AttemptResult::Answer(_)) {
            self.service.record_response(&self.shared.clock);
        }
        Ok(CompletedAttempt { arrival, permit, took, sent_at: began, cut_off })
    }

    /// Takes a permit of the breaker, the budget and the rate limits, and waits until it may be used. A half-open probe of an upstream with
    /// a health call makes that call first. Returns the permit and the time of its last check.
    async fn admit(&self, target: &AttemptTarget<'_>, progress: &mut Progress) -> Result<(Permit, Instant), Problem> {
        let is_request = matches!(target, AttemptTarget::Request);
        // A verification keeps less in reserve: it goes to another endpoint, and a skipped one leaves a write unknown.
        let usual_time = progress.recorder.meter().usually_takes.read();
        let least = match target {
            AttemptTarget::Request => self.response_reserve(usual_time),
            // The record is held meanwhile, so the wait must leave the verification its whole time.
            AttemptTarget::Verification(probe) if self.verifies.is_some() => self.verification_timeout(probe),
            AttemptTarget::Verification(_) => MIN_ATTEMPT_TIME,
        };
        let (mut permit, checked_at) = self.permit(is_request, progress.attempts > 0, target, least).await?;
        if let Some((wait, per_minute)) = permit.paced() {
            progress.recorder.note(|| TimelineEvent::Paced { per_minute, wait });
        }
        progress.recorder.permit_waited(permit.is_probe(), permit.wait());
        if !is_request || !permit.is_probe() {
            return Ok((permit, checked_at));
        }
        if !self.is_well(&mut progress.recorder).await {
            if self.remaining().is_zero() {
                return Err(Problem::DeadlineBeforeSend);
            }
            permit.blame(progress.recorder.id, FailureCause::HealthCall);
            permit.report(BreakerSignal::Failure, Duration::ZERO);
            return Err(self.breaker_open("its health call fails".to_owned(), Duration::from_secs(1)));
        }
        // The health call took time, so recheck: the lease counts from now.
        let checked_at = Instant::now();
        match permit.recheck().await {
            Recheck::Send => Ok((permit, checked_at)),
            Recheck::Wait(retry_after) => Err(self.problem(Refusal::RateLimited { quota: None, retry_after })),
            Recheck::Refused(refusal) => Err(self.problem(refusal)),
        }
    }

    /// Sends until a time at most, and only while the guards hold their records. True: a guard lost its record, so the send was cut off.
    async fn exchange(
        &self,
        outbound: Outbound,
        is_request: bool,
        until: Instant,
        guards: [Option<&RecordGuard>; 2],
    ) -> (AttemptResult, bool) {
        let send = timeout_at(until, self.send(outbound, is_request));
        let Some(sent) = RecordGuard::while_held(guards, send).await else {
            tracing::warn!(
                endpoint = %self.endpoint().described.name,
                "a write was cut off: shared state was not reachable, or this process was paused, for so long that \
                 another host may have taken over the record"
            );
            return (AttemptResult::Failure(TIMED_OUT), true);
        };
        (sent.unwrap_or(AttemptResult::Failure(TIMED_OUT)), false)
    }

    fn exhausted(&self) -> Problem {
        self.shared.events.note_seldom("exhausted", &self.service.settings.name, || {
            "no file descriptor is left for connections to it: raise the process's limit (LimitNOFILE, ulimit -n)"
                .to_owned()
        });
        Problem::Exhausted
    }

    /// Records an attempt's outcome, and when the request's last byte may have been sent.
    fn note(&self, arrival: &AttemptResult, is_request: bool, began: Instant, took: Duration, progress: &mut Progress) {
        match arrival {
            AttemptResult::Answer(answer) => {
                // Streamed uploads and verifications do not show the usual response time.
                let is_usual = is_request && self.repeatable();
                progress.recorder.answered(answer.status.as_u16(), began, took, is_usual);
            }
            AttemptResult::Failure(failure) => progress.recorder.failed(*failure, took),
        }
        if is_request {
            match arrival {
                AttemptResult::Failure(Failure { sent: false, .. }) => {}
                // The body may have been sent until the response arrived.
                _ => {
                    progress.last_sent = Some(Instant::now());
                    progress.key_sends.sent(began);
                }
            }
        }
    }

    /// The time that a wait must leave before the deadline: 1.5 times the usual response time, at most half of the remaining time. Under
    /// overload every wait is as long as allowed, so without this reserve every response would come too late.
    fn response_reserve(&self, usual_time: Duration) -> Duration {
        let wanted = MIN_ATTEMPT_TIME.saturating_add(usual_time.saturating_add(usual_time / 2));
        wanted.min(self.remaining() / 2).max(MIN_ATTEMPT_TIME)
    }

    /// Takes a permit of the endpoint's fixed concurrency limit, if it has one.
    async fn concurrency_permit(
        &self,
        recorder: &mut RequestRecorder,
    ) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        let Some(concurrency_permits) = &self.endpoint().concurrency_permits else { return Ok(None) };
        let full = || Problem::Concurrency {
            endpoint: self.endpoint().described.name.clone(),
            limit: self.endpoint().settings.concurrency.unwrap_or(0),
        };
        let waited = tokio::select! {
            waited = timeout_at(self.deadline, Arc::clone(concurrency_permits).acquire_owned()) => waited,
            () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
        };
        let permit = waited.map_err(|_| full())?.map_err(|_| full())?;
        recorder.waited(WaitedFor::Concurrency);
        Ok(Some(permit))
    }

    /// Waits for admission by the upstream's adaptive limit. A request that may have been sent before, or a half-open probe, enters without
    /// a wait.
    async fn load(&self, permit: &mut Permit, progress: &mut Progress) -> Result<Option<Admission>, Problem> {
        let Some(overload) = self.overload() else { return Ok(None) };
        if progress.ever_unknown || permit.is_probe() || (progress.attempts > 0 && self.effect != Effect::Safe) {
            return Ok(Some(overload.enter_now()));
        }
        let most = self.remaining().saturating_sub(MIN_ATTEMPT_TIME);
        let entered = tokio::select! {
            entered = overload.enter(self.asking(), most) => entered,
            () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
        };
        let admission = entered.map_err(|Shed| self.overloaded())?;
        let Some(wait) = admission.waited else { return Ok(Some(admission)) };
        progress.recorder.note(|| TimelineEvent::Queued { wait });
        // After a wait, the permit may no longer be valid.
        match permit.recheck().await {
            Recheck::Send => Ok(Some(admission)),
            Recheck::Wait(retry_after) => Err(self.problem(Refusal::RateLimited { quota: None, retry_after })),
            Recheck::Refused(refusal) => Err(self.problem(refusal)),
        }
    }

    fn overloaded(&self) -> Problem {
        Problem::Overloaded { upstream: self.service.settings.name.clone(), priority: self.priority.name() }
    }

    /// Acquires breaker, budget and rate limits, waits until the reserved moment, and rechecks. Refuses at once if a wait would leave less
    /// than `least` before the deadline. Returns the permit and the time of the last check.
    async fn permit(
        &self,
        is_request: bool,
        retry: bool,
        target: &AttemptTarget<'_>,
        least: Duration,
    ) -> Result<(Permit, Instant), Problem> {
        let ask = match (is_request, retry) {
            (true, false) => AttemptKind::First,
            (true, true) => AttemptKind::Retry,
            (false, _) => AttemptKind::Probe,
        };
        let group = match target {
            AttemptTarget::Request => self.endpoint().group_for(self.effect),
            AttemptTarget::Verification(probe) => &self.verified_endpoint(probe).unwrap_or(self.endpoint()).group,
        };
        let bearable = self.remaining().saturating_sub(least);
        let mut permit = group.acquire(ask, bearable).await.map_err(|refusal| self.problem(refusal))?;
        let mut wait = permit.wait();
        loop {
            if !wait.is_zero() {
                tokio::select! {
                    () = sleep(wait) => {}
                    // Nothing was sent yet: stop when the caller leaves.
                    () = self.caller_leaves(), if is_request => return Err(Problem::DeadlineBeforeSend),
                }
            }
            let checked_at = Instant::now();
            match permit.recheck().await {
                Recheck::Send => return Ok((permit, checked_at)),
                Recheck::Wait(more) if more.saturating_add(least) <= self.remaining() => wait = more,
                Recheck::Wait(retry_after) => {
                    return Err(self.problem(Refusal::RateLimited { quota: None, retry_after }));
                }
                Recheck::Refused(refusal) => return Err(self.problem(refusal)),
            }
        }
    }

    /// Checks right before the first byte: the caller is there, the deadline lies ahead, the locks on record and fingerprint are still
    /// held.
    async fn may_send(&self, guard: &mut MaybeGuard, progress: &mut Progress, permit: &Permit) -> Result<(), Problem> {
        // Skip this if the caller has gone: the request is an orphan itself, and adopts none.
        if let Some(entry) = progress.listed.take().filter(|_| !self.caller_has_gone())
            && entry.recheck_orphan().await.map_err(|_| Problem::StoreUnavailable)?.is_some()
        {
            progress.orphan = Orphan::Found;
        }
        if self.remaining().is_zero() || self.caller_has_gone() || progress.orphan == Orphan::Found {
            return Err(Problem::DeadlineBeforeSend);
        }
        for guard in guard.iter_mut().chain(&mut progress.condition) {
            guard.sent().await.map_err(|_| Problem::StoreUnavailable)?;
            // Uses this host's own clock: a process that was stopped past its lock must send nothing when it wakes.
            if guard.lock_left() < self.endpoint().settings.attempt_timeout.min(self.remaining()) {
                return Err(Problem::StoreUnavailable);
            }
        }
        // Without a record or a lock, an equal request at another host would go undetected.
        let held_back = guard.as_ref().is_some_and(RecordGuard::is_written) || progress.lock.is_some();
        if self.effect == Effect::Unsafe && permit.is_alone() && !held_back && !self.shared.writes_alone {
            return Err(Problem::StoreUnavailable);
        }
        // If the fingerprint lock has expired, an equal request may be running.
        if progress.lock.as_ref().is_some_and(|fingerprint_lock| !fingerprint_lock.holds()) {
            return Err(Problem::StoreUnavailable);
        }
        Ok(())
    }

    /// Refuses a half-open probe whose lease no longer covers an attempt: another host may probe by the time it arrives. This happens if
    /// the process was stopped or the store was slow.
    fn may_probe(&self, permit: &Permit, checked_at: Instant) -> Result<(), Problem> {
        let settings = &self.endpoint().settings;
        let Some(breaker) = settings.breaker.as_ref().filter(|_| permit.is_probe()) else { return Ok(()) };
        let attempt = settings.attempt_timeout.min(self.remaining());
        if breaker::lease_covers(checked_at.elapsed(), attempt, breaker) {
            return Ok(());
        }
        Err(self.breaker_open("its probe was too late to be sent".to_owned(), Duration::from_secs(1)))
    }

    /// Makes the body of a write break off when the lease of its record ends. Needed where a task of the client writes the body, which
    /// [`RecordGuard::while_held`] does not stop. See [`super::leased_body`].
    fn leased(&self, outbound: Outbound, guards: [Option<&RecordGuard>; 2]) -> Outbound {
        if !outbound.guarded || self.transport.stops_when_dropped() {
            return outbound;
        }
        let leases = guards.into_iter().flatten().map(RecordGuard::lease).collect();
        Outbound { body: super::leased_body::leased(outbound.body, leases), ..outbound }
    }

    fn breaker_open(&self, why: String, retry_after: Duration) -> Problem {
        Problem::BreakerOpen { endpoint: self.endpoint().described.name.clone(), why, retry_after }
    }

    fn problem(&self, refusal: Refusal) -> Problem {
        let endpoint = self.endpoint().described.name.clone();
        match refusal {
            Refusal::BreakerOpen { retry_after, why } => {
                Problem::BreakerOpen { endpoint, why: why.to_string(), retry_after }
            }
            Refusal::RateLimited { quota, retry_after } => Problem::RateLimited { endpoint, quota, retry_after },
            Refusal::Paced { per_minute, retry_after } => Problem::Paced { endpoint, per_minute, retry_after },
            Refusal::BudgetExhausted { retry_after } => Problem::BudgetExhausted { endpoint, retry_after },
        }
    }
}

/// What failed, if the attempt counts as a failure.
fn cause(arrival: &AttemptResult) -> FailureCause {
    match arrival {
        AttemptResult::Answer(answer) => FailureCause::Answered(answer.status.as_u16()),
        AttemptResult::Failure(failure) => FailureCause::of(*failure),
    }
}

/// The sample that an attempt gives the adaptive limit.
fn sample_outcome(arrival: &AttemptResult, cut_off: bool) -> SampleOutcome {
    match arrival {
        _ if cut_off => SampleOutcome::Uninformative,
        AttemptResult::Answer(answer) if matches!(answer.status.as_u16(), 429 | 503) => SampleOutcome::Uninformative,
        AttemptResult::Answer(_) => SampleOutcome::Answered,
        AttemptResult::Failure(Failure { kind: FailureKind::Timeout, .. }) => SampleOutcome::TimedOut,
        AttemptResult::Failure(_) => SampleOutcome::Uninformative,
    }
}

#[cfg(test)]
mod tests;
