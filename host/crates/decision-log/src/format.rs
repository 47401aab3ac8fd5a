//! The format of a decision log's lines.

use crate::policy::contract::{BreakerSignal, Class, Effect, FailureKind, Purpose};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Version of the format.
pub const FORMAT: u32 = 1;

/// Maximum of endpoints in a head: as many as a policy may describe.
const MAX_ENDPOINTS: usize = 256;
/// Maximum of headers of a message, and of claims: far more than a policy reads.
const MAX_LISTED: usize = 1024;

/// Why a line is no line of a decision log.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// The line is no JSON, or has another shape.
    #[error("the line is not valid in this format: {0}")]
    Shape(#[from] serde_json::Error),
    /// The format has another version.
    #[error(
        "the trace has format {0}; this version reads format {FORMAT}: record it again, or replay it with the version \
         of triage that recorded it"
    )]
    Format(u32),
    /// A list is too long, or the line.
    #[error("the line has too many {0}")]
    TooMany(&'static str),
    /// A value is invalid.
    #[error("{0}")]
    Value(&'static str),
}

/// The policy of the following decisions, and what it reads. Precedes the first decision of its generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of the format: [`FORMAT`].
    #[serde(rename = "triage-trace")]
    pub format: u32,
    /// The policy generation that decisions refer to.
    pub generation: u64,
    /// Name of the upstream.
    pub upstream: String,
    /// Name of the policy.
    pub policy: String,
    /// Version of the policy.
    pub version: String,
    /// SHA-256 of the component in hexadecimal; `None` for the native policy.
    pub digest: Option<String>,
    /// The contract that the policy was built for; `None` for the native policy.
    pub contract: Option<String>,
    /// SHA-256 of the policy's settings.
    pub settings: String,
    /// Whether the log has contents: paths, header values, bodies, claims, probes.
    pub contents: bool,
    /// The policy's endpoints; decisions refer to them by index.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint as the recorded policy describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the endpoint.
    pub name: String,
    /// Method, or `*`.
    pub method: String,
    /// Path template.
    pub path: String,
    /// The parts of request and response that the policy reads.
    pub interest: Interest,
}

/// The parts of requests and responses that a policy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Whether the policy reads the path.
    pub path: bool,
    /// Names of request headers.
    pub request_headers: Vec<String>,
    /// Maximum bytes of the request body.
    pub request_body_bytes: u64,
    /// Names of response headers.
    pub response_headers: Vec<String>,
    /// Maximum bytes of the response body.
    pub response_body_bytes: u64,
}

/// Decisions that are missing here, because they were recorded faster than the log was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Number of missing decisions.
    pub dropped: u64,
}

/// Whether a field has its default value, and can be left out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One decision: the policy's inputs about an outcome, and its verdict.
// A line is flat, so the flags are separate fields.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision<'a> {
    /// Generation of the policy: refers to a [`Head`].
    pub generation: u64,
    /// Index of the endpoint in the head.
    pub endpoint: usize,
    /// Method of the request; `None` if it is not a standard one.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    /// The effect of the request, as the host classified it.
    pub effect: Effect,
    /// Whether the outcome is a request's or a verification's.
    pub purpose: Purpose,
    /// Number of the attempt.
    pub number: u32,
    /// Whether an earlier attempt's effect was unknown.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prior_unknown: bool,
    /// Time since the last byte may have been sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms_ago: Option<u64>,
    /// Time since the host received the request.
    pub elapsed_ms: u64,
    /// Time until the deadline.
    pub remaining_ms: u64,
    /// The delay before the attempt.
    #[serde(default, skip_serializing_if = "is_default")]
    pub previous_delay_ms: u64,
    /// The random number that the policy was given.
    pub random: u64,
    /// Wall clock time.
    pub now_unix_ms: u64,
    /// Whether the request had an idempotency key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keyed: bool,
    /// Path and query; `None` without contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Cow<'a, str>>,
    /// The part of the request that the policy was given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request: Message,
    /// Claims of other requests; each `None` without contents.
    #[serde(default, skip_serializing_if = "is_default")]
    pub taken: Vec<Option<String>>,
    /// Status of the response; `None` for a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The part of the response that the policy was given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response: Message,
    /// Whether the policy was given the whole body of the response.
    #[serde(default, skip_serializing_if = "is_default")]
    pub complete: bool,
    /// The failure, if there was no response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// Whether a failed attempt may have sent anything.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sent: bool,
    /// Whether the status settled the outcome, without a call of the policy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settled: bool,
    /// The policy's verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RecordedVerdict>,
    /// The policy's fault, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// The part of a request or response that a policy is given. Header values and bodies are text in ISO 8859-1: a character for each byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Names and values; a value is `None` without contents.
    #[serde(default, skip_serializing_if = "is_default")]
    pub headers: Vec<(String, Option<String>)>,
    /// Number of bytes of the body that the policy was given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes: u64,
    /// These bytes; `None` without contents, or if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// The action of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// Return the outcome to the caller.
    Deliver,
    /// Send the request again.
    Retry,
    /// Verify the effect of the write.
    Verify,
    /// Return another response to the caller.
    Replace,
}

/// A policy's verdict, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedVerdict {
    /// The class of the outcome: whether the request had its effect.
    pub class: Class,
    /// How the breaker counts the outcome.
    pub breaker: BreakerSignal,
    /// The next action.
    pub next: Next,
    /// Delay before a retry or a verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Pause for the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Status of a replacement response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether the verdict claims a resource.
    #[serde(default, skip_serializing_if = "is_default")]
    pub claims: bool,
    /// The fields that are recorded only with contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// The fields of a verdict that may hold text of callers or the upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Name of the claimed resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The request of a verification: method, and path with query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<(String, String)>,
    /// Body of a replacement response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Text for logs; a replay does not compare it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The kind of a line.
#[derive(Debug)]
pub(super) enum Kind {
    Head,
    Gap,
    Decision,
    Empty,
}

impl Kind {
    /// Determines the kind by the line's first key.
    pub(super) fn of(line: &[u8]) -> Self {
        let is = |key: &[u8]| line.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(key));
        if is(b"\"triage-trace\"") {
            Self::Head
        } else if is(b"\"dropped\"") {
            Self::Gap
        } else if line.trim_ascii().is_empty() {
            Self::Empty
        } else {
            Self::Decision
        }
    }
}

impl Head {
    /// Parses a head.
    ///
    /// # Errors
    /// [`InvalidLine`] for another version, or an invalid head.
    pub fn read(line: &[u8]) -> Result<Self, InvalidLine> {
        // The version first: a line of another version may have any other fields.
        #[derive(Deserialize)]
        struct Format {
            #[serde(rename = "triage-trace")]
            format: u32,
        }
        let Format { format } = serde_json::from_slice(line)?;
        if format != FORMAT {
            return Err(InvalidLine::Format(format));
        }
        let head: Self = serde_json::from_slice(line)?;
        if head.endpoints.len() > MAX_ENDPOINTS {
            return Err(InvalidLine::TooMany("endpoints"));
        }
        let listed = |own: &Endpoint| own.interest.request_headers.len().max(own.interest.response_headers.len());
        if head.endpoints.iter().any(|own| listed(own) > MAX_LISTED) {
            return Err(InvalidLine::TooMany("headers"));
        }
        Ok(head)
    }
}

impl<'a> Decision<'a> {
    /// Parses a decision.
    ///
    /// # Errors
    /// [`InvalidLine`] for an invalid decision.
    pub fn read(line: &'a [u8]) -> Result<Self, InvalidLine> {
        let decision: Self = serde_json::from_slice(line)?;
        if decision.request.headers.len().max(decision.response.headers.len()) > MAX_LISTED {
            return Err(InvalidLine::TooMany("headers"));
        }
        if decision.taken.len() > MAX_LISTED {
            return Err(InvalidLine::TooMany("claims"));
        }
        if decision.status.is_some() == decision.failure.is_some() {
            return Err(InvalidLine::Value("an outcome is either a status or a failure"));
        }
        if [decision.settled, decision.verdict.is_some(), decision.fault.is_some()].iter().filter(|is| **is).count()
            != 1
        {
            return Err(InvalidLine::Value("a decision has a verdict, or a fault, or it was settled"));
        }
        Ok(decision)
    }
}
