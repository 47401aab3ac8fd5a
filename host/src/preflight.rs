//! Checks what only loading shows: whether every upstream can be served with its configuration.

use crate::{
    admin,
    admission::Groups,
    clock::Clock,
    config::{
        Problem, Problems,
        settings::{PolicySource, Settings},
    },
    error_chain::error_chain,
    host,
    policy::{contract::Description, signature::Keys},
    registry::{Credentials, Registry},
    rng::Rng,
    settlement,
    telemetry::Events,
    upstream::{HttpClient, TransportError},
    upstream_runtime::{ServiceError, UpstreamRuntime},
};
use std::sync::Arc;

/// Loads all that a host would load, and says what each upstream's policy describes, in the upstreams' order.
///
/// # Errors
/// Every problem of every upstream at once: its policy, its endpoints, its certificate authorities.
pub fn check(settings: &Settings) -> Result<Vec<Description>, Problems> {
    let engine = host::engine(settings).map_err(|error| Problem::refused("upstreams", error_chain(&error)))?;
    let mut problems = Vec::new();
    let keys = Keys::open(&settings.policies.keys).unwrap_or_else(|error| {
        problems.push(Problem::refused("policies.keys", error_chain(&error)));
        Keys::default()
    });
    if let Err((key, error)) = host::check_state(settings) {
        problems.push(Problem::refused(key, error_chain(&error)));
    }
    let registry = host::registry(settings).unwrap_or_else(|error| {
        problems.push(Problem::refused("policies.registry_auth_file", error_chain(&error)));
        Registry::new(Credentials::default(), None)
    });
    if let Err(error) = settlement::check(&settings.settlement) {
        problems.push(Problem::refused("settlement.notify", error_chain(&error)));
    }
    if let Err(error) = admin::check(&settings.admin, Clock::system()) {
        problems.push(Problem::refused("admin", error_chain(&error)));
    }
    let gates = Groups::memory(Clock::system(), Rng::system(), Arc::new(Events::new(Clock::system())));
    let mut descriptions = Vec::with_capacity(settings.upstreams.len());
    for upstream in &settings.upstreams {
        match UpstreamRuntime::load(upstream, &engine, &keys, &registry, |name, endpoint| gates.group(name, endpoint)) {
            Ok(service) => descriptions.push(service.policy.description().clone()),
            Err(ServiceError::Config { problems: all, .. }) => problems.extend(all.into_vec()),
            Err(error) => {
                let key = if matches!(error, ServiceError::Route { .. }) { "endpoints" } else { "policy" };
                problems.push(Problem::refused(format!("upstreams.{}.{key}", upstream.name), error_chain(&error)));
            }
        }
        if let Some(source) = upstream.candidate.as_ref().map(|candidate| &candidate.policy) {
            // A file may come at any time later.
            let is_there = !matches!(source, PolicySource::File(file) if !file.exists());
            let groups = |name: &str, endpoint: &_| gates.group(name, endpoint);
            let loaded =
                is_there.then(|| UpstreamRuntime::load_candidate(upstream, source, &engine, &keys, &registry, groups));
            if let Some(Err(error)) = loaded {
                problems.push(Problem::refused(
                    format!("upstreams.{}.candidate.policy", upstream.name),
                    error_chain(&error),
                ));
            }
        }
        if let Err(error) = HttpClient::new(&upstream.connection) {
            let key = if matches!(error, TransportError::Url(_)) { "base_url" } else { "ca_file" };
            problems.push(Problem::refused(format!("upstreams.{}.{key}", upstream.name), error_chain(&error)));
        }
    }
    Problems::check(problems)?;
    Ok(descriptions)
}
