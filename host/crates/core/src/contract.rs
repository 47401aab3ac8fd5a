//! The policy contract in the host's own types: what `wit/types.wit` says, validated and free of wasmtime.

mod failure_reason;
pub mod hints;

pub use failure_reason::FailureReason;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What sending a request may do (RFC 9110 section 9.2). Ordered: the greater is the stricter.
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
    /// Reads only.
    Safe,
    /// Sending it twice leaves what sending it once leaves.
    Idempotent,
    /// Each send may have an effect of its own.
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

/// What became of a request's effect.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Class {
    /// It took place, by this attempt.
    Applied,
    /// It was in place already.
    AlreadyApplied,
    /// It did not take place.
    NotApplied,
    /// It did not take place: the upstream wants fewer requests.
    Throttled,
    /// It may have taken place.
    Unknown,
    /// It did not take place, and sending the same again cannot help.
    Rejected,
}

impl Class {
    /// The name in headers, logs and metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What an outcome says of the upstream's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum BreakerSignal {
    /// The upstream works.
    Success,
    /// The upstream is in trouble.
    Failure,
    /// It says nothing.
    Ignore,
}

impl BreakerSignal {
    /// The name in logs, reports and shared state.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Whether an outcome is the request's or a probe's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The request itself.
    Request,
    /// A probe that the policy asked for.
    Probe,
}

/// What went wrong where there is no answer.
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
    /// The answer's body broke off.
    Body,
    /// This host has no file descriptor or buffer left for a connection: its own failure, of which no policy and no breaker is told.
    Exhausted,
}

impl FailureKind {
    /// The name in problems, logs and vectors.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An attempt that brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// Whether any byte of the request may have reached the upstream.
    pub sent: bool,
    /// What exactly, where the host knows: for people. A policy is told the kind only.
    pub reason: Option<FailureReason>,
}

impl Failure {
    /// A failure that its kind says all about.
    pub const fn new(kind: FailureKind, sent: bool) -> Self {
        Self { kind, sent, reason: None }
    }

    /// The same with its reason.
    #[must_use]
    pub const fn because(self, reason: FailureReason) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

/// What an attempt brought, as the policy sees it.
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

/// Whether a response with this status leaves open what became of a write. The upstream, or a gateway in front of it, gave up
/// (408, 460, 499), is in trouble (500 and every 5xx that a CDN makes up), or did not answer in HTTP (below 200, above 599).
/// 501, 505 and 511 are refusals.
pub fn leaves_unknown(status: u16) -> bool {
    let answers = matches!(status, 200..=499 | 501 | 505 | 511);
    !answers || matches!(status, 408 | 460 | 499)
}

/// Whether a redirect asks for the same request at another place (307, 308): nothing was done here.
pub fn is_elsewhere(status: u16) -> bool {
    matches!(status, 307 | 308)
}

/// The attempt whose outcome is judged. See `wit/types.wit`.
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
    /// From 1, counted for each purpose.
    pub number: u32,
    /// Whether an earlier attempt's effect is unknown.
    pub prior_unknown: bool,
    /// Since the last byte that may have been sent.
    pub sent_ago: Option<Duration>,
    /// Since the host took the request.
    pub elapsed: Duration,
    /// Until the deadline.
    pub remaining: Duration,
    /// The delay before this attempt.
    pub previous_delay: Duration,
    /// Chance.
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

/// A safe request that finds out what became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// A safe method.
    pub method: Method,
    /// Path and query on the same upstream.
    pub path_and_query: String,
    /// Further headers.
    pub headers: HeaderMap,
    /// How long to wait first.
    pub delay: Duration,
}

/// An answer that takes the place of the upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The status, 200 to 599.
    pub status: StatusCode,
    /// The headers, none of them hop-by-hop.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Give the caller what came.
    Deliver,
    /// Send again after the delay.
    Retry(Duration),
    /// Find out, then judge again.
    Verify(Probe),
    /// Give the caller this.
    Replace(Replacement),
}

/// A policy's judgement, validated but not yet clamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What became of the effect.
    pub class: Class,
    /// What it says of the upstream.
    pub breaker: BreakerSignal,
    /// What to do.
    pub next: Next,
    /// The resource that this request made.
    pub claim: Option<String>,
    /// How long the fleet should hold back.
    pub pause: Option<Duration>,
    /// A few words for logs.
    pub reason: String,
}

/// What a policy reads of an exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Whether the path is handed over.
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
    /// How many at one instant.
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
    /// Attempts under way at once.
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
    /// What the policy reads.
    pub interest: Interest,
    /// Statuses answered without the policy, as inclusive ranges within 200..=399.
    pub settled: Vec<(u16, u16)>,
    /// How long after the last byte sent the upstream may still apply the request.
    pub commit_within: Option<Duration>,
    /// What the policy proposes.
    pub defaults: Defaults,
}

/// The upstream's health call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCall {
    /// Path and query of a GET that any 2xx answers.
    pub path_and_query: String,
    /// How long the answer may take.
    pub timeout: Duration,
    /// How long idle until the upstream may be asleep.
    pub asleep_after: Option<Duration>,
    /// How long waking may take.
    pub wake_within: Duration,
}

/// What a policy is.
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
