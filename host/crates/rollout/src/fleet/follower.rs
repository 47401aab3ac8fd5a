//! Follows the fleet's policy for one upstream: sends heartbeats, stages proposals, and switches with the other hosts.

use super::{
    FleetState, FleetStatus, HostStatus, Message,
    notices::Notice,
    planner::{Next, Planner},
    policy_cache::PolicyCache,
    staging::{self, Unstaged},
    state_file::Memory,
};
use crate::{
    Context, UpstreamPolicy,
    clock::Clock,
    config::settings::{PolicySource, Settings, State},
    policy::{Digest, Policy},
    registry::Target,
    rng::Rng,
    state::rollout::MessageReply,
    state_redis::{LinkError, Pushed, RedisConnection, agreement::RedisAgreement},
    telemetry::Events,
    upstream_runtime::{ServiceError, UpstreamRuntime},
};
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak, mpsc},
    time::Duration,
};
use tokio::{
    sync::{
        Notify, Semaphore,
        broadcast::{Receiver, error::RecvError},
    },
    time::{MissedTickBehavior, interval},
};

/// The time between heartbeats. A missed push message is made up for by the next one.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// The wait after a heartbeat that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long a start waits for the fleet's state. Then the host begins with its remembered or configured component, and catches up later.
const STATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a start waits for the registry to deliver the fleet's component.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);
/// The most rounds in a row: a message, a switch, the message that it is done.
const MAX_ROUNDS: usize = 4;

/// Follows the fleet for one upstream.
#[derive(Debug)]
pub struct Follower {
    upstream: String,
    /// The upstream's index in the host.
    pub(super) index: usize,
    pub(super) repository: Target,
    pub(super) agreement: RedisAgreement,
    pub(super) clock: Clock,
    pub(super) entropy: Rng,
    events: Arc<Events>,
    pub(super) planner: Mutex<Planner>,
    cache: Mutex<PolicyCache>,
    memory: Memory,
    pub(super) wake: Arc<Notify>,
    pub(super) announcing: Arc<Semaphore>,
}

/// The dependencies that all followers of a host share.
#[derive(Debug, Clone)]
pub struct FollowerContext {
    /// This host's name: see [`super::host_name`].
    pub host: String,
    /// The host's clock.
    pub clock: Clock,
    /// The host's random number generator.
    pub entropy: Rng,
    /// The host's events, which operators read.
    pub events: Arc<Events>,
}

/// The fleet's status for one upstream, for operators.
#[derive(Debug, Clone)]
pub struct Report {
    /// This host's name.
    pub host: String,
    /// The fleet's state as this host knows it.
    pub state: FleetState,
    /// The last status read from shared state.
    pub view: FleetStatus,
    /// Whether `view` is still current.
    pub is_current: bool,
    /// Whether another policy than the fleet's serves here.
    pub behind: bool,
    /// Why the fleet's policy does not serve here, if that is known.
    pub why_behind: Option<String>,
}

impl Follower {
    /// The follower of an upstream; none if the upstream does not follow a fleet.
    pub fn open(
        settings: &Settings,
        index: usize,
        link: Option<&RedisConnection>,
        with: FollowerContext,
    ) -> Option<Arc<Self>> {
        let upstream = settings.upstreams.get(index).filter(|upstream| upstream.follow_fleet)?;
        let (PolicySource::Registry(own), State::Shared(shared), Some(link)) =
            (&upstream.policy, &settings.state, link)
        else {
            return None;
        };
        let FollowerContext { host, clock, entropy, events } = with;
        // Without the address: a Redis that has moved is still the same fleet.
        let fleet = format!("{} {} {}", shared.prefix, upstream.name, own.target());
        let memory = Memory::of(settings.policies.cache.as_ref().map(|cache| cache.dir.join("fleet")), &fleet);
        let planner = Planner::new(host, own.digest(), memory.load());
        Some(Arc::new(Self {
            upstream: upstream.name.clone(),
            index,
            repository: own.target().clone(),
            agreement: RedisAgreement::new(link.clone(), &upstream.name),
            clock,
            entropy,
            events,
            planner: Mutex::new(planner),
            cache: Mutex::default(),
            memory,
            wake: Arc::default(),
            announcing: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Loads the first generation: the fleet's, if shared state (or the state file) names it and the registry delivers it soon, else the
    /// configured one. Blocks.
    ///
    /// # Errors
    /// [`ServiceError`] if the configured policy is refused.
    pub fn begin(
        self: &Arc<Self>,
        load: impl Fn(&PolicySource, Duration) -> Result<UpstreamRuntime, ServiceError>,
        configured: impl Fn() -> Result<UpstreamRuntime, ServiceError>,
    ) -> Result<UpstreamRuntime, ServiceError> {
        let notices = match self.ask_first() {
            Some(Ok(reply)) => self.planner.lock().process_reply(&Message::Heartbeat, &reply, self.clock.now()),
            Some(Err(_)) | None => vec![Notice::StateUnknown],
        };
        self.report_notices(notices);
        let elsewhere = self.planner.lock().elsewhere();
        let fleets =
            elsewhere.map(|target| (target, load(&PolicySource::Registry(self.repository.at(target)), PULL_TIMEOUT)));
        let service = match fleets {
            None => configured()?,
            Some((_, Ok(service))) => service,
            Some((target, Err(error))) => {
                self.not_staged(target, Unstaged::of(&error));
                configured()?
            }
        };
        self.cache_live_policy(&service);
        self.settle(service.artifact);
        Ok(service)
    }

    /// Runs on the Redis thread, since the calling thread may already be inside a runtime.
    fn ask_first(self: &Arc<Self>) -> Option<Result<MessageReply, LinkError>> {
        let (answer, answered) = mpsc::sync_channel(1);
        let own = Arc::clone(self);
        self.agreement.link().beside(async move {
            let (status, known, message) = own.own(None);
            let reply = own.agreement.send_within(STATE_TIMEOUT, &status, &known, &message).await;
            let _ = answer.send(reply);
        });
        answered.recv_timeout(STATE_TIMEOUT).ok()
    }

    pub(super) fn report_notices(&self, notices: impl IntoIterator<Item = Notice>) {
        for notice in notices {
            if notice.is_good() {
                tracing::info!(upstream = self.upstream, "fleet: {notice}");
            } else {
                tracing::warn!(upstream = self.upstream, "fleet: {notice}");
            }
            self.events.note(notice.kind(), &self.upstream, notice.to_string());
        }
    }

    /// Caches the live policy, so that a rollback needs no registry.
    fn cache_live_policy(&self, service: &UpstreamRuntime) {
        if let Some(digest) = service.artifact {
            self.put(digest, Arc::clone(&service.policy));
        }
    }

    pub(super) fn put(&self, digest: Digest, policy: Arc<Policy>) {
        let kept = self.planner.lock().kept();
        self.cache.lock().put(digest, policy, &kept);
    }

    pub(super) fn cached_policy(&self, digest: Digest) -> Option<Arc<Policy>> {
        self.cache.lock().find(digest)
    }

    /// This host's status, the known fleet state and the next message.
    pub(super) fn own(&self, serving: Option<&UpstreamPolicy>) -> (HostStatus, FleetState, Message) {
        let artifact = serving.and_then(|serving| serving.current().artifact);
        let cache = self.cache.lock().digests();
        // A cached component is still refused if it was rolled back here.
        let claimed = self.planner.lock().claimed(&cache);
        let is_bad = |component: Digest| serving.is_some_and(|serving| serving.is_quarantined(&component));
        if let Some(digest) = claimed
            && self.cached_policy(digest).and_then(|policy| policy.digest()).is_some_and(is_bad)
        {
            self.not_staged(digest, Unstaged::quarantined());
        }
        let planner = self.planner.lock();
        (planner.host_status(artifact, &cache), planner.known().clone(), planner.next_message())
    }

    /// Sends the next message and acts on the reply. Returns whether shared state was reached.
    async fn exchange_messages(self: &Arc<Self>, context: &Arc<Context>) -> bool {
        let Some(serving) = context.upstreams.get(self.index) else { return true };
        let artifact = || serving.current().artifact;
        for _ in 0..MAX_ROUNDS {
            let (status, known, message) = self.own(Some(serving));
            let reply = self.agreement.send(&status, &known, &message).await;
            let now = self.clock.now();
            let notices = {
                let mut planner = self.planner.lock();
                match &reply {
                    Ok(reply) => planner.process_reply(&message, reply, now),
                    Err(LinkError::Nonsense { .. }) => planner.flawed().into_iter().collect(),
                    Err(_) => Vec::new(),
                }
            };
            self.report_notices(notices);
            self.settle(artifact());
            self.leave_withdrawn(serving);
            let next = {
                let cache = self.cache.lock().digests();
                self.planner.lock().next(artifact(), &cache, now)
            };
            match next {
                Next::Install { digest, promoted } => self.install(context, serving, digest, promoted),
                Next::Stage { digest, promoted, within } => {
                    self.stage(context, staging::Wanted { digest, promoted, within }, None);
                }
                Next::Rest => {}
            }
            self.leave_withdrawn(serving);
            if reply.is_err() {
                return false;
            }
            // Report a change at once, since other hosts wait for it.
            let (again, _, message) = self.own(Some(serving));
            if again == status && message == Message::Heartbeat {
                return true;
            }
        }
        true
    }

    /// Records the live component. Saves the fleet's state for the next start once it serves here.
    fn settle(&self, artifact: Option<Digest>) {
        let (notices, known) = {
            let mut planner = self.planner.lock();
            (planner.settle(artifact), planner.known().clone())
        };
        if notices.is_some() {
            self.memory.keep(&known);
        }
        self.report_notices(notices);
    }

    /// Enforces the fleet's rollbacks here: quarantines the components that it has rolled back, and leaves one that still serves because
    /// this host refuses its replacement.
    fn leave_withdrawn(&self, serving: &UpstreamPolicy) {
        let current = serving.current();
        let (withdrawn, is_there, is_stranded) = {
            let planner = self.planner.lock();
            let artifact = current.artifact;
            (planner.known().quarantined.clone(), !planner.behind(artifact), planner.is_stranded(artifact))
        };
        if is_there {
            serving.quarantine(&withdrawn, current.policy.digest());
        }
        if is_stranded {
            serving.fall_back(&withdrawn);
        }
    }

    fn install(&self, context: &Context, serving: &UpstreamPolicy, digest: Digest, promoted: bool) {
        let Some(policy) = self.cached_policy(digest) else { return };
        let component = policy.digest();
        if promoted && let Some(component) = component {
            serving.unquarantine(&component);
        }
        let made = match component.filter(|component| serving.is_quarantined(component)) {
            Some(_) => Err(Unstaged::quarantined()),
            None => staging::service(context, serving, &policy),
        };
        match made {
            Ok(service) => {
                self.cache_live_policy(&serving.current());
                let withdrawn = self.planner.lock().known().quarantined.clone();
                serving.quarantine(&withdrawn, component);
                serving.install(service.from(digest));
                self.planner.lock().installed();
                self.settle(Some(digest));
            }
            Err(why) => self.not_staged(digest, why),
        }
    }

    pub(super) fn not_staged(&self, digest: Digest, why: Unstaged) {
        let notices = self.planner.lock().failed(digest, why, self.clock.now());
        self.report_notices(notices);
    }

    /// The live policy failed too often here: reports it to the fleet.
    pub(crate) fn failed_here(&self, artifact: Option<Digest>) {
        if self.planner.lock().fault(artifact) {
            self.wake.notify_one();
        }
    }

    /// Whether the fleet has chosen a policy, or a proposal is open.
    pub fn has_fleet_policy(&self) -> bool {
        let planner = self.planner.lock();
        planner.known().generation > 0 || planner.proposed().is_some()
    }

    /// The report, if `artifact` serves.
    pub fn report(&self, artifact: Option<Digest>) -> Report {
        let planner = self.planner.lock();
        let (view, is_current) = planner.view(self.clock.now());
        Report {
            host: planner.host.clone(),
            state: planner.known().clone(),
            view,
            is_current,
            behind: planner.behind(artifact),
            why_behind: planner.why_behind(),
        }
    }
}

/// Starts a task on the Redis thread for each upstream that follows a fleet. The tasks end with the host.
pub fn start(context: &Arc<Context>) {
    for following in context.upstreams.iter().filter_map(|serving| serving.following.as_ref()) {
        let link = following.agreement.link();
        let (wake, message) = (Arc::clone(&following.wake), following.agreement.message());
        link.beside(follow(Arc::downgrade(context), following.index, wake, link.pushed(), message));
    }
}

async fn follow(
    context: Weak<Context>,
    index: usize,
    wake: Arc<Notify>,
    mut pushed: Receiver<Pushed>,
    message: String,
) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            _ = ticks.tick() => true,
            () = wake.notified() => true,
            received = pushed.recv() => match received {
                Ok(Pushed::Message(own)) => *own == *message,
                Err(RecvError::Closed) => return,
                // Messages may have been missed.
                Ok(Pushed::Joined) | Err(RecvError::Lagged(_)) => true,
            },
        };
        let Some(context) = context.upgrade() else { return };
        let following = context.upstreams.get(index).and_then(|serving| serving.following.clone());
        let Some(following) = following.filter(|_| due) else { continue };
        if !following.exchange_messages(&context).await {
            ticks.reset_after(RETRY_INTERVAL);
        }
    }
}
