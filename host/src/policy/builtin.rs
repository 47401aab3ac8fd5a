//! The native policy: RFC 9110 and nothing else. What a faulty component falls back to, and what components are measured
//! against.

use super::contract::{
    Attempt, BreakerSignal, Class, Defaults, Description, Effect, Endpoint, Failure, Interest, Next, Outcome, Purpose,
    Verdict,
};
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One endpoint for every method and path.
pub(super) fn description() -> Description {
    Description {
        name: "builtin".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoints: vec![Endpoint {
            name: "any".to_owned(),
            method: None,
            path: "/{*rest}".to_owned(),
            effect: Effect::Safe,
            interest: Interest::default(),
            settled: vec![(200, 399)],
            commit_within: None,
            defaults: Defaults::default(),
        }],
        health: None,
    }
}

/// Judges an outcome by its status and effect alone. It never interprets a probe: that is left unknown.
pub fn judge(attempt: &Attempt<'_>, outcome: &Outcome<'_>) -> Verdict {
    let repeatable = attempt.effect != Effect::Unsafe;
    let (class, breaker, retry) = match outcome {
        _ if attempt.purpose == Purpose::Probe => (Class::Unknown, BreakerSignal::Ignore, false),
        Outcome::Failure(Failure { sent: false, .. }) => (Class::NotApplied, BreakerSignal::Failure, true),
        Outcome::Failure(_) => (Class::Unknown, BreakerSignal::Failure, repeatable),
        Outcome::Response { status, .. } => match status.as_u16() {
            200..=399 => (Class::Applied, BreakerSignal::Success, false),
            425 => (Class::NotApplied, BreakerSignal::Ignore, true),
            429 => (Class::Throttled, BreakerSignal::Ignore, true),
            408 | 500 | 502 | 503 | 504 => (Class::Unknown, BreakerSignal::Failure, repeatable),
            // Nothing tells whether an odd 5xx (507, 520 ...) applied the request.
            506..=599 => (Class::Unknown, BreakerSignal::Failure, false),
            _ => (Class::Rejected, BreakerSignal::Success, false),
        },
    };
    let next = if retry { Next::Retry(wait(attempt.number, attempt.random)) } else { Next::Deliver };
    Verdict { class, breaker, next, claim: None, pause: None, reason: "builtin".to_owned() }
}

/// Exponential with full jitter above half: between half of min(2 s * 2^(n-1), 10 s) and all of it.
fn wait(number: u32, random: u64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << number.saturating_sub(1).min(10)).min(LONGEST_WAIT);
    let half = doubled / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}
