//! HL7 FHIR R4/R5 REST: the status first, then the worst issue of an `OperationOutcome`.
//!
//! A conditional create, update or delete whose effect is unknown is verified by its own condition ([`conditional`]), never sent
//! again on trust: servers that race make several resources of two writes with one condition. A conditional patch is a patch like
//! any other: what it did is unknown, and it is not sent again.

mod bundle;
mod conditional;
mod endpoints;
pub mod outcome;
mod settings;
mod update;
mod xml;

pub use settings::{CommitWithin, Settings};

use conditional::Condition;
use endpoints::Call;
use outcome::Issue;
use triage_policy::{
    Attempt, Description, Effect, Failure, Outcome, Policy, Purpose, Response, Verdict, description,
    retry::asked_ms,
    status,
    verdict::{BreakerSignal, Class},
};

/// A transaction bundle that conflicts is sent at most so often.
const BUNDLE_ATTEMPTS: u32 = 3;

/// Table 2 of the hospital APIs' facts.
pub struct Fhir;

impl Policy for Fhir {
    type Settings = Settings;

    fn describe() -> Description {
        Self::describe_configured(&Settings::default())
    }

    fn describe_configured(settings: &Settings) -> Description {
        description("fhir", env!("CARGO_PKG_VERSION"), endpoints::all(settings))
    }

    fn decide(settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let call = Call::of(attempt);
        let condition = Condition::of(call, attempt);
        if attempt.purpose == Purpose::Probe {
            return match condition {
                Some(condition) => condition.verified(settings, attempt, outcome),
                None => Verdict::deliver(Class::Unknown, "only a condition can be verified"),
            };
        }
        let judging = Judging { settings, attempt, call, condition };
        match outcome {
            Outcome::Failure(Failure { sent: false, .. }) => {
                Verdict::retry(Class::NotApplied, settings.wait.ms(attempt), "nothing was sent")
            }
            Outcome::Failure(_) => judging.in_doubt(None, "no answer"),
            Outcome::Response(response) => judging.response(response),
        }
    }
}

struct Judging<'a> {
    settings: &'a Settings,
    attempt: &'a Attempt,
    call: Call,
    /// The condition of a conditional create, update or delete.
    condition: Option<Condition>,
}

impl Judging<'_> {
    fn response(&self, response: &Response) -> Verdict {
        let asked = asked_ms(&response.headers, self.attempt.now_unix_ms);
        let wait = asked.unwrap_or_else(|| self.settings.wait.ms(self.attempt));
        self.by_status(response, asked).hinted(self.attempt, &response.headers, wait)
    }

    fn by_status(&self, response: &Response, asked: Option<u64>) -> Verdict {
        match response.status {
            200 if self.call == Call::Create && self.condition.is_some() => {
                Verdict::deliver(Class::AlreadyApplied, "one match existed")
            }
            status if status::is_elsewhere(status) && !matches!(self.call, Call::Read | Call::Search) => {
                Verdict::deliver(Class::NotApplied, "to be sent elsewhere")
            }
            200..=399 => Verdict::deliver(Class::Applied, "success"),
            501 | 505 | 511 => Verdict::deliver(Class::Rejected, "the server does not do that"),
            // Whatever the issue says: an edge before the server may have written it.
            status if status::leaves_unknown(status) && !self.is_repeatable() => {
                self.in_doubt(asked, "the server is in trouble, or gave up")
            }
            400..=599 => self.refused(response.status, Issue::worst(response), asked),
            _ => self.in_doubt(asked, "an odd status"),
        }
    }

    fn refused(&self, status: u16, issue: Option<Issue>, asked: Option<u64>) -> Verdict {
        let wait = || asked.unwrap_or_else(|| self.settings.wait.ms(self.attempt));
        let rejected = |reason| Verdict::deliver(Class::Rejected, reason);
        match (status, issue) {
            (429, _) | (_, Some(Issue::Throttled)) => Verdict::throttled(wait(), asked),
            (401, _) | (_, Some(Issue::Login)) => {
                Verdict::deliver(Class::NotApplied, "the caller must log in again").breaker(BreakerSignal::Ignore)
            }
            (425, _) => self.again(wait(), "too early"),
            (423, _) | (409, Some(Issue::Lock)) => self.again(wait(), "locked"),
            // The duplicate, or the other version, may be our own.
            (409 | 412, _) if self.attempt.prior_unknown && self.condition.is_some() => {
                self.in_doubt(asked, "it may be by our own write").breaker(BreakerSignal::Success)
            }
            (409 | 412, Some(Issue::Duplicate | Issue::MultipleMatches)) => rejected("a duplicate"),
            (409, _) if self.call == Call::Bundle && self.attempt.number < BUNDLE_ATTEMPTS => {
                self.again(wait(), "the transaction was rolled back")
            }
            (409, _) if self.call == Call::Bundle => {
                Verdict::deliver(Class::NotApplied, "the transaction was rolled back").breaker(BreakerSignal::Ignore)
            }
            (409 | 412 | 428, _) if self.is_versioned() && self.attempt.prior_unknown => {
                Verdict::deliver(Class::Unknown, "the version may have changed by our own write")
                    .breaker(BreakerSignal::Success)
            }
            (409 | 412 | 428, _) => rejected("another version; read it again"),
            (404 | 410, _) if matches!(self.call, Call::Delete | Call::ConditionalDelete) => {
                Verdict::deliver(Class::AlreadyApplied, "gone")
            }
            (408 | 460 | 499, _) => self.in_doubt(asked, "the server gave up waiting"),
            (500..=599, Some(Issue::Final)) if matches!(self.call, Call::Read | Call::Search) => {
                rejected("a final issue")
            }
            (500..=599, Some(Issue::Final)) => Verdict::deliver(Class::Unknown, "a final issue of a server in trouble"),
            (500..=599, _) => self.in_doubt(asked, "the server is in trouble"),
            (_, Some(Issue::Transient)) => self.in_doubt(asked, "a transient issue"),
            _ => rejected("refused"),
        }
    }

    fn again(&self, wait_ms: u64, reason: &str) -> Verdict {
        Verdict::retry(Class::NotApplied, wait_ms, reason).breaker(BreakerSignal::Ignore)
    }

    /// The request may have taken effect: a condition is verified, and what is harmless to repeat is sent again.
    fn in_doubt(&self, asked: Option<u64>, reason: &str) -> Verdict {
        if let Some(condition) = &self.condition {
            return condition.verify(self.settings, self.attempt, asked, reason).breaker(BreakerSignal::Failure);
        }
        if self.is_repeatable() {
            let wait = asked.unwrap_or_else(|| self.settings.wait.ms(self.attempt));
            return Verdict::retry(Class::Unknown, wait, reason);
        }
        Verdict::deliver(Class::Unknown, reason)
    }

    /// Whether the request may be sent twice. The host counts a search by POST as a write unless it trusts this policy's word.
    fn is_repeatable(&self) -> bool {
        match self.call {
            Call::Search => true,
            Call::Export | Call::ConditionalUpdate | Call::ConditionalDelete => false,
            _ => self.attempt.effect != Effect::Unsafe,
        }
    }

    fn is_versioned(&self) -> bool {
        matches!(self.call, Call::Update | Call::ConditionalUpdate | Call::Patch)
    }
}

triage_policy::export!(Fhir);
