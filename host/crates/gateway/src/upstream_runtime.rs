//! One upstream in one generation of its policy: its endpoints with their effective settings, and its health. A reload makes a new
//! generation; a request stays with the generation it began in.

mod health;
mod probation;
mod stage_phase;

pub use health::Wakefulness;
pub use probation::{DecisionResult, Judgement, Probation};
pub use stage_phase::StagePhase;

use crate::{
    admission::Group,
    bounded_file,
    clock::{Clock, Timestamp},
    config::{self, settings},
    idempotency,
    policy::{
        COMPONENT_BYTES, Digest, Engine, EngineError, LoadError, LoadOptions, Policy,
        contract::{self, Effect},
        golden_tests::{self, CasesError},
        prebuilt,
        signature::{Keys, SignatureError},
    },
    registry::{Artifact, Pulled, Registry, RegistryError},
    route::{RouteError, Router},
    state::group::EndpointSettings,
    telemetry::{AllEndpointCounters, EndpointMeters},
};
use http::{HeaderMap, Method};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::Semaphore;

/// Why an upstream cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The policy engine could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The policy's file could not be read.
    #[error("policy file {} of upstream {upstream} cannot be read; it must be a component", path.display())]
    File {
        /// The upstream's name.
        upstream: String,
        /// The file's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The policy's checksum or signature was refused, so its author is not proven.
    #[error("policy {} of upstream {upstream} is refused", path.display())]
    Unproven {
        /// The upstream's name.
        upstream: String,
        /// The file's path, or the artifact's reference.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<SignatureError>,
    },
    /// No embedded policy has this name.
    #[error("upstream {upstream}: there is no embedded policy {name:?}; there are {}", prebuilt::names().join(", "))]
    NoSuchPolicy {
        /// The upstream's name.
        upstream: String,
        /// The name given.
        name: String,
    },
    /// The policy could not be fetched from its registry.
    #[error("the policy of upstream {upstream} cannot be had from its registry")]
    Registry {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// The component was refused when it was loaded.
    #[error("the policy of upstream {upstream} was refused")]
    Policy {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// The policy fails the golden cases that came with it.
    #[error("the policy of upstream {upstream} does not pass the cases that came with it")]
    Cases {
        /// The upstream's name.
        upstream: String,
        /// The cases that differ.
        #[source]
        source: CasesError,
    },
    /// The configuration does not fit the policy.
    #[error("the configuration of upstream {upstream} does not fit its policy: {problems}")]
    Config {
        /// The upstream's name.
        upstream: String,
        /// Every problem.
        problems: config::Problems,
    },
    /// The paths of endpoints overlap or are malformed.
    #[error("upstream {upstream}: {source}")]
    Route {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: RouteError,
    },
}

/// One endpoint with its effective settings.
#[derive(Debug)]
pub struct Endpoint {
    /// The endpoint's description by the policy, or by the configuration for an added one.
    pub described: contract::Endpoint,
    /// The endpoint's index in the policy's description; none for an added endpoint that no catch-all covers.
    pub policy_index: Option<usize>,
    /// The effective settings.
    pub settings: settings::Endpoint,
    /// Whether the policy is trusted to settle unknown writes here.
    pub granted: bool,
    /// Whether the policy's effect holds even if the method's own is stricter: only for a policy that comes with the host.
    pub says_effect: bool,
    /// The group whose breaker, budget and limits the endpoint shares.
    pub group: Group,
    /// The endpoint's counters.
    pub meters: Arc<EndpointMeters>,
    /// Permits for attempts under way; none without a fixed concurrency limit.
    pub places: Option<Arc<Semaphore>>,
}

impl Endpoint {
    /// The effect of a request: the stricter one of method and policy, unless the operator sets it. A policy that comes with the host may
    /// declare a weaker effect for a method that it names: a search by POST only reads.
    pub fn effect(&self, method: &Method) -> Effect {
        let stated = self.described.effect;
        let holds = self.says_effect && self.described.method.is_some();
        self.settings.effect.unwrap_or_else(|| if holds { stated } else { Effect::of(method).max(stated) })
    }

    /// Whether the upstream may commit a write late. Then equal writes are sent one at a time and claim what they made. This also holds for
    /// a generation without a grant, since another one with a grant may be looking for a match.
    pub fn commits_late(&self) -> bool {
        self.described.commit_within.is_some()
    }

    /// The header fields that change what a request asks for, as far as the policy reads them.
    pub fn asking<'a>(&'a self, headers: &'a HeaderMap) -> Vec<(&'a str, &'a [u8])> {
        idempotency::fingerprint::asking(&self.described.interest.request_headers, headers)
    }

    /// Whether the policy reads this request header.
    pub fn reads(&self, header: &str) -> bool {
        self.described.interest.request_headers.iter().any(|own| own == header)
    }

    /// Whether a request with these fields is verified by them alone, because the policy reads nothing of its body.
    pub fn verifies_by_condition(&self, fields: &[(&str, &[u8])]) -> bool {
        self.commits_late() && !fields.is_empty() && self.described.interest.request_body_bytes == 0
    }

    /// Whether the status means `applied` and `deliver` without asking the policy.
    pub fn is_settled(&self, status: u16, effect: Effect) -> bool {
        effect != Effect::Unsafe
            && self.described.settled.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl ServiceError {
    /// The load phase that failed.
    pub fn step(&self) -> StagePhase {
        match self {
            Self::File { .. } | Self::NoSuchPolicy { .. } => StagePhase::Read,
            Self::Registry { .. } => StagePhase::Pull,
            Self::Unproven { source, .. } if source.is_checksum() => StagePhase::Checksum,
            Self::Unproven { .. } => StagePhase::Signature,
            Self::Engine(_) | Self::Policy { .. } => StagePhase::Load,
            Self::Cases { .. } => StagePhase::Cases,
            Self::Config { .. } | Self::Route { .. } => StagePhase::Configuration,
        }
    }
}

/// One upstream in one generation of its policy.
#[derive(Debug)]
pub struct UpstreamRuntime {
    /// The upstream's settings.
    pub settings: settings::Upstream,
    /// The endpoints, those of the policy first.
    pub endpoints: Vec<Endpoint>,
    /// The loaded policy.
    pub policy: Arc<Policy>,
    /// The manifest's digest if the policy came from a registry.
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
        let (policy, trusted) = policy(settings, engine, keys, registry)?;
        let service = Self::with_policy(settings, policy, trusted, group_of)?;
        Ok(match &settings.policy {
            settings::PolicySource::Registry(artifact) => service.from(artifact.digest()),
            _ => service,
        })
    }

    /// Sets the digest of a policy that came from a registry.
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
        let mut endpoints = Vec::with_capacity(merged.len());
        for (index, (described, effective)) in merged.into_iter().enumerate() {
            let name = effective.group.clone().unwrap_or_else(|| described.name.clone());
            let mut group = group_of(&format!("{}/{name}", settings.name), &effective.group_settings());
            if !effective.own_limits.is_empty() {
                // Unique, because no endpoint or group has a slash in its name.
                let own = format!("{}/{name}/{}", settings.name, described.name);
                group = group.beside(group_of(&own, &effective.alone().group_settings()));
            }
            endpoints.push(Endpoint {
                policy_index: if index < description.endpoints.len() { Some(index) } else { catch_all },
                granted: effective.settle.unwrap_or(trusted),
                says_effect: trusted && index < description.endpoints.len(),
                group,
                meters: EndpointMeters::unread(),
                places: effective.concurrency.map(|places| Arc::new(Semaphore::new(places))),
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
                endpoint.places.clone_from(&before.places);
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
    pub fn heard(&self, clock: &Clock) {
        let now: Timestamp = clock.now();
        self.wakefulness.heard(now);
    }
}

/// Loads the policy from a pulled component after all checks: its signature if there are keys, its format, and the cases that came with it.
///
/// # Errors
/// [`ServiceError`], which names the phase.
pub(crate) fn checked(
    settings: &settings::Upstream,
    engine: &Engine,
    keys: &Keys,
    artifact: &Artifact,
    pulled: &Pulled,
) -> Result<Arc<Policy>, ServiceError> {
    let upstream = || settings.name.clone();
    keys.verify(pulled.signature.as_deref(), &pulled.component).map_err(|source| ServiceError::Unproven {
        upstream: upstream(),
        path: artifact.to_string().into(),
        source: Box::new(source),
    })?;
    let loading = LoadOptions { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
    let policy = Policy::load(engine, &pulled.component, &loading)
        .map_err(|source| ServiceError::Policy { upstream: upstream(), source })?;
    if let Some(text) = &pulled.cases {
        golden_tests::play(&policy, text).map_err(|source| ServiceError::Cases { upstream: upstream(), source })?;
    }
    Ok(policy)
}

fn policy(
    settings: &settings::Upstream,
    engine: &Engine,
    keys: &Keys,
    registry: &Registry,
) -> Result<(Arc<Policy>, bool), ServiceError> {
    let loading = LoadOptions { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
    let upstream = || settings.name.clone();
    let refused = |source| ServiceError::Policy { upstream: upstream(), source };
    match &settings.policy {
        settings::PolicySource::Builtin => Ok((Policy::builtin(), true)),
        settings::PolicySource::Embedded(name) => {
            let component = prebuilt::embedded(name)
                .ok_or_else(|| ServiceError::NoSuchPolicy { upstream: upstream(), name: name.clone() })?;
            Ok((Policy::load(engine, component, &loading).map_err(refused)?, true))
        }
        settings::PolicySource::Registry(artifact) => {
            let unavailable = |source| ServiceError::Registry { upstream: upstream(), source: Box::new(source) };
            let pulled = registry.fetch(artifact).map_err(unavailable)?;
            Ok((checked(settings, engine, keys, artifact, &pulled)?, false))
        }
        settings::PolicySource::File(path) => {
            let component = bounded_file::read(path, COMPONENT_BYTES).map_err(|source| ServiceError::File {
                upstream: upstream(),
                path: path.clone(),
                source,
            })?;
            let path = path.clone();
            keys.check(&path, &component).map_err(|source| ServiceError::Unproven {
                upstream: upstream(),
                path,
                source: Box::new(source),
            })?;
            Ok((Policy::load(engine, &component, &loading).map_err(refused)?, false))
        }
    }
}
