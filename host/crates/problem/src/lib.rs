//! Every refusal as problem+json (RFC 9457), in one exhaustive table.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use std::time::Duration;
use triage_core::{
    clock,
    contract::{Class, Failure, FailureReason},
    idempotency::RecordId,
    rate_limit::Quota,
    rounded::Rounded,
};
use triage_upstream as upstream;

/// The header that says whether a part of the request may have reached the upstream.
pub const SENT: HeaderName = HeaderName::from_static("triage-sent");
/// The header with the class of the request's effect.
pub const VERDICT: HeaderName = HeaderName::from_static("triage-verdict");

/// The reason of a write whose effect is unknown.
pub const EFFECT_UNKNOWN: &str = "effect-unknown";

/// Every value of [`Problem::reason`].
pub const REASONS: [&str; 33] = [
    "no-upstream",
    "no-endpoint",
    "no-record",
    "path-not-plain",
    "host-ambiguous",
    "host-missing",
    "host-malformed",
    "target-malformed",
    "transfer-coding",
    "length-malformed",
    "expectation",
    "too-many-fields",
    "tunnel",
    "deadline-malformed",
    "key-malformed",
    "key-reused",
    "in-flight",
    "answer-not-kept",
    "keys-full",
    "body-too-large",
    "body-broken",
    "breaker-open",
    "rate-limited",
    "budget-exhausted",
    "overloaded",
    "deadline-before-send",
    "upstream-asleep",
    "store-unavailable",
    "effect-unknown",
    "not-in-effect",
    "upstream-timeout",
    "upstream-failed",
    "upstream-unreachable",
];

/// Why the host responds itself instead of passing on a response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No upstream is configured for the request.
    #[error("no upstream matches this host and path; the request must match one of the configured upstreams")]
    NoUpstream,
    /// The upstream has no endpoint for the method and path.
    #[error(
        "no endpoint of upstream {upstream} matches {method} on this path; add one in the configuration or the policy"
    )]
    NoEndpoint {
        /// The upstream's name.
        upstream: String,
        /// The request's method.
        method: String,
    },
    /// The caller has no such record.
    #[error(
        "no record with this id is kept for this caller: the record has expired, its request had no effect, or the id \
         never existed; send the request again with the same idempotency key"
    )]
    NoRecord,
    /// The upstream could read the path differently.
    #[error("the path has dot segments or backslashes, which upstreams resolve differently; send the resolved path")]
    PathNotPlain,
    /// The request names several hosts.
    #[error("the request names its host more than once, and servers differ in which one counts; name the host once")]
    HostAmbiguous,
    /// The request names no host.
    #[error("the request names no host, but HTTP/1.1 and HTTP/2 require one; send a Host field")]
    HostMissing,
    /// The request's host is malformed.
    #[error("the request's host is malformed; send a host name or address, with or without a port")]
    HostMalformed,
    /// The request's target cannot be forwarded.
    #[error("the request's target is malformed; send a path, or an http or https URL with its host")]
    TargetMalformed,
    /// The body has a transfer coding other than `chunked`.
    #[error(
        "the host does not support the transfer coding of the request's body; send the body chunked without another \
         coding, or with its length"
    )]
    TransferCoding,
    /// The content length is malformed or ambiguous.
    #[error(
        "the request's content-length is malformed; send one whole number up to 9223372036854775807, or no \
         content-length and a chunked body"
    )]
    LengthMalformed,
    /// The request expects something other than `100-continue`.
    #[error("the request has an expectation other than 100-continue, and the host supports no other; leave it out")]
    Expectation,
    /// The request has too many header fields.
    #[error("the request has more than {limit} header fields, the maximum of server.max_header_fields; send fewer")]
    TooManyFields {
        /// The limit, `server.max_header_fields`.
        limit: usize,
    },
    /// The method is CONNECT.
    #[error("CONNECT requests a tunnel, but this host forwards single requests only; send the request itself")]
    Tunnel,
    /// The deadline header is malformed.
    #[error("header {header} must be a whole number of milliseconds from 1; send one or leave it out")]
    Deadline {
        /// The header's name.
        header: String,
    },
    /// The idempotency key is malformed.
    #[error("{why}")]
    Key {
        /// The parser's message.
        why: String,
    },
    /// The key was used for another request.
    #[error(
        "this idempotency key belongs to a request with another method, path or body; use a new key for a new request"
    )]
    KeyReused,
    /// A request with this key, or an orphan equal to this request, is still under way.
    #[error(
        "this request, or an equal one whose caller disconnected, is under way; retry after the wait, with the same \
         idempotency key if the request has one"
    )]
    InFlight {
        /// The wait before a repetition.
        retry_after: Duration,
    },
    /// The response to replay was not kept.
    #[error(
        "the request was answered {status}, but the answer was not stored: it was incomplete, had more than \
         {limit_bytes} bytes, or the memory for stored answers was full. The host does not send the request again"
    )]
    NotKept {
        /// The status of that response.
        status: u16,
        /// `idempotency.max_response` in bytes.
        limit_bytes: usize,
    },
    /// The store has no space for another key.
    #[error("the store is full: it holds the maximum number of idempotency keys; retry after the wait")]
    KeysFull,
    /// The body of a request with a key exceeds the limit.
    #[error(
        "the body of a request with an idempotency key may have at most {limit_bytes} bytes; send a smaller body, \
             or no key"
    )]
    BodyTooLarge {
        /// `idempotency.max_request` in bytes.
        limit_bytes: usize,
    },
    /// The request's body broke off.
    #[error("the request's body ended early; send the request again")]
    BodyBroken,
    /// The breaker is open.
    #[error("the circuit breaker of {endpoint} is open: {why}; retry after the wait")]
    BreakerOpen {
        /// The endpoint's name.
        endpoint: String,
        /// Why the breaker opened.
        why: String,
        /// The wait until the next half-open probe.
        retry_after: Duration,
    },
    /// A rate limit, or a pause that the upstream asked for.
    #[error("{endpoint} admits {}, and no permit is free within the time that the deadline leaves for waiting; retry \
             after the wait", quota_text(.quota.as_ref()))]
    RateLimited {
        /// The endpoint's name.
        endpoint: String,
        /// The quota that is used up; none for a pause.
        quota: Option<Quota>,
        /// The wait until the limit admits the request.
        retry_after: Duration,
    },
    /// The adaptive rate, lowered because the upstream throttles.
    #[error(
        "{endpoint} is sent {per_minute} requests a minute, the rate that the upstream accepted lately, and no permit \
         is free within the time that the deadline leaves for waiting; retry after the wait"
    )]
    Paced {
        /// The endpoint's name.
        endpoint: String,
        /// The present rate.
        per_minute: u32,
        /// The wait until the rate admits the request.
        retry_after: Duration,
    },
    /// The retry budget is used up.
    #[error(
        "the retry budget of {endpoint} is used up: retries may only be a share of the traffic; retry after the \
             wait"
    )]
    BudgetExhausted {
        /// The endpoint's name.
        endpoint: String,
        /// The wait until the budget allows a retry.
        retry_after: Duration,
    },
    /// The endpoint's fixed concurrency limit was reached.
    #[error("{endpoint} has {limit} requests under way, its maximum; retry after the wait")]
    Concurrency {
        /// The endpoint's name.
        endpoint: String,
        /// The endpoint's `concurrency`.
        limit: usize,
    },
    /// The upstream is overloaded: the adaptive limit refused the request.
    #[error(
        "upstream {upstream} is overloaded, and requests with a priority above {priority} go first; nothing was sent: \
         retry after the wait"
    )]
    Overloaded {
        /// The upstream's name.
        upstream: String,
        /// The request's priority.
        priority: &'static str,
    },
    /// The host's memory is scarce.
    #[error("this host has reached its memory limit of {limit_bytes} bytes; nothing was sent: retry after the wait")]
    MemoryScarce {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// Too many requests of one connection, of one peer or in total.
    #[error("{scope} has {limit} {what} under way, its maximum; nothing was sent: retry after the wait")]
    TooManyRequests {
        /// The scope of the limit, in words.
        scope: &'static str,
        /// The limit that was reached.
        limit: usize,
        /// The kind of requests that are counted, in words.
        what: &'static str,
    },
    /// The host has no file descriptor left.
    #[error(
        "this host has no file descriptor left for a connection to the upstream; nothing was sent: retry after the wait"
    )]
    Exhausted,
    /// The deadline passed, or the caller left, before anything was sent.
    #[error("the deadline passed while the request waited; nothing was sent: retry with a longer deadline")]
    DeadlineBeforeSend,
    /// The upstream was asleep and did not wake up in time.
    #[error("the upstream did not wake up in time; nothing was sent: retry after the wait")]
    Asleep,
    /// Shared state is required for this request and cannot be reached.
    #[error("the state store did not answer, and without it a write might be repeated; retry after the wait")]
    StoreUnavailable,
    /// The effect of a write is unknown.
    #[error(
        "the request may or may not have taken effect at the upstream. With an idempotency key, repeat it with the \
         same key and the same credentials, and the host settles it. Without a key, check the upstream first: a \
         repetition would be a second write"
    )]
    EffectUnknown,
    /// After a loss of shared state: nothing was sent since, and no effect of an earlier send was found so far.
    #[error(
        "shared state has lost its data, and an earlier request with this key may have been sent; this request was \
         not sent, and no result of the earlier request was found so far: repeat it with the same idempotency key \
         after the wait, and the host sends it once that is safe"
    )]
    UnsentSinceLoss,
    /// After a loss of shared state: the match may be this request's or an equal one's.
    #[error(
        "shared state has lost its data, and the resource at the upstream may come from this request or from an equal \
         one; this request was not sent. Have an operator settle record {record} (triage records resolve {record} \
         applied --body FILE, where FILE holds the answer; not-applied if the resource belongs to another request), \
         then repeat the request"
    )]
    UnknownAfterLoss {
        /// The request's record.
        record: RecordId,
    },
    /// After a loss of shared state: several matches may be this request's.
    #[error(
        "shared state has lost its data, and several resources at the upstream may come from this request; the host \
         adopts none, because the others belong to equal requests. Have an operator settle record {record} (triage \
         records resolve {record} applied --body FILE, where FILE holds the answer; not-applied if none belongs to \
         it), then repeat the request"
    )]
    SeveralAfterLoss {
        /// The request's record.
        record: RecordId,
    },
    /// A verification showed that the write is not in effect, and never will be.
    #[error(
        "a verification at the upstream showed that the request did not take effect ({class}); correct the \
         conflicting state there, then send the request again"
    )]
    NotInEffect {
        /// The class of the effect.
        class: &'static str,
    },
    /// The upstream gave no complete, valid response. If the verdict is `applied`, the write is in effect and only the response is missing.
    #[error("the upstream gave no complete and valid answer ({kind}){}", reason_text(*failure))]
    UpstreamFailed {
        /// The last failure.
        failure: Failure,
        /// The name of the failure's kind.
        kind: &'static str,
    },
}

fn reason_text(failure: Failure) -> String {
    failure.reason.map_or(String::new(), |reason| format!(": {}", reason.text()))
}

fn quota_text(quota: Option<&Quota>) -> String {
    match quota {
        Some(quota) => {
            let plural = if quota.requests.get() == 1 { "" } else { "s" };
            format!("{} request{plural} per {}", quota.requests, Rounded(quota.period))
        }
        None => "no request while the upstream asks for fewer requests".to_owned(),
    }
}

impl Problem {
    /// The row of the table: status, type, title.
    fn row(&self) -> (StatusCode, &'static str, &'static str) {
        use triage_core::contract::FailureKind as Kind;
        match self {
            Self::NoUpstream => (StatusCode::NOT_FOUND, "no-upstream", "no such upstream"),
            Self::NoEndpoint { .. } => (StatusCode::NOT_FOUND, "no-endpoint", "no such endpoint"),
            Self::NoRecord => (StatusCode::NOT_FOUND, "no-record", "no such record"),
            Self::PathNotPlain => (StatusCode::BAD_REQUEST, "path-not-plain", "path is ambiguous"),
            Self::HostAmbiguous => (StatusCode::BAD_REQUEST, "host-ambiguous", "host is ambiguous"),
            Self::HostMissing => (StatusCode::BAD_REQUEST, "host-missing", "host is missing"),
            Self::HostMalformed => (StatusCode::BAD_REQUEST, "host-malformed", "host is malformed"),
            Self::TargetMalformed => (StatusCode::BAD_REQUEST, "target-malformed", "request target is malformed"),
            Self::TransferCoding => {
                (StatusCode::NOT_IMPLEMENTED, "transfer-coding", "transfer coding is not supported")
            }
            Self::LengthMalformed => (StatusCode::BAD_REQUEST, "length-malformed", "content length is malformed"),
            Self::Expectation => (StatusCode::EXPECTATION_FAILED, "expectation", "expectation cannot be met"),
            Self::TooManyFields { .. } => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-many-fields", "too many header fields")
            }
            Self::Tunnel => (StatusCode::NOT_IMPLEMENTED, "tunnel", "tunnels are not supported"),
            Self::Deadline { .. } => (StatusCode::BAD_REQUEST, "deadline-malformed", "deadline is malformed"),
            Self::Key { .. } => (StatusCode::BAD_REQUEST, "key-malformed", "idempotency key is malformed"),
            Self::KeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "idempotency key was used for another request")
            }
            Self::InFlight { .. } => (StatusCode::CONFLICT, "in-flight", "the first request is under way"),
            Self::NotKept { .. } => (StatusCode::CONFLICT, "answer-not-kept", "the first answer was not stored"),
            Self::KeysFull => (StatusCode::SERVICE_UNAVAILABLE, "keys-full", "no room for another idempotency key"),
            Self::BodyTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "body is too large for a keyed request")
            }
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body-broken", "request body broke off"),
            Self::BreakerOpen { .. } => (StatusCode::SERVICE_UNAVAILABLE, "breaker-open", "circuit breaker is open"),
            Self::RateLimited { .. } | Self::Paced { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate-limited", "rate limit reached")
            }
            Self::BudgetExhausted { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "budget-exhausted", "retry budget is used up")
            }
            Self::Concurrency { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests at once"),
            Self::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "upstream is overloaded"),
            Self::MemoryScarce { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "memory limit is reached"),
            Self::TooManyRequests { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests under way")
            }
            Self::Exhausted => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "no file descriptor is left"),
            Self::DeadlineBeforeSend => {
                (StatusCode::GATEWAY_TIMEOUT, "deadline-before-send", "deadline passed before the request was sent")
            }
            Self::Asleep => (StatusCode::SERVICE_UNAVAILABLE, "upstream-asleep", "upstream did not wake up"),
            Self::StoreUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "state store is unavailable")
            }
            Self::EffectUnknown
            | Self::UnsentSinceLoss
            | Self::UnknownAfterLoss { .. }
            | Self::SeveralAfterLoss { .. } => (StatusCode::GATEWAY_TIMEOUT, EFFECT_UNKNOWN, "effect is unknown"),
            Self::NotInEffect { .. } => (StatusCode::CONFLICT, "not-in-effect", "the request did not take effect"),
            Self::UpstreamFailed { failure, .. } => match failure.kind {
                Kind::Timeout | Kind::ConnectTimeout => {
                    (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout", "upstream did not answer in time")
                }
                _ if failure.sent => (StatusCode::BAD_GATEWAY, "upstream-failed", "upstream failed"),
                _ => (StatusCode::BAD_GATEWAY, "upstream-unreachable", "upstream cannot be reached"),
            },
        }
    }

    /// The reason as one word: in the problem's type and in metrics.
    pub fn reason(&self) -> &'static str {
        self.row().1
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::InFlight { retry_after }
            | Self::BreakerOpen { retry_after, .. }
            | Self::RateLimited { retry_after, .. }
            | Self::Paced { retry_after, .. }
            | Self::BudgetExhausted { retry_after, .. } => Some(*retry_after),
            Self::Concurrency { .. }
            | Self::Overloaded { .. }
            | Self::MemoryScarce { .. }
            | Self::TooManyRequests { .. }
            | Self::Exhausted
            | Self::KeysFull
            | Self::StoreUnavailable => Some(Duration::from_secs(1)),
            Self::Asleep => Some(Duration::from_secs(10)),
            _ => None,
        }
    }

    /// Whether this request, or a known earlier one with its key, may have been sent. A caller combines the values of all its responses: a
    /// later `no` does not cancel an earlier `maybe`.
    pub fn sent(&self) -> bool {
        match self {
            // Excludes `UnsentSinceLoss` and `UnknownAfterLoss`: this request sent nothing, and no earlier send is known.
            Self::EffectUnknown
            | Self::SeveralAfterLoss { .. }
            | Self::NotInEffect { .. }
            | Self::NotKept { .. }
            | Self::InFlight { .. } => true,
            Self::UpstreamFailed { failure, .. } => failure.sent,
            _ => false,
        }
    }

    /// The response: problem+json, `Retry-After` in whole seconds rounded up, and `triage-sent`.
    pub fn into_response(self) -> Response<upstream::Body> {
        self.response(None, None)
    }

    /// [`Problem::into_response`] with the reason of the last attempt's failure, and a wait for a problem that has none itself. An unknown
    /// write names the reason too: the caller cannot act on it, but the operator who sees the response can.
    pub fn response(self, last: Option<FailureReason>, wait: Option<Duration>) -> Response<upstream::Body> {
        let (status, kind, title) = self.row();
        let mut body = json!({
            "type": format!("urn:triage:problem:{kind}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.to_string(),
        });
        if let Self::UpstreamFailed { kind, failure } = &self {
            body["failure"] = (*kind).into();
            if let Some(reason) = failure.reason {
                body["failure_reason"] = reason.name().into();
            }
        }
        if let (Self::EffectUnknown, Some(reason)) = (&self, last) {
            body["failure_reason"] = reason.name().into();
            body["detail"] = format!("{self} (the last attempt failed: {})", reason.text()).into();
        }
        let wait = self.retry_after().or(wait);
        if let Some(wait) = wait {
            body["retry_after_ms"] = clock::millis(wait).into();
        }
        let mut response = Response::new(upstream::full(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = wait {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
        }
        headers.insert(SENT, HeaderValue::from_static(if self.sent() { "maybe" } else { "no" }));
        let verdict = match self {
            Self::EffectUnknown
            | Self::UnsentSinceLoss
            | Self::UnknownAfterLoss { .. }
            | Self::SeveralAfterLoss { .. } => Some(Class::Unknown.name()),
            Self::NotInEffect { class } => Some(class),
            _ => None,
        };
        if let Some(verdict) = verdict {
            headers.insert(VERDICT, HeaderValue::from_static(verdict));
        }
        response
    }
}
