//! The host: all upstreams and the state that they share.
//!
//! `build` opens stores, loads policies and connects; `crate::pipeline` handles requests with the result.

mod background;
mod build;
mod read_limit;
mod reload;
mod stores;

pub use build::{HostError, engine, registry};
pub(crate) use read_limit::{READ_QUOTA, ReadLimit};
pub use stores::check as check_state;

use crate::{
    clock::Clock,
    config::settings::Policies,
    idempotency::{OwnerProofs, Records},
    overload::{Memory, Peers},
    rng::Rng,
    rollout::{self, CandidateReport, Event, PolicyWatcher, Shadow, UpstreamPolicy, WatchError},
    settlement::Settlement,
    state_redis::RedisConnection,
    telemetry::{AllEndpointCounters, Events, Exporter, WorkerTelemetry, WorkersTelemetry},
    upstream::Transport,
};
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// All upstreams and the state that they share. Cloning is cheap; clones share everything.
///
/// [`Host::handle`] and [`Host::call`] take requests. The other methods are the work that a server does beside them: it watches policy
/// files, reloads settings, settles unknown writes and drains.
#[derive(Debug, Clone)]
pub struct Host {
    /// Read access for the admin API and the listener. Not part of the library.
    #[doc(hidden)]
    pub shared: Arc<Shared>,
    /// Telemetry of this worker's requests.
    pub(crate) telemetry: Arc<WorkerTelemetry>,
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
    pub workers: WorkersTelemetry,
    /// Runs requests that outlive their callers.
    pub(crate) detached: TaskTracker,
    /// Bounds how often callers read records.
    pub(crate) record_reads: ReadLimit,
    /// Proofs in record ids: a caller reads only its own tenant's records.
    pub(crate) owner_proofs: OwnerProofs,
}

impl Host {
    /// Watches the folders and files of policies: a new file serves at once if it passes every check. Existing files are loaded before this
    /// returns. Ends when the [`PolicyWatcher`] is dropped.
    ///
    /// # Errors
    /// [`WatchError`] if no thread can be started.
    pub fn watch(&self, policies: &Policies) -> Result<PolicyWatcher, WatchError> {
        PolicyWatcher::start(&self.shared.rollout, policies.dir.as_deref(), policies.poll)
    }

    /// Whether memory is too scarce for another connection.
    pub fn is_full(&self) -> bool {
        self.shared.memory.is_full()
    }

    /// The policy events of an upstream, oldest first; none if no upstream has this name.
    pub fn policy_events(&self, upstream: &str) -> Option<Vec<Event>> {
        self.upstream(upstream).map(UpstreamPolicy::events)
    }

    /// The report on an upstream's candidate; none if the upstream has none.
    pub fn candidate(&self, upstream: &str) -> Option<CandidateReport> {
        self.upstream(upstream)?.candidate.as_ref().map(rollout::Candidate::report)
    }

    fn upstream(&self, name: &str) -> Option<&UpstreamPolicy> {
        self.shared.rollout.upstreams.iter().map(Arc::as_ref).find(|upstream| upstream.settings.name == name)
    }

    pub(crate) fn transport(&self, upstream: usize) -> Arc<dyn Transport> {
        Arc::clone(&self.transports[upstream])
    }
}
