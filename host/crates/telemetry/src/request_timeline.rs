//! The timeline of one request, which `triage explain` shows.

use super::{RequestRow, WaitedFor, endpoint_counters::Names};
use crate::{
    contract::{Failure, FailureReason},
    retry::ClampReason,
    rounded::Rounded,
};
use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Maximum of events per request: more than a readable timeline has.
pub const MAX_EVENTS: usize = 100;
/// Maximum of characters of a policy's reason.
const MAX_REASON_CHARS: usize = 120;

/// Id of a request: random, so that it reveals nothing and hosts need no coordination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

impl RequestId {
    /// The id as sixteen hexadecimal digits.
    pub fn digits(self) -> [u8; 16] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        std::array::from_fn(|index| DIGITS[(self.0 >> (60 - 4 * index)) as usize & 15])
    }
}

impl RequestId {
    /// The id of a span of this request, derived from the request's id by splitmix64: as random, and the same at each call.
    pub fn span(self, number: u32) -> u64 {
        let mut mixed = self.0.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).max(1)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request id must have 16 hexadecimal digits; copy it from the answer's triage-request-id header")]
pub struct NotARequestId;

impl FromStr for RequestId {
    type Err = NotARequestId;

    fn from_str(text: &str) -> Result<Self, NotARequestId> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let read = is_id.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        read.map(Self).ok_or(NotARequestId)
    }
}

/// An event of a request. Holds no body, header value or path parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum TimelineEvent {
    /// The result of the idempotency key.
    Key {
        /// `new`, `replay`, `in-flight`, `mismatch`, `reconcile` or `failed`.
        result: &'static str,
    },
    /// The request adopted or met an orphan, an equal request whose caller disconnected; or it was not listed itself.
    Orphan {
        /// `answer`, `reconcile`, `unsent`, `in-flight` or `not-kept`.
        result: &'static str,
    },
    /// An attempt was admitted.
    Permit {
        /// Whether the attempt is a probe of a half-open breaker.
        is_probe: bool,
        /// Time until its reserved moment.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// The attempt waits for the adaptive rate, because the upstream throttles.
    Paced {
        /// The rate, in requests per minute.
        per_minute: u32,
        /// Duration of the wait.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// The upstream throttled, so the adaptive rate was lowered.
    Slowed {
        /// The new rate, in requests per minute.
        per_minute: u32,
    },
    /// The request waited in the queue of an overloaded upstream.
    Queued {
        /// Duration of the wait.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// The request waited for a script call of shared state.
    State {
        /// Name of the script.
        name: &'static str,
        /// `answered`, or the cause of failure as in `triage_state_failures_total`.
        outcome: &'static str,
        /// Duration of the call.
        #[serde(rename = "took_us", serialize_with = "micros")]
        took: Duration,
    },
    /// The request waited for something else than an attempt.
    Waited {
        /// What it waited for.
        #[serde(rename = "for", serialize_with = "wait_name")]
        what: WaitedFor,
        /// Duration of the wait.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// A health call was sent: the upstream may sleep, or a half-open breaker is about to risk a request.
    HealthCall {
        /// Number of the call in a row, from 1.
        call: u32,
    },
    /// The upstream is not awake: health calls follow each other until one succeeds. Only the first and the last are events.
    Waking {
        /// Time between two calls.
        #[serde(rename = "interval_us", serialize_with = "micros")]
        interval: Duration,
    },
    /// An attempt was refused, and an earlier answer or a verification decides.
    Denied {
        /// The reason in the problem's type.
        reason: &'static str,
        /// Time since the event before.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// An attempt was sent.
    Sent {
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// A verification of an unknown write was sent.
    #[serde(rename = "looked")]
    VerificationSent {
        /// Number of the verification, from 1.
        #[serde(rename = "look")]
        verification: u32,
    },
    /// The head of a response arrived.
    Answered {
        /// Status of the response.
        status: u16,
        /// Time since the send.
        #[serde(rename = "took_us", serialize_with = "micros")]
        took: Duration,
    },
    /// An attempt failed without a response.
    Failed {
        /// Kind of the failure.
        kind: &'static str,
        /// The exact cause, if the host knows it.
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "reason_name")]
        reason: Option<FailureReason>,
        /// What the refused certificate says of itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<Box<str>>,
        /// Whether anything may have been sent.
        sent: bool,
        /// Time since the send.
        #[serde(rename = "took_us", serialize_with = "micros")]
        took: Duration,
    },
    /// The status settled the outcome, without a call of the policy.
    Settled,
    /// The policy returned a verdict.
    Verdict {
        /// Class of the outcome.
        class: &'static str,
        /// `deliver`, `retry`, `verify` or `replace`.
        next: &'static str,
        /// How the breaker counts it: `success`, `failure` or `ignore`.
        breaker: &'static str,
        /// Duration of the policy's call.
        #[serde(skip)]
        took: Duration,
        /// The policy's text for logs.
        reason: Box<str>,
    },
    /// The policy failed, and the built-in one decided.
    Fault {
        /// Kind of the fault.
        fault: &'static str,
    },
    /// The host clamped the verdict.
    Clamped {
        /// The reason.
        #[serde(serialize_with = "name")]
        limit: ClampReason,
    },
    /// The upstream asked for a pause, which applies to the whole group.
    Paused {
        /// Duration of the pause.
        #[serde(rename = "pause_us", serialize_with = "micros")]
        pause: Duration,
    },
    /// The request waits before the next send.
    Waits {
        /// Duration of the wait.
        #[serde(rename = "wait_us", serialize_with = "micros")]
        wait: Duration,
    },
    /// The host responded itself.
    Refused {
        /// The reason in the problem's type.
        reason: &'static str,
        /// How long the attempt waited that was refused for this reason; none if the host refused no attempt.
        #[serde(
            rename = "denied_after_us",
            skip_serializing_if = "Option::is_none",
            serialize_with = "optional_micros"
        )]
        denied_after: Option<Duration>,
    },
    /// The caller disconnected before the response.
    Abandoned,
}

fn micros<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(crate::clock::micros(*duration))
}

#[allow(clippy::ref_option)]
fn optional_micros<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    micros(&duration.unwrap_or_default(), serializer)
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn wait_name<S: Serializer>(what: &WaitedFor, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(what.name())
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn name<S: Serializer>(limit: &ClampReason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(limit.name())
}

#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)]
fn reason_name<S: Serializer>(reason: &Option<FailureReason>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.map_or("", FailureReason::name))
}

/// Shorter waits are not worth a word.
pub(super) const MIN_SHOWN_WAIT: Duration = Duration::from_millis(1);

/// The words on how long a refused attempt waited.
fn after(wait: Duration) -> String {
    if wait < MIN_SHOWN_WAIT { String::new() } else { format!(", after {}", Rounded(wait)) }
}

impl TimelineEvent {
    /// The failure of an attempt or of a health call.
    pub fn failed(failure: Failure, took: Duration) -> Self {
        let Failure { kind, sent, reason, certificate } = failure;
        let certificate = certificate.map(|fact| fact.to_string().into());
        Self::Failed { kind: kind.name(), reason, certificate, sent, took }
    }

    /// A policy's text, shortened and on one line.
    pub fn words(reason: &str) -> Box<str> {
        reason.chars().take(MAX_REASON_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

impl fmt::Display for TimelineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_not = |is: bool| if is { "may have been sent" } else { "nothing was sent" };
        match self {
            Self::Key { result } => write!(f, "idempotency key: {result}"),
            Self::Orphan { result } => match *result {
                "answer" => f.write_str("adopted: the answer to an equal request whose caller disconnected"),
                "reconcile" => f.write_str("adopted: an equal request whose caller disconnected may have been sent"),
                "unsent" => f.write_str(
                    "an equal request whose caller disconnected had no effect: this request is \
                                         sent",
                ),
                "in-flight" => f.write_str("an equal request whose caller disconnected is still under way"),
                _ => f.write_str("too many writes without a key: this one gets no entry among equal requests"),
            },
            Self::Permit { is_probe, wait } => {
                f.write_str(if *is_probe { "permit, as a probe of the half-open breaker" } else { "permit" })?;
                if wait.is_zero() {
                    Ok(())
                } else {
                    write!(f, ", after a wait of {} for the rate limit", Rounded(*wait))
                }
            }
            Self::Paced { per_minute, wait } => {
                write!(
                    f,
                    "the upstream throttles: the host sends {per_minute} requests a minute, this one after a wait of \
                     {}",
                    Rounded(*wait)
                )
            }
            Self::Slowed { per_minute } => write!(
                f,
                "throttled: the host sends {per_minute} requests a minute from \
                                                      now on"
            ),
            Self::Queued { wait } => write!(f, "the upstream is overloaded: waited {} in the queue", Rounded(*wait)),
            Self::State { name, outcome, took } => {
                write!(f, "shared state ({name}): {outcome} after {}", Rounded(*took))
            }
            Self::Waited { what, wait } => write!(f, "waited {} for {what}", Rounded(*wait)),
            Self::HealthCall { call: 1 } => f.write_str("health call sent: is the upstream well?"),
            Self::HealthCall { call } => write!(f, "health call {call} sent"),
            Self::Waking { interval } => {
                write!(f, "the upstream is not awake: a health call follows every {}", Rounded(*interval))
            }
            Self::Denied { reason, wait } => write!(f, "no permit: {reason}{}", after(*wait)),
            Self::Sent { attempt } => write!(f, "attempt {attempt} begins"),
            Self::VerificationSent { verification } => {
                write!(f, "verification {verification} sent: was the write applied?")
            }
            Self::Answered { status, took } => write!(f, "answered {status} after {}", Rounded(*took)),
            Self::Failed { kind, reason, certificate, sent, took } => {
                write!(f, "failed ({kind}) after {}; {}", Rounded(*took), or_not(*sent))?;
                reason.map_or(Ok(()), |reason| write!(f, "; {}", reason.text()))?;
                certificate.as_ref().map_or(Ok(()), |fact| write!(f, " ({fact})"))
            }
            Self::Settled => f.write_str("settled: delivered without asking the policy"),
            Self::Verdict { class, next, breaker, reason, .. } => {
                write!(f, "policy: {class}, {next}")?;
                if *breaker != "success" {
                    write!(f, ", breaker {breaker}")?;
                }
                if reason.is_empty() { Ok(()) } else { write!(f, " ({reason})") }
            }
            Self::Fault { fault } => write!(f, "the policy failed ({fault}); the built-in policy decides"),
            Self::Clamped { limit } => write!(f, "the host does not follow the verdict: {}", limit.text()),
            Self::Paused { pause } => {
                write!(f, "the upstream asked for a pause of {}: the whole group pauses", Rounded(*pause))
            }
            Self::Waits { wait } => write!(f, "waits {}", Rounded(*wait)),
            Self::Refused { reason, denied_after: None } => write!(f, "the host answers itself: {reason}"),
            Self::Refused { reason, denied_after: Some(wait) } => {
                write!(f, "no permit, so the host answers itself: {reason}{}", after(*wait))
            }
            Self::Abandoned => f.write_str("the caller disconnected before the answer"),
        }
    }
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedEvent {
    /// Time since the request arrived.
    pub at: Duration,
    /// The event.
    pub step: TimelineEvent,
}

/// The timeline of one request.
#[derive(Debug, Clone)]
pub struct RequestTimeline {
    /// Id of the request.
    pub id: RequestId,
    /// Upstream and endpoint.
    pub names: Arc<Names>,
    /// A standard method, or `other`.
    pub method: &'static str,
    /// Name and digest of the policy.
    pub policy: http::HeaderValue,
    /// Generation of the policy.
    pub generation: u64,
    /// The trace that the request belongs to.
    pub trace: Option<super::TraceContext>,
    /// Time of arrival.
    pub began: Instant,
    /// Time until the response's head, or until the caller disconnected.
    pub took: Duration,
    /// Status of the response; `None` if the caller had disconnected.
    pub status: Option<u16>,
    /// The events in order.
    pub steps: Vec<TimedEvent>,
    /// Number of events beyond the maximum, which were not kept.
    pub omitted: u32,
}

impl RequestTimeline {
    /// The reason, if the host answered itself.
    pub fn refusal(&self) -> Option<&'static str> {
        self.steps.iter().rev().find_map(|noted| match noted.step {
            TimelineEvent::Refused { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

impl From<&RequestTimeline> for RequestRow {
    fn from(timeline: &RequestTimeline) -> Self {
        let RequestTimeline { id, method, status, began, took, .. } = *timeline;
        let (names, reason) = (Arc::clone(&timeline.names), timeline.refusal());
        Self { id, names, method, status, reason, began, took, count: 1, first_began: began }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_reads_as_it_is_written() {
        let id = RequestId(0x00ab_cdef_0123_4567);
        assert_eq!(std::str::from_utf8(&id.digits()).unwrap(), id.to_string());
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "123", "+0abcdef01234567", "00abcdef012345678", "zzabcdef01234567"] {
            assert_eq!(wrong.parse::<RequestId>(), Err(NotARequestId), "{wrong}");
        }
    }

    #[test]
    fn words_are_cut_and_stay_on_one_line() {
        assert_eq!(&*TimelineEvent::words("line\nbreak\u{1b}[31m"), "line break [31m");
        assert_eq!(TimelineEvent::words(&"\u{e9}".repeat(500)).chars().count(), MAX_REASON_CHARS);
    }
}
