//! Checks the requirements of a breaker shared with Python workers: a Redis, keys of its own, and one hash slot for them on a Cluster.

use super::{
    merge::merged,
    problem::Problem,
    settings::{Settings, State},
    validate::with_source,
    value::Values,
};
use crate::{policy::contract, redis::Topology, state::group::Pybreaker};

const INTEROP: &str = "breaker.interop";
const NAMESPACE: &str = "breaker.interop_namespace";

/// The breaker of Python workers that an endpoint shares, if any.
pub(super) fn shared(values: &Values) -> Option<Pybreaker> {
    let interop: String = values.read("breaker.interop")?;
    let enabled = values.read("breaker.enabled") != Some(false);
    (enabled && interop == "pybreaker").then(|| Pybreaker { namespace: values.read("breaker.interop_namespace") })
}

/// Checks the configuration as far as possible without the policies.
pub(super) fn stated(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut known: Vec<(&str, Pybreaker)> = Vec::new();
    for upstream in &settings.upstreams {
        let path = format!("upstreams.{}", upstream.name);
        let none = Values::default();
        let of_all = (format!("{path}.defaults"), merged(&none, &upstream.defaults, None), &upstream.defaults);
        let of_one = upstream.endpoints.iter().map(|own| {
            let values = merged(&none, &upstream.defaults, Some(&own.values));
            (format!("{path}.endpoints.{}", own.name), values, &own.values)
        });
        for (path, values, own) in std::iter::once(of_all).chain(of_one) {
            if [INTEROP, NAMESPACE, "breaker.enabled"].iter().all(|key| own.get(key).is_none()) {
                continue;
            }
            problems.extend(breakerless(&path, &values, own));
            let Some(shared) = shared(&values) else { continue };
            problems.extend(problem(&path, &values, &shared, settings));
            if let Some((other, _)) = known.iter().find(|(name, theirs)| *name != upstream.name && *theirs == shared) {
                let because = format!(
                    "an endpoint of upstreams.{other} uses the same namespace, and each group needs \
                                       its own breaker"
                );
                problems.extend(namespace(&path, &values, because, "a namespace of its own"));
            }
            known.push((&upstream.name, shared));
        }
    }
    problems
}

/// An endpoint that sets interop itself but has no breaker. In `defaults`, interop applies to the endpoints that have a breaker.
fn breakerless(path: &str, values: &Values, own: &Values) -> Option<Problem> {
    let (wanted, enabled) = (own.get(INTEROP)?, values.get("breaker.enabled")?);
    if own.read::<String>(INTEROP).is_none() || values.read("breaker.enabled") != Some(false) {
        return None;
    }
    let because = format!("breaker.enabled is {} ({})", enabled.value, enabled.source);
    let problem = Problem::conflict(format!("{path}.{INTEROP}"), wanted.value.to_string(), because, "\"off\" there");
    Some(problem.from(&wanted.source))
}

fn problem(path: &str, values: &Values, shared: &Pybreaker, settings: &Settings) -> Option<Problem> {
    match &settings.state {
        State::Memory => {
            let got = values.get(INTEROP)?.value.to_string();
            let must_be = "\"off\", or have state.url name the Redis of the Python workers";
            let problem = Problem::conflict(format!("{path}.{INTEROP}"), got, "state.url is \"memory:\"", must_be);
            Some(with_source(problem, values, INTEROP))
        }
        State::Shared(state)
            if matches!(state.address.topology, Topology::Cluster(_)) && shared.hash_tag().is_none() =>
        {
            let because = "state.url is a Cluster, where all keys of a breaker must be in one slot";
            let must_be = "a namespace with a hash tag, such as \"{hospital}\", also for the Python workers";
            namespace(path, values, because, must_be)
        }
        State::Shared(_) => None,
    }
}

fn namespace(path: &str, values: &Values, because: impl Into<String>, must_be: &str) -> Option<Problem> {
    let got = values.get(NAMESPACE)?.value.to_string();
    Some(with_source(Problem::conflict(format!("{path}.{NAMESPACE}"), got, because, must_be), values, NAMESPACE))
}

/// Two groups cannot share one pybreaker breaker. Each namespace is reported once.
pub(super) fn groups(upstream: &str, members: &[(contract::Endpoint, Values)]) -> Vec<Problem> {
    let group = |(endpoint, values): &(contract::Endpoint, Values)| {
        values.read::<String>("group").unwrap_or_else(|| endpoint.name.clone())
    };
    let mut reported: Vec<Pybreaker> = Vec::new();
    let mut problems = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let (endpoint, values) = member;
        let Some(own) = shared(values).filter(|own| !reported.contains(own)) else { continue };
        let clashes = |other: &&(contract::Endpoint, Values)| {
            group(other) != group(member) && shared(&other.1).as_ref() == Some(&own)
        };
        let Some((other, _)) = members[..index].iter().find(clashes) else { continue };
        let because = format!("endpoints.{} uses the same namespace, and each group needs its own breaker", other.name);
        let path = format!("upstreams.{upstream}.endpoints.{}", endpoint.name);
        let must_be = "a namespace of its own, or set the same `group` at all endpoints that share it";
        problems.extend(namespace(&path, values, because, must_be));
        reported.push(own);
    }
    problems
}
