//! What the host would make of a verdict: the clamp's answer, for tests of a policy. It holds for the settings that a policy proposes and,
//! where the policy proposes none, for the host's own.

use super::contract::{Attempt, Class, Effect, Endpoint, Failure, Next, Outcome, Purpose, Verdict, hints};
use std::time::Duration;
use triage_core::retry::{ClampInput, ClampReason, Clamped, NextAction, ObservedResult, Settings, clamp};

/// The default of `attempt_timeout`.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The least time from an attempt's beginning to the deadline that the host leaves an attempt that may be repeated.
const MIN_ATTEMPT_TIME: Duration = Duration::from_millis(10);

/// A verdict as the host would follow it.
#[derive(Debug, Clone)]
pub(super) struct HostView {
    pub(super) clamped: Clamped,
    pub(super) input: ClampInput,
    said: Class,
    is_answer: bool,
}

/// How the host departs from a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Departure {
    /// The host does not take the next step, for this reason.
    Step(&'static str, &'static str),
    /// The host takes the next step, but does not believe the class.
    Class,
}

impl Departure {
    fn of(reason: ClampReason) -> Self {
        Self::Step(reason.name(), reason.text())
    }

    /// The name in the column `clamped`: one of `triage-clamped`, or `class`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Step(name, _) => name,
            Self::Class => "class",
        }
    }

    /// The reason in words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Step(_, text) => text,
            Self::Class => "the host has no proof of this class",
        }
    }
}

impl HostView {
    /// Clamps a verdict of a policy. `granted`: whether the operator trusts the policy to settle the endpoint.
    pub(super) fn of(
        described: &Endpoint,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        verdict: &Verdict,
        granted: bool,
    ) -> Self {
        let (seen, asked) = match outcome {
            Outcome::Response { status, headers, .. } => {
                (ObservedResult::Status(status.as_u16()), hints::retry_after(headers, attempt.now_unix_ms))
            }
            Outcome::Failure(Failure { sent: false, .. }) => (ObservedResult::NotSent, None),
            Outcome::Failure(_) => (ObservedResult::Lost, None),
        };
        let defaults = &described.defaults;
        let settings = Settings {
            max_attempts: defaults.max_attempts.unwrap_or(Settings::default().max_attempts),
            ..Settings::default()
        };
        let attempt_timeout = defaults.attempt_timeout.unwrap_or(ATTEMPT_TIMEOUT);
        let is_probe = attempt.purpose == Purpose::Probe;
        let input = ClampInput {
            effect: attempt.effect,
            granted,
            purpose: attempt.purpose,
            seen,
            attempts: if is_probe { 1 } else { attempt.number },
            verifications: if is_probe { attempt.number } else { 0 },
            // The host verifies only a request whose effect is unknown.
            unsettled: attempt.prior_unknown || is_probe,
            repeatable: true,
            sent_ago: attempt.sent_ago.or((!is_probe && seen != ObservedResult::NotSent).then_some(Duration::ZERO)),
            commit_within: described.commit_within,
            remaining: attempt.remaining,
            attempt_needs: if attempt.effect == Effect::Unsafe { attempt_timeout } else { MIN_ATTEMPT_TIME },
            hint: asked.filter(|_| matches!(verdict.next, Next::Retry(_))),
            upstream_key: None,
        };
        Self {
            clamped: clamp(verdict.clone(), &input, &settings),
            input,
            said: verdict.class,
            is_answer: !is_probe && matches!(outcome, Outcome::Response { .. }),
        }
    }

    /// How the host departs from the verdict; none if it follows it.
    pub(super) fn departure(&self) -> Option<Departure> {
        let class = (self.clamped.class != self.said).then_some(Departure::Class);
        self.clamped.limit.map(Departure::of).or(class)
    }

    /// What the host does, for people.
    pub(super) fn does(&self) -> String {
        let step = match &self.clamped.step {
            NextAction::Deliver if self.is_answer => "the caller gets the upstream's answer",
            NextAction::Deliver => "the caller gets the result of the attempt",
            NextAction::Retry(_) | NextAction::Resend(_) => "it sends the request again",
            NextAction::Verify(_) => "it verifies the effect",
            NextAction::Replace(_) => "the caller gets the policy's answer",
            NextAction::Unsettled => "the caller gets 504 effect-unknown",
        };
        if self.clamped.class == self.said {
            step.to_owned()
        } else {
            format!("{step}, and the effect counts as {}", self.clamped.class.name())
        }
    }
}
