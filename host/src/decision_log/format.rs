//! The lines of a trace.

use crate::policy::contract::{BreakerSignal, Class, Effect, FailureKind, Purpose};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The format that is written and read.
pub const FORMAT: u32 = 1;

/// Endpoints in a head: as many as a policy may describe.
const ENDPOINTS: usize = 256;
/// Headers of one message, claims: far more than an interest has.
const LISTED: usize = 1024;

/// Why a line is none of a trace's.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// Not JSON, or of another shape.
    #[error("it has not the shape of a trace's line: {0}")]
    Shape(#[from] serde_json::Error),
    /// Another version.
    #[error(
        "the trace has format {0}; this version reads format {FORMAT}: record it again, or replay it with the triage that did"
    )]
    Format(u32),
    /// Too much of something.
    #[error("it has too many {0}")]
    TooMany(&'static str),
    /// Something that cannot be.
    #[error("{0}")]
    Value(&'static str),
}

/// Which policy judged what follows, and what it reads. Stands before the first decision of its generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The format, [`FORMAT`].
    #[serde(rename = "triage-trace")]
    pub format: u32,
    /// The generation that its decisions name.
    pub generation: u64,
    /// The upstream.
    pub upstream: String,
    /// The policy's name.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// Its component's SHA-256 in hexadecimal digits; none for the native policy.
    pub digest: Option<String>,
    /// The contract that it was built for; none for the native policy.
    pub contract: Option<String>,
    /// The SHA-256 of the settings that it was configured with.
    pub settings: String,
    /// Whether contents are in the trace: paths, header values, bodies, claims, probes.
    pub contents: bool,
    /// Its endpoints; decisions name them by their place here.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint as the recorded policy describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Its method, or `*`.
    pub method: String,
    /// Its template.
    pub path: String,
    /// What its policy reads.
    pub interest: Interest,
}

/// What a policy reads of an endpoint's exchanges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// The path.
    pub path: bool,
    /// Request headers.
    pub request_headers: Vec<String>,
    /// Bytes of the request.
    pub request_body_bytes: u64,
    /// Response headers.
    pub response_headers: Vec<String>,
    /// Bytes of the response.
    pub response_body_bytes: u64,
}

/// Decisions that are missing here: they came faster than they were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many.
    pub dropped: u64,
}

/// Whether a field has the value that it has where it is left out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One decision.
// A line is flat; each of these is a fact of its own.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision<'a> {
    /// Which head is its own.
    pub generation: u64,
    /// The endpoint's place in it.
    pub endpoint: usize,
    /// The request's method; none where it is not one of HTTP's own.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    /// As the host had it.
    pub effect: Effect,
    /// Whether a request's outcome was judged, or a probe's.
    pub purpose: Purpose,
    /// Which attempt.
    pub number: u32,
    /// Whether an earlier attempt's effect was unknown.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prior_unknown: bool,
    /// Since the last byte that may have been sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms_ago: Option<u64>,
    /// Since the host took the request.
    pub elapsed_ms: u64,
    /// Until its deadline.
    pub remaining_ms: u64,
    /// The delay before the attempt.
    #[serde(default, skip_serializing_if = "is_default")]
    pub previous_delay_ms: u64,
    /// Chance.
    pub random: u64,
    /// The wall clock.
    pub now_unix_ms: u64,
    /// Whether the caller gave a key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keyed: bool,
    /// Path and query; none where contents are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Cow<'a, str>>,
    /// What was shown of the request.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request: Message,
    /// Claims of others, each none where contents are left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub taken: Vec<Option<String>>,
    /// The answer's status, and what was shown of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// See `status`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response: Message,
    /// Whether that was all of its body.
    #[serde(default, skip_serializing_if = "is_default")]
    pub complete: bool,
    /// In place of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// Of a failure: whether anything may have been sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sent: bool,
    /// Whether the status settled it, without the policy being asked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settled: bool,
    /// What the policy said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RecordedVerdict>,
    /// How it failed instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What a policy is shown of a message. Header values and bodies are text of ISO 8859-1: a character for each byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Names and values; a value is none where contents are left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub headers: Vec<(String, Option<String>)>,
    /// How many bytes of the body were shown.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes: u64,
    /// These bytes; none where contents are left out, or there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// What a verdict does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// Give the caller what came.
    Deliver,
    /// Send again.
    Retry,
    /// Find out.
    Verify,
    /// Give the caller another answer.
    Replace,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedVerdict {
    /// What became of the effect.
    pub class: Class,
    /// What it says of the upstream.
    pub breaker: BreakerSignal,
    /// What to do.
    pub next: Next,
    /// Before a retry or a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// For the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Of an answer in the upstream's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether there is a claim.
    #[serde(default, skip_serializing_if = "is_default")]
    pub claims: bool,
    /// What is only there with contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// What of a verdict may hold what callers or the upstream said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The probe: method, path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<(String, String)>,
    /// The body of an answer in the upstream's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Words for logs; not compared.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What a line is.
#[derive(Debug)]
pub(super) enum Kind {
    Head,
    Gap,
    Decision,
    Empty,
}

impl Kind {
    /// By the line's first key, as it was written.
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
    /// Reads one.
    ///
    /// # Errors
    /// [`InvalidLine`]
    pub fn read(line: &[u8]) -> Result<Self, InvalidLine> {
        // The rest of another format may have any shape.
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
        if head.endpoints.len() > ENDPOINTS {
            return Err(InvalidLine::TooMany("endpoints"));
        }
        let listed = |own: &Endpoint| own.interest.request_headers.len().max(own.interest.response_headers.len());
        if head.endpoints.iter().any(|own| listed(own) > LISTED) {
            return Err(InvalidLine::TooMany("headers"));
        }
        Ok(head)
    }
}

impl<'a> Decision<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// [`InvalidLine`]
    pub fn read(line: &'a [u8]) -> Result<Self, InvalidLine> {
        let decision: Self = serde_json::from_slice(line)?;
        if decision.request.headers.len().max(decision.response.headers.len()) > LISTED {
            return Err(InvalidLine::TooMany("headers"));
        }
        if decision.taken.len() > LISTED {
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
