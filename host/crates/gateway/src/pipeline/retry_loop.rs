//! The steps of the retry loop: waits, sends, decides, reports to the breaker and picks the next action.

use super::{
    RequestContext,
    attempt::{AttemptTarget, CompletedAttempt},
    decide::NO_RESPONSE,
    pending_report::PendingReport,
    record_lifecycle::Start,
    request_context::{AttemptResult, Doubt, MaybeGuard, Orphan, Progress},
    response::CallerResponse,
};
use crate::{
    admission::Permit,
    clock,
    error::Problem,
    idempotency::ClaimOwner,
    policy::contract::{BreakerSignal, Class, Effect, Probe, Purpose},
    retry::{Clamped, NextAction},
    telemetry::TimelineEvent,
};
use std::time::Duration;
use tokio::time::sleep;
use tracing::Instrument as _;

impl RequestContext {
    /// The loop's first action: an attempt; or, for a request that an earlier owner may have sent, what the policy says of a lost response.
    pub(super) async fn first_action(
        &mut self,
        start: Start,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<NextAction, Problem> {
        let Start::Reconcile(since) = start else { return Ok(NextAction::Retry(Duration::ZERO)) };
        progress.last_sent = Some(since);
        progress.ever_unknown = true;
        progress.unsettled = true;
        if self.effect == Effect::Idempotent {
            // A repetition of an idempotent request has the effect of one send.
            return Ok(NextAction::Retry(Duration::ZERO));
        }
        let clamped = self.decide(Purpose::Request, &AttemptResult::Failure(NO_RESPONSE), progress, guard).await.1;
        Ok(match self.follow(clamped, progress) {
            // There is no response to deliver.
            NextAction::Deliver => NextAction::Unsettled,
            action => action,
        })
    }

    /// Waits before an attempt, and reports a retry.
    pub(super) async fn wait(&self, delay: Duration, progress: &mut Progress) {
        if progress.attempts > 0 {
            tracing::info!(
                request = %progress.recorder.id,
                upstream = %self.service.settings.name,
                endpoint = %self.endpoint().described.name,
                attempt = progress.attempts + 1,
                wait_ms = clock::millis(delay),
                class = progress.class.name(),
                reason = %TimelineEvent::words(&progress.reason),
                // Capitalised: dashboards of the stack that Triage replaces search for this word.
                "Retrying"
            );
            progress.recorder.retries(progress.class, delay);
        } else if !delay.is_zero() {
            progress.recorder.note(|| TimelineEvent::Waits { wait: delay });
        }
        if !delay.is_zero() {
            progress.previous_delay = delay;
            sleep(delay).await;
        }
    }

    /// Makes an attempt that is allowed only because the upstream deduplicates by its own key.
    pub(super) async fn resend_with_key(
        &mut self,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<NextAction, Problem> {
        progress.key_sends.justifies_attempt = true;
        let step = self.send_request(progress, guard).await;
        progress.key_sends.justifies_attempt = false;
        step
    }

    /// Sends the request once, decides about the result, and reports it to the breaker.
    pub(super) async fn send_request(
        &mut self,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<NextAction, Problem> {
        let span = tracing::debug_span!("attempt", attempt = progress.attempts + 1);
        let attempted = self.attempt(AttemptTarget::Request, progress, guard).instrument(span).await;
        let (mut arrival, mut permit, took, cut_off) = match attempted {
            Ok(CompletedAttempt { arrival, permit, took, cut_off, .. }) => (arrival, permit, took, cut_off),
            Err(problem) if progress.orphan == Orphan::Found => return Err(problem),
            Err(problem) => {
                progress.recorder.denied(&problem);
                return self.refused(problem, progress);
            }
        };
        let settled = match &arrival {
            AttemptResult::Answer(answer) => self.endpoint().is_settled(answer.status.as_u16(), self.effect),
            AttemptResult::Failure(_) => false,
        };
        if settled {
            self.show_settled(&arrival, progress);
            progress.recorder.settled();
            permit.answered(Class::Applied);
            self.report_success(&mut arrival, permit, took);
            progress.class = Class::Applied;
            progress.unsettled = false;
            progress.last = Some(arrival);
            return Ok(NextAction::Deliver);
        }
        progress.key_sends.answered(&arrival, progress.unsettled);
        let (signal, clamped) = self.decide(Purpose::Request, &arrival, progress, guard).await;
        let signal = self.attribute_fault(signal, &arrival, took, cut_off);
        if let AttemptResult::Answer(_) = arrival
            && let Some(per_minute) = permit.answered(clamped.class)
        {
            progress.recorder.note(|| TimelineEvent::Slowed { per_minute });
        }
        permit.unavailable_for(self.unavailable_for(&arrival));
        // The body of a response that is not delivered does not matter: report now, since the next attempt may need the permit.
        match (signal, &clamped.step) {
            (BreakerSignal::Success, NextAction::Deliver) => self.report_success(&mut arrival, permit, took),
            // The verification decides what this attempt says of the upstream.
            (BreakerSignal::Failure, NextAction::Verify(probe)) if permit.counts() => {
                progress.pending =
                    Some(self.pending(permit, took)).filter(|pending| pending.covers(self.verification_time(probe)));
                self.bound(&mut arrival);
            }
            _ => {
                permit.report(signal, took);
                self.bound(&mut arrival);
            }
        }
        progress.last = Some(arrival);
        Ok(self.follow(clamped, progress))
    }

    /// Sends one verification and decides about its result.
    pub(super) async fn send_verification(
        &mut self,
        probe: &Probe,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<NextAction, Problem> {
        progress.verifications += 1;
        let span = tracing::debug_span!("verification", number = progress.verifications);
        let attempted = self.attempt(AttemptTarget::Verification(probe), progress, guard).instrument(span).await;
        let arrival = match attempted {
            Ok(CompletedAttempt { arrival, permit, took, sent_at, .. }) => {
                permit.report(BreakerSignal::Ignore, took);
                progress.verification_sent_at = Some(sent_at);
                arrival
            }
            Err(problem) => {
                progress.recorder.denied(&problem);
                progress.pending = None;
                return Ok(NextAction::Unsettled);
            }
        };
        let (_, clamped) = self.decide(Purpose::Probe, &arrival, progress, guard).await;
        if let Some(pending) = progress.pending.take() {
            match (clamped.class, &clamped.step) {
                (Class::Applied | Class::AlreadyApplied, _) => pending.settled(),
                (_, NextAction::Verify(next)) if pending.covers(self.verification_time(next)) => {
                    progress.pending = Some(pending);
                }
                _ => pending.failed(),
            }
        }
        Ok(self.follow(clamped, progress))
    }

    /// The deferred breaker report of an attempt whose write is about to be verified.
    fn pending(&self, permit: Permit, took: Duration) -> PendingReport {
        let breaker = self.endpoint().settings.breaker.as_ref();
        let settled = breaker.map_or(BreakerSignal::Ignore, |breaker| breaker.settled);
        let lease = breaker.map_or(Duration::ZERO, |breaker| breaker.probe_lease);
        PendingReport::new(permit, took, settled, lease)
    }

    /// How long a verification may take: its delay and the timeout of its attempt.
    fn verification_time(&self, probe: &Probe) -> Duration {
        probe.delay.saturating_add(self.verification_timeout(probe))
    }

    /// The next action after the host refused an attempt: an earlier attempt's result still counts.
    fn refused(&self, problem: Problem, progress: &mut Progress) -> Result<NextAction, Problem> {
        if progress.unsettled && self.effect == Effect::Unsafe {
            return Ok(NextAction::Unsettled);
        }
        if progress.last.is_some() { Ok(NextAction::Deliver) } else { Err(problem) }
    }

    /// Updates the progress with a clamped verdict, and returns the next action.
    pub(super) fn follow(&self, clamped: Clamped, progress: &mut Progress) -> NextAction {
        progress.unsettled = clamped.unsettled(self.effect, progress.unsettled);
        progress.ever_unknown |= progress.unsettled;
        progress.class = clamped.class;
        progress.limit = clamped.limit.or(progress.limit);
        if let Some(limit) = clamped.limit {
            progress.recorder.clamped(limit);
        }
        clamped.step
    }

    /// Ends the request unknown: returns the problem that explains to the caller why.
    pub(super) fn left_unknown(&self, progress: &mut Progress) -> Problem {
        progress.class = Class::Unknown;
        let ClaimOwner::Record(record) = progress.owner else { return Problem::EffectUnknown };
        match progress.doubt {
            Some(Doubt::NotKnownSent) => Problem::UnknownAfterLoss { record },
            Some(Doubt::SeveralUnclaimed) => Problem::SeveralAfterLoss { record },
            // Only a caller with a key can repeat its request safely.
            None if progress.doubtful && progress.attempts == 0 && self.key.is_some() && self.is_after_loss() => {
                Problem::UnsentSinceLoss
            }
            None => Problem::EffectUnknown,
        }
    }
}

/// The upstream's last response to the request itself, or the failure if there was none.
pub(super) fn last_response(progress: &mut Progress) -> Result<CallerResponse, Problem> {
    match progress.last.take() {
        Some(AttemptResult::Answer(answer)) => Ok(answer.into()),
        Some(AttemptResult::Failure(mut failure)) => match progress.class {
            Class::Rejected | Class::NotApplied if failure.sent => {
                Err(Problem::NotInEffect { class: progress.class.name() })
            }
            _ => {
                // An earlier attempt may have left the host, even if the last one did not.
                failure.sent |= progress.last_sent.is_some();
                Err(Problem::UpstreamFailed { failure, kind: failure.kind.name() })
            }
        },
        None => Err(Problem::NotInEffect { class: progress.class.name() }),
    }
}
