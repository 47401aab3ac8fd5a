//! Admission in shared state: breaker, retry budget and rate limits of a group, for the whole fleet.
//!
//! ```text
//! scripts     the Lua scripts: arguments and replies       shared_breaker  this host's copy of the fleet's breaker
//! acquire     admits an attempt, rechecks before the send  grant           an admission and what it consumed
//! batch       one script call for simultaneous attempts    prefetched      permits reserved ahead of attempts
//! heartbeat   once a second: report and read the group     snapshot        what this host knows between script calls
//! view        status for operators
//! ```
//!
//! While Redis answers, Redis decides. Each host also has a breaker of its own, which opens for failures that only this host
//! sees. When Redis cannot be reached, this breaker continues from the fleet's last state, and limits are this host's share.

mod acquire;
mod batch;
mod grant;
mod heartbeat;
mod prefetched;
mod scripts;
mod shared_breaker;
mod snapshot;
mod view;

pub use grant::{Grant, Shared};

use super::{LinkError, RedisConnection, Script, Value};
use crate::{
    breaker::{self, Force, Trip},
    clock::{Clock, Timestamp},
    contract::BreakerSignal,
    group::{AttemptKind, Report, Settings},
    memory::admission::{self as memory, MemoryGate},
    rng::Rng,
    telemetry::Events,
};
use batch::Batches;
use parking_lot::Mutex;
use prefetched::Leased;
use scripts::{Acquired, Frame, Go, LimitDebit, ProbeTicket, RecheckDecision};
use shared_breaker::{Fleet, SharedBreakerState, State};
use snapshot::Known;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// `Retry-After` where the end of a refusal is unknown.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Age at which a heartbeat's reply is no longer used: three heartbeats.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(3);

/// The groups of this host whose state is in Redis.
#[derive(Debug)]
pub struct RedisGates {
    link: RedisConnection,
    /// A random id of this process.
    host: String,
    quorum: u32,
    clock: Clock,
    entropy: Rng,
    events: Arc<Events>,
    groups: Mutex<HashMap<String, Arc<RedisGate>>>,
    /// Script calls in the background; [`RedisGates::flush`] waits for them.
    under_way: TaskTracker,
}

/// Admission of one group.
#[derive(Debug)]
pub struct RedisGate {
    name: String,
    link: RedisConnection,
    host: String,
    quorum: u32,
    clock: Clock,
    entropy: Rng,
    events: Arc<Events>,
    under_way: TaskTracker,
    /// Decides while Redis cannot be reached. Its breaker is this host's own, which counts also while Redis answers.
    alone: MemoryGate,
    known: Mutex<Known>,
    batches: Batches,
}

impl RedisGates {
    /// Groups whose state is behind `link`. A host opens the fleet's breaker only if `quorum` hosts saw failures.
    pub fn open(link: RedisConnection, quorum: u32, clock: Clock, entropy: Rng, events: Arc<Events>) -> Arc<Self> {
        let host = format!("{:016x}", entropy.next());
        let (groups, under_way) = (Mutex::default(), TaskTracker::new());
        // `wait` returns only on a closed tracker. A closed tracker still accepts tasks.
        under_way.close();
        let gates = Arc::new(Self { link, host, quorum, clock, entropy, events, groups, under_way });
        gates.link.beside(heartbeat::listen(Arc::downgrade(&gates), gates.link.pushed()));
        gates
    }

    /// The group with this name, created with `settings` at the first call: see `crate::admission::Groups::group`.
    pub fn group(&self, name: &str, settings: impl FnOnce() -> Settings) -> Arc<RedisGate> {
        let mut groups = self.groups.lock();
        let gate = groups.entry(name.to_owned()).or_insert_with(|| Arc::new(RedisGate::new(self, name, settings())));
        Arc::clone(gate)
    }

    /// Reports the successes saved up, and waits for script calls under way.
    pub async fn flush(&self) {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        for gate in groups {
            gate.report_saved_up();
        }
        self.under_way.wait().await;
    }
}

impl RedisGate {
    fn new(gates: &RedisGates, name: &str, settings: Settings) -> Self {
        let frame = Arc::new(Frame::new(gates.link.keys(), name, &gates.host, gates.quorum, &settings));
        let alone = MemoryGate::new(name.to_owned(), settings.clone(), gates.clock, gates.entropy.clone());
        let known = Known::new(settings, frame);
        Self {
            name: name.to_owned(),
            link: gates.link.clone(),
            host: gates.host.clone(),
            quorum: gates.quorum,
            clock: gates.clock,
            entropy: gates.entropy.clone(),
            events: Arc::clone(&gates.events),
            under_way: gates.under_way.clone(),
            alone: alone.reporting_to(Arc::clone(&gates.events)),
            known: Mutex::new(known),
            batches: Batches::default(),
        }
    }

    /// The name: `upstream/group`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time left of the upstream's pause, as far as this host knows.
    pub fn paused(&self) -> Duration {
        self.alone.paused()
    }

    /// Records the result of an attempt. A fast success is saved up for the next script call; a failure, a slow call and a probe's
    /// result are reported at once.
    pub fn report(self: &Arc<Self>, grant: &Grant, report: Report) {
        let Report { signal, took, .. } = report;
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.report(grant, report),
            Grant::Shared(grant) => grant,
        };
        let mut known = self.known.lock();
        let slow_after = known.settings.breaker.as_ref().and_then(|settings| settings.slow_call_after);
        let slow = slow_after.is_some_and(|limit| took >= limit);
        let Some(ticket) = &grant.ticket else { return };
        let plain = ticket.lease.is_none();
        if plain && (signal == BreakerSignal::Ignore || (signal == BreakerSignal::Success && !slow)) {
            if signal == BreakerSignal::Success {
                known.save_up(ticket);
            }
            drop(known);
            if let Some(own) = &grant.own {
                self.alone.record(own, report);
            }
            return;
        }
        // The same call reports the successes saved up first: a failure must not overtake earlier successes.
        let saved_up = known.take_saved_up();
        let words = scripts::report(&saved_up, Some((ticket, &report)), slow);
        let (keys, arguments) = self.arguments(&known, self.clock.now(), words);
        drop(known);
        let (gate, own) = (Arc::clone(self), grant.own);
        self.spawn(async move {
            gate.step(&scripts::REPORT, &keys, &arguments).await;
            // If the report opened the fleet's breaker, `read` has opened this host's own too, and its ticket no longer counts.
            if let Some(own) = own {
                gate.alone.record(&own, report);
            }
        });
    }

    /// Refunds what was consumed for an attempt that was not made.
    pub fn give_back(self: &Arc<Self>, grant: &Grant) {
        match grant {
            Grant::Alone(grant) => self.alone.give_back(grant),
            Grant::Shared(grant) => self.give_back_shared(grant),
        }
    }

    fn give_back_shared(self: &Arc<Self>, grant: &Shared) {
        if let Some(own) = &grant.own {
            self.alone.release(own);
        }
        match &grant.taken {
            None if !grant.sent => self.known.lock().leased.give_back(),
            Some(taken) => self.return_to_store(grant.ticket.as_ref(), grant.sent, grant.ask, taken),
            None => {}
        }
    }

    fn return_to_store(
        self: &Arc<Self>,
        ticket: Option<&ProbeTicket>,
        sent: bool,
        ask: AttemptKind,
        taken: &LimitDebit,
    ) {
        let holds_lease = ticket.is_some_and(|ticket| ticket.lease.is_some());
        if !holds_lease && (sent || (taken.is_empty() && ask != AttemptKind::Retry)) {
            return;
        }
        self.later(&scripts::REFUND, scripts::give_back(ticket, sent, ask, taken));
    }

    /// Refunds a reply of [`scripts::ACQUIRE`] that arrived after its caller had gone.
    fn undo(self: &Arc<Self>, answer: &Value, ask: AttemptKind) {
        if let Some((shared, Acquired::Go(Go { taken, lease, leased, .. }))) =
            self.read(&scripts::ACQUIRE, answer, scripts::acquired)
        {
            let ticket = ProbeTicket { epoch: shared.epoch, lease };
            let mut known = self.known.lock();
            let taken = if known.settings.leased {
                known.leased.add(leased, self.clock.now());
                taken
            } else {
                taken.range(0..=leased, &known.intervals_us())
            };
            drop(known);
            self.return_to_store(Some(&ticket), false, ask, &taken);
        }
    }

    /// Releases the probe lease in a reply of [`scripts::RECHECK`] that arrived after its caller had gone.
    fn release_late_lease(self: &Arc<Self>, answer: &Value) {
        if let Some((shared, (RecheckDecision::Send { lease: Some(lease) }, _))) =
            self.read(&scripts::RECHECK, answer, scripts::recheck_reply)
        {
            let ticket = ProbeTicket { epoch: shared.epoch, lease: Some(lease) };
            self.return_to_store(Some(&ticket), true, AttemptKind::First, &LimitDebit::default());
        }
    }

    /// Delays the attempts of the whole fleet. A shorter pause never cuts a longer one.
    pub async fn pause(self: &Arc<Self>, pause: Duration) {
        self.alone.pause(pause);
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), scripts::pause(pause))
        };
        self.step(&scripts::PAUSE, &keys, &arguments).await;
    }

    /// Ends the fleet's pause early. False: there was none.
    ///
    /// # Errors
    /// [`LinkError`] where Redis cannot be reached.
    pub async fn lift(self: &Arc<Self>) -> Result<bool, LinkError> {
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), Vec::new())
        };
        let answer = self.link.run(&scripts::LIFT_PAUSE, &keys, &arguments).await?;
        let nonsense = LinkError::Nonsense { script: scripts::LIFT_PAUSE.name() };
        let (_, (was_paused, mark)) = self.read(&scripts::LIFT_PAUSE, &answer, scripts::lifted).ok_or(nonsense)?;
        // This host may know of a pause that never reached Redis.
        Ok(self.note_lift(mark) || was_paused)
    }

    /// Applies the lifting of the fleet's pause. True: this host knew of a pause.
    fn note_lift(&self, mark: u64) -> bool {
        // Under the lock, so that the pause that a heartbeat reads is applied before or after this as a whole.
        let mut known = self.known.lock();
        known.note_lift(mark) && self.alone.lift()
    }

    /// Applies an operator's command to the fleet's breaker. False: the group has no breaker.
    ///
    /// # Errors
    /// [`LinkError`] where Redis cannot be reached.
    pub async fn force(self: &Arc<Self>, force: Force) -> Result<bool, LinkError> {
        let (keys, arguments) = {
            let known = self.known.lock();
            if known.settings.breaker.is_none() {
                return Ok(false);
            }
            self.arguments(&known, self.clock.now(), scripts::force(force))
        };
        let answer = self.link.run(&scripts::FORCE, &keys, &arguments).await?;
        let nonsense = LinkError::Nonsense { script: scripts::FORCE.name() };
        self.read(&scripts::FORCE, &answer, |_| Some(())).ok_or(nonsense)?;
        Ok(true)
    }

    /// Applies changed settings: see [`MemoryGate::adopt`]. Redis names a limit by its figures, so a changed limit starts empty
    /// and an unchanged one keeps its count.
    pub fn adopt(&self, settings: Settings) {
        let mut known = self.known.lock();
        if known.settings == settings {
            return;
        }
        known.frame = Arc::new(Frame::new(self.link.keys(), &self.name, &self.host, self.quorum, &settings));
        known.leased = Leased::default();
        if settings.breaker.is_none() {
            // The state of a removed breaker must not refuse attempts. A breaker that is added again starts from what Redis has.
            known.fleet = Fleet::default();
        }
        known.settings = settings;
        let share = known.share();
        drop(known);
        self.alone.adopt(share);
    }

    fn arguments(&self, known: &Known, now: Timestamp, own: Vec<String>) -> (Vec<String>, Vec<String>) {
        let frame = &known.frame;
        (frame.keys.clone(), frame.arguments(None, self.entropy.next(), &known.fleet.memory(now), &own))
    }

    /// Runs a script in the background.
    fn later(self: &Arc<Self>, script: &'static Script, own: Vec<String>) {
        let (keys, arguments) = self.arguments(&self.known.lock(), self.clock.now(), own);
        let gate = Arc::clone(self);
        self.spawn(async move {
            gate.step(script, &keys, &arguments).await;
        });
    }

    /// Runs a script and takes only the breaker's state from its reply. A failed call is not repeated: leases expire, and this host's
    /// own breaker has counted what was not reported.
    async fn step(&self, script: &'static Script, keys: &[String], arguments: &[String]) {
        match self.link.run(script, keys, arguments).await {
            Ok(answer) => drop(self.read(script, &answer, |_| Some(()))),
            Err(error) => tracing::debug!(%error, group = %self.name, step = script.name(), "a call to shared state \
                                                                                             failed"),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // No runtime: the thread is ending, and its connection with it.
        if let Ok(runtime) = Handle::try_current() {
            // In the span of the request, so that traces show the script call below it.
            self.under_way.spawn_on(task.in_current_span(), &runtime);
        }
    }

    /// Parses a reply, and applies the breaker's state in it.
    fn read<T>(
        &self,
        script: &'static Script,
        answer: &Value,
        read: impl FnOnce(&[Value]) -> Option<T>,
    ) -> Option<(SharedBreakerState, T)> {
        let found = scripts::split_reply(answer).and_then(|(shared, own)| Some((shared, read(own)?)));
        match &found {
            Some((shared, _)) => self.observe(shared.clone(), true),
            None => tracing::error!(
                group = %self.name,
                step = script.name(),
                "shared state sent an unexpected answer; a program other than Triage writes below its prefix"
            ),
        }
        found
    }

    /// Applies a state of the fleet's breaker to this host's copy. `surely`: Redis replied it itself, see [`Fleet::observe`].
    fn observe(&self, observed: SharedBreakerState, surely: bool) {
        let now = self.clock.now();
        let mut known = self.known.lock();
        if known.settings.breaker.is_none() {
            return;
        }
        let Some(change) = known.fleet.observe(observed, now, surely) else { return };
        known.leased = Leased::default();
        // Under the lock, so that changes from two threads are applied one after the other.
        let (state, forced, why, left) = match change.state {
            State::Closed => (breaker::BreakerState::Closed, false, None, Duration::ZERO),
            State::Open { left, why } => (breaker::BreakerState::Open, why == Trip::Forced, Some(why), left),
            State::HalfOpen { why } => (breaker::BreakerState::HalfOpen, false, Some(why), Duration::ZERO),
            State::Held { left } => (breaker::BreakerState::Closed, true, None, left),
        };
        self.alone.follow(state, forced, why, left);
        drop(known);
        if let Some(transition) = change.transition {
            memory::report_transition(&self.name, &self.events, transition);
        }
    }
}

#[cfg(test)]
mod tests;
