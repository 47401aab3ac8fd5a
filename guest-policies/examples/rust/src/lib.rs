//! parcels: what went wrong, and whether to try again.

use triage_policy::{
    Attempt, Description, Effect, Outcome, Policy, Verdict, description, endpoint,
    retry::{asked_ms, hint_headers},
    status::{is_elsewhere, leaves_unknown},
    verdict::{BreakerSignal, Class},
};

/// The wait where the upstream asks for none.
const WAIT_MS: u64 = 2000;

struct Mine;

impl Policy for Mine {
    /// The table `policy_settings` of the configuration; any type with `Deserialize` and `Default`.
    type Settings = ();

    fn describe() -> Description {
        let mut any = endpoint("any", "*", "/{*rest}");
        // All that `decide` sees of an answer besides its status.
        any.interest.response_headers = hint_headers();
        any.interest.response_body_bytes = 200;
        description("parcels", env!("CARGO_PKG_VERSION"), vec![any])
    }

    fn decide(_settings: &(), attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let response = match outcome {
            Outcome::Response(response) => response,
            Outcome::Failure(failure) if !failure.sent => {
                return Verdict::retry(Class::NotApplied, WAIT_MS, "nothing was sent");
            }
            Outcome::Failure(_) => return in_doubt(attempt, WAIT_MS),
        };
        let asked = asked_ms(&response.headers, attempt.now_unix_ms);
        let delay_ms = asked.unwrap_or(WAIT_MS);
        let verdict = match response.status {
            // An API that answers 200 while it still works on it.
            200 if response.body.starts_with(b"PENDING") => {
                Verdict::retry(Class::NotApplied, WAIT_MS, "pending").breaker(BreakerSignal::Success)
            }
            redirect if is_elsewhere(redirect) && attempt.effect != Effect::Safe => {
                Verdict::deliver(Class::NotApplied, "to be sent elsewhere")
            }
            200..=399 => Verdict::deliver(Class::Applied, "success"),
            425 => Verdict::retry(Class::NotApplied, delay_ms, "too early").breaker(BreakerSignal::Ignore),
            429 => Verdict::throttled(asked.unwrap_or(5000), Some(asked.unwrap_or(5000))),
            odd if leaves_unknown(odd) => in_doubt(attempt, delay_ms),
            _ => Verdict::deliver(Class::Rejected, "refused"),
        };
        verdict.hinted(attempt, &response.headers, delay_ms)
    }
}

/// A write that may have been done is never sent again blindly.
fn in_doubt(attempt: &Attempt, delay_ms: u64) -> Verdict {
    match attempt.effect {
        Effect::Unsafe => Verdict::deliver(Class::Unknown, "it may have been done"),
        _ => Verdict::retry(Class::Unknown, delay_ms, "no usable answer"),
    }
}

triage_policy::export!(Mine);

/// `cargo test` runs these on this machine, in seconds and without a component.
#[cfg(test)]
mod tests {
    use super::*;
    use triage_policy::{
        FailureKind, Next,
        testing::{attempt, failure, response},
    };

    #[test]
    fn a_write_that_may_have_been_done_is_not_sent_again() {
        for outcome in [response(503, ""), failure(FailureKind::Reset, true)] {
            let verdict = Mine::decide(&(), &attempt(Effect::Unsafe), &outcome);
            assert!(matches!(verdict.next, Next::Deliver), "{outcome:?}");
            assert_eq!(verdict.class, Class::Unknown);
        }
    }

    #[test]
    fn a_read_is_sent_again() {
        let verdict = Mine::decide(&(), &attempt(Effect::Safe), &response(503, ""));
        assert!(matches!(verdict.next, Next::Retry(WAIT_MS)));
    }
}
