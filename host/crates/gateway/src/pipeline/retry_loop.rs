//! The retry loop of a request: attempt, decide, clamp, until there is a response to deliver.

use super::{
    RequestContext,
    attempt::{AttemptTarget, CompletedAttempt, MIN_ATTEMPT_TIME},
    idempotency_key,
    pending_report::PendingReport,
    request_context::{AttemptResult, Doubt, MaybeGuard, Orphan, Progress},
    response::CallerResponse,
};
use crate::{
    admission::Permit,
    clock,
    error::Problem,
    idempotency::{Claim, ClaimName, ClaimOwner, Claimant, RecordError},
    policy::{
        contract::{BreakerSignal, Class, Effect, Failure, FailureKind, Next, Probe, Purpose, Verdict},
        hints,
    },
    retry::{self, ClampInput, Clamped, NextAction, ObservedResult},
    telemetry::TimelineEvent as Noticed,
};
use http::StatusCode;
use std::{ops::Range, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

/// How many matches a policy may propose for adoption: more than any batch holds.
const CLAIMS: usize = 64;
/// The cap on a pause that the upstream asks for, before it is passed on to the fleet.
const PAUSE: Duration = Duration::from_secs(300);

/// The outcome that a reconcile starts from: sent, no answer.
const NEVER_HEARD: Failure = Failure::new(FailureKind::Reset, true);

impl RequestContext {
    /// Drives the request from its first attempt to its response.
    pub(super) async fn drive(
        &mut self,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<CallerResponse, Problem> {
        self.drive_to_end(NextAction::Retry(Duration::ZERO), progress, guard).await
    }

    /// Drives the request from `step` to its response.
    async fn drive_to_end(
        &mut self,
        mut step: NextAction,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<CallerResponse, Problem> {
        loop {
            step = match step {
                NextAction::Retry(delay) => {
                    self.wait(delay, progress).await;
                    self.request(progress, guard).await?
                }
                NextAction::Resend(delay) => {
                    self.wait(delay, progress).await;
                    self.resend(progress, guard).await?
                }
                NextAction::Verify(probe) => {
                    sleep(probe.delay).await;
                    self.probe(&probe, progress, guard).await?
                }
                NextAction::Replace(answer) => return Ok(answer.into()),
                NextAction::Deliver => return deliver(progress),
                NextAction::Unsettled => {
                    progress.class = Class::Unknown;
                    return Err(self.unknown(progress));
                }
            }
        }
    }

    /// Drives a request that an earlier owner may have sent: the policy first decides about a lost response, then the loop goes on.
    pub(super) async fn reconcile(
        &mut self,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<CallerResponse, Problem> {
        if self.effect == Effect::Idempotent {
            // A repetition of an idempotent request has the effect of one send.
            return self.drive(progress, guard).await;
        }
        let arrival = AttemptResult::Failure(NEVER_HEARD);
        let clamped = self.judged(Purpose::Request, &arrival, progress, guard).await?.1;
        let step = self.follow(clamped, progress);
        if matches!(step, NextAction::Deliver | NextAction::Unsettled) {
            progress.class = Class::Unknown;
            return Err(self.unknown(progress));
        }
        self.drive_to_end(step, progress, guard).await
    }

    async fn wait(&self, delay: Duration, progress: &mut Progress) {
        if progress.attempts > 0 {
            tracing::info!(
                request = %progress.account.id,
                upstream = %self.service.settings.name,
                endpoint = %self.endpoint().described.name,
                attempt = progress.attempts + 1,
                wait_ms = clock::millis(delay),
                class = progress.class.name(),
                reason = %Noticed::words(&progress.reason),
                // Capitalised: dashboards of the stack that Triage replaces search for this word.
                "Retrying"
            );
            progress.account.retries(progress.class, delay);
        }
        if !delay.is_zero() {
            progress.previous_delay = delay;
            sleep(delay).await;
        }
    }

    /// Makes an attempt that is allowed only because the upstream deduplicates by its own key.
    async fn resend(&mut self, progress: &mut Progress, guard: &mut MaybeGuard) -> Result<NextAction, Problem> {
        progress.key_sends.justifies_attempt = true;
        let step = self.request(progress, guard).await;
        progress.key_sends.justifies_attempt = false;
        step
    }

    async fn request(&mut self, progress: &mut Progress, guard: &mut MaybeGuard) -> Result<NextAction, Problem> {
        let span = tracing::debug_span!("attempt", attempt = progress.attempts + 1);
        let attempted = self.attempt(AttemptTarget::Request, progress, guard).instrument(span).await;
        let (mut arrival, mut permit, took, cut_off) = match attempted {
            Ok(CompletedAttempt { arrival, permit, took, cut_off, .. }) => (arrival, permit, took, cut_off),
            Err(problem) if progress.orphan == Orphan::Found => return Err(problem),
            Err(problem) => {
                progress.account.denied(&problem);
                return self.refused(problem, progress);
            }
        };
        let settled = match &arrival {
            AttemptResult::Answer(answer) => self.endpoint().is_settled(answer.status.as_u16(), self.effect),
            AttemptResult::Failure(_) => false,
        };
        if settled {
            self.show_settled(&arrival, progress);
            progress.account.settled();
            permit.answered(Class::Applied);
            self.report_success(&mut arrival, permit, took);
            progress.class = Class::Applied;
            progress.unsettled = false;
            progress.last = Some(arrival);
            return Ok(NextAction::Deliver);
        }
        progress.key_sends.answered(&arrival, progress.unsettled);
        let (signal, clamped) = self.judged(Purpose::Request, &arrival, progress, guard).await?;
        let signal = self.attribute_fault(signal, &arrival, took, cut_off);
        if let AttemptResult::Answer(_) = arrival
            && let Some(per_minute) = permit.answered(clamped.class)
        {
            progress.account.note(|| Noticed::Slowed { per_minute });
        }
        permit.unavailable_for(self.unavailable_for(&arrival));
        // The body of a response that is not delivered does not matter: report now, since the next attempt may need the permit.
        match (signal, &clamped.step) {
            (BreakerSignal::Success, NextAction::Deliver) => self.report_success(&mut arrival, permit, took),
            // The verification decides what this attempt says of the upstream.
            (BreakerSignal::Failure, NextAction::Verify(probe)) if permit.counts() => {
                progress.pending = Some(self.pending(permit, took)).filter(|pending| pending.covers(self.lasts(probe)));
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

    async fn probe(
        &mut self,
        probe: &Probe,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<NextAction, Problem> {
        progress.probes += 1;
        let span = tracing::debug_span!("look", look = progress.probes);
        let attempted = self.attempt(AttemptTarget::Probe(probe), progress, guard).instrument(span).await;
        let arrival = match attempted {
            Ok(CompletedAttempt { arrival, permit, took, sent_at, .. }) => {
                permit.report(BreakerSignal::Ignore, took);
                progress.verification_sent_at = Some(sent_at);
                arrival
            }
            Err(problem) => {
                progress.account.denied(&problem);
                progress.pending = None;
                return Ok(NextAction::Unsettled);
            }
        };
        let (_, clamped) = self.judged(Purpose::Probe, &arrival, progress, guard).await?;
        if let Some(pending) = progress.pending.take() {
            match (clamped.class, &clamped.step) {
                (Class::Applied | Class::AlreadyApplied, _) => pending.settled(),
                (_, NextAction::Verify(next)) if pending.covers(self.lasts(next)) => progress.pending = Some(pending),
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
    fn lasts(&self, probe: &Probe) -> Duration {
        probe.delay.saturating_add(self.probe_timeout(probe))
    }

    /// How long the upstream says that it is unavailable (`Retry-After` of a 503).
    fn unavailable_for(&self, arrival: &AttemptResult) -> Option<Duration> {
        match arrival {
            AttemptResult::Answer(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                hints::retry_after(&answer.headers, self.shared.clock.unix_ms())
            }
            _ => None,
        }
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
            progress.account.clamped(limit);
        }
        clamped.step
    }

    /// Has the policy decide about an outcome. Returns the breaker signal and the clamped verdict. A match that another request has claimed
    /// goes back to the policy as taken, until it proposes a free one.
    pub(super) async fn judged(
        &self,
        purpose: Purpose,
        arrival: &AttemptResult,
        progress: &mut Progress,
        guard: &MaybeGuard,
    ) -> Result<(BreakerSignal, Clamped), Problem> {
        let mut asks = 0..CLAIMS;
        while asks.next().is_some() {
            let began = Instant::now();
            let (mut verdict, faulty) = self.verdict(purpose, arrival, progress, began);
            progress.account.judged(&verdict, began.elapsed());
            progress.reason = std::mem::take(&mut verdict.reason);
            let signal = verdict.breaker;
            let pauses = purpose == Purpose::Request && self.endpoint().settings.retry_after_pauses;
            let pause = verdict.pause.or_else(|| self.unavailable_for(arrival).filter(|_| pauses));
            let claim = verdict.claim.clone();
            let mut clamped = self.clamped(verdict, purpose, arrival, progress);
            let unsafe_unknown = self.effect == Effect::Unsafe && clamped.class == Class::Unknown;
            // A resend under the upstream's own key needs no verdict.
            let by_key = matches!(clamped.step, NextAction::Resend(_));
            if faulty && (unsafe_unknown || purpose == Purpose::Probe) && !by_key {
                clamped.step = NextAction::Unsettled;
            }
            if let Some(pause) = pause {
                let pause = pause.min(PAUSE);
                progress.account.note(|| Noticed::Paused { pause });
                self.endpoint().group.pause(pause).await;
            }
            let in_place = matches!(clamped.class, Class::Applied | Class::AlreadyApplied);
            let adopts = matches!(clamped.step, NextAction::Replace(_));
            let Some(name) = claim.filter(|_| self.endpoint().commits_late() && (in_place || adopts)) else {
                return Ok((signal, clamped));
            };
            if adopts && !self.shared.adopts_after_loss {
                match self.claimant(&name, progress).await {
                    Ok(Claimant::Asker) => {}
                    Ok(Claimant::Other) => {
                        progress.taken.push(name);
                        continue;
                    }
                    // The claim lookup has just refreshed whether the store has lost data.
                    Ok(Claimant::Nobody) => match self.others(&name, (purpose, arrival), progress, &mut asks).await {
                        Others::None => {}
                        Others::Own => continue,
                        Others::InDoubt(doubt) => {
                            progress.doubt = Some(doubt);
                            break;
                        }
                        Others::Unclear => break,
                    },
                    Err(_) => break,
                }
            }
            match self.claim(&name, progress, guard).await {
                Ok(Claim::Ours) => return Ok((signal, clamped)),
                Ok(Claim::Taken) if adopts => progress.taken.push(name),
                Ok(Claim::Taken) => {
                    tracing::warn!(
                        endpoint = %self.endpoint().described.name,
                        "the upstream gave one resource to two requests"
                    );
                    return Ok((signal, clamped));
                }
                // Adopt nothing without the store: an equal request may have claimed the match.
                Err(_) if adopts => break,
                Err(problem) => {
                    tracing::warn!(%problem, "a claim could not be recorded");
                    return Ok((signal, clamped));
                }
            }
        }
        let clamped = Clamped { class: Class::Unknown, step: NextAction::Unsettled, limit: None };
        Ok((BreakerSignal::Ignore, clamped))
    }

    /// Looks for another match that the request could adopt instead of `name`, which no claim names. Needed only after shared state has
    /// lost its data: claims may be missing then, and an equal request may have made the match. Claims nothing.
    ///
    /// A verdict without another match is not recorded, since it is not followed.
    async fn others(
        &self,
        name: &str,
        (purpose, arrival): (Purpose, &AttemptResult),
        progress: &mut Progress,
        asks: &mut Range<usize>,
    ) -> Others {
        if !self.is_after_loss() {
            return Others::None;
        }
        if progress.doubtful && progress.attempts == 0 {
            return Others::InDoubt(Doubt::NotKnownSent);
        }
        progress.taken.push(name.to_owned());
        while asks.next().is_some() {
            let began = Instant::now();
            let (verdict, faulty) = self.verdict(purpose, arrival, progress, began);
            if faulty {
                return Others::Unclear;
            }
            if !matches!(verdict.next, Next::Replace(_)) {
                progress.taken.retain(|taken| taken != name);
                return Others::None;
            }
            progress.account.judged(&verdict, began.elapsed());
            let Some(other) = verdict.claim else { return Others::InDoubt(Doubt::SeveralUnclaimed) };
            match self.claimant(&other, progress).await {
                Ok(Claimant::Asker) => return Others::Own,
                Ok(Claimant::Other) => progress.taken.push(other),
                // The policy ignores `taken`, so it cannot say whether there is another match.
                Ok(Claimant::Nobody) if other == name => return Others::Unclear,
                Ok(Claimant::Nobody) => return Others::InDoubt(Doubt::SeveralUnclaimed),
                Err(_) => return Others::Unclear,
            }
        }
        Others::Unclear
    }

    /// Whether claims may be missing.
    fn is_after_loss(&self) -> bool {
        self.shared.is_after_loss(&self.service.settings.idempotency)
    }

    /// The problem that explains to the caller why the effect is unknown.
    fn unknown(&self, progress: &Progress) -> Problem {
        let ClaimOwner::Record(record) = progress.owner else { return Problem::EffectUnknown };
        match progress.doubt {
            Some(Doubt::NotKnownSent) => Problem::UnknownAfterLoss { record },
            Some(Doubt::SeveralUnclaimed) => Problem::SeveralAfterLoss { record },
            // Only with a key can the caller come back.
            None if progress.doubtful && progress.attempts == 0 && self.key.is_some() && self.is_after_loss() => {
                Problem::UnsentSinceLoss
            }
            None => Problem::EffectUnknown,
        }
    }

    async fn claimant(&self, name: &str, progress: &Progress) -> Result<Claimant, RecordError> {
        self.shared.records.claimant(name_of(self, name), progress.owner).await
    }

    async fn claim(&self, name: &str, progress: &Progress, guard: &MaybeGuard) -> Result<Claim, Problem> {
        let name = name_of(self, name);
        let made = match guard {
            Some(guard) => guard.claim(name).await,
            None => {
                let settings = &self.service.settings.idempotency;
                self.shared.records.claim(name, progress.owner, settings.keep.saturating_add(settings.lock)).await
            }
        };
        made.map_err(idempotency_key::problem)
    }

    fn clamped(&self, verdict: Verdict, purpose: Purpose, arrival: &AttemptResult, progress: &Progress) -> Clamped {
        let endpoint = self.endpoint();
        let (seen, hint) = match arrival {
            AttemptResult::Answer(answer) => (
                ObservedResult::Status(answer.status.as_u16()),
                hints::retry_after(&answer.headers, self.shared.clock.unix_ms()),
            ),
            AttemptResult::Failure(Failure { sent: false, .. }) => (ObservedResult::NotSent, None),
            AttemptResult::Failure(_) => (ObservedResult::Lost, None),
        };
        // `Retry-After` counts only before another attempt. On a success it is meant for the caller.
        let upstream_key = self.key_facts(progress);
        let hint = hint.filter(|_| matches!(verdict.next, Next::Retry(_)) || upstream_key.is_some());
        let facts = ClampInput {
            effect: self.effect,
            granted: endpoint.granted,
            purpose,
            seen,
            attempts: progress.attempts,
            probes: progress.probes,
            unsettled: progress.unsettled,
            repeatable: self.repeatable(),
            sent_ago: progress.sent_ago(purpose, Instant::now()),
            commit_within: endpoint.described.commit_within,
            remaining: self.remaining(),
            attempt_needs: if self.effect == Effect::Unsafe {
                endpoint.settings.attempt_timeout
            } else {
                MIN_ATTEMPT_TIME
            },
            hint,
            upstream_key,
        };
        retry::clamp(verdict, &facts, &endpoint.settings.retry)
    }
}

/// Other matches that a request could adopt, when no claim names the first one.
enum Others {
    /// No other: the first match may be adopted.
    None,
    /// A match that the request itself has claimed.
    Own,
    /// No match may be adopted, for this reason.
    InDoubt(Doubt),
    /// The policy or the store gave no usable answer.
    Unclear,
}

fn name_of(context: &RequestContext, name: &str) -> ClaimName {
    ClaimName::of(&context.service.settings.name, name)
}

/// The upstream's last response to the request itself, or the failure if there was none.
fn deliver(progress: &mut Progress) -> Result<CallerResponse, Problem> {
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
