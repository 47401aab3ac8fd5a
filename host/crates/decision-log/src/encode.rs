//! Converts a decision, when it is made, into a line of the log.

use super::format::{Contents, Decision, Endpoint, FORMAT, Head, Interest, Message, Next, RecordedVerdict};
use crate::{
    clock::millis,
    policy::{
        Contract,
        contract::{self, Attempt, BreakerSignal, Class, Outcome, Verdict},
    },
    upstream_runtime::UpstreamRuntime,
};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;

/// The source of a verdict.
#[derive(Debug, Clone, Copy)]
pub enum Judged<'a> {
    /// The policy returned it.
    Verdict(&'a Verdict),
    /// The policy failed; the fault's name.
    Fault(&'a str),
    /// The status settled the outcome, without a call of the policy.
    Settled,
}

/// A decision, by reference.
#[derive(Debug, Clone, Copy)]
pub struct DecisionInput<'a> {
    /// The upstream's runtime, which holds policy and generation.
    pub service: &'a UpstreamRuntime,
    /// Method of the request.
    pub method: &'a Method,
    /// The policy's input about the attempt.
    pub attempt: &'a Attempt<'a>,
    /// The outcome of the attempt.
    pub outcome: &'a Outcome<'a>,
    /// The verdict, or why there is none.
    pub judged: Judged<'a>,
}

impl DecisionInput<'_> {
    /// The line for the log. Without `contents`, it holds no text of callers or the upstream.
    pub fn line(&self, contents: bool) -> Decision<'_> {
        let Self { service, method, attempt, outcome, judged } = self;
        let nothing = contract::Interest::default();
        let endpoint = service.policy.description().endpoints.get(attempt.endpoint);
        let interest = endpoint.map_or(&nothing, |endpoint| &endpoint.interest);
        let (status, response, complete, failure) = match outcome {
            Outcome::Response { status, headers, body, complete } => {
                let shown = prefix(body, interest.response_body_bytes);
                let message = message(headers, &interest.response_headers, shown, contents);
                (Some(status.as_u16()), message, *complete && shown.len() == body.len(), None)
            }
            Outcome::Failure(failure) => (None, Message::default(), false, Some(failure)),
        };
        let shown = prefix(attempt.request_body, interest.request_body_bytes);
        let taken = attempt.taken.iter().map(|claim| contents.then(|| claim.clone()));
        let (settled, verdict, fault) = match judged {
            Judged::Verdict(verdict) => (false, Some(RecordedVerdict::of(verdict, contents)), None),
            Judged::Fault(name) => (false, None, Some((*name).to_owned())),
            Judged::Settled => (true, None, None),
        };
        Decision {
            generation: service.generation,
            endpoint: attempt.endpoint,
            method: KNOWN.iter().find(|known| **known == method.as_str()).copied(),
            effect: attempt.effect,
            purpose: attempt.purpose,
            number: attempt.number,
            prior_unknown: attempt.prior_unknown,
            sent_ms_ago: attempt.sent_ago.map(millis),
            elapsed_ms: millis(attempt.elapsed),
            remaining_ms: millis(attempt.remaining),
            previous_delay_ms: millis(attempt.previous_delay),
            random: attempt.random,
            now_unix_ms: attempt.now_unix_ms,
            keyed: attempt.keyed,
            path: contents.then_some(Cow::Borrowed(attempt.path)),
            request: message(attempt.request_headers, &interest.request_headers, shown, contents),
            taken: taken.collect(),
            status,
            response,
            complete,
            failure: failure.map(|failure| failure.kind),
            sent: failure.is_some_and(|failure| failure.sent),
            settled,
            verdict,
            fault,
        }
    }
}

/// Methods that are recorded by name. Any other method is text of the caller.
const KNOWN: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "TRACE", "CONNECT"];

fn prefix(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

fn message(all: &HeaderMap, names: &[HeaderName], body: &[u8], contents: bool) -> Message {
    let mut headers = Vec::new();
    for name in names {
        for value in all.get_all(name) {
            let is_recorded = contents || is_plain_hint(name, value);
            headers.push((name.as_str().to_owned(), is_recorded.then(|| latin1(value.as_bytes()))));
        }
    }
    Message { headers, bytes: body.len() as u64, body: (contents && !body.is_empty()).then(|| latin1(body)) }
}

/// Whether a header is a retry hint whose value is a time, a date or a boolean, and so can hold no other text.
fn is_plain_hint(name: &HeaderName, value: &HeaderValue) -> bool {
    let number = |text: &str, digits| text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_digit());
    let date = |text: &str| httpdate::parse_http_date(text).is_ok();
    let Ok(text) = value.to_str() else { return false };
    match name.as_str() {
        "retry-after" => number(text, 9) || date(text),
        "retry-after-ms" | "x-ms-retry-after-ms" => number(text, 12),
        "x-should-retry" | "stripe-should-retry" => matches!(text, "true" | "false"),
        _ => false,
    }
}

/// Decodes ISO 8859-1: each byte is the character of the same number.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

impl RecordedVerdict {
    /// Converts a verdict; `contents`: with claim, probe, body and reason.
    pub fn of(verdict: &Verdict, contents: bool) -> Self {
        let (next, delay, status) = match &verdict.next {
            contract::Next::Deliver => (Next::Deliver, None, None),
            contract::Next::Retry(delay) => (Next::Retry, Some(*delay), None),
            contract::Next::Verify(probe) => (Next::Verify, Some(probe.delay), None),
            contract::Next::Replace(answer) => (Next::Replace, None, Some(answer.status.as_u16())),
        };
        let recorded_contents = || Contents {
            claim: verdict.claim.clone(),
            probe: match &verdict.next {
                contract::Next::Verify(probe) => Some((probe.method.to_string(), probe.path_and_query.clone())),
                _ => None,
            },
            answer: match &verdict.next {
                contract::Next::Replace(answer) => Some(latin1(&answer.body)),
                _ => None,
            },
            reason: verdict.reason.clone(),
        };
        Self {
            class: verdict.class,
            breaker: verdict.breaker,
            next,
            delay_ms: delay.map(millis),
            pause_ms: verdict.pause.map(millis),
            status,
            claims: verdict.claim.is_some(),
            contents: contents.then(recorded_contents),
        }
    }

    /// The verdict of an outcome that its status settled.
    pub(super) const SETTLED: Self = Self {
        class: Class::Applied,
        breaker: BreakerSignal::Success,
        next: Next::Deliver,
        delay_ms: None,
        pause_ms: None,
        status: None,
        claims: false,
        contents: None,
    };
}

impl Head {
    /// The head for the decisions of this runtime's generation.
    pub fn of(service: &UpstreamRuntime, contents: bool) -> Self {
        let description = service.policy.description();
        let settings = service.settings.policy_settings.as_str();
        Self {
            format: FORMAT,
            generation: service.generation,
            upstream: service.settings.name.clone(),
            policy: description.name.clone(),
            version: description.version.clone(),
            digest: service.policy.digest().map(|digest| digest.to_string()),
            contract: service.policy.contract().map(|contract| Contract::name(contract).to_owned()),
            settings: settings_digest(settings),
            contents,
            endpoints: description.endpoints.iter().map(Endpoint::of).collect(),
        }
    }
}

/// The SHA-256 of a policy's settings, in hexadecimal.
pub(super) fn settings_digest(settings: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(if settings.is_empty() { "{}" } else { settings }))
}

impl Endpoint {
    fn of(described: &contract::Endpoint) -> Self {
        let names = |headers: &[HeaderName]| headers.iter().map(ToString::to_string).collect();
        let interest = &described.interest;
        Self {
            name: described.name.clone(),
            method: described.method.as_ref().map_or("*", Method::as_str).to_owned(),
            path: described.path.clone(),
            interest: Interest {
                path: interest.path,
                request_headers: names(&interest.request_headers),
                request_body_bytes: interest.request_body_bytes as u64,
                response_headers: names(&interest.response_headers),
                response_body_bytes: interest.response_body_bytes as u64,
            },
        }
    }
}
