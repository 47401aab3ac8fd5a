//! Every refusal, as problem+json (RFC 9457): one exhaustive table.

use crate::{
    idempotency::RecordId,
    policy::contract::{Class, Failure, FailureReason},
    rate_limit::Quota,
    upstream,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use std::time::Duration;

/// The header that says whether anything of the request may have reached the upstream.
pub const SENT: HeaderName = HeaderName::from_static("triage-sent");
/// The header that says what became of the request's effect.
pub const VERDICT: HeaderName = HeaderName::from_static("triage-verdict");

/// The reason of a write whose effect is unknown.
pub const EFFECT_UNKNOWN: &str = "effect-unknown";

/// Every reason, as [`Problem::reason`] gives it.
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

/// Why the host answers itself instead of passing an answer on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No upstream is configured for it.
    #[error("no upstream takes this host and path; the request must match one of the configured upstreams")]
    NoUpstream,
    /// The upstream has no such endpoint.
    #[error(
        "no endpoint of upstream {upstream} takes {method} on this path; add one in the configuration or the policy"
    )]
    NoEndpoint {
        /// The upstream's name.
        upstream: String,
        /// The method.
        method: String,
    },
    /// The caller has no such record.
    #[error(
        "no record with this id is kept for this caller: its time is over, its request took no effect, or there never was one; ask again with the same idempotency key"
    )]
    NoRecord,
    /// The path would be read differently by the upstream.
    #[error(
        "the path has dot segments or backslashes, which upstreams resolve differently; send the path that is meant"
    )]
    PathNotPlain,
    /// The caller names several hosts.
    #[error("the request names its host more than once, and whoever reads it believes another one; name it once")]
    HostAmbiguous,
    /// The caller names no host.
    #[error("the request names no host, and HTTP/1.1 and HTTP/2 want one; send a Host field")]
    HostMissing,
    /// The caller names something that is no host.
    #[error("the request's host is no host name or address with or without a port; send one that is")]
    HostMalformed,
    /// The request's target is none that can be passed on.
    #[error("the request's target must be a path, or a URL of http or https with its host; send one of them")]
    TargetMalformed,
    /// The body is coded.
    #[error(
        "the request's body has a transfer coding that is not understood; send it chunked and not coded otherwise, or with its length"
    )]
    TransferCoding,
    /// The content length is none.
    #[error(
        "the request's content-length must be one whole number up to 9223372036854775807; send one that is, or none and a chunked body"
    )]
    LengthMalformed,
    /// The caller expects what is not offered.
    #[error("the request expects something other than 100-continue, and nothing else is offered; leave it out")]
    Expectation,
    /// The request has too many header fields.
    #[error(
        "the request has more than {limit} header fields, which is all that server.max_header_fields admits; send fewer"
    )]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// The caller wants a tunnel.
    #[error("CONNECT asks for a tunnel, and this host forwards single requests; send the request itself")]
    Tunnel,
    /// The deadline header makes no sense.
    #[error("header {header} must be a whole number of milliseconds from 1; send one or leave it out")]
    Deadline {
        /// The header's name.
        header: String,
    },
    /// The idempotency key is malformed.
    #[error("{why}")]
    Key {
        /// What the key's parser says.
        why: String,
    },
    /// The key was used for another request.
    #[error(
        "this idempotency key belongs to a request with another method, path or body; use a new key for a new request"
    )]
    KeyReused,
    /// The first request with the key is still under way.
    #[error(
        "this request, or an equal one whose caller has left, is under way; ask again after the wait, with the same idempotency key if it has one"
    )]
    InFlight {
        /// When to come back.
        retry_after: Duration,
    },
    /// The first answer was not kept.
    #[error(
        "the request was answered {status}, but the answer was not kept: it broke off, had more than {limit_bytes} bytes, or kept answers take all their room. The request is not sent again"
    )]
    NotKept {
        /// The first answer's status.
        status: u16,
        /// The cap.
        limit_bytes: usize,
    },
    /// No room for another key.
    #[error("the store holds as many live idempotency keys as it may; ask again after the wait")]
    KeysFull,
    /// A keyed body over the cap.
    #[error("a request with an idempotency key may have at most {limit_bytes} body bytes; send less, or no key")]
    BodyTooLarge {
        /// The cap.
        limit_bytes: usize,
    },
    /// The caller's body broke off.
    #[error("the request's body broke off; send the request again")]
    BodyBroken,
    /// The breaker is open.
    #[error("the circuit breaker of {endpoint} is open: {why}; ask again after the wait")]
    BreakerOpen {
        /// The endpoint's name.
        endpoint: String,
        /// What tripped it.
        why: String,
        /// When it is probed next.
        retry_after: Duration,
    },
    /// A rate limit, or a pause that the upstream asked for.
    #[error("{endpoint} admits {}, and no place is free within the time that its deadline leaves for waiting; ask again after the wait", quota_text(.quota.as_ref()))]
    RateLimited {
        /// The endpoint's name.
        endpoint: String,
        /// The quota that is used up; none for a pause.
        quota: Option<Quota>,
        /// When a place is free.
        retry_after: Duration,
    },
    /// The upstream throttles, and the rate follows it.
    #[error(
        "{endpoint} is sent {per_minute} requests a minute, as many as the upstream took lately, and no place is free within the time that its deadline leaves for waiting; ask again after the wait"
    )]
    Paced {
        /// The endpoint's name.
        endpoint: String,
        /// The rate.
        per_minute: u32,
        /// When a place is free.
        retry_after: Duration,
    },
    /// Too many retries already.
    #[error("the retry budget of {endpoint} is used up: retries are a share of traffic; ask again after the wait")]
    BudgetExhausted {
        /// The endpoint's name.
        endpoint: String,
        /// When a retry is affordable.
        retry_after: Duration,
    },
    /// Too many at once.
    #[error("{endpoint} has {limit} requests under way, as many as it may; ask again after the wait")]
    Concurrency {
        /// The endpoint's name.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// The upstream has more to do than it bears.
    #[error(
        "upstream {upstream} has as many requests under way as it bears, and what matters more than {priority} goes first; nothing was sent: ask again after the wait"
    )]
    Overloaded {
        /// The upstream's name.
        upstream: String,
        /// The request's priority.
        priority: &'static str,
    },
    /// The host itself has no room.
    #[error(
        "this host uses as much memory as it may, which is {limit_bytes} bytes; nothing was sent: ask again after the wait"
    )]
    MemoryScarce {
        /// The limit.
        limit_bytes: u64,
    },
    /// Too many requests of one connection, one peer or in all.
    #[error("{scope} has {limit} {what} under way, as many as it may; nothing was sent: ask again after the wait")]
    TooManyRequests {
        /// Whose.
        scope: &'static str,
        /// The bound.
        limit: usize,
        /// What is counted.
        what: &'static str,
    },
    /// The host has no file descriptor left.
    #[error(
        "this host has no file descriptor left for a connection to the upstream; nothing was sent: ask again after the wait"
    )]
    Exhausted,
    /// The deadline passed before anything was sent.
    #[error("the deadline passed while the request waited; nothing was sent: ask again with a longer deadline")]
    DeadlineBeforeSend,
    /// The upstream sleeps and did not wake up.
    #[error("the upstream did not wake up in time; nothing was sent: ask again after the wait")]
    Asleep,
    /// The store cannot be asked.
    #[error("the state store did not answer, and a write without it might be repeated; ask again after the wait")]
    StoreUnavailable,
    /// The effect of a write is unknown.
    #[error(
        "the request may or may not have taken effect at the upstream. With an idempotency key, ask again with the same key and the same credentials, and it is settled. Without one, look at the upstream first: a repetition would be a second write"
    )]
    EffectUnknown,
    /// Shared state has lost its data, nothing was sent since, and nothing that an earlier send made was found so far.
    #[error(
        "shared state has lost its data, and an earlier request with this key may have been sent; nothing was sent now, and nothing that it made was found so far: ask again with the same idempotency key after the wait, and it is sent once that is certain"
    )]
    UnsentSinceLoss,
    /// What was found may be another request's, since shared state has lost its data.
    #[error(
        "shared state has lost its data, and what stands at the upstream may have been made by this request or by an equal one; nothing was sent now. Have an operator settle record {record} (triage records resolve {record} applied --body FILE, where FILE holds the answer; not-applied if it is not its own), then repeat the request"
    )]
    UnknownAfterLoss {
        /// Its record.
        record: RecordId,
    },
    /// Several matches may be this request's, since shared state has lost its data.
    #[error(
        "shared state has lost its data, and several resources at the upstream may be the one that this request made; none is given to it, because the others belong to equal requests. Have an operator settle record {record} (triage records resolve {record} applied --body FILE, where FILE holds the answer; not-applied if none is its own), then repeat the request"
    )]
    SeveralAfterLoss {
        /// Its record.
        record: RecordId,
    },
    /// A probe showed that the write did not, and now cannot, take effect as asked.
    #[error(
        "a look at the upstream showed that the request did not take effect ({class}); correct what stands there, then send it again"
    )]
    NotInEffect {
        /// The class.
        class: &'static str,
    },
    /// No complete and valid answer; of a write that its verdict says was applied, only the answer is missing.
    #[error("the upstream gave no complete and valid answer ({kind}){}", reason_text(*failure))]
    UpstreamFailed {
        /// The last failure.
        failure: Failure,
        /// Its kind's name.
        kind: &'static str,
    },
}

fn reason_text(failure: Failure) -> String {
    failure.reason.map_or(String::new(), |reason| format!(": {}", reason.text()))
}

fn quota_text(quota: Option<&Quota>) -> String {
    match quota {
        Some(quota) => format!("{} requests per {} ms", quota.requests, crate::clock::millis(quota.period)),
        None => "nothing while the upstream wants fewer requests".to_owned(),
    }
}

impl Problem {
    /// Status, type, title: the table.
    fn row(&self) -> (StatusCode, &'static str, &'static str) {
        use crate::policy::contract::FailureKind as Kind;
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
                (StatusCode::NOT_IMPLEMENTED, "transfer-coding", "transfer coding is not understood")
            }
            Self::LengthMalformed => (StatusCode::BAD_REQUEST, "length-malformed", "content length is malformed"),
            Self::Expectation => (StatusCode::EXPECTATION_FAILED, "expectation", "expectation cannot be met"),
            Self::TooManyFields { .. } => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-many-fields", "too many header fields")
            }
            Self::Tunnel => (StatusCode::NOT_IMPLEMENTED, "tunnel", "tunnels are not offered"),
            Self::Deadline { .. } => (StatusCode::BAD_REQUEST, "deadline-malformed", "deadline is malformed"),
            Self::Key { .. } => (StatusCode::BAD_REQUEST, "key-malformed", "idempotency key is malformed"),
            Self::KeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "idempotency key was used for another request")
            }
            Self::InFlight { .. } => (StatusCode::CONFLICT, "in-flight", "the first request is under way"),
            Self::NotKept { .. } => (StatusCode::CONFLICT, "answer-not-kept", "the first answer was not kept"),
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
            Self::MemoryScarce { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "memory is scarce"),
            Self::TooManyRequests { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests under way")
            }
            Self::Exhausted => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "file descriptors are scarce"),
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

    /// The reason in a word: of the problem's type, and in metrics.
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

    /// Whether anything may have been sent, by this request or, as far as is known, by an earlier one with its key. A caller adds up
    /// what its answers say: a later `no` takes no earlier `maybe` back.
    pub fn sent(&self) -> bool {
        match self {
            // Not `UnsentSinceLoss` and `UnknownAfterLoss`: this request sent nothing, and no earlier send is known.
            Self::EffectUnknown
            | Self::SeveralAfterLoss { .. }
            | Self::NotInEffect { .. }
            | Self::NotKept { .. }
            | Self::InFlight { .. } => true,
            Self::UpstreamFailed { failure, .. } => failure.sent,
            _ => false,
        }
    }

    /// The answer: problem+json, `Retry-After` in whole seconds rounded up, and whether anything was sent.
    pub fn into_response(self) -> Response<upstream::Body> {
        self.response(None, None)
    }

    /// The same after a last attempt that failed for this reason, and with a wait for a problem that names none by itself. A write
    /// that is unknown says the reason too: the caller can do nothing about it, the operator to whom the answer is shown can.
    pub(crate) fn response(self, last: Option<FailureReason>, wait: Option<Duration>) -> Response<upstream::Body> {
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
            body["retry_after_ms"] = crate::clock::millis(wait).into();
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
