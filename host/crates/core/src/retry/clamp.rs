//! The clamp: limits a policy's verdict to what the host can prove, the operator granted and the deadline allows.

use super::{
    Settings,
    upstream_key::{KeyAnswer, KeyFacts},
};
use crate::contract::{Class, Effect, Next, Probe, Purpose, Replacement, Verdict, is_elsewhere, leaves_unknown};
use std::time::Duration;

/// The maximum verifications of one request: enough for early and frequent ones until `commit-within`, few enough to bound a
/// hostile guest.
const MAX_VERIFICATIONS: u32 = 40;

/// The maximum "in progress" answers of one request before the host stops resending: bounded for the same reason.
const MAX_IN_PROGRESS: u32 = 40;

/// The result of an attempt as the host observed it, without the policy's opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObservedResult {
    /// No byte left the host, or the protocol proves that the upstream did not process the request.
    NotSent,
    /// An answer with this status.
    Status(u16),
    /// No answer, though the request may have arrived.
    Lost,
}

/// All facts that the clamp depends on, except the verdict and the settings.
#[derive(Debug, Clone, Copy)]
pub struct ClampInput {
    /// The strictest effect that method, policy and configuration name.
    pub effect: Effect,
    /// Whether the operator trusts the policy to settle unknown writes here.
    pub granted: bool,
    /// Whether the outcome is that of a request or of a verification.
    pub purpose: Purpose,
    /// The observed result.
    pub seen: ObservedResult,
    /// Attempts made so far.
    pub attempts: u32,
    /// Verifications made so far.
    pub verifications: u32,
    /// Whether the effect of an earlier send of this request is unknown.
    pub unsettled: bool,
    /// Whether the body can be sent again.
    pub repeatable: bool,
    /// The time since the last byte that may have been sent.
    pub sent_ago: Option<Duration>,
    /// How long after a send the upstream may still apply it; none: absence never proves that the write was not applied.
    pub commit_within: Option<Duration>,
    /// The time until the deadline.
    pub remaining: Duration,
    /// The time that a further attempt needs. The host makes no attempt that does not fit.
    pub attempt_needs: Duration,
    /// The wait that the upstream asked for, such as `Retry-After`.
    pub hint: Option<Duration>,
    /// The upstream's own idempotency key; none if the operator configured none, or the request carries none.
    pub upstream_key: Option<KeyFacts>,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextAction {
    /// The caller gets the result of the attempt; after a verification, the result from before it.
    Deliver,
    /// The request is sent again after the delay.
    Retry(Duration),
    /// The request is sent again after the delay, because the upstream executes it only once under its own idempotency key.
    Resend(Duration),
    /// The host makes this verification.
    Verify(Probe),
    /// The caller gets this answer of the policy.
    Replace(Replacement),
    /// The effect is unknown and no response is passed on: the caller gets the host's own error, with the reason `effect-unknown`.
    Unsettled,
}

/// Why the host did not follow a verdict as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ClampReason {
    /// No attempts left.
    Attempts,
    /// The next attempt would not fit before the deadline.
    Deadline,
    /// An unsafe request may have been processed: there is no proof that it was not.
    Effect,
    /// The body was streamed and cannot be sent again.
    Body,
    /// The policy is not trusted to settle this endpoint.
    Grant,
    /// Too many verifications.
    #[strum(serialize = "probes")]
    Verifications,
    /// The policy wants a retry after a verification that does not prove the write's absence: the policy does not report it as not
    /// applied, `commit-within` is not over, or no `commit-within` is set.
    TooEarly,
    /// The upstream's idempotency key does not protect a resend: it has expired, or a send did not carry it.
    UpstreamKey,
}

impl ClampReason {
    /// The name in headers and logs.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The reason in words, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Attempts => "no attempt is left",
            Self::Deadline => "the next attempt would not end before the deadline",
            Self::Effect => "the write may have been applied, and nothing proves that it was not",
            Self::Body => "the body was streamed and is no longer available",
            Self::Grant => "the policy is not trusted to settle this endpoint",
            Self::Verifications => "the maximum number of verifications for one request is reached",
            Self::TooEarly => "the upstream may still apply the write: it is too early to conclude that it did not",
            Self::UpstreamKey => {
                "the upstream's idempotency key proves nothing: it has expired, or a send did not carry it"
            }
        }
    }
}

/// A verdict as the host follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clamped {
    /// The class that the host believes: the verdict's, or unknown if the proof or the grant for it is missing.
    pub class: Class,
    /// What happens next.
    pub step: NextAction,
    /// Why the host did not follow the verdict; none if it did.
    pub limit: Option<ClampReason>,
}

impl Clamped {
    /// Whether the effect of the request is unknown after this outcome. `before`: whether it was unknown before. Every class but
    /// `unknown` proves the effect or its absence.
    pub fn unsettled(&self, effect: Effect, before: bool) -> bool {
        match self.class {
            Class::Unknown => before || effect != Effect::Safe,
            _ => false,
        }
    }
}

/// Clamps a verdict. Resends an unknown write only if the upstream's own key makes that safe.
pub fn clamp(verdict: Verdict, facts: &ClampInput, settings: &Settings) -> Clamped {
    let wished = if let Next::Retry(delay) = verdict.next { Some(delay) } else { None };
    let asked_for_wait = facts.hint.max(verdict.pause);
    let clamped = followed(verdict, facts, settings);
    let gives_up = matches!(clamped.step, NextAction::Deliver | NextAction::Unsettled);
    if facts.effect != Effect::Unsafe || clamped.class != Class::Unknown || !gives_up {
        return clamped;
    }
    match resent(wished, asked_for_wait, facts, settings) {
        None => clamped,
        Some(Ok(delay)) => Clamped { step: NextAction::Resend(delay), limit: None, ..clamped },
        Some(Err(limit)) => Clamped { limit: Some(limit), ..clamped },
    }
}

/// The delay until an unknown write is sent again under the upstream's own key, or why it is not. None: there is no key, or the
/// upstream answered that the key belongs to another request (mismatch) or replayed its stored answer: resending changes nothing.
fn resent(
    wished: Option<Duration>,
    asked_for_wait: Option<Duration>,
    facts: &ClampInput,
    settings: &Settings,
) -> Option<Result<Duration, ClampReason>> {
    let key = facts.upstream_key?;
    let is_final = matches!(key.answer, KeyAnswer::Mismatch | KeyAnswer::Replayed);
    if facts.purpose == Purpose::Request && is_final {
        return None;
    }
    if !facts.repeatable {
        return Some(Err(ClampReason::Body));
    }
    let is_over = facts.attempts.saturating_sub(key.in_progress) >= settings.max_attempts;
    if is_over || key.in_progress >= MAX_IN_PROGRESS {
        return Some(Err(ClampReason::Attempts));
    }
    let longest = settings.max_wait;
    let usual = match (facts.attempts, wished) {
        // An earlier owner of the record made the send: this owner has no attempt to back off from.
        (0, _) => Duration::ZERO,
        (_, Some(wished)) => wished.clamp(settings.min_wait.min(longest), longest),
        (attempts, None) => {
            settings.min_wait.saturating_mul(1_u32.checked_shl(attempts - 1).unwrap_or(u32::MAX)).min(longest)
        }
    };
    let delay = usual.max(asked_for_wait.unwrap_or_default());
    if !key.allows(delay, facts.attempt_needs) {
        return Some(Err(ClampReason::UpstreamKey));
    }
    if delay.saturating_add(facts.attempt_needs) > facts.remaining {
        return Some(Err(ClampReason::Deadline));
    }
    Some(Ok(delay))
}

/// The verdict as the host follows it without the upstream's own key.
fn followed(verdict: Verdict, facts: &ClampInput, settings: &Settings) -> Clamped {
    let asked_for_wait = facts.hint.max(verdict.pause);
    let said = verdict.class;
    let class = effective_class(said, facts);
    let refuse = |limit| Clamped { class, step: fallback_action(class, facts), limit: Some(limit) };
    match verdict.next {
        Next::Deliver => Clamped { class, step: fallback_action(class, facts), limit: None },
        Next::Replace(answer) => {
            if facts.effect != Effect::Safe && !facts.granted {
                return refuse(ClampReason::Grant);
            }
            Clamped { class, step: NextAction::Replace(answer), limit: None }
        }
        Next::Verify(mut probe) => {
            if !facts.granted || facts.effect == Effect::Safe {
                return refuse(ClampReason::Grant);
            }
            if facts.verifications >= MAX_VERIFICATIONS {
                return refuse(ClampReason::Verifications);
            }
            // Bound the delay of a verification: an early one is better than one that the deadline cuts off.
            probe.delay = probe.delay.min(settings.max_wait);
            if probe.delay >= facts.remaining {
                return refuse(ClampReason::Deadline);
            }
            Clamped { class, step: NextAction::Verify(probe), limit: None }
        }
        Next::Retry(wished) => {
            if let Err(limit) = may_send_again(said, class, facts) {
                return refuse(limit);
            }
            if !facts.repeatable {
                return refuse(ClampReason::Body);
            }
            if facts.attempts >= settings.max_attempts {
                return refuse(ClampReason::Attempts);
            }
            let delay = match asked_for_wait {
                // Never shorter than the upstream asked for: a wait that does not fit before the deadline ends the request.
                Some(hint) => wished.max(hint),
                None => wished.clamp(settings.min_wait.min(settings.max_wait), settings.max_wait),
            };
            if delay.saturating_add(facts.attempt_needs) > facts.remaining {
                return refuse(ClampReason::Deadline);
            }
            Clamped { class, step: NextAction::Retry(delay), limit: None }
        }
    }
}

/// The host's own proof that the attempt was not processed (invariant 1).
fn proof(class: Class, facts: &ClampInput) -> bool {
    facts.purpose == Purpose::Request
        && match facts.seen {
            ObservedResult::NotSent => true,
            ObservedResult::Status(425) => matches!(class, Class::NotApplied | Class::Throttled),
            ObservedResult::Status(429) => matches!(class, Class::NotApplied | Class::Throttled),
            ObservedResult::Status(_) | ObservedResult::Lost => false,
        }
}

/// The class that the host believes. Without a grant, the class of an unsafe request is what the host can prove, else unknown:
/// otherwise a guest that lies "not applied" would free the idempotency key for a second send.
fn effective_class(class: Class, facts: &ClampInput) -> Class {
    if facts.effect != Effect::Unsafe {
        return class;
    }
    if let Some(class) = known_by_key(class, facts) {
        return class;
    }
    if facts.granted {
        // Neither a verification that was sent too early nor the result of another send settles an unknown send.
        let settles_by_absence =
            facts.purpose == Purpose::Probe && matches!(class, Class::NotApplied | Class::Throttled | Class::Rejected);
        let early = settles_by_absence && !absence_counts(facts);
        let no_proof = facts.unsettled || is_no_answer(facts.seen);
        let unproven = no_proof
            && facts.purpose == Purpose::Request
            && matches!(class, Class::NotApplied | Class::Throttled | Class::Rejected);
        return if early || unproven { Class::Unknown } else { class };
    }
    if facts.unsettled || facts.purpose == Purpose::Probe || may_be_applied(facts.seen) {
        return Class::Unknown;
    }
    match (class, facts.seen) {
        _ if proof(class, facts) => class,
        (Class::Applied, ObservedResult::Status(200..=399)) => Class::Applied,
        // Free the key: the caller itself sends the request to the other address. The host does not send it again.
        (Class::NotApplied, ObservedResult::Status(status)) if is_elsewhere(status) => Class::NotApplied,
        (Class::Rejected, ObservedResult::Status(status)) if is_refusal(status) => Class::Rejected,
        _ => Class::Unknown,
    }
}

/// The class of an answer that covers all sends under the upstream's own key, or reports one of them as still in progress.
fn known_by_key(class: Class, facts: &ClampInput) -> Option<Class> {
    let key = facts.upstream_key.filter(|_| facts.purpose == Purpose::Request)?;
    let ObservedResult::Status(status) = facts.seen else { return None };
    if key.answer.is_pending(facts.unsettled) {
        return Some(Class::Unknown);
    }
    // No earlier send is unknown: the answer belongs to this send alone, as without a key.
    if !facts.unsettled || !key.answers_for_all() {
        return None;
    }
    match (class, status) {
        (Class::Applied, 200..=399) => Some(Class::Applied),
        // A refusal may come from a part of the upstream that does not know the key, such as a rate limiter or a check of
        // credentials. Only a replayed refusal is certainly the answer to the first send.
        (Class::Rejected, 400..=499) if key.answer == KeyAnswer::Replayed => Some(Class::Rejected),
        _ => Some(Class::Unknown),
    }
}

/// Whether the status is not a final HTTP status (200 to 599), even if the policy classifies it.
fn is_no_answer(seen: ObservedResult) -> bool {
    matches!(seen, ObservedResult::Status(status) if !(200..=599).contains(&status))
}

/// Whether an unsafe request stays unknown against the verdict of a policy without a grant: there is no answer, or the answer does
/// not tell whether the request was processed. Every 5xx is such an answer, from gateways and CDNs too, except 501, 505 and 511.
fn may_be_applied(seen: ObservedResult) -> bool {
    match seen {
        ObservedResult::NotSent => false,
        ObservedResult::Status(status) => leaves_unknown(status),
        ObservedResult::Lost => true,
    }
}

/// Whether the status refuses the request, so that sending the same again cannot help.
fn is_refusal(status: u16) -> bool {
    matches!(status, 400..=499 | 501 | 505 | 511) && !matches!(status, 425 | 429) && !leaves_unknown(status)
}

/// Whether a verification that finds nothing proves that the write will not be applied any more.
fn absence_counts(facts: &ClampInput) -> bool {
    match (facts.commit_within, facts.sent_ago) {
        (Some(within), Some(ago)) => ago >= within,
        // No byte of this request was sent.
        (Some(_), None) => !facts.unsettled,
        (None, _) => false,
    }
}

fn may_send_again(said: Class, class: Class, facts: &ClampInput) -> Result<(), ClampReason> {
    if facts.effect != Effect::Unsafe {
        return Ok(());
    }
    match (facts.granted, facts.purpose) {
        (true, Purpose::Probe) if class == Class::NotApplied && absence_counts(facts) => Ok(()),
        (true, Purpose::Probe) => Err(ClampReason::TooEarly),
        // A grant does not override an unknown effect: the policy itself says that the request may have been applied, or an earlier
        // attempt (such as an earlier owner's) may have been, and this outcome is not that attempt's. Nor does it override the host's own
        // doubt about a status that HTTP does not have.
        (true, Purpose::Request) if said == Class::Unknown || class == Class::Unknown || facts.unsettled => {
            Err(ClampReason::Effect)
        }
        (true, Purpose::Request) => Ok(()),
        (false, _) if !facts.unsettled && proof(class, facts) => Ok(()),
        (false, _) => Err(ClampReason::Effect),
    }
}

/// The final action if the host makes no further attempt or verification.
fn fallback_action(class: Class, facts: &ClampInput) -> NextAction {
    let unsafe_unknown = facts.effect == Effect::Unsafe && class == Class::Unknown;
    if let (true, Some(key), Purpose::Request, ObservedResult::Status(status)) =
        (unsafe_unknown, facts.upstream_key, facts.purpose, facts.seen)
    {
        if key.answer.is_pending(facts.unsettled) {
            return NextAction::Unsettled;
        }
        // An answer under the same key covers the whole request, although it leaves the effect open.
        if key.answers_for_all() && (key.answer != KeyAnswer::Silent || (400..=499).contains(&status)) {
            return NextAction::Deliver;
        }
    }
    // Pass the upstream's own answer on, marked unknown. If there is none, the host answers `effect-unknown` itself.
    if unsafe_unknown
        && (facts.purpose == Purpose::Probe || facts.unsettled || !matches!(facts.seen, ObservedResult::Status(_)))
    {
        NextAction::Unsettled
    } else {
        NextAction::Deliver
    }
}

#[cfg(test)]
mod tests;
