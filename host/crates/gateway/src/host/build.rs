//! Builds a host: opens the stores, starts the engine, loads each upstream's policy, connects.

use super::{Host, ReadLimit, Shared, stores};
use crate::{
    bounded_file,
    clock::Clock,
    config::settings::{Mode, REGISTRY_AUTH, Settings, State, Upstream},
    idempotency::AfterLoss,
    overload::{Memory, Peers},
    policy::{
        Cache, Engine,
        signature::{KeyError, Keys},
    },
    registry::{Credentials, CredentialsError, Registry},
    rng::Rng,
    rollout::{self, Shadow},
    secret::TokenSource,
    settlement::{NotifyError, Settlement},
    state_redis::OpenError,
    telemetry::{self, AllEndpointCounters, Events, Exporter, WorkersTelemetry},
    upstream::{HttpClient, Transport, TransportError},
    upstream_runtime::ServiceError,
};
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// Why a host could not be built.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The policy or the settings of an upstream were refused.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The client for shared state could not be built from `state`.
    #[error("shared state (`state`) cannot be used")]
    State(#[from] OpenError),
    /// A public key for policy signatures could not be read.
    #[error("`policies.keys` cannot be used")]
    Keys(#[from] KeyError),
    /// The registry credentials could not be read.
    #[error("`policies.registry_auth_file` cannot be used")]
    Registry(#[from] CredentialsError),
    /// The client for the OTLP collector could not be built.
    #[error("traces cannot be exported (telemetry.otlp.endpoint)")]
    Traces(#[source] TransportError),
    /// The client for the webhook of settled writes could not be built.
    #[error("notices of settled writes cannot be sent")]
    Settlement(#[from] NotifyError),
    /// The HTTP client of an upstream could not be built.
    #[error("upstream {upstream} cannot be called")]
    Transport {
        /// The upstream's name in the configuration.
        upstream: String,
        /// Why the client was refused.
        #[source]
        source: TransportError,
    },
}

impl Host {
    /// Loads every upstream's policy and builds the host with its own connections.
    ///
    /// # Errors
    /// [`HostError`] if a policy, the configuration or an upstream's address is refused.
    pub fn new(settings: &Settings, clock: Clock, entropy: Rng) -> Result<Self, HostError> {
        let transports = connect(settings)?;
        Self::with_transports(settings, clock, entropy, transports)
    }

    /// Builds a host that reaches its upstreams through the given transports, one for each upstream: the in-process emulator, or a caller's
    /// own client.
    ///
    /// # Errors
    /// [`HostError`] as for [`Host::new`].
    pub fn with_transports(
        settings: &Settings,
        clock: Clock,
        entropy: Rng,
        transports: Vec<Arc<dyn Transport>>,
    ) -> Result<Self, HostError> {
        let link = stores::open(settings, clock, &entropy)?;
        let engine = engine(settings)?;
        let keys = Keys::open(&settings.policies.keys)?;
        let registry = registry(settings)?;
        let events = Arc::new(Events::new(clock));
        let (records, owner_proofs) = stores::records(settings, link.as_ref(), clock, &entropy, &events)?;
        // The first telemetry instance serves library calls; each worker adds its own.
        let meters = Arc::new(AllEndpointCounters::new(settings.server.workers + 1));
        let exporter = settings.traces.as_ref().map(|target| Exporter::new(target, clock).map(Arc::new));
        let exporter = exporter.transpose().map_err(HostError::Traces)?;
        let workers = WorkersTelemetry::new(
            entropy.clone(),
            settings.admin.explain,
            exporter.clone(),
            &meters,
            Arc::clone(&events),
        );
        let telemetry = workers.add();
        let gates = stores::gates(settings, link.as_ref(), clock, &entropy, &events);
        let settlement = Settlement::new(&settings.settlement, clock, Arc::clone(&events))?;
        let parts =
            rollout::Parts { engine, keys, registry, gates, events: Arc::clone(&events), meters: Arc::clone(&meters) };
        let rollout = rollout::Context::start(settings, link.as_ref(), parts, clock, &entropy)?;
        let shadow = shadow(settings);
        let shared = Shared {
            clock,
            entropy,
            rollout,
            shadow,
            link,
            records,
            settlement,
            writes_alone: matches!(&settings.state, State::Shared(shared) if shared.writes_alone),
            adopts_after_loss: matches!(&settings.state, State::Shared(shared) if shared.after_loss == AfterLoss::Adopt),
            memory: memory(settings.server.memory_limit.map(|bytes| bytes as u64)),
            peers: Peers::new(settings.server.peer_limits()),
            events,
            meters,
            exporter,
            workers,
            detached: TaskTracker::new(),
            record_reads: ReadLimit::default(),
            owner_proofs,
        };
        Ok(Self { shared: Arc::new(shared), telemetry, transports: transports.into() })
    }

    /// The same host with another transport for each upstream, made from the upstream's connection settings.
    #[must_use]
    pub fn with_each_transport(&self, transport: impl Fn(&crate::upstream::Settings) -> Arc<dyn Transport>) -> Self {
        let upstreams = self.shared.rollout.upstreams.iter();
        let transports = upstreams.map(|upstream| transport(&upstream.settings.connection)).collect();
        Self { transports, ..self.clone() }
    }

    /// The same host with its own connections: one for each worker thread, so that no connection is shared across cores.
    ///
    /// # Errors
    /// [`HostError::Transport`] if the clients cannot be built.
    pub fn worker(&self, settings: &Settings) -> Result<Self, HostError> {
        let telemetry = self.shared.workers.add();
        Ok(Self { shared: Arc::clone(&self.shared), telemetry, transports: connect(settings)?.into() })
    }
}

fn memory(limit: Option<u64>) -> Arc<Memory> {
    // If the limit was derived from the control group's limit, compare it with the group's own count: the kernel kills by that count.
    let below =
        |group: &telemetry::Cgroup| limit.is_some_and(|limit| (group.limit() / 2..=group.limit()).contains(&limit));
    let cgroup = telemetry::Cgroup::own().filter(below);
    Memory::new(limit, move || telemetry::memory_used(cgroup.as_ref()))
}

/// The engine, with the cache of compiled code if one is configured.
///
/// # Errors
/// [`HostError::Service`] if the engine cannot be started. A broken cache costs compile time, but does not stop the start.
pub fn engine(settings: &Settings) -> Result<Engine, HostError> {
    let mut engine = Engine::start().map_err(ServiceError::from)?;
    if let Some(compiler) = &settings.policies.compiler {
        engine = engine.compiling_with(compiler.clone());
    }
    match settings.policies.cache.as_ref().map(Cache::open) {
        None => Ok(engine),
        Some(Ok(cache)) => Ok(engine.caching(cache)),
        Some(Err(error)) => {
            tracing::warn!(%error, "policies are compiled again at each start");
            Ok(engine)
        }
    }
}

/// The registry client: with the operator's credentials, and with a component folder beside the compiled code if there is a cache.
///
/// # Errors
/// [`CredentialsError`] if the configured credentials cannot be read.
pub fn registry(settings: &Settings) -> Result<Registry, CredentialsError> {
    let credentials = match &settings.policies.registry_auth {
        None => Credentials::default(),
        Some(TokenSource::Environment(secret)) => Credentials::read(secret.reveal(), REGISTRY_AUTH)?,
        Some(TokenSource::File(path)) => {
            let name = path.display().to_string();
            let text = bounded_file::read_secret(path).map_err(|error| CredentialsError::Read(name.clone(), error))?;
            Credentials::read(&text, &name)?
        }
    };
    let store = settings.policies.cache.as_ref().map(|cache| cache.dir.join("components"));
    Ok(Registry::new(credentials, store))
}

/// The thread for shadow candidates, if an upstream has one. If it cannot start, candidates are not called, and requests are served without
/// them.
fn shadow(settings: &Settings) -> Option<Shadow> {
    let in_shadow =
        |upstream: &Upstream| upstream.candidate.as_ref().is_some_and(|candidate| candidate.mode == Mode::Shadow);
    if !settings.upstreams.iter().any(in_shadow) {
        return None;
    }
    Shadow::start().inspect_err(|error| tracing::warn!(%error, "shadow candidates do not decide")).ok()
}

fn connect(settings: &Settings) -> Result<Vec<Arc<dyn Transport>>, HostError> {
    let client = |upstream: &Upstream| {
        HttpClient::new(&upstream.connection)
            .map(|client| Arc::new(client) as Arc<dyn Transport>)
            .map_err(|source| HostError::Transport { upstream: upstream.name.clone(), source })
    };
    settings.upstreams.iter().map(client).collect()
}
