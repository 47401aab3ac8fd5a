//! HL7 FHIR R4/R5 REST: the status first, then the worst issue of an `OperationOutcome`.

mod outcome;

use outcome::Issue;
use serde::Deserialize;
use triage_policy::{
    Attempt, Description, Effect, Endpoint, Failure, Outcome, Policy, Response, Verdict, description, endpoint, header,
    retry::{Wait, asked_ms},
    verdict::{BreakerSignal, Class},
};

/// In the order of the description.
const METHODS: [(&str, &str, &str); 6] = [
    ("read", "*", "/{*rest}"),
    ("create", "POST", "/{*rest}"),
    ("update", "PUT", "/{*rest}"),
    ("patch", "PATCH", "/{*rest}"),
    ("delete", "DELETE", "/{*rest}"),
    ("bundle", "POST", "/"),
];
const CREATE: u32 = 1;
const UPDATE: u32 = 2;
const PATCH: u32 = 3;
const DELETE: u32 = 4;
const BUNDLE: u32 = 5;

/// A transaction bundle that conflicts is sent at most so often.
const BUNDLE_ATTEMPTS: u32 = 3;

/// What an operator may set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Waits between attempts, as tenacity's `wait_*`.
    wait: Wait,
}

/// Table 2 of the hospital APIs' facts.
pub struct Fhir;

impl Policy for Fhir {
    type Settings = Settings;

    fn describe() -> Description {
        let endpoints = METHODS.iter().map(|(name, method, path)| described(name, method, path)).collect();
        description("fhir", env!("CARGO_PKG_VERSION"), endpoints)
    }

    fn decide(settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let judging = Judging { settings, attempt };
        match outcome {
            Outcome::Failure(Failure { sent: false, .. }) => {
                Verdict::retry(Class::NotApplied, settings.wait.ms(attempt), "nothing was sent")
            }
            Outcome::Failure(_) => judging.in_doubt(None, "no answer"),
            Outcome::Response(response) => judging.response(response),
        }
    }
}

fn described(name: &str, method: &str, path: &str) -> Endpoint {
    let mut endpoint = endpoint(name, method, path);
    endpoint.interest.request_headers = vec!["if-none-exist".to_owned(), "if-match".to_owned()];
    endpoint.interest.response_headers =
        vec!["retry-after".to_owned(), "x-ms-retry-after-ms".to_owned(), "content-location".to_owned()];
    endpoint.interest.response_body_bytes = 64 << 10;
    if endpoint.effect != Effect::Unsafe {
        endpoint.settled = vec![triage_policy::StatusRange { first: 200, last: 299 }];
    }
    endpoint
}

struct Judging<'a> {
    settings: &'a Settings,
    attempt: &'a Attempt,
}

impl Judging<'_> {
    fn response(&self, response: &Response) -> Verdict {
        let asked = asked_ms(&response.headers, self.attempt.now_unix_ms);
        let wait = || asked.unwrap_or_else(|| self.settings.wait.ms(self.attempt));
        let issue = Issue::worst(response);
        let rejected = |reason| Verdict::deliver(Class::Rejected, reason);
        match (response.status, issue) {
            (200, _) if self.is_conditional() => Verdict::deliver(Class::AlreadyApplied, "one match existed"),
            (200..=399, _) => Verdict::deliver(Class::Applied, "success"),
            (429, _) | (_, Some(Issue::Throttled)) => Verdict::throttled(wait(), asked),
            (401, _) | (_, Some(Issue::Login)) => {
                Verdict::deliver(Class::NotApplied, "the caller must log in again").breaker(BreakerSignal::Ignore)
            }
            (425, _) => self.again(wait(), "too early"),
            (423, _) | (409, Some(Issue::Lock)) => self.again(wait(), "locked"),
            (409 | 412, Some(Issue::Duplicate | Issue::MultipleMatches)) => rejected("a duplicate"),
            (409, _) if self.attempt.endpoint == BUNDLE && self.attempt.number < BUNDLE_ATTEMPTS => {
                self.again(wait(), "the transaction was rolled back")
            }
            (409, _) if self.attempt.endpoint == BUNDLE => {
                Verdict::deliver(Class::NotApplied, "the transaction was rolled back").breaker(BreakerSignal::Ignore)
            }
            (409 | 412 | 428, _) if self.is_write() && self.attempt.prior_unknown => {
                Verdict::deliver(Class::Unknown, "the version may have changed by our own write")
                    .breaker(BreakerSignal::Success)
            }
            (409 | 412 | 428, _) => rejected("another version; read it again"),
            (404 | 410, _) if self.attempt.endpoint == DELETE => Verdict::deliver(Class::AlreadyApplied, "gone"),
            (408, _) => self.in_doubt(asked, "the server gave up waiting"),
            (500, Some(Issue::Final)) | (502..=504, Some(Issue::Final)) => rejected("a final issue"),
            (500 | 502..=504, _) => self.in_doubt(asked, "the server is in trouble"),
            (400..=499, Some(Issue::Transient)) => self.in_doubt(asked, "a transient issue"),
            (505..=599, _) => Verdict::deliver(Class::Unknown, "an odd status"),
            _ => rejected("refused"),
        }
    }

    fn again(&self, wait_ms: u64, reason: &str) -> Verdict {
        Verdict::retry(Class::NotApplied, wait_ms, reason).breaker(BreakerSignal::Ignore)
    }

    /// It may have taken effect: harmless to repeat where the method or the condition says so.
    fn in_doubt(&self, asked: Option<u64>, reason: &str) -> Verdict {
        if self.attempt.effect != Effect::Unsafe || self.is_conditional() {
            let wait = asked.unwrap_or_else(|| self.settings.wait.ms(self.attempt));
            return Verdict::retry(Class::Unknown, wait, reason);
        }
        Verdict::deliver(Class::Unknown, reason)
    }

    /// A conditional create: the server itself makes sure that there is one.
    fn is_conditional(&self) -> bool {
        self.attempt.endpoint == CREATE && header(&self.attempt.request_headers, "if-none-exist").is_some()
    }

    fn is_write(&self) -> bool {
        matches!(self.attempt.endpoint, UPDATE | PATCH)
    }
}

triage_policy::export!(Fhir);
