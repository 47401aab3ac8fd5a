//! One request from its head to its response.
//!
//! route -> deadline -> body -> [ record -> fingerprint lock -> (admission -> send -> decide -> clamp)* -> settle the record ] -> response
//!
//! For requests that are not safe, the bracket runs in a detached task: a caller that hangs up after the send must not cancel work whose
//! effect is already under way.

mod attempt;
mod caller_gone;
mod cold_start;
mod condition;
mod decide;
mod delivery;
mod early_response;
mod idempotency_key;
mod leased_body;
mod pending_report;
pub mod prefer;
mod prepare;
mod record_status;
pub(crate) mod request_context;
mod request_head;
mod response;
mod retry_loop;
mod settling;
mod shared_verifications;
mod stores;
mod unkeyed;
pub(crate) mod upstream_key;
mod verification;

pub(crate) use caller_gone::CallerGone;
pub(crate) use request_context::RequestContext;
use shared_verifications::SharedVerifications;
pub use stores::check as check_state;

use self::early_response::Leaves;
use crate::{
    bounded_file,
    clock::Clock,
    config::{
        Reload,
        settings::{Mode, Policies, REGISTRY_AUTH, Settings, State},
    },
    error::Problem,
    idempotency::{AfterLoss, OwnerProofs, Records},
    overload::{Memory, Peers, UnderWay, peers::Connection},
    policy::{
        Cache, Engine,
        signature::{KeyError, Keys},
    },
    registry::{Credentials, CredentialsError, Registry},
    rng::Rng,
    rollout::{
        self, CandidateReport, Event, PolicyWatcher, Shadow, UpstreamPolicy, WatchError,
        fleet::{self, Follower},
    },
    secret::TokenSource,
    settlement::{NotifyError, Settlement},
    state_redis::{OpenError, RedisConnection},
    telemetry::{
        self, AllEndpointCounters, Events, Exporter, RequestId, RequestRecorder, WorkerTelemetry, WorkersTelemetry,
        task_spans,
    },
    upstream::{Body, HttpClient, Transport, TransportError, headers::Caller},
    upstream_runtime::{ServiceError, UpstreamRuntime},
};
use http::{HeaderName, HeaderValue, Request, Response};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// How often expired records and recordings are purged. Records are kept for a day, so this is often enough.
const TIDY: Duration = Duration::from_mins(5);

/// How often the process's memory is measured. In between, the host adds the bytes of bodies to the last measurement.
const LOOK_AT_MEMORY: Duration = Duration::from_millis(100);

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

/// All upstreams and the state that they share. Cloning is cheap; clones share everything.
#[derive(Debug, Clone)]
pub struct Host {
    /// What the admin API and the listener read. Not part of the library.
    #[doc(hidden)]
    pub shared: Arc<Shared>,
    /// Telemetry of this worker's requests.
    desk: Arc<WorkerTelemetry>,
    transports: Arc<[Arc<dyn Transport>]>,
}

/// State that all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The only source of time.
    pub clock: Clock,
    pub(crate) entropy: Rng,
    /// The upstreams, and the engine, keys and registry that load their policies.
    pub rollout: Arc<rollout::Context>,
    /// The thread on which candidates decide in shadow; none without a shadow candidate.
    pub(crate) shadow: Option<Shadow>,
    /// The connection to shared state; none if state is in this process.
    pub link: Option<RedisConnection>,
    /// Idempotency records, in memory or shared.
    pub records: Arc<dyn Records>,
    /// Settles unknown writes in the background.
    pub settlement: Settlement,
    /// `state.writes_alone`: whether unsafe writes are sent while shared state cannot be reached.
    pub(crate) writes_alone: bool,
    /// `state.after_loss = "adopt"`: whether a match without a claim is adopted after shared state has lost its data.
    pub(crate) adopts_after_loss: bool,
    /// Limits the memory of requests under way.
    pub memory: Arc<Memory>,
    /// Connections and requests by peer.
    pub peers: Arc<Peers>,
    /// Events that an operator reads.
    pub events: Arc<Events>,
    /// Counters of every endpoint that has been in service.
    pub meters: Arc<AllEndpointCounters>,
    /// Sends spans to an OpenTelemetry collector, where one is configured.
    pub exporter: Option<Arc<Exporter>>,
    /// Each worker's timelines and counters.
    pub desks: WorkersTelemetry,
    pub(crate) detached: TaskTracker,
    /// Bounds how often callers read records.
    record_reads: record_status::ReadLimit,
    /// Proofs in record ids: a caller reads only its own tenant's records.
    owner_proofs: OwnerProofs,
}

fn memory(limit: Option<u64>) -> Arc<Memory> {
    // If the limit was derived from the control group's limit, compare it with the group's own count: the kernel kills by that count.
    let below =
        |group: &telemetry::Cgroup| limit.is_some_and(|limit| (group.limit() / 2..=group.limit()).contains(&limit));
    let cgroup = telemetry::Cgroup::own().filter(below);
    Memory::new(limit, move || telemetry::memory_used(cgroup.as_ref()))
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
        let desks = WorkersTelemetry::new(entropy.clone(), settings.admin.explain, exporter.clone(), &meters);
        let desk = desks.add();
        let gates = stores::gates(settings, link.as_ref(), clock, &entropy, &events);
        let with = fleet::FollowerContext {
            host: fleet::host_name(&entropy),
            clock,
            entropy: entropy.clone(),
            events: Arc::clone(&events),
        };
        let mut upstreams = Vec::with_capacity(settings.upstreams.len());
        for (index, upstream) in settings.upstreams.iter().enumerate() {
            let groups = |name: &str, endpoint: &_| gates.group(name, endpoint);
            let following = Follower::open(settings, index, link.as_ref(), with.clone());
            let configured = || UpstreamRuntime::load(upstream, &engine, &keys, &registry, groups);
            let service = match &following {
                None => configured()?,
                Some(following) => following.begin(
                    |source, patience| {
                        let registry = registry.clone().patient_for(patience);
                        UpstreamRuntime::load_candidate(upstream, source, &engine, &keys, &registry, groups)
                    },
                    configured,
                )?,
            };
            let serving =
                UpstreamPolicy::new(upstream.clone(), service, Arc::clone(&events), Arc::clone(&meters), clock);
            let serving = serving.following(following);
            rollout::begin(&serving, &engine, &keys, &registry, &gates);
            upstreams.push(Arc::new(serving));
        }
        let shadow = shadow(settings);
        let settlement = Settlement::new(&settings.settlement, clock, Arc::clone(&events))?;
        let rollout =
            Arc::new(rollout::Context { upstreams, engine, keys, registry, gates, events: Arc::clone(&events) });
        fleet::start(&rollout);
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
            desks,
            detached: TaskTracker::new(),
            record_reads: record_status::ReadLimit::default(),
            owner_proofs,
        };
        Ok(Self { shared: Arc::new(shared), desk, transports: transports.into() })
    }

    /// The same host with its own connections: one for each worker thread, so that no connection is shared across cores.
    ///
    /// # Errors
    /// [`HostError::Transport`] if the clients cannot be built.
    pub fn worker(&self, settings: &Settings) -> Result<Self, HostError> {
        let desk = self.shared.desks.add();
        Ok(Self { shared: Arc::clone(&self.shared), desk, transports: connect(settings)?.into() })
    }

    /// Handles one request. A refusal is a response too. Dropping the future cancels a safe request; other requests go on in the background
    /// once they may have been sent.
    pub async fn handle(
        &self,
        request: Request<Body>,
        caller: &Caller,
        listener: Option<SocketAddr>,
    ) -> Response<Body> {
        self.handle_on(request, caller, listener, None).await
    }

    /// [`Host::handle`] for a request of a known connection, against whose limits the request counts.
    pub async fn handle_on(
        &self,
        request: Request<Body>,
        caller: &Caller,
        listener: Option<SocketAddr>,
        connection: Option<&Connection>,
    ) -> Response<Body> {
        let mut recorder = RequestRecorder::open(&self.desk);
        let id = recorder.id;
        let (mut head, body) = request.into_parts();
        if let Err(problem) = request_head::check(&mut head) {
            return refused(problem, recorder);
        }
        if request_head::asks_the_host(&head) {
            let response = response::of_the_host();
            recorder.close(response.status().as_u16());
            return identified(response, id);
        }
        match self.reserved(&head, caller, listener).await {
            None => {}
            Some(Err(problem)) => return refused(problem, recorder),
            Some(Ok(response)) => {
                recorder.close(response.status().as_u16());
                return identified(response, id);
            }
        }
        let context = match self.prepare(head, body, caller, listener, connection, &mut recorder).await {
            Ok(taken) => taken,
            Err(problem) => return refused(problem, recorder),
        };
        let span = context.span(&recorder);
        let gone = context.caller_gone.clone();
        let mut waits = context.under_way.as_ref().filter(|_| gone.is_some()).map(UnderWay::caller);
        let caller_wait = context.caller_wait(&recorder.shared_meter());
        let explained = self.shared.link.is_some() && self.desk.explains();
        let run = task_spans::gathering(explained, context.run(recorder).instrument(span));
        let Some(gone) = gone else { return identified(run.await, id) };
        let guard = gone.guard();
        let mut finished = self.shared.detached.spawn(run);
        let answer = match caller_wait {
            None => {
                let answer = finished.await;
                guard.over();
                answer
            }
            Some(wait) => {
                let leave = |leaves: Leaves| {
                    if leaves == Leaves::ForGood {
                        guard.no_longer();
                    }
                    drop(waits.take());
                };
                let waited = wait.bound(&mut finished, leave).await;
                guard.over();
                waited
            }
        };
        if let Some(waits) = waits {
            waits.answered();
        }
        identified(answer.unwrap_or_else(|_| Problem::EffectUnknown.into_response()), id)
    }

    /// Refuses a request at the listener, and counts the refusal.
    pub fn refuse(&self, problem: Problem) -> Response<Body> {
        refused(problem, RequestRecorder::open(&self.desk))
    }

    /// Handles one request whose body is in memory: the pipeline without a listener.
    /// The book's page about the library has an example that runs.
    pub async fn call(&self, request: Request<bytes::Bytes>) -> Response<Body> {
        let caller = Caller::new(std::net::Ipv4Addr::LOCALHOST.into(), "http");
        self.handle(request.map(crate::upstream::full), &caller, None).await
    }

    /// Measures the process's memory periodically, for [`settings::Server::memory_limit`](crate::config::settings::Server). Never ends; the
    /// server runs it on one of its workers.
    pub async fn watch_memory(&self) {
        loop {
            self.shared.memory.look();
            tokio::time::sleep(LOOK_AT_MEMORY).await;
        }
    }

    /// Sends traces to the collector. Never ends if a collector is configured, else returns at once; the server runs it on one of its
    /// workers.
    pub async fn export_traces(&self) {
        if let Some(exporter) = &self.shared.exporter {
            exporter.run().await;
        }
    }

    /// Sends the traces that are still buffered.
    pub async fn export_rest(&self) {
        if let Some(exporter) = &self.shared.exporter {
            exporter.finish().await;
        }
    }

    /// Whether memory is too scarce for another connection.
    pub fn is_full(&self) -> bool {
        self.shared.memory.is_full()
    }

    /// Purges expired records and recordings every few minutes, so that memory stays bounded without traffic. Never ends; the server runs
    /// it on one of its workers, a program that uses the host as a library on a task of its own.
    pub async fn purge_expired(&self) {
        loop {
            tokio::time::sleep(TIDY).await;
            self.shared.records.purge_expired();
            for serving in &self.shared.rollout.upstreams {
                serving.recorder.purge_expired(self.shared.clock.now());
            }
        }
    }

    /// Watches the folders and files of policies: a new file serves at once if it passes every check. Existing files are loaded before this
    /// returns. Ends when the [`PolicyWatcher`] is dropped.
    ///
    /// # Errors
    /// [`WatchError`] if no thread can be started.
    pub fn watch(&self, policies: &Policies) -> Result<PolicyWatcher, WatchError> {
        PolicyWatcher::start(&self.shared.rollout, policies.dir.as_deref(), policies.poll)
    }

    /// Applies a reloaded configuration to every upstream, or to none.
    ///
    /// # Errors
    /// [`ServiceError`] if a setting does not fit a policy.
    pub fn reload(&self, reload: &Reload) -> Result<(), ServiceError> {
        let shared = &self.shared;
        let mut all = Vec::with_capacity(shared.rollout.upstreams.len());
        for (serving, settings) in shared.rollout.upstreams.iter().zip(&reload.settings.upstreams) {
            all.push(serving.reconfigured(settings, &shared.rollout.gates)?);
        }
        for (serving, reconfigured) in shared.rollout.upstreams.iter().zip(all) {
            serving.reconfigure(reconfigured);
        }
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        let (changed, waiting) = (list(&reload.changed), list(&reload.waiting));
        tracing::info!(%changed, %waiting, "the configuration was read again");
        shared.events.note("reloaded", "config", format!("in force: {changed}; waits for a restart: {waiting}"));
        Ok(())
    }

    /// Logs that certificates and tokens were reloaded because their files changed.
    pub fn files_read(&self) {
        tracing::info!("certificates and tokens were read again: their files have changed");
        let text = "certificates and tokens: their files have changed".to_owned();
        self.shared.events.note("reloaded", "files", text);
    }

    /// Logs that a changed configuration was refused and the old one stays in force.
    pub fn reload_refused(&self, error: &dyn std::error::Error) {
        let causes = std::iter::successors(Some(error), |&link| link.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        tracing::warn!(error = %text, "the configuration was not read again; what is in force stays");
        self.shared.events.note("reload-refused", "config", text);
    }

    /// The policy events of an upstream, oldest first; none if no upstream has this name.
    pub fn policy_events(&self, upstream: &str) -> Option<Vec<Event>> {
        let serving = self.shared.rollout.upstreams.iter().find(|serving| serving.settings.name == upstream)?;
        Some(serving.events())
    }

    /// The report on an upstream's candidate; none if the upstream has none.
    pub fn candidate(&self, upstream: &str) -> Option<CandidateReport> {
        let serving = self.shared.rollout.upstreams.iter().find(|serving| serving.settings.name == upstream)?;
        serving.candidate.as_ref().map(rollout::Candidate::report)
    }

    /// Waits for requests that still run without their callers. Start no more requests: the tracker is closed.
    pub async fn drained(&self) {
        self.shared.detached.close();
        self.shared.detached.wait().await;
        // Releases by these requests may still be on their way to the store.
        self.shared.records.flushed().await;
        self.shared.rollout.gates.flushed().await;
    }

    pub(crate) fn transport(&self, service: usize) -> Arc<dyn Transport> {
        Arc::clone(&self.transports[service])
    }
}

/// The request's id in the admin interface: names it when asking for its explanation.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("triage-request-id");

fn refused(problem: Problem, mut recorder: RequestRecorder) -> Response<Body> {
    let id = recorder.id;
    recorder.refused(&problem);
    let response = problem.into_response();
    recorder.close(response.status().as_u16());
    identified(response, id)
}

fn identified(mut response: Response<Body>, id: RequestId) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_bytes(&id.digits()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
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
            tracing::warn!(%error, "policies are compiled at each start");
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
    let store = settings.policies.cache.as_ref().map(|places| places.dir.join("components"));
    Ok(Registry::new(credentials, store))
}

/// The thread for shadow candidates, if an upstream has one. If it cannot start, candidates are not called and serving goes on.
fn shadow(settings: &Settings) -> Option<Shadow> {
    let in_shadow = |upstream: &crate::config::settings::Upstream| {
        upstream.candidate.as_ref().is_some_and(|candidate| candidate.mode == Mode::Shadow)
    };
    if !settings.upstreams.iter().any(in_shadow) {
        return None;
    }
    Shadow::start().inspect_err(|error| tracing::warn!(%error, "candidates in shadow are not asked")).ok()
}

fn connect(settings: &Settings) -> Result<Vec<Arc<dyn Transport>>, HostError> {
    let client = |upstream: &crate::config::settings::Upstream| {
        HttpClient::new(&upstream.connection)
            .map(|client| Arc::new(client) as Arc<dyn Transport>)
            .map_err(|source| HostError::Transport { upstream: upstream.name.clone(), source })
    };
    settings.upstreams.iter().map(client).collect()
}
