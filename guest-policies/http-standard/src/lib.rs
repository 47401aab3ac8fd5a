//! The default policy: RFC 9110 semantics, for any API.

use serde::Deserialize;
use triage_policy::{
    Attempt, Description, Effect, Failure, Outcome, Policy, StatusRange, Verdict, description, endpoint,
    retry::{Wait, asked_ms, hint_headers},
    status,
    verdict::{BreakerSignal, Class},
};

/// What an operator may set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Waits between attempts, as tenacity's `wait_*`.
    wait: Wait,
    /// Stop after so many attempts, as `stop_after_attempt`; the host's own ceiling holds too.
    stop_after_attempt: Option<u32>,
    /// Stop once so many seconds have passed, as `stop_after_delay`.
    stop_after_delay: Option<f64>,
    /// Do not start an attempt that would begin later than this, in seconds, as `stop_before_delay`.
    stop_before_delay: Option<f64>,
    /// Further statuses that are retried where the effect allows it.
    retry_statuses: Vec<u16>,
}

/// The index of the endpoint for DELETE.
const DELETE: u32 = 0;

/// RFC 9110.
pub struct HttpStandard;

impl Policy for HttpStandard {
    type Settings = Settings;

    fn describe() -> Description {
        // A 404 means something else to a DELETE, so that it is an endpoint of its own.
        let endpoints = [("delete", "DELETE"), ("any", "*")].map(|(name, method)| {
            let mut endpoint = endpoint(name, method, "/{*rest}");
            endpoint.interest.response_headers = hint_headers();
            // 307 and 308 are judged: a PUT or DELETE that is to be sent elsewhere was not applied here.
            endpoint.settled = vec![StatusRange { first: 200, last: 306 }, StatusRange { first: 309, last: 399 }];
            endpoint
        });
        description("http-standard", env!("CARGO_PKG_VERSION"), endpoints.into())
    }

    fn decide(settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let verdict = judge(settings, attempt, outcome);
        if stopped(settings, attempt, &verdict) {
            return Verdict { next: triage_policy::Next::Deliver, ..verdict };
        }
        verdict
    }
}

fn judge(settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
    let wait = || settings.wait.ms(attempt);
    let response = match outcome {
        Outcome::Failure(Failure { sent: false, .. }) => {
            return Verdict::retry(Class::NotApplied, wait(), "nothing was sent");
        }
        Outcome::Failure(_) => return unknown(attempt, wait(), "no answer"),
        Outcome::Response(response) => response,
    };
    let delay = asked_ms(&response.headers, attempt.now_unix_ms);
    let verdict = match response.status {
        redirect if status::is_elsewhere(redirect) && attempt.effect != Effect::Safe => {
            Verdict::deliver(Class::NotApplied, "to be sent elsewhere")
        }
        200..=399 => Verdict::deliver(Class::Applied, "success"),
        // The first DELETE, whose answer was lost, may have done it.
        404 if attempt.prior_unknown && attempt.endpoint == DELETE => {
            Verdict::deliver(Class::AlreadyApplied, "gone, perhaps by an earlier attempt")
        }
        425 => {
            Verdict::retry(Class::NotApplied, delay.unwrap_or_else(wait), "too early").breaker(BreakerSignal::Ignore)
        }
        429 => Verdict::throttled(delay.unwrap_or_else(wait), delay),
        odd if status::leaves_unknown(odd) => {
            unknown(attempt, delay.unwrap_or_else(wait), "the upstream is in trouble")
        }
        refused if settings.retry_statuses.contains(&refused) => {
            unknown(attempt, delay.unwrap_or_else(wait), "retried by the operator's setting")
        }
        _ => Verdict::deliver(Class::Rejected, "the upstream refused it"),
    };
    verdict.hinted(attempt, &response.headers, delay.unwrap_or_else(wait))
}

fn unknown(attempt: &Attempt, delay_ms: u64, reason: &str) -> Verdict {
    if attempt.effect == Effect::Unsafe {
        return Verdict::deliver(Class::Unknown, reason);
    }
    Verdict::retry(Class::Unknown, delay_ms, reason)
}

fn stopped(settings: &Settings, attempt: &Attempt, verdict: &Verdict) -> bool {
    let triage_policy::Next::Retry(delay_ms) = verdict.next else { return false };
    let elapsed = attempt.elapsed_ms as f64 / 1000.0;
    settings.stop_after_attempt.is_some_and(|most| attempt.number >= most)
        || settings.stop_after_delay.is_some_and(|most| elapsed >= most)
        || settings.stop_before_delay.is_some_and(|most| elapsed + delay_ms as f64 / 1000.0 >= most)
}

triage_policy::export!(HttpStandard);
