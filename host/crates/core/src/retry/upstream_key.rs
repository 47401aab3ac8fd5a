//! The upstream's own idempotency key: when it allows another send, and what an answer says of it.
//!
//! An upstream that honours idempotency keys executes a request once, however often it gets the request with the same key, as long
//! as it keeps the key. A write whose effect is unknown may therefore be sent again with its key. The operator grants this per
//! endpoint (`upstream_key`); the policy has no say in it.

use http::{HeaderMap, HeaderName, StatusCode};
use std::time::Duration;

/// The number of bytes of a response's body that are searched for a marker: enough for a problem document.
pub const BODY_BYTES: usize = 4096;

/// Headers by which upstreams mark a replayed response: Stripe's name, and one that other APIs use.
const REPLAY_HEADERS: [&str; 2] = ["idempotent-replayed", "idempotency-replayed"];

/// Markers in the body of a 409 which say that another request with the key is still in progress: Stripe's error code, words of the title
/// in draft-ietf-httpapi-idempotency-key-header, and Triage's own problem type.
const IN_PROGRESS_WORDS: [&str; 5] =
    ["idempotency_key_in_use", "outstanding", "in progress", "in-progress", "urn:triage:problem:in-flight"];

/// The error type of Stripe's API v1 for a key that was used with other parameters.
const MISMATCH_WORD: &str = "idempotency_error";

/// How the upstream of an endpoint honours keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The request header that carries the key.
    pub header: HeaderName,
    /// How long the upstream keeps a key, counted from the first request with it. Default 24 h, as payment APIs have it.
    pub valid_for: Duration,
    /// Whether the host makes a key for a request whose caller sends none. Default true.
    pub generate: bool,
}

/// The information about the key in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyAnswer {
    /// Nothing.
    Silent,
    /// A request with the key is still in progress.
    InProgress,
    /// 409 without a word about the key: a conflict of the request itself, or a request with the key that is in progress.
    Conflict,
    /// The key was used with other parameters.
    Mismatch,
    /// It is the stored answer to the first request with the key.
    Replayed,
}

impl KeyAnswer {
    /// Whether the body of an answer with this status is searched.
    pub fn is_in_body(status: StatusCode) -> bool {
        matches!(status, StatusCode::BAD_REQUEST | StatusCode::CONFLICT)
    }

    /// Reads an answer. `body` is its beginning; bytes beyond [`BODY_BYTES`] are not searched.
    ///
    /// ```
    /// # use triage_core::retry::upstream_key::KeyAnswer;
    /// let stripe = br#"{"error": {"code": "idempotency_key_in_use", "type": "invalid_request_error"}}"#;
    /// let headers = http::HeaderMap::new();
    /// assert_eq!(KeyAnswer::of(http::StatusCode::CONFLICT, &headers, stripe), KeyAnswer::InProgress);
    /// ```
    pub fn of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let is_true =
            |name: &str| headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
        if REPLAY_HEADERS.into_iter().any(is_true) {
            return Self::Replayed;
        }
        let says = |word: &str| contains(&body[..body.len().min(BODY_BYTES)], word);
        match status {
            // By the draft a mismatch, elsewhere a refusal by validation. Both end the request.
            StatusCode::UNPROCESSABLE_ENTITY => Self::Mismatch,
            StatusCode::BAD_REQUEST if says(MISMATCH_WORD) => Self::Mismatch,
            StatusCode::CONFLICT if says("idempoten") && IN_PROGRESS_WORDS.iter().any(|word| says(word)) => {
                Self::InProgress
            }
            StatusCode::CONFLICT => Self::Conflict,
            _ => Self::Silent,
        }
    }

    /// Whether the upstream says that it still executes the request. A bare 409 says so only after a send of which nothing is
    /// known: otherwise it is an answer to the request itself.
    pub fn is_pending(self, unsettled: bool) -> bool {
        self == Self::InProgress || (self == Self::Conflict && unsettled)
    }
}

/// Whether a text contains a word, in upper or lower case.
fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

/// The facts about the key that the clamp depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFacts {
    /// The information about the key in the response that is classified.
    pub answer: KeyAnswer,
    /// The time since the first send that may have reached the upstream with the key; none before it.
    pub first_sent_ago: Option<Duration>,
    /// How long the upstream keeps the key from then on.
    pub valid_for: Duration,
    /// Whether each send that may have reached the upstream carried this key.
    pub on_every_send: bool,
    /// Attempts so far that were answered "in progress". They do not count against the attempts that a request may make.
    pub in_progress: u32,
}

impl KeyFacts {
    /// Whether the upstream still takes a send that begins after `delay` and arrives within `needs` for the same request.
    pub fn allows(&self, delay: Duration, needs: Duration) -> bool {
        self.on_every_send
            && self.first_sent_ago.is_some_and(|ago| ago.saturating_add(delay).saturating_add(needs) < self.valid_for)
    }

    /// Whether an answer that arrives now is one to all sends together.
    pub fn answers_for_all(&self) -> bool {
        self.allows(Duration::ZERO, Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::HeaderValue;

    #[test]
    fn each_response_has_its_key_answer() {
        let draft = r#"{"title": "A request is outstanding for this Idempotency-Key"}"#;
        let triage =
            r#"{"type": "urn:triage:problem:in-flight", "detail": "a request with this idempotency key is under way"}"#;
        let padded = format!("{}idempotency_key_in_use", " ".repeat(BODY_BYTES));
        for (status, replayed, body, expected) in [
            (200, None, "", KeyAnswer::Silent),
            (500, None, "idempotency_key_in_use", KeyAnswer::Silent),
            (409, None, "already there", KeyAnswer::Conflict),
            (409, None, "import in progress", KeyAnswer::Conflict),
            (409, None, "IDEMPOTENCY_KEY_IN_USE", KeyAnswer::InProgress),
            (409, None, draft, KeyAnswer::InProgress),
            (409, None, triage, KeyAnswer::InProgress),
            (409, None, &padded, KeyAnswer::Conflict),
            (409, Some("true"), "idempotency_key_in_use", KeyAnswer::Replayed),
            (400, None, r#"{"error": {"type": "idempotency_error"}}"#, KeyAnswer::Mismatch),
            (400, None, r#"{"error": {"type": "invalid_request_error"}}"#, KeyAnswer::Silent),
            (422, None, "", KeyAnswer::Mismatch),
            (500, Some("true"), "", KeyAnswer::Replayed),
            (500, Some("false"), "", KeyAnswer::Silent),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = replayed {
                headers.insert("idempotent-replayed", HeaderValue::from_static(value));
            }
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(KeyAnswer::of(status, &headers, body.as_bytes()), expected, "{status} {replayed:?} {body:.60}");
        }
    }

    #[test]
    fn a_key_is_good_until_its_last_send_would_arrive_too_late() {
        let seconds = Duration::from_secs;
        let facts = KeyFacts {
            answer: KeyAnswer::Silent,
            first_sent_ago: Some(seconds(90)),
            valid_for: seconds(100),
            on_every_send: true,
            in_progress: 0,
        };
        assert!(facts.allows(seconds(4), seconds(5)));
        assert!(!facts.allows(seconds(5), seconds(5)), "it would arrive when the key is forgotten");
        assert!(!facts.allows(Duration::MAX, seconds(5)));
        assert!(
            !KeyFacts { first_sent_ago: None, ..facts }.allows(Duration::ZERO, Duration::ZERO),
            "never sent with it"
        );
        assert!(!KeyFacts { on_every_send: false, ..facts }.allows(Duration::ZERO, Duration::ZERO), "or without it");
    }
}
