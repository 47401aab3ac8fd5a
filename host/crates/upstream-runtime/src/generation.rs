//! One upstream in one generation of its policy: endpoints by route, and what is known of the upstream's health.

use crate::{
    Endpoint, Probation, ServiceError, Wakefulness,
    admission::Group,
    clock::{Clock, Timestamp},
    config::{self, settings},
    load,
    policy::{
        Digest, Engine, Policy,
        contract::{self, Effect},
        signature::Keys,
    },
    registry::Registry,
    route::Router,
    state::group::EndpointSettings,
    telemetry::{AllEndpointCounters, EndpointMeters},
};
use http::Method;
use std::{collections::HashSet, sync::Arc};
use tokio::sync::Semaphore;

/// One upstream in one generation of its policy.
#[derive(Debug)]
pub struct UpstreamRuntime {
    /// The upstream's settings.
    pub settings: settings::Upstream,
    /// The endpoints, those of the policy first.
    pub endpoints: Vec<Endpoint>,
    /// The loaded policy.
    pub policy: Arc<Policy>,
    /// The manifest's digest if the policy was pulled from a registry.
    pub artifact: Option<Digest>,
    /// Increases with each reload, from 1.
    pub generation: u64,
    /// The policy's probation. It identifies the generation: settings may change while a policy serves.
    pub probation: Arc<Probation>,
    /// Whether the policy may settle unknown writes by default.
    trusted: bool,
    /// When the upstream last responded.
    pub wakefulness: Wakefulness,
    router: Router,
}

/// Whether safe requests get a breaker of their own: at an endpoint for every method, such as that of `http-standard`, failing reads would
/// otherwise refuse writes that the upstream would have applied. An operator who names a group, or shares a pybreaker breaker, wants one
/// breaker. With `leased` permits, a read must not cost a call to shared state.
fn has_reads_apart(described: &contract::Endpoint, effective: &settings::Endpoint) -> bool {
    described.method.is_none()
        && described.effect == Effect::Safe
        && effective.effect.is_none()
        && effective.group.is_none()
        && effective.pybreaker.is_none()
        && !effective.leased
        && effective.breaker.is_some()
}

impl UpstreamRuntime {
    /// Loads the policy and resolves every endpoint's settings. A policy from a file or a registry must be signed by one of the keys.
    /// `group_of` returns the admission group for a name.
    ///
    /// # Errors
    /// [`ServiceError`] if the policy or the configuration is refused.
    pub fn load(
        settings: &settings::Upstream,
        engine: &Engine,
        keys: &Keys,
        registry: &Registry,
        group_of: impl FnMut(&str, &EndpointSettings) -> Group,
    ) -> Result<Self, ServiceError> {
        let (policy, trusted) = load::policy(settings, engine, keys, registry)?;
        let service = Self::with_policy(settings, policy, trusted, group_of)?;
        Ok(match &settings.policy {
            settings::PolicySource::Registry(artifact) => service.from(artifact.digest()),
            _ => service,
        })
    }

    /// Sets the digest of a policy that was pulled from a registry.
    #[must_use]
    pub fn from(self, artifact: Digest) -> Self {
        Self { artifact: Some(artifact), ..self }
    }

    /// Loads another policy for the same upstream: its candidate.
    ///
    /// # Errors
    /// As for [`UpstreamRuntime::load`].
    pub fn load_candidate(
        settings: &settings::Upstream,
        source: &settings::PolicySource,
        engine: &Engine,
        keys: &Keys,
        registry: &Registry,
        group_of: impl FnMut(&str, &EndpointSettings) -> Group,
    ) -> Result<Self, ServiceError> {
        let settings = settings::Upstream { policy: source.clone(), ..settings.clone() };
        Self::load(&settings, engine, keys, registry, group_of)
    }

    /// Resolves every endpoint's settings for a loaded policy. `trusted`: whether it may settle unknown writes by default.
    ///
    /// # Errors
    /// [`ServiceError`] if the configuration does not fit the policy.
    pub fn with_policy(
        settings: &settings::Upstream,
        policy: Arc<Policy>,
        trusted: bool,
        mut group_of: impl FnMut(&str, &EndpointSettings) -> Group,
    ) -> Result<Self, ServiceError> {
        let upstream = || settings.name.clone();
        let description = policy.description();
        let merged = config::endpoints(settings, description)
            .map_err(|problems| ServiceError::Config { upstream: upstream(), problems })?;
        let catch_all = description.endpoints.iter().position(|e| e.method.is_none() && e.path == "/{*rest}");
        let groups: HashSet<String> = merged.iter().filter_map(|(_, effective)| effective.group.clone()).collect();
        let mut endpoints = Vec::with_capacity(merged.len());
        for (index, (described, effective)) in merged.into_iter().enumerate() {
            let name = effective.group.clone().unwrap_or_else(|| described.name.clone());
            let mut group = group_of(&format!("{}/{name}", settings.name), &effective.group_settings());
            if !effective.own_limits.is_empty() {
                // Unique, because no endpoint or group has a slash in its name.
                let own = format!("{}/{name}/{}", settings.name, described.name);
                group = group.beside(group_of(&own, &effective.alone().group_settings()));
            }
            if has_reads_apart(&described, &effective) && !groups.contains(&described.name) {
                let own = effective.group_settings();
                // Unique, because no endpoint or group has a space in its name.
                group = group.with_reads(group_of(&format!("{}/{name} (reads)", settings.name), &own.reads()), &own);
            }
            endpoints.push(Endpoint {
                policy_index: if index < description.endpoints.len() { Some(index) } else { catch_all },
                granted: effective.settle.unwrap_or(trusted),
                says_effect: trusted && index < description.endpoints.len(),
                group,
                meters: EndpointMeters::unread(),
                concurrency_permits: effective.concurrency.map(|places| Arc::new(Semaphore::new(places))),
                described,
                settings: effective,
            });
        }
        let router = Router::new(endpoints.iter().map(|e| (e.described.method.as_ref(), e.described.path.as_str())))
            .map_err(|source| ServiceError::Route { upstream: upstream(), source })?;
        let wakefulness = Wakefulness::new(description.health.clone());
        let mut settings = settings.clone();
        settings.idempotency = config::idempotency(&settings, description);
        let probation = Arc::default();
        Ok(Self { settings, endpoints, policy, artifact: None, generation: 1, probation, trusted, wakefulness, router })
    }

    /// The same generation with other settings.
    ///
    /// # Errors
    /// [`ServiceError`] if the settings do not fit the policy.
    pub fn with_settings(
        &self,
        settings: &settings::Upstream,
        group_of: impl FnMut(&str, &EndpointSettings) -> Group,
    ) -> Result<Self, ServiceError> {
        let made = Self::with_policy(settings, Arc::clone(&self.policy), self.trusted, group_of)?;
        let mut made = made.succeeding(self, self.generation);
        made.probation = Arc::clone(&self.probation);
        made.artifact = self.artifact;
        Ok(made)
    }

    /// Whether both are the same generation; settings may differ.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.probation, &other.probation)
    }

    /// Succeeds another generation: knowledge of the upstream's health is kept, and so are concurrency permits in use if the limit is the
    /// same.
    #[must_use]
    pub fn succeeding(mut self, other: &Self, generation: u64) -> Self {
        self.generation = generation;
        self.wakefulness.remember(&other.wakefulness);
        for endpoint in &mut self.endpoints {
            let before = other.endpoints.iter().find(|before| before.described.name == endpoint.described.name);
            if let Some(before) = before.filter(|before| before.settings.concurrency == endpoint.settings.concurrency) {
                endpoint.concurrency_permits.clone_from(&before.concurrency_permits);
            }
        }
        self
    }

    /// Sets the counters that this generation uses.
    pub fn counting(&mut self, meters: &AllEndpointCounters) {
        for endpoint in &mut self.endpoints {
            endpoint.meters = meters.of(&self.settings.name, &endpoint.described.name);
        }
    }

    /// Applies this generation's settings to its groups. The groups keep their state.
    pub fn adopt(&self) {
        for endpoint in &self.endpoints {
            endpoint.group.adopt(&endpoint.settings.group_settings());
        }
    }

    /// The index of the endpoint for a request.
    pub fn find(&self, method: &Method, path: &str) -> Option<usize> {
        self.router.find(method, path)
    }

    /// Records that the upstream responded.
    pub fn record_response(&self, clock: &Clock) {
        let now: Timestamp = clock.now();
        self.wakefulness.record_response(now);
    }
}
