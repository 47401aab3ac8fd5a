//! The decision about a result: the policy's verdict, clamped, with the match that it claims checked.

use super::{
    RequestContext,
    attempt::MIN_ATTEMPT_TIME,
    claims::MatchCheck,
    request_context::{AttemptResult, MaybeGuard, Progress},
};
use crate::{
    policy::{
        contract::{BreakerSignal, Class, Effect, Failure, FailureKind, Next, Purpose, Verdict},
        hints,
    },
    retry::{self, ClampInput, Clamped, NextAction, ObservedResult},
    telemetry::TimelineEvent,
};
use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

/// How often a policy is asked about one result. It proposes another match each time that its match is taken: more than any batch holds.
const MAX_VERDICTS: usize = 64;

/// The cap on a pause that the upstream asks for, before it is passed on to the fleet.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The result that a verification starts from: sent, without a response.
pub(super) const NO_RESPONSE: Failure = Failure::new(FailureKind::Reset, true);

/// A clamped verdict.
struct Decision {
    signal: BreakerSignal,
    clamped: Clamped,
    /// The resource that the verdict takes for the request's own; none if the verdict needs no claim.
    claim: Option<String>,
}

impl RequestContext {
    /// Has the policy decide about a result. Returns the breaker signal and the clamped verdict. A match that another request has claimed
    /// goes back to the policy as taken, until it proposes a free one.
    pub(super) async fn decide(
        &self,
        purpose: Purpose,
        result: &AttemptResult,
        progress: &mut Progress,
        guard: &MaybeGuard,
    ) -> (BreakerSignal, Clamped) {
        let mut asks = 0..MAX_VERDICTS;
        while asks.next().is_some() {
            let Decision { signal, clamped, claim } = self.clamped_verdict(purpose, result, progress).await;
            let Some(name) = claim else { return (signal, clamped) };
            let adopts = matches!(clamped.step, NextAction::Replace(_));
            match self.check_match(&name, adopts, (purpose, result), progress, guard, &mut asks).await {
                MatchCheck::Free => return (signal, clamped),
                MatchCheck::Taken => progress.taken.push(name),
                MatchCheck::AskAgain => {}
                MatchCheck::Unclear => break,
            }
        }
        (BreakerSignal::Ignore, Clamped { class: Class::Unknown, step: NextAction::Unsettled, limit: None })
    }

    /// Asks the policy once and clamps its verdict. Passes on a pause that the upstream asks for.
    async fn clamped_verdict(&self, purpose: Purpose, result: &AttemptResult, progress: &mut Progress) -> Decision {
        let began = Instant::now();
        let (mut verdict, is_faulty) = self.verdict(purpose, result, progress, began);
        progress.recorder.judged(&verdict, began.elapsed());
        progress.reason = std::mem::take(&mut verdict.reason);
        let signal = verdict.breaker;
        let pauses = purpose == Purpose::Request && self.endpoint().settings.retry_after_pauses;
        let pause = verdict.pause.or_else(|| self.unavailable_for(result).filter(|_| pauses));
        let claim = verdict.claim.clone();
        let mut clamped = self.clamp(verdict, purpose, result, progress);
        let unsafe_unknown = self.effect == Effect::Unsafe && clamped.class == Class::Unknown;
        // A resend under the upstream's own key needs no verdict.
        let by_key = matches!(clamped.step, NextAction::Resend(_));
        if is_faulty && (unsafe_unknown || purpose == Purpose::Probe) && !by_key {
            clamped.step = NextAction::Unsettled;
        }
        if let Some(pause) = pause {
            let pause = pause.min(MAX_PAUSE);
            progress.recorder.note(|| TimelineEvent::Paused { pause });
            self.endpoint().group.pause(pause).await;
        }
        let is_applied = matches!(clamped.class, Class::Applied | Class::AlreadyApplied);
        let adopts = matches!(clamped.step, NextAction::Replace(_));
        let claim = claim.filter(|_| self.endpoint().commits_late() && (is_applied || adopts));
        Decision { signal, clamped, claim }
    }

    /// How long the upstream says that it is unavailable (`Retry-After` of a 503).
    pub(super) fn unavailable_for(&self, result: &AttemptResult) -> Option<Duration> {
        match result {
            AttemptResult::Answer(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                hints::retry_after(&answer.headers, self.shared.clock.unix_ms())
            }
            _ => None,
        }
    }

    fn clamp(&self, verdict: Verdict, purpose: Purpose, result: &AttemptResult, progress: &Progress) -> Clamped {
        let endpoint = self.endpoint();
        let (seen, hint) = match result {
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
        let is_unsafe = self.effect == Effect::Unsafe;
        let input = ClampInput {
            effect: self.effect,
            granted: endpoint.granted,
            purpose,
            seen,
            attempts: progress.attempts,
            verifications: progress.verifications,
            unsettled: progress.unsettled,
            repeatable: self.repeatable(),
            sent_ago: progress.sent_ago(purpose, Instant::now()),
            commit_within: endpoint.described.commit_within,
            remaining: self.remaining(),
            attempt_needs: if is_unsafe { endpoint.settings.attempt_timeout } else { MIN_ATTEMPT_TIME },
            hint,
            upstream_key,
        };
        retry::clamp(verdict, &input, &endpoint.settings.retry)
    }
}
