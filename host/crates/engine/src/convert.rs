//! Converts between the generated types and the contract's types: borrows a guest's input, and validates its output.

use super::{
    bindings::triage::policy::types as wit,
    contract::{
        Attempt, BreakerSignal, Class, Defaults, Description, Effect, Endpoint, FailureKind, HealthCall, Interest,
        Next, Outcome, Probe, ProposedLimit, Purpose, Replacement, Verdict,
    },
};
use crate::{clock::millis, route};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{borrow::Cow, str::FromStr, time::Duration};

/// The maximum number of endpoints in a description.
const MAX_ENDPOINTS: usize = 256;
/// The maximum number of headers in an interest, a probe or a replacement.
const MAX_HEADERS: usize = 32;
/// The maximum number of body bytes that an interest may request.
const MAX_BODY_BYTES: u32 = 1 << 20;
/// The maximum length of a path template.
const MAX_PATH_BYTES: usize = 512;
/// The maximum length of a claim.
const MAX_CLAIM_BYTES: usize = 512;

/// Why a verdict was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidVerdict {
    /// The probe's method or path is not allowed.
    #[error(
        "a probe must be a GET, HEAD or OPTIONS of a plain path on the same upstream that starts with one '/'; got {0}"
    )]
    Probe(String),
    /// A header is malformed, or a guest may not set it.
    #[error("header {0:?} is malformed, or a policy must not set it")]
    Header(String),
    /// Too many headers.
    #[error("the verdict has {0} headers; at most {MAX_HEADERS} are allowed")]
    Headers(usize),
    /// The status is not a final one.
    #[error("a replacement's status must be from 200 to 599; got {0}")]
    Status(u16),
    /// The claim is empty or too long.
    #[error("a claim must have 1 to {MAX_CLAIM_BYTES} bytes; got {0}")]
    Claim(usize),
}

/// Why a description was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidDescription {
    /// There is no endpoint, or there are too many.
    #[error("the description has {0} endpoints; it must have 1 to {MAX_ENDPOINTS}")]
    Endpoints(usize),
    /// A name has an invalid character, or an invalid length.
    #[error("name {0:?} must have 1 to 64 characters of a-z, 0-9 and '-'")]
    Name(String),
    /// Two endpoints have this name.
    #[error("endpoint {0:?} is described twice; names must be unique")]
    Twice(String),
    /// A method is malformed.
    #[error("endpoint {0:?}: {1:?} is not a method; it must be one in upper case or '*'")]
    Method(String, String),
    /// A path is not a template, or too long.
    #[error("endpoint {0:?}: path {1:?} must be a URI template of at most {MAX_PATH_BYTES} bytes that starts with '/'")]
    Path(String, String),
    /// A header name of the interest is malformed.
    #[error("endpoint {0:?}: {1:?} is not a header name in lower case")]
    Header(String, String),
    /// An interest is too large.
    #[error("endpoint {0:?}: a policy may read at most {MAX_BODY_BYTES} body bytes and {MAX_HEADERS} headers")]
    Interest(String),
    /// A settled range leaves 200 to 399.
    #[error("endpoint {0:?}: settled range {1}-{2} must lie within 200-399")]
    Settled(String, u16, u16),
    /// A limit's requests, period or burst is zero.
    #[error("endpoint {0:?}: a limit's requests, period and burst must be at least 1")]
    Limit(String),
    /// A time is below 1 ms or above 1 h.
    #[error("endpoint {0:?}: a proposed time must be from 1 ms to 1 h")]
    Time(String),
    /// The health call's path is malformed, or names another upstream.
    #[error("health call {0:?} must be a path on the same upstream that starts with one '/'")]
    Health(String),
    /// The settings change the endpoints.
    #[error("`configure` changed the endpoints; settings may change an endpoint's values only")]
    Changed,
}

/// Lowers an attempt and its outcome, and passes them to `call`.
pub(super) fn lowered<T>(
    attempt: &Attempt<'_>,
    outcome: &Outcome<'_>,
    interest: Option<&Interest>,
    call: impl FnOnce(wit::Attempt<'_>, wit::Outcome<'_>) -> T,
) -> T {
    let nothing = Interest::default();
    let interest = interest.unwrap_or(&nothing);
    let request_values = values(attempt.request_headers, &interest.request_headers);
    let request_headers = headers(&request_values);
    let taken: Vec<&str> = attempt.taken.iter().map(String::as_str).collect();
    let lowered = wit::Attempt {
        endpoint: u32::try_from(attempt.endpoint).unwrap_or(u32::MAX),
        effect: match attempt.effect {
            Effect::Safe => wit::Effect::Safe,
            Effect::Idempotent => wit::Effect::Idempotent,
            Effect::Unsafe => wit::Effect::Unsafe,
        },
        purpose: match attempt.purpose {
            Purpose::Request => wit::Purpose::Request,
            Purpose::Probe => wit::Purpose::Probe,
        },
        number: attempt.number,
        prior_unknown: attempt.prior_unknown,
        sent_ms_ago: attempt.sent_ago.map(millis),
        elapsed_ms: millis(attempt.elapsed),
        remaining_ms: millis(attempt.remaining),
        previous_delay_ms: millis(attempt.previous_delay),
        random: attempt.random,
        now_unix_ms: attempt.now_unix_ms,
        keyed: attempt.keyed,
        path: if interest.path { attempt.path } else { "" },
        request_headers: &request_headers,
        request_body: prefix(attempt.request_body, interest.request_body_bytes),
        taken: &taken,
    };
    match outcome {
        Outcome::Response { status, headers: all, body, complete } => {
            let response_values = values(all, &interest.response_headers);
            let response_headers = headers(&response_values);
            let shown = prefix(body, interest.response_body_bytes);
            let response = wit::Response {
                status: status.as_u16(),
                headers: &response_headers,
                body: shown,
                complete: *complete && shown.len() == body.len(),
            };
            call(lowered, wit::Outcome::Response(response))
        }
        Outcome::Failure(failure) => {
            let kind = match failure.kind {
                FailureKind::Dns => wit::FailureKind::Dns,
                // The host never asks a policy about `Exhausted`.
                FailureKind::Connect | FailureKind::Exhausted => wit::FailureKind::Connect,
                FailureKind::ConnectTimeout => wit::FailureKind::ConnectTimeout,
                FailureKind::Tls => wit::FailureKind::Tls,
                FailureKind::Send => wit::FailureKind::Send,
                FailureKind::Reset => wit::FailureKind::Reset,
                FailureKind::Timeout => wit::FailureKind::Timeout,
                FailureKind::Protocol => wit::FailureKind::Protocol,
                FailureKind::Body => wit::FailureKind::Body,
            };
            call(lowered, wit::Outcome::Failure(wit::Failure { kind, sent: failure.sent }))
        }
    }
}

fn prefix(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

fn values<'a>(all: &'a HeaderMap, names: &'a [HeaderName]) -> Vec<(&'a str, Cow<'a, str>)> {
    let mut found = Vec::new();
    for name in names {
        found.extend(all.get_all(name).iter().map(|value| (name.as_str(), latin1(value))));
    }
    found
}

/// Decodes a value as ISO 8859-1: each byte is the character with the same number.
fn latin1(value: &HeaderValue) -> Cow<'_, str> {
    value.to_str().map_or_else(|_| value.as_bytes().iter().map(|byte| char::from(*byte)).collect(), Cow::Borrowed)
}

fn headers<'a>(values: &'a [(&'a str, Cow<'a, str>)]) -> Vec<wit::HeaderParam<'a>> {
    values.iter().map(|(name, value)| wit::HeaderParam { name, value }).collect()
}

/// Cuts a guest's text to at most `most` bytes and replaces its control characters.
pub(super) fn short(text: &str, most: usize) -> String {
    let mut kept = String::new();
    for character in text.chars() {
        if kept.len() + character.len_utf8() > most {
            break;
        }
        kept.push(if character.is_control() { ' ' } else { character });
    }
    kept
}

/// Validates a guest's verdict.
pub(super) fn verdict(lifted: wit::Verdict) -> Result<Verdict, InvalidVerdict> {
    let claim = match lifted.claim {
        Some(claim) if claim.is_empty() || claim.len() > MAX_CLAIM_BYTES => {
            return Err(InvalidVerdict::Claim(claim.len()));
        }
        claim => claim,
    };
    Ok(Verdict {
        class: match lifted.class {
            wit::Class::Applied => Class::Applied,
            wit::Class::AlreadyApplied => Class::AlreadyApplied,
            wit::Class::NotApplied => Class::NotApplied,
            wit::Class::Throttled => Class::Throttled,
            wit::Class::Unknown => Class::Unknown,
            wit::Class::Rejected => Class::Rejected,
        },
        breaker: match lifted.breaker {
            wit::BreakerSignal::Success => BreakerSignal::Success,
            wit::BreakerSignal::Failure => BreakerSignal::Failure,
            wit::BreakerSignal::Ignore => BreakerSignal::Ignore,
        },
        next: match lifted.next {
            wit::Next::Deliver => Next::Deliver,
            wit::Next::Retry(delay_ms) => Next::Retry(Duration::from_millis(delay_ms)),
            wit::Next::Verify(asked) => Next::Verify(probe(asked)?),
            wit::Next::Replace(answer) => Next::Replace(replacement(answer)?),
        },
        claim,
        pause: lifted.pause_ms.map(Duration::from_millis),
        reason: short(&lifted.reason, 200),
    })
}

fn probe(asked: wit::Probe) -> Result<Probe, InvalidVerdict> {
    let method = match asked.method.as_str() {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "OPTIONS" => Method::OPTIONS,
        // QUERY is defined by RFC 10008. A probe has no body, so the query is in the path.
        "QUERY" => Method::from_bytes(b"QUERY").map_err(|_| InvalidVerdict::Probe("method QUERY".to_owned()))?,
        other => return Err(InvalidVerdict::Probe(format!("method {:?}", short(other, 32)))),
    };
    let path = asked.path_and_query;
    // Joined to a base, "//host" would be another authority, and some servers read a backslash as '/'. Refuse dot segments: a server would
    // resolve them, and the checked path must be the requested one.
    let local = path.starts_with('/') && !path.starts_with("//") && path.len() <= 8192;
    let local = local && route::is_plain(path.split('?').next().unwrap_or_default());
    if !local || http::uri::PathAndQuery::from_str(&path).is_err() {
        // The path may name a patient: keep it out of the log.
        return Err(InvalidVerdict::Probe(format!("another path, of {} bytes", path.len())));
    }
    Ok(Probe {
        method,
        path_and_query: path,
        headers: taken_headers(asked.headers)?,
        delay: Duration::from_millis(asked.delay_ms),
    })
}

fn replacement(answer: wit::Replacement) -> Result<Replacement, InvalidVerdict> {
    let status = StatusCode::from_u16(answer.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or(InvalidVerdict::Status(answer.status))?;
    Ok(Replacement { status, headers: taken_headers(answer.headers)?, body: Bytes::from(answer.body) })
}

/// Checks headers that a guest sets. They must be well-formed and end-to-end, and must not frame the message, route it, carry credentials
/// or state, or claim to come from the host.
fn taken_headers(given: Vec<wit::HeaderResult>) -> Result<HeaderMap, InvalidVerdict> {
    if given.len() > MAX_HEADERS {
        return Err(InvalidVerdict::Headers(given.len()));
    }
    let mut headers = HeaderMap::with_capacity(given.len());
    for header in given {
        let refused = || InvalidVerdict::Header(short(&header.name, 64));
        let name = HeaderName::from_str(&header.name).map_err(|_| refused())?;
        let value: Option<Vec<u8>> = header.value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        let value = value.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()).ok_or_else(refused)?;
        let reserved = matches!(
            name.as_str(),
            "connection"
                | "content-length"
                | "host"
                | "keep-alive"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "authorization"
                | "cookie"
                | "set-cookie"
                | "forwarded"
                | "via"
        );
        if reserved || ["triage-", "x-forwarded-"].iter().any(|own| name.as_str().starts_with(own)) {
            return Err(refused());
        }
        headers.append(name, value);
    }
    Ok(headers)
}

/// Validates a guest's description.
pub(super) fn description(lifted: wit::Description) -> Result<Description, InvalidDescription> {
    if lifted.endpoints.is_empty() || lifted.endpoints.len() > MAX_ENDPOINTS {
        return Err(InvalidDescription::Endpoints(lifted.endpoints.len()));
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(lifted.endpoints.len());
    for described in lifted.endpoints {
        let endpoint = endpoint(described)?;
        if endpoints.iter().any(|other| other.name == endpoint.name) {
            return Err(InvalidDescription::Twice(endpoint.name));
        }
        endpoints.push(endpoint);
    }
    let health = lifted.health.map(health).transpose()?;
    Ok(Description { name: name(lifted.name)?, version: short(&lifted.version, 64), endpoints, health })
}

fn name(given: String) -> Result<String, InvalidDescription> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if given.is_empty() || given.len() > 64 || !given.bytes().all(fits) {
        return Err(InvalidDescription::Name(short(&given, 64)));
    }
    Ok(given)
}

fn health(call: wit::HealthCall) -> Result<HealthCall, InvalidDescription> {
    let path = call.path_and_query;
    if !path.starts_with('/') || path.starts_with("//") || http::uri::PathAndQuery::from_str(&path).is_err() {
        return Err(InvalidDescription::Health(short(&path, 64)));
    }
    let capped = |ms: u32| Duration::from_millis(u64::from(ms.clamp(1, 3_600_000)));
    Ok(HealthCall {
        path_and_query: path,
        timeout: capped(call.timeout_ms),
        asleep_after: call.asleep_after_ms.map(capped),
        wake_within: capped(call.wake_within_ms),
    })
}

fn endpoint(described: wit::Endpoint) -> Result<Endpoint, InvalidDescription> {
    let name = name(described.name)?;
    let method = match described.method.as_str() {
        "*" => None,
        other => match Method::from_str(other) {
            Ok(method) if other.bytes().all(|b| b.is_ascii_uppercase()) => Some(method),
            _ => return Err(InvalidDescription::Method(name, short(other, 32))),
        },
    };
    let has_controls = described.path.contains(|c: char| c.is_control());
    if !described.path.starts_with('/') || described.path.len() > MAX_PATH_BYTES || has_controls {
        return Err(InvalidDescription::Path(name, short(&described.path, 64)));
    }
    if let Some(range) =
        described.settled.iter().find(|range| range.first < 200 || range.last > 399 || range.first > range.last)
    {
        return Err(InvalidDescription::Settled(name, range.first, range.last));
    }
    let time = |ms: Option<u32>| match ms {
        Some(ms) if ms == 0 || ms > 3_600_000 => Err(InvalidDescription::Time(name.clone())),
        ms => Ok(ms.map(|ms| Duration::from_millis(u64::from(ms)))),
    };
    let mut limits = Vec::new();
    for limit in described.defaults.limits.iter().take(16) {
        if limit.requests == 0 || limit.period_ms == 0 || limit.burst == 0 {
            return Err(InvalidDescription::Limit(name));
        }
        let period = Duration::from_millis(u64::from(limit.period_ms));
        limits.push(ProposedLimit { requests: limit.requests, period, burst: limit.burst });
    }
    let defaults = Defaults {
        attempt_timeout: time(described.defaults.attempt_timeout_ms)?,
        deadline: time(described.defaults.deadline_ms)?,
        max_attempts: described.defaults.max_attempts.map(|most| most.clamp(1, 100)),
        limits,
        concurrency: described.defaults.concurrency.map(|most| most.max(1)),
    };
    let commit_within = time(described.commit_within_ms)?;
    Ok(Endpoint {
        interest: interest(described.interest, &name)?,
        method,
        path: described.path,
        effect: match described.effect {
            wit::Effect::Safe => Effect::Safe,
            wit::Effect::Idempotent => Effect::Idempotent,
            wit::Effect::Unsafe => Effect::Unsafe,
        },
        settled: described.settled.iter().map(|range| (range.first, range.last)).collect(),
        commit_within,
        defaults,
        name,
    })
}

fn interest(asked: wit::Interest, endpoint: &str) -> Result<Interest, InvalidDescription> {
    let too_much = asked.request_body_bytes.max(asked.response_body_bytes) > MAX_BODY_BYTES
        || asked.request_headers.len().max(asked.response_headers.len()) > MAX_HEADERS;
    if too_much {
        return Err(InvalidDescription::Interest(endpoint.to_owned()));
    }
    let names = |given: Vec<String>| -> Result<Vec<HeaderName>, InvalidDescription> {
        let parsed = |name: String| {
            HeaderName::from_lowercase(name.as_bytes())
                .map_err(|_| InvalidDescription::Header(endpoint.to_owned(), short(&name, 64)))
        };
        given.into_iter().map(parsed).collect()
    };
    Ok(Interest {
        path: asked.path,
        request_headers: names(asked.request_headers)?,
        request_body_bytes: asked.request_body_bytes as usize,
        response_headers: names(asked.response_headers)?,
        response_body_bytes: asked.response_body_bytes as usize,
    })
}
