//! The native policy: RFC 9110 and nothing else. The host uses it instead of a faulty component, and benchmarks compare components with it.

use super::{
    contract::{
        Attempt, BreakerSignal, Class, Defaults, Description, Effect, Endpoint, Failure, Interest, Next, Outcome,
        Purpose, Verdict, is_elsewhere, leaves_unknown,
    },
    hints::{self, HINT_HEADERS},
};
use http::Method;
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_secs(2);
const MAX_WAIT: Duration = Duration::from_secs(10);

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
            interest: Interest { response_headers: HINT_HEADERS.into(), ..Interest::default() },
            // Judge 307 and 308: a PUT or DELETE that the upstream redirects was not applied.
            settled: vec![(200, 306), (309, 399)],
            commit_within: None,
            defaults: Defaults::default(),
        }],
        health: None,
    }
}

/// Judges an outcome by its status, its hints and the request's effect. The result of a verification stays unknown: only a policy that
/// knows the API can interpret it.
pub fn judge(attempt: &Attempt<'_>, outcome: &Outcome<'_>) -> Verdict {
    use BreakerSignal::{Failure as Trouble, Ignore, Success};
    let repeatable = attempt.effect != Effect::Unsafe;
    let (status, headers) = match outcome {
        _ if attempt.purpose == Purpose::Probe => return verdict(Class::Unknown, Ignore, None),
        Outcome::Failure(Failure { sent: false, .. }) => {
            return verdict(Class::NotApplied, Trouble, Some(wait(attempt)));
        }
        Outcome::Failure(_) => return verdict(Class::Unknown, Trouble, repeatable.then(|| wait(attempt))),
        Outcome::Response { status, headers, .. } => (status.as_u16(), headers),
    };
    let asked = hints::retry_after(headers, attempt.now_unix_ms);
    let delay = asked.unwrap_or_else(|| wait(attempt));
    let (class, breaker, retry) = match status {
        redirect if is_elsewhere(redirect) && attempt.effect != Effect::Safe => (Class::NotApplied, Success, false),
        200..=399 => (Class::Applied, Success, false),
        // An earlier DELETE, whose response was lost, may have removed the resource.
        404 if attempt.prior_unknown && *attempt.method == Method::DELETE => (Class::AlreadyApplied, Success, false),
        425 => (Class::NotApplied, Ignore, true),
        429 => (Class::Throttled, Ignore, true),
        odd if leaves_unknown(odd) => (Class::Unknown, Trouble, repeatable),
        _ => (Class::Rejected, Success, false),
    };
    let pause = asked.filter(|_| class == Class::Throttled);
    let (class, breaker, retry) = match hints::should_retry(headers) {
        Some(false) => (class, breaker, false),
        Some(true) if class == Class::Rejected && repeatable => (Class::NotApplied, Ignore, true),
        _ => (class, breaker, retry),
    };
    Verdict { pause, ..verdict(class, breaker, retry.then_some(delay)) }
}

fn verdict(class: Class, breaker: BreakerSignal, retry: Option<Duration>) -> Verdict {
    let next = retry.map_or(Next::Deliver, Next::Retry);
    Verdict { class, breaker, next, claim: None, pause: None, reason: "builtin".to_owned() }
}

/// Exponential backoff with equal jitter: a random delay from half of min(2 s * 2^(n-1), 10 s) to all of it.
fn wait(attempt: &Attempt<'_>) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << attempt.number.saturating_sub(1).min(10)).min(MAX_WAIT);
    let half = doubled / 2;
    half + half.mul_f64((attempt.random >> 11) as f64 / (1_u64 << 53) as f64)
}
