//! Attempts and outcomes for the unit tests of a policy: `cargo test` runs them on this machine, without a component.
//!
//! ```
//! use triage_policy::{Effect, testing::{attempt, response}};
//!
//! let attempt = triage_policy::Attempt { number: 2, ..attempt(Effect::Unsafe) };
//! let outcome = response(503, "");
//! # let _ = (attempt, outcome);
//! ```

use crate::{Attempt, Effect, Failure, FailureKind, Header, Outcome, Purpose, Response};

/// The first attempt of a request without a key, to the first endpoint, at 2026-01-01T00:00:00Z.
#[must_use]
pub fn attempt(effect: Effect) -> Attempt {
    Attempt {
        endpoint: 0,
        effect,
        purpose: Purpose::Request,
        number: 1,
        prior_unknown: false,
        sent_ms_ago: Some(20),
        elapsed_ms: 20,
        remaining_ms: 600_000,
        previous_delay_ms: 0,
        random: 0,
        now_unix_ms: 1_767_225_600_000,
        keyed: false,
        path: String::new(),
        request_headers: Vec::new(),
        request_body: Vec::new(),
        taken: Vec::new(),
    }
}

/// An answer without headers.
#[must_use]
pub fn response(status: u16, body: &str) -> Outcome {
    response_with(status, &[], body)
}

/// An answer with headers; names are in lower case.
#[must_use]
pub fn response_with(status: u16, headers: &[(&str, &str)], body: &str) -> Outcome {
    let headers = headers.iter().map(|(name, value)| Header { name: (*name).to_owned(), value: (*value).to_owned() });
    Outcome::Response(Response { status, headers: headers.collect(), body: body.into(), complete: true })
}

/// No answer. `sent`: whether bytes of the request may have reached the upstream.
#[must_use]
pub fn failure(kind: FailureKind, sent: bool) -> Outcome {
    Outcome::Failure(Failure { kind, sent })
}
