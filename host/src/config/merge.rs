//! Laying the operator's word over a policy's proposals, and those over the host's defaults.

use super::{
    Problem, Problems,
    settings::{Endpoint, EndpointOverride, Upstream},
};
use crate::{
    breaker,
    policy::contract::{self, Defaults, Description, Effect, Interest},
    rate_limit::Quota,
};
use std::{num::NonZeroU32, time::Duration};

/// What a probe's lease must have beyond the attempt's time.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// The endpoints of an upstream with their effective settings: the described ones, then those that the operator adds.
///
/// # Errors
/// [`Problems`] where an override names no endpoint and does not say what it takes, or where times do not fit.
pub fn endpoints(
    upstream: &Upstream,
    description: &Description,
) -> Result<Vec<(contract::Endpoint, Endpoint)>, Problems> {
    let mut problems = Vec::new();
    let mut all: Vec<contract::Endpoint> = description.endpoints.clone();
    for own in &upstream.endpoints {
        if all.iter().any(|described| described.name == own.name) {
            continue;
        }
        match (&own.method, &own.path) {
            (Some(method), Some(path)) => all.push(added(own.name.clone(), method.clone(), path.clone())),
            _ => problems.push(Problem {
                key: format!("upstreams.{}.endpoints.{}", upstream.name, own.name),
                got: "an endpoint that the policy does not describe".to_owned(),
                must: format!("have method and path, or be one of {}", names(description)),
                source: None,
            }),
        }
    }
    let mut merged = Vec::with_capacity(all.len());
    for described in all {
        let own = upstream.endpoints.iter().find(|own| own.name == described.name);
        let effective = effective(&described.defaults, &upstream.defaults, own);
        check(upstream, &described.name, &effective, &mut problems);
        merged.push((described, effective));
    }
    if problems.is_empty() { Ok(merged) } else { Err(Problems(problems)) }
}

fn names(description: &Description) -> String {
    description.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn added(name: String, method: http::Method, path: String) -> contract::Endpoint {
    contract::Endpoint {
        effect: Effect::of(&method),
        name,
        method: Some(method),
        path,
        interest: Interest::default(),
        settled: Vec::new(),
        commit_within: None,
        defaults: Defaults::default(),
    }
}

fn effective(proposed: &Defaults, all: &EndpointOverride, own: Option<&EndpointOverride>) -> Endpoint {
    let none = EndpointOverride::default();
    let own = own.unwrap_or(&none);
    let defaults = Endpoint::default();
    macro_rules! said {
        ($($path:ident).+) => { own.$($path).+.clone().or_else(|| all.$($path).+.clone()) };
    }
    let attempt_timeout = said!(attempt_timeout).or(proposed.attempt_timeout).unwrap_or(defaults.attempt_timeout);
    let deadline = said!(deadline).or(proposed.deadline).unwrap_or(defaults.deadline.max(attempt_timeout));
    let mut retry = defaults.retry;
    retry.max_attempts = said!(retry.max_attempts).or(proposed.max_attempts).unwrap_or(retry.max_attempts);
    retry.max_wait = said!(retry.max_wait).unwrap_or(retry.max_wait);
    retry.min_wait = said!(retry.min_wait).unwrap_or(retry.min_wait.min(retry.max_wait));
    let mut budget = defaults.budget;
    budget.percent = said!(budget.percent).unwrap_or(budget.percent);
    budget.floor_per_second = said!(budget.floor_per_second).unwrap_or(budget.floor_per_second);
    budget.capacity = said!(budget.capacity).unwrap_or(budget.capacity);
    let base = breaker::Settings::default();
    let breaker = breaker::Settings {
        consecutive_failures: said!(breaker.failure_threshold)
            .map_or(base.consecutive_failures, |n| (n > 0).then_some(n)),
        failure_rate_percent: said!(breaker.failure_rate).map_or(base.failure_rate_percent, |n| (n > 0).then_some(n)),
        slow_call_after: said!(breaker.slow_call_after),
        slow_rate_percent: said!(breaker.slow_rate).unwrap_or(base.slow_rate_percent),
        window: said!(breaker.window).unwrap_or(base.window),
        minimum_calls: said!(breaker.minimum_calls).unwrap_or(base.minimum_calls),
        open_for: said!(breaker.open_for).unwrap_or(base.open_for),
        open_for_max: said!(breaker.open_for_max).unwrap_or(base.open_for_max),
        jitter_percent: said!(breaker.jitter).unwrap_or(base.jitter_percent),
        probes: said!(breaker.probes).unwrap_or(base.probes),
        probe_lease: said!(breaker.probe_lease).unwrap_or(base.probe_lease.max(attempt_timeout + LEASE_MARGIN)),
    };
    Endpoint {
        attempt_timeout,
        deadline,
        retry,
        budget,
        breaker: said!(breaker.enabled).unwrap_or(true).then_some(breaker),
        limits: said!(limits).unwrap_or_else(|| quotas(proposed)),
        concurrency: said!(concurrency).or(proposed.concurrency.map(|most| most as usize)),
        group: own.group.clone(),
        settle: said!(settle),
        effect: said!(effect),
    }
}

fn quotas(proposed: &Defaults) -> Vec<Quota> {
    let quota = |limit: &contract::ProposedLimit| {
        Some(Quota {
            requests: NonZeroU32::new(limit.requests)?,
            period: limit.period,
            burst: NonZeroU32::new(limit.burst)?,
        })
    };
    proposed.limits.iter().filter_map(quota).collect()
}

/// Times that contradict each other.
fn check(upstream: &Upstream, name: &str, endpoint: &Endpoint, problems: &mut Vec<Problem>) {
    let mut wrong = |key: &str, got: Duration, must: String| {
        problems.push(Problem {
            key: format!("upstreams.{}.endpoints.{name}.{key}", upstream.name),
            got: super::value::written(got),
            must,
            source: None,
        });
    };
    let written = super::value::written;
    if endpoint.deadline < endpoint.attempt_timeout {
        let must = format!("not be shorter than attempt_timeout, which is {}", written(endpoint.attempt_timeout));
        wrong("deadline", endpoint.deadline, must);
    }
    if endpoint.retry.min_wait > endpoint.retry.max_wait {
        let must = format!("not be longer than retry.max_wait, which is {}", written(endpoint.retry.max_wait));
        wrong("retry.min_wait", endpoint.retry.min_wait, must);
    }
    if let Some(breaker) = endpoint.breaker.as_ref().filter(|breaker| breaker.probe_lease <= endpoint.attempt_timeout) {
        let must = format!("be longer than attempt_timeout, which is {}", written(endpoint.attempt_timeout));
        wrong("breaker.probe_lease", breaker.probe_lease, must);
    }
    if upstream.idempotency.lock < endpoint.deadline {
        let must = format!("not be longer than idempotency.lock, which is {}", written(upstream.idempotency.lock));
        wrong("deadline", endpoint.deadline, must);
    }
}
