//! Interprets the host's response to a request. Pure.

use crate::{
    contract::{Failure, hints},
    error,
};
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use std::time::Duration;

const MAX_DETAIL_CHARS: usize = 200;

/// The meaning of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseKind {
    /// Applied. The number is the hospital's id, or how many hospitals became active.
    Applied(u64),
    /// The upstream rejected it permanently, or the host proved that it has no effect.
    Rejected(String),
    /// Nothing was sent this time, or it had no effect. A repetition may succeed.
    Refused {
        /// The wait that the host asks for.
        after: Option<Duration>,
        /// The host's reason.
        why: String,
    },
    /// Nothing was sent this time, and a repetition cannot succeed.
    Hopeless(String),
    /// An earlier request with the key is still running. The host may name a wait.
    InFlight(Option<Duration>),
    /// The connection to the host was lost after the request may have been sent.
    Lost(String),
    /// The effect is unknown.
    Unknown(String),
}

/// Interprets a response. `number` names the field of a successful response with the result: `id` or `activated_count`.
pub fn read(number: &str, status: StatusCode, headers: &HeaderMap, body: &[u8], now_unix_ms: u64) -> ResponseKind {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let after = hints::retry_after(headers, now_unix_ms);
    let detail = detail(status, json.as_ref());
    if status.is_success() {
        let answer = json.as_ref().and_then(|json| json[number].as_u64());
        return answer.map_or_else(
            || ResponseKind::Unknown(format!("{status}, but no {number} in the answer")),
            ResponseKind::Applied,
        );
    }
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let nothing_sent = value(error::SENT.as_str()) == Some("no");
    if value(header::CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/problem+json")) {
        let kind = json.as_ref().and_then(|json| json["type"].as_str()).unwrap_or_default();
        if matches!(value(error::VERDICT.as_str()), Some("not-applied" | "throttled")) {
            return ResponseKind::Refused { after, why: detail };
        }
        return problem(kind.rsplit([':', '/']).next().unwrap_or_default(), nothing_sent, after, detail);
    }
    let rejected = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
    match value(error::VERDICT.as_str()) {
        Some("rejected") => ResponseKind::Rejected(detail),
        Some("not-applied" | "throttled") => ResponseKind::Refused { after, why: detail },
        None if rejected => ResponseKind::Rejected(detail),
        None if matches!(status.as_u16(), 425 | 429) => ResponseKind::Refused { after, why: detail },
        _ => ResponseKind::Unknown(detail),
    }
}

/// Interprets a refusal by the host itself.
fn problem(kind: &str, nothing_sent: bool, after: Option<Duration>, detail: String) -> ResponseKind {
    match kind {
        "in-flight" => ResponseKind::InFlight(after),
        "not-in-effect" => ResponseKind::Rejected(detail),
        "no-upstream" | "no-endpoint" | "path-not-plain" | "deadline-malformed" | "key-malformed" | "key-reused"
        | "body-too-large" => ResponseKind::Hopeless(detail),
        _ if nothing_sent => ResponseKind::Refused { after, why: detail },
        _ => ResponseKind::Unknown(detail),
    }
}

/// Interprets a failure without a response.
pub fn failed(failure: Failure) -> ResponseKind {
    let why = format!("no answer from the host ({})", failure.kind.name());
    if failure.sent { ResponseKind::Lost(why) } else { ResponseKind::Refused { after: None, why } }
}

/// Whether a Triage host sent the response: each of its responses has a `triage-` header.
pub fn from_triage(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("triage-"))
}

/// The upstream's message in one short printable line. Validation errors keep location and message, but not the input.
fn detail(status: StatusCode, json: Option<&Value>) -> String {
    let text = json.and_then(|json| json.get("detail").or_else(|| json.get("error")).or_else(|| json.get("title")));
    let words = match text {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(complaints)) => complaints.iter().filter_map(complaint).collect::<Vec<_>>().join("; "),
        _ => String::new(),
    };
    let words = if words.is_empty() { format!("status {}", status.as_u16()) } else { words };
    words.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_DETAIL_CHARS).collect()
}

fn complaint(complaint: &Value) -> Option<String> {
    let place = complaint["loc"].as_array()?.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(".");
    Some(format!("{place}: {}", complaint["msg"].as_str()?))
}
