//! The candidate's inputs from a recorded decision, and which of them the log lacks.

use super::{
    format::{Decision, Interest, InvalidLine, Message},
    report::Missing,
};
use crate::policy::contract::{self, Attempt, Effect, Failure, Outcome};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::time::Duration;

/// The inputs of a decision, owned.
#[derive(Debug)]
pub(super) struct Hand {
    request_headers: HeaderMap,
    request_body: Vec<u8>,
    response_headers: HeaderMap,
    response_body: Vec<u8>,
    taken: Vec<String>,
    path: String,
    outcome: InputKind,
    effect: Effect,
}

#[derive(Debug, Clone, Copy)]
enum InputKind {
    Answer { status: StatusCode, complete: bool },
    Failure(Failure),
}

impl Hand {
    /// Converts a recorded decision's inputs.
    ///
    /// # Errors
    /// [`InvalidLine`] where a value is invalid.
    pub(super) fn of(decision: &Decision<'_>) -> Result<Self, InvalidLine> {
        let response_body = body(&decision.response)?;
        let outcome = match (decision.status, decision.failure) {
            (Some(status), _) => InputKind::Answer {
                status: StatusCode::from_u16(status)
                    .map_err(|_| InvalidLine::Value("the status is not an HTTP status"))?,
                // A body that was not recorded is not complete.
                complete: decision.complete && response_body.len() as u64 == decision.response.bytes,
            },
            (None, Some(kind)) => InputKind::Failure(Failure::new(kind, decision.sent)),
            (None, None) => return Err(InvalidLine::Value("an outcome is either a status or a failure")),
        };
        Ok(Self {
            request_headers: headers(&decision.request)?,
            request_body: body(&decision.request)?,
            response_headers: headers(&decision.response)?,
            response_body,
            taken: decision.taken.iter().flatten().cloned().collect(),
            path: decision.path.as_deref().unwrap_or_default().to_owned(),
            outcome,
            effect: decision.effect,
        })
    }

    pub(super) fn effect(&self, described: Effect) -> Effect {
        self.effect.max(described)
    }

    /// Status of the response, if there was one.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self.outcome {
            InputKind::Answer { status, .. } => Some(status),
            InputKind::Failure(_) => None,
        }
    }

    pub(super) fn attempt<'a>(
        &'a self,
        decision: &Decision<'_>,
        method: &'a Method,
        endpoint: usize,
        described: Effect,
    ) -> Attempt<'a> {
        Attempt {
            endpoint,
            method,
            effect: self.effect(described),
            purpose: decision.purpose,
            number: decision.number,
            prior_unknown: decision.prior_unknown,
            sent_ago: decision.sent_ms_ago.map(Duration::from_millis),
            elapsed: Duration::from_millis(decision.elapsed_ms),
            remaining: Duration::from_millis(decision.remaining_ms),
            previous_delay: Duration::from_millis(decision.previous_delay_ms),
            random: decision.random,
            now_unix_ms: decision.now_unix_ms,
            keyed: decision.keyed,
            path: &self.path,
            request_headers: &self.request_headers,
            request_body: &self.request_body,
            taken: &self.taken,
        }
    }

    pub(super) fn outcome(&self) -> Outcome<'_> {
        match self.outcome {
            InputKind::Answer { status, complete } => {
                Outcome::Response { status, headers: &self.response_headers, body: &self.response_body, complete }
            }
            InputKind::Failure(failure) => Outcome::Failure(failure),
        }
    }
}

/// The first input that the candidate reads and the log lacks; `None`: the replay is faithful.
pub(super) fn missing(
    decision: &Decision<'_>,
    recorded: &Interest,
    wanted: &contract::Interest,
    settles: bool,
) -> Option<Missing> {
    if settles {
        return None;
    }
    let path = || (wanted.path && decision.path.is_none()).then_some(Missing::Path);
    let claims = || decision.taken.iter().any(Option::is_none).then_some(Missing::Claims);
    let request = || {
        headers_missing(&decision.request, &recorded.request_headers, &wanted.request_headers).or_else(|| {
            body_missing(&decision.request, recorded.request_body_bytes, wanted.request_body_bytes as u64, false)
        })
    };
    let response = || {
        decision.status?;
        headers_missing(&decision.response, &recorded.response_headers, &wanted.response_headers).or_else(|| {
            let (had, wanted) = (recorded.response_body_bytes, wanted.response_body_bytes as u64);
            body_missing(&decision.response, had, wanted, decision.complete)
        })
    };
    path().or_else(request).or_else(response).or_else(claims)
}

fn headers_missing(shown: &Message, recorded: &[String], wanted: &[HeaderName]) -> Option<Missing> {
    wanted.iter().find_map(|name| {
        let left_out = || shown.headers.iter().any(|(own, value)| own == name.as_str() && value.is_none());
        if recorded.iter().any(|own| own == name.as_str()) {
            left_out().then_some(Missing::Headers)
        } else {
            Some(Missing::Unread)
        }
    })
}

/// `recorded` and `wanted`: bytes that the two policies read. `complete`: the recorded policy was given the whole body.
fn body_missing(shown: &Message, recorded: u64, wanted: u64, complete: bool) -> Option<Missing> {
    let is_enough = wanted <= shown.bytes || complete || shown.bytes < recorded;
    if wanted == 0 {
        None
    } else if !is_enough {
        Some(Missing::Unread)
    } else {
        (shown.bytes > 0 && shown.body.is_none()).then_some(Missing::Bodies)
    }
}

fn headers(message: &Message) -> Result<HeaderMap, InvalidLine> {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        let Some(value) = value else { continue };
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| InvalidLine::Value("a header name is not valid"))?;
        let value = HeaderValue::from_bytes(&bytes(value)?).map_err(|_| {
            InvalidLine::Value(
                "a header value is not \
                                                                                            valid",
            )
        })?;
        headers.try_append(name, value).map_err(|_| InvalidLine::TooMany("headers"))?;
    }
    Ok(headers)
}

fn body(message: &Message) -> Result<Vec<u8>, InvalidLine> {
    message.body.as_deref().map_or_else(|| Ok(Vec::new()), bytes)
}

/// Encodes text in ISO 8859-1.
fn bytes(text: &str) -> Result<Vec<u8>, InvalidLine> {
    let byte = |character| {
        u8::try_from(u32::from(character)).map_err(|_| {
            InvalidLine::Value(
                "a value has a character that \
                                                                                       is not a byte",
            )
        })
    };
    if text.is_ascii() { Ok(text.as_bytes().to_vec()) } else { text.chars().map(byte).collect() }
}
