//! Resolves the layers to an endpoint's settings: default < policy < operator's defaults < operator's override.

use super::{
    merge::{OWN_LIMITS, merged},
    problem::{Problem, Problems, Source},
    pybreaker,
    settings::{Endpoint, EndpointOverride, PolicySource, Upstream},
    spelling, validate,
    value::{Value, Values},
};
use crate::{
    breaker,
    clock::micros,
    policy::contract::{self, BreakerSignal, Description, Effect},
    rate_limit::{Quota, adaptive},
    retry::upstream_key,
};
use http::Method;
use std::{collections::HashMap, num::NonZeroU32, time::Duration};
use triage_state::idempotency;

/// Added to the longest deadline for a record's lock: allows for a slow clock and a slow store.
const FINISH_RESERVE: Duration = Duration::from_secs(30);

/// The effective settings of an endpoint that the policy describes.
pub fn effective_endpoint(upstream: &Upstream, described: &contract::Endpoint) -> Endpoint {
    endpoint(&values_of(upstream, Some(&described.defaults), override_of(upstream, &described.name)))
}

/// The values behind [`effective_endpoint`], each with its source.
pub fn effective_values(upstream: &Upstream, described: &contract::Endpoint) -> Values {
    values_of(upstream, Some(&described.defaults), override_of(upstream, &described.name))
}

/// Every endpoint of an upstream with its effective settings: first those that the policy describes, in its order, then those that the
/// configuration adds.
///
/// # Errors
/// [`Problems`] if the configuration conflicts with the policy: see [`check_against`].
pub fn endpoints(
    upstream: &Upstream,
    description: &Description,
) -> Result<Vec<(contract::Endpoint, Endpoint)>, Problems> {
    check_against(upstream, description)?;
    let all = described_and_added(upstream, description);
    let mut all: Vec<_> = all.into_iter().map(|(described, values)| (described, endpoint(&values))).collect();
    share_leases(&mut all);
    Ok(all)
}

/// A group's probe lease is that of the slowest member.
fn share_leases(all: &mut [(contract::Endpoint, Endpoint)]) {
    let mut longest: HashMap<String, Duration> = HashMap::new();
    let group = |(described, settings): &(contract::Endpoint, Endpoint)| {
        settings.group.clone().unwrap_or_else(|| described.name.clone())
    };
    for member in all.iter() {
        let lease = member.1.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.probe_lease);
        let own = longest.entry(group(member)).or_default();
        *own = lease.max(*own);
    }
    for member in all {
        let lease = longest.get(&group(member)).copied();
        if let (Some(breaker), Some(lease)) = (&mut member.1.breaker, lease) {
            breaker.probe_lease = lease;
        }
    }
}

/// The idempotency settings with this policy. Unless the operator set the lock, it is longer than every deadline.
pub fn idempotency(upstream: &Upstream, description: &Description) -> idempotency::Settings {
    let mut settings = upstream.idempotency.clone();
    if !upstream.stated.is_operators("idempotency.lock") {
        let all = described_and_added(upstream, description);
        settings.lock = all.iter().map(|(_, values)| lock_for(values)).fold(settings.lock, Duration::max);
    }
    settings
}

/// Checks what needs the policy's description: overrides that name no endpoint, and values that conflict with the policy's.
///
/// # Errors
/// Every problem at once.
pub fn check_against(upstream: &Upstream, description: &Description) -> Result<(), Problems> {
    let mut problems = Vec::new();
    let described = |name: &str| description.endpoints.iter().find(|endpoint| endpoint.name == name);
    for EndpointOverride { name, values } in &upstream.endpoints {
        let path = format!("upstreams.{}.endpoints.{name}", upstream.name);
        match described(name) {
            Some(endpoint) => {
                for key in ["method", "path"] {
                    if let Some(stated) = values.get(key) {
                        let because = format!("the policy already describes {name} as {}", operation(endpoint));
                        let must_be = "left out, or a name that the policy does not describe";
                        let problem =
                            Problem::conflict(format!("{path}.{key}"), stated.value.to_string(), because, must_be);
                        problems.push(problem.from(&stated.source));
                    }
                }
            }
            None => added_problems(&path, name, values, description, &mut problems),
        }
    }
    let all = described_and_added(upstream, description);
    for (endpoint, values) in &all {
        let path = format!("upstreams.{}.endpoints.{}", upstream.name, endpoint.name);
        problems.extend(validate::endpoint(&path, values, None));
        problems.extend(validate::lock(&upstream.name, &upstream.stated, &path, values));
    }
    problems.extend(validate::groups(&upstream.name, &all));
    problems.extend(pybreaker::groups(&upstream.name, &all));
    Problems::check(problems)
}

fn operation(endpoint: &contract::Endpoint) -> String {
    format!("{} {}", endpoint.method.as_ref().map_or("*", Method::as_str), endpoint.path)
}

fn added_problems(path: &str, name: &str, values: &Values, description: &Description, problems: &mut Vec<Problem>) {
    let missing: Vec<&str> = ["method", "path"].into_iter().filter(|key| values.get(key).is_none()).collect();
    if !missing.is_empty() {
        let near = spelling::nearest(name, description.endpoints.iter().map(|endpoint| endpoint.name.as_str()));
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let got =
            format!("a name that the policy {} does not describe, without {}", description.name, missing.join(" and "));
        problems.push(Problem::value(path, got, format!("a described name, or have method and path{near}")));
        return;
    }
    let added = added(name, values);
    let equal = description.endpoints.iter().find(|e| e.method == added.method && e.path == added.path);
    if let Some(equal) = equal {
        let because = format!("the policy already describes this operation as {}", equal.name);
        let must_be = format!("a different operation; override endpoints.{} instead", equal.name);
        problems.push(Problem::conflict(path, operation(&added), because, must_be));
    }
}

/// An endpoint that the configuration adds. Its effect follows from the method; the policy gets no bodies and settles no writes for it.
fn added(name: &str, values: &Values) -> contract::Endpoint {
    let method: Option<Method> = values.read("method").unwrap_or_default();
    contract::Endpoint {
        name: name.to_owned(),
        effect: method.as_ref().map_or(Effect::Unsafe, Effect::of),
        method,
        path: values.read("path").unwrap_or_else(|| "/".to_owned()),
        interest: contract::Interest::default(),
        settled: Vec::new(),
        commit_within: None,
        defaults: contract::Defaults::default(),
    }
}

/// All endpoints with their values; overrides that match no endpoint are left out.
pub(super) fn described_and_added(upstream: &Upstream, description: &Description) -> Vec<(contract::Endpoint, Values)> {
    let described = description.endpoints.iter().map(|e| (e.clone(), effective_values(upstream, e)));
    let is_added = |e: &&EndpointOverride| {
        e.values.get("path").is_some() && description.endpoints.iter().all(|known| known.name != e.name)
    };
    let added = upstream.endpoints.iter().filter(is_added);
    described.chain(added.map(|e| (added_endpoint(e), values_of(upstream, None, Some(&e.values))))).collect()
}

fn added_endpoint(stated: &EndpointOverride) -> contract::Endpoint {
    added(&stated.name, &stated.values)
}

fn override_of<'a>(upstream: &'a Upstream, name: &str) -> Option<&'a Values> {
    upstream.endpoints.iter().find(|endpoint| endpoint.name == name).map(|endpoint| &endpoint.values)
}

fn values_of(upstream: &Upstream, proposed: Option<&contract::Defaults>, own: Option<&Values>) -> Values {
    let policy = match &upstream.policy {
        PolicySource::Embedded(name) => name.clone(),
        PolicySource::File(path) => path.to_string_lossy().into_owned(),
        PolicySource::Registry(artifact) => artifact.to_string(),
        PolicySource::Builtin => "builtin".to_owned(),
    };
    let proposed = proposed.map(|proposed| proposals(&policy, proposed)).unwrap_or_default();
    merged(&proposed, &upstream.defaults, own)
}

/// A policy's proposals. Values that the configuration would not accept are ignored.
fn proposals(policy: &str, proposed: &contract::Defaults) -> Values {
    let mut values = Values::default();
    let mut set = |key, value| values.set(key, value, Source::Policy(policy.to_owned()));
    let positive = |duration: &Duration| !duration.is_zero();
    if let Some(timeout) = proposed.attempt_timeout.filter(positive) {
        set("attempt_timeout", Value::Duration(timeout));
    }
    if let Some(deadline) = proposed.deadline.filter(positive) {
        set("deadline", Value::Duration(deadline));
    }
    if let Some(attempts) = proposed.max_attempts.filter(|attempts| *attempts > 0) {
        set("retry.max_attempts", Value::Count(attempts.into()));
    }
    if let Some(limit) = proposed.concurrency.filter(|limit| *limit > 0) {
        set("concurrency", Value::Count(limit.into()));
    }
    let quota = |limit: &contract::ProposedLimit| {
        let (requests, burst) = (NonZeroU32::new(limit.requests)?, NonZeroU32::new(limit.burst)?);
        let fine = micros(limit.period) >= u64::from(limit.requests);
        fine.then_some(Quota { requests, period: limit.period, burst })
    };
    let limits: Vec<Quota> = proposed.limits.iter().filter_map(quota).collect();
    if !limits.is_empty() {
        set("limits", Value::Limits(limits));
    }
    values
}

/// The record lock that fits a deadline.
pub(super) fn lock_for(values: &Values) -> Duration {
    values.read::<Duration>("deadline").map_or(Duration::ZERO, |deadline| deadline.saturating_add(FINISH_RESERVE))
}

/// Converts merged values to typed settings.
pub(super) fn endpoint(values: &Values) -> Endpoint {
    let mut settings = Endpoint::default();
    values.fill("attempt_timeout", &mut settings.attempt_timeout);
    values.fill("deadline", &mut settings.deadline);
    values.fill("concurrency", &mut settings.concurrency);
    values.fill("limits", &mut settings.limits);
    values.fill(OWN_LIMITS, &mut settings.own_limits);
    values.fill("leased", &mut settings.leased);
    values.fill("retry_after_pauses", &mut settings.retry_after_pauses);
    values.fill("group", &mut settings.group);
    values.fill("effect", &mut settings.effect);
    values.fill("priority", &mut settings.priority);
    values.fill("settle", &mut settings.settle);
    values.fill("retry.max_attempts", &mut settings.retry.max_attempts);
    values.fill("retry.min_wait", &mut settings.retry.min_wait);
    values.fill("retry.max_wait", &mut settings.retry.max_wait);
    values.fill("budget.percent", &mut settings.budget.percent);
    values.fill("budget.floor_per_second", &mut settings.budget.floor_per_second);
    values.fill("budget.capacity", &mut settings.budget.capacity);
    settings.breaker = (values.read("breaker.enabled") != Some(false)).then(|| breaker(values));
    settings.pybreaker = pybreaker::shared(values);
    settings.adaptive_rate = adaptive_rate(values);
    settings.upstream_key = upstream_key(values);
    settings
}

fn upstream_key(values: &Values) -> Option<upstream_key::Settings> {
    Some(upstream_key::Settings {
        header: values.read("upstream_key.header")?,
        valid_for: values.read("upstream_key.valid_for")?,
        generate: values.read("upstream_key.generate")?,
    })
}

fn adaptive_rate(values: &Values) -> Option<adaptive::Settings> {
    const FLOOR: &str = "adaptive_rate.floor_per_minute";
    values.read::<bool>("adaptive_rate.enabled").filter(|enabled| *enabled)?;
    let mut settings = adaptive::Settings::default();
    values.fill(FLOOR, &mut settings.floor_per_minute);
    if !values.is_operators(FLOOR) {
        let limits: Vec<Quota> = values.read("limits").unwrap_or_default();
        let half = limits.iter().map(Quota::per_minute).fold(f64::INFINITY, f64::min) / 2.0;
        settings.floor_per_minute = settings.floor_per_minute.min(half as u32).max(1);
    }
    values.fill("adaptive_rate.rise_per_minute", &mut settings.rise_per_minute);
    Some(settings)
}

fn breaker(values: &Values) -> breaker::Settings {
    let mut settings = breaker::Settings::default();
    values.fill("breaker.failure_threshold", &mut settings.consecutive_failures);
    values.fill("breaker.failure_rate", &mut settings.failure_rate_percent);
    values.fill("breaker.baseline", &mut settings.baseline_percent);
    values.fill("breaker.slow_call_after", &mut settings.slow_call_after);
    values.fill("breaker.slow_rate", &mut settings.slow_rate_percent);
    values.fill("breaker.window", &mut settings.window);
    values.fill("breaker.minimum_calls", &mut settings.minimum_calls);
    values.fill("breaker.open_for", &mut settings.open_for);
    values.fill("breaker.open_for_max", &mut settings.open_for_max);
    values.fill("breaker.jitter", &mut settings.jitter_percent);
    values.fill("breaker.probes", &mut settings.probes);
    values.fill("breaker.probe_lease", &mut settings.probe_lease);
    if values.read::<String>("breaker.settled").as_deref() == Some("failure") {
        settings.settled = BreakerSignal::Failure;
    }
    settings
}
