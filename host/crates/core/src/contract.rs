//! The policy contract in the host's own types: those of `wit/types.wit`, validated and free of wasmtime.

mod certificate_fact;
mod failure_reason;
pub mod hints;

pub use certificate_fact::{CertificateFact, CertificateNames};
pub use failure_reason::FailureReason;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The effect that a request may have on the upstream (RFC 9110 section 9.2). Ordered: a greater one is stricter.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Effect {
    /// The request only reads.
    Safe,
    /// Two sends have the same effect as one.
    Idempotent,
    /// Each send may have a further effect, such as a second resource.
    Unsafe,
}

impl Effect {
    /// The effect that RFC 9110 section 9.2, and for QUERY RFC 10008, give a method; unsafe for methods they do not name.
    pub fn of(method: &Method) -> Self {
        match method.as_str() {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "QUERY" => Self::Safe,
            "PUT" | "DELETE" => Self::Idempotent,
            _ => Self::Unsafe,
        }
    }

    /// The name in configurations and answers.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The result of a request for the upstream's state.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Class {
    /// This attempt had the effect.
    Applied,
    /// The effect existed before this attempt.
    AlreadyApplied,
    /// The request had no effect.
    NotApplied,
    /// The request had no effect, because the upstream limits its rate.
    Throttled,
    /// The request may have had the effect.
    Unknown,
    /// The request had no effect, and another send of it would be rejected too.
    Rejected,
}

impl Class {
    /// The name in headers, logs and metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How an outcome counts for the circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum BreakerSignal {
    /// The upstream works.
    Success,
    /// The upstream fails.
    Failure,
    /// The outcome does not count.
    Ignore,
}

impl BreakerSignal {
    /// The name in logs, reports and shared state.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Whether an outcome belongs to the request or to its verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The request itself.
    Request,
    /// A verification that the policy asked for.
    Probe,
}

/// Why an attempt got no response.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum FailureKind {
    /// The upstream's name could not be resolved.
    Dns,
    /// The connection was refused or could not be made.
    Connect,
    /// The connection was not made in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// Writing the request failed.
    Send,
    /// The upstream closed the connection before it answered.
    Reset,
    /// The attempt's time ran out.
    Timeout,
    /// The answer was not HTTP.
    Protocol,
    /// The response's body ended early.
    Body,
    /// This host has no file descriptor or buffer left for a connection. Policies and breakers do not get this failure, since it is not the
    /// upstream's.
    Exhausted,
}

impl FailureKind {
    /// The name in problems, logs and vectors.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An attempt without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure {
    /// The kind of failure, which policies get.
    pub kind: FailureKind,
    /// Whether any byte of the request may have reached the upstream.
    pub sent: bool,
    /// The exact reason, if the host knows it: for logs and problems. A policy gets the kind only.
    pub reason: Option<FailureReason>,
    /// What a refused certificate says of itself: for operators, not for callers.
    pub certificate: Option<CertificateFact>,
}

impl Failure {
    /// A failure without an exact reason.
    pub const fn new(kind: FailureKind, sent: bool) -> Self {
        Self { kind, sent, reason: None, certificate: None }
    }

    /// The same with its reason.
    #[must_use]
    pub const fn because(self, reason: FailureReason) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

/// The outcome of an attempt, as the policy sees it.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// An answer.
    Response {
        /// The status.
        status: StatusCode,
        /// All its headers; only those of the interest are lowered.
        headers: &'a HeaderMap,
        /// The body's first bytes, as far as they were buffered.
        body: &'a [u8],
        /// Whether `body` is all of it.
        complete: bool,
    },
    /// No answer.
    Failure(Failure),
}

/// Whether a write may have been applied although its response has this status: the upstream or a gateway timed out or lost its caller
/// (408, 460, 499), failed (500 and all other 5xx, those of CDNs too), or sent no final HTTP status (below 200, above 599). 501, 505 and
/// 511 are refusals.
pub fn leaves_unknown(status: u16) -> bool {
    let answers = matches!(status, 200..=499 | 501 | 505 | 511);
    !answers || matches!(status, 408 | 460 | 499)
}

/// Whether the status redirects the same request to another URL (307, 308): this upstream did not execute the request.
pub fn is_elsewhere(status: u16) -> bool {
    matches!(status, 307 | 308)
}

/// The attempt whose outcome the policy classifies. See `wit/types.wit`.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Index into the description's endpoints.
    pub endpoint: usize,
    /// The request's method. Only the built-in policy reads it: a component knows it by the endpoint.
    pub method: &'a Method,
    /// The strictest of method, policy and configuration.
    pub effect: Effect,
    /// The request's own outcome, or a probe's.
    pub purpose: Purpose,
    /// The number of the attempt, from 1, counted separately for requests and verifications.
    pub number: u32,
    /// Whether an earlier attempt's effect is unknown.
    pub prior_unknown: bool,
    /// The time since the last byte that may have been sent.
    pub sent_ago: Option<Duration>,
    /// The time since the host received the request.
    pub elapsed: Duration,
    /// The time until the deadline.
    pub remaining: Duration,
    /// The delay before this attempt.
    pub previous_delay: Duration,
    /// A random number for the policy, such as for jitter.
    pub random: u64,
    /// The wall clock, in milliseconds since 1970.
    pub now_unix_ms: u64,
    /// Whether the caller gave an idempotency key.
    pub keyed: bool,
    /// Path and query.
    pub path: &'a str,
    /// All request headers; only those of the interest are lowered.
    pub request_headers: &'a HeaderMap,
    /// The whole request body; empty if it is streamed. The policy gets only as many bytes as its interest asks for.
    pub request_body: &'a [u8],
    /// Claims of other requests.
    pub taken: &'a [String],
}

/// A verification: a safe request whose response shows whether a write was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// A safe method.
    pub method: Method,
    /// Path and query on the same upstream.
    pub path_and_query: String,
    /// Further headers.
    pub headers: HeaderMap,
    /// The wait before it is sent.
    pub delay: Duration,
}

/// A response of the policy instead of the upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The status, 200 to 599.
    pub status: StatusCode,
    /// The headers, none of them hop-by-hop.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// The next action that a policy proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Give the caller the upstream's response, or the host's error.
    Deliver,
    /// Send again after the delay.
    Retry(Duration),
    /// Send this verification, then classify its outcome.
    Verify(Probe),
    /// Give the caller this response.
    Replace(Replacement),
}

/// A policy's verdict, validated but not yet clamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The class of the request's effect.
    pub class: Class,
    /// How the outcome counts for the breaker.
    pub breaker: BreakerSignal,
    /// The proposed action.
    pub next: Next,
    /// The resource that this request created.
    pub claim: Option<String>,
    /// How long the whole fleet should pause requests to this group.
    pub pause: Option<Duration>,
    /// A short explanation for logs.
    pub reason: String,
}

/// The parts of request and response that a policy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Whether the policy gets the path.
    pub path: bool,
    /// Request headers by name.
    pub request_headers: Vec<http::HeaderName>,
    /// Request body bytes.
    pub request_body_bytes: usize,
    /// Response headers by name.
    pub response_headers: Vec<http::HeaderName>,
    /// Response body bytes.
    pub response_body_bytes: usize,
}

/// A rate limit that a policy proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProposedLimit {
    /// Requests a period.
    pub requests: u32,
    /// The period.
    pub period: Duration,
    /// The maximum of requests at one instant.
    pub burst: u32,
}

/// Settings that a policy proposes for an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The limit on one attempt.
    pub attempt_timeout: Option<Duration>,
    /// The limit on the request.
    pub deadline: Option<Duration>,
    /// Attempts, the first one counted.
    pub max_attempts: Option<u32>,
    /// Rate limits.
    pub limits: Vec<ProposedLimit>,
    /// The maximum of concurrent attempts.
    pub concurrency: Option<u32>,
}

/// One operation of the upstream, as the policy describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Unique in the description; `[a-z0-9-]`, at most 64 bytes.
    pub name: String,
    /// The method, or none for every method.
    pub method: Option<Method>,
    /// A URI template such as `/hospitals/{id}`.
    pub path: String,
    /// The effect that the policy states.
    pub effect: Effect,
    /// The parts that the policy reads.
    pub interest: Interest,
    /// Statuses answered without the policy, as inclusive ranges within 200..=399.
    pub settled: Vec<(u16, u16)>,
    /// How long after the last byte sent the upstream may still apply the request.
    pub commit_within: Option<Duration>,
    /// The settings that the policy proposes.
    pub defaults: Defaults,
}

/// The upstream's health call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCall {
    /// Path and query of a GET that any 2xx answers.
    pub path_and_query: String,
    /// How long the answer may take.
    pub timeout: Duration,
    /// The idle time after which the upstream may be asleep.
    pub asleep_after: Option<Duration>,
    /// The longest time until a sleeping upstream answers.
    pub wake_within: Duration,
}

/// A policy's description of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The policy's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The upstream's health call.
    pub health: Option<HealthCall>,
}
