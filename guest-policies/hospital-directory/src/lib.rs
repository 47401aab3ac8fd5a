//! The hospital directory API: creates and activations whose effect is unknown are looked up, never sent again blindly.

mod directory;
mod endpoints;
mod settle;

use endpoints::Call;
use serde::Deserialize;
use triage_policy::{
    Attempt, Description, Effect, Failure, HealthCall, Outcome, Policy, Purpose, Response, Verdict,
    retry::{Wait, asked_ms},
    status,
    verdict::{BreakerSignal, Class},
};

/// The server's limits are fixed windows of a minute, and it does not say when one ends.
const WINDOW_MS: u64 = 60_000;

/// What an operator may set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Waits between attempts, as tenacity's `wait_*`.
    wait: Wait,
}

/// Table 1 of the hospital directory's facts.
pub struct HospitalDirectory;

impl Policy for HospitalDirectory {
    type Settings = Settings;

    fn describe() -> Description {
        Description {
            name: "hospital-directory".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: endpoints::all(),
            health: Some(HealthCall {
                path_and_query: "/".to_owned(),
                timeout_ms: 5_000,
                asleep_after_ms: Some(600_000),
                wake_within_ms: 90_000,
            }),
        }
    }

    fn decide(settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let call = Call::of(attempt.endpoint);
        if attempt.purpose == Purpose::Probe {
            return settle::probed(settings, call, attempt, outcome);
        }
        let response = match outcome {
            Outcome::Failure(Failure { sent: false, .. }) => {
                return Verdict::retry(Class::NotApplied, settings.wait.ms(attempt), "nothing was sent");
            }
            Outcome::Failure(_) => return in_doubt(settings, call, attempt, None, "no answer"),
            Outcome::Response(response) => response,
        };
        let asked = asked_ms(&response.headers, attempt.now_unix_ms);
        let verdict = match response.status {
            200..=299 => success(call, attempt, response),
            // The framework redirects a path without its last slash so.
            redirect if status::is_elsewhere(redirect) && attempt.effect != Effect::Safe => {
                Verdict::deliver(Class::NotApplied, "to be sent elsewhere")
            }
            300..=399 => Verdict::deliver(Class::Applied, "passed on"),
            429 => {
                let wait = asked.unwrap_or(WINDOW_MS);
                Verdict::throttled(wait, Some(wait))
            }
            odd if status::leaves_unknown(odd) => in_doubt(settings, call, attempt, asked, "the server is in trouble"),
            400 | 404 => refused(call, attempt, response),
            _ => Verdict::deliver(Class::Rejected, "refused"),
        };
        verdict.hinted(attempt, &response.headers, asked.unwrap_or_else(|| settings.wait.ms(attempt)))
    }
}

/// A request that may have taken effect: looked up where that is possible, sent again where that is harmless.
fn in_doubt(settings: &Settings, call: Call, attempt: &Attempt, asked: Option<u64>, reason: &str) -> Verdict {
    match call {
        Call::Create | Call::Activate => settle::begin(call, attempt, reason).breaker(BreakerSignal::Failure),
        Call::Other if attempt.effect == Effect::Unsafe => Verdict::deliver(Class::Unknown, reason),
        _ => Verdict::retry(Class::Unknown, asked.unwrap_or_else(|| settings.wait.ms(attempt)), reason),
    }
}

fn success(call: Call, attempt: &Attempt, response: &Response) -> Verdict {
    match call {
        Call::Create => match directory::hospital(response) {
            Some(made) => {
                let verdict = Verdict::deliver(Class::Applied, "created");
                match made.claim() {
                    Some(claim) => verdict.claiming(claim),
                    None => verdict,
                }
            }
            None => settle::begin(call, attempt, "a success that cannot be read").breaker(BreakerSignal::Success),
        },
        Call::Activate => match directory::activated(response) {
            Some(count) if count > 0 => Verdict::deliver(Class::Applied, "activated"),
            _ => settle::begin(call, attempt, "nothing was activated now").breaker(BreakerSignal::Success),
        },
        _ => Verdict::deliver(Class::Applied, "success"),
    }
}

fn refused(call: Call, attempt: &Attempt, response: &Response) -> Verdict {
    let detail = directory::detail(response);
    let detail = detail.as_deref();
    match (call, response.status) {
        // The 20th of the batch may be this very row.
        (Call::Create, 400) if attempt.prior_unknown && detail == Some(directory::BATCH_FULL) => {
            settle::begin(call, attempt, "the batch is full, perhaps with this row").breaker(BreakerSignal::Success)
        }
        (Call::Activate, 400) if detail == Some(directory::ALREADY_ACTIVE) => {
            settle::begin(call, attempt, "some are active already").breaker(BreakerSignal::Success)
        }
        (_, 404) if detail == Some(directory::NO_ROUTE) => Verdict::deliver(Class::Rejected, "no such route"),
        (Call::ListBatch, 404) => Verdict::deliver(Class::Applied, "an empty batch"),
        (Call::DeleteBatch | Call::DeleteHospital, 404) => Verdict::deliver(Class::AlreadyApplied, "gone"),
        _ => Verdict::deliver(Class::Rejected, "refused"),
    }
}

triage_policy::export!(HospitalDirectory);
