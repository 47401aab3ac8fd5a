//! The parts of a host that a rollout needs.

use super::{
    UpstreamPolicy,
    fleet::{self, Follower},
    stage,
};
use crate::{
    admission::Groups,
    clock::Clock,
    config::settings::Settings,
    policy::{Engine, signature::Keys},
    registry::Registry,
    rng::Rng,
    state_redis::RedisConnection,
    telemetry::{AllEndpointCounters, Events},
    upstream_runtime::{ServiceError, UpstreamRuntime},
};
use std::sync::Arc;

/// The upstreams, and the parts that load and check another policy generation. File watchers and fleet followers hold it weakly, so that
/// they end with their host.
#[derive(Debug)]
pub struct Context {
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<Arc<UpstreamPolicy>>,
    /// The parts that load their policies.
    pub parts: Parts,
}

/// The parts of a host that load an upstream's policy.
#[derive(Debug)]
pub struct Parts {
    /// Compiles and runs components.
    pub engine: Engine,
    /// Public keys; if there are any, one of them must have signed a component.
    pub keys: Keys,
    /// Fetches components.
    pub registry: Registry,
    /// The groups of breakers, budgets and rate limits.
    pub gates: Groups,
    /// Events that an operator reads.
    pub events: Arc<Events>,
    /// Counters of every endpoint that has been in service.
    pub meters: Arc<AllEndpointCounters>,
}

impl Context {
    /// Loads every upstream's policy and follows the fleet's, if state is shared.
    ///
    /// # Errors
    /// [`ServiceError`] if a policy or the settings of an upstream are refused.
    pub fn start(
        settings: &Settings,
        link: Option<&RedisConnection>,
        parts: Parts,
        clock: Clock,
        entropy: &Rng,
    ) -> Result<Arc<Self>, ServiceError> {
        let Parts { engine, keys, registry, gates, events, meters } = &parts;
        let fleet = fleet::FollowerContext {
            host: fleet::host_name(entropy),
            clock,
            entropy: entropy.clone(),
            events: Arc::clone(events),
        };
        let mut upstreams = Vec::with_capacity(settings.upstreams.len());
        for (index, upstream) in settings.upstreams.iter().enumerate() {
            let groups = |name: &str, endpoint: &_| gates.group(name, endpoint);
            let follower = Follower::open(settings, index, link, fleet.clone());
            let configured = || UpstreamRuntime::load(upstream, engine, keys, registry, groups);
            let runtime = match &follower {
                None => configured()?,
                Some(follower) => follower.begin(
                    |source, pull_limit| {
                        let registry = registry.clone().with_time_limit(pull_limit);
                        UpstreamRuntime::load_candidate(upstream, source, engine, keys, &registry, groups)
                    },
                    configured,
                )?,
            };
            let (events, meters) = (Arc::clone(events), Arc::clone(meters));
            let policy = UpstreamPolicy::new(upstream.clone(), runtime, events, meters, clock).following(follower);
            stage::begin(&policy, &parts);
            upstreams.push(Arc::new(policy));
        }
        let context = Arc::new(Self { upstreams, parts });
        fleet::start(&context);
        Ok(context)
    }
}
