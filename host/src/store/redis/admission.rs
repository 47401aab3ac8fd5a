//! Groups' gates in shared state: breaker, budget and limits of a whole fleet.
//!
//! ```text
//! steps    the scripts: what goes out, what comes back      fleet    what this host knows of the shared breaker
//! pass     what an attempt passes, and the look before the send      grant    what it was given
//! together attempts that ask at the same moment      leased   places taken ahead      known    what is known in between
//! beat     once a second: alive, handed in, read again      view     what there is to see
//! ```
//!
//! While the store answers it decides. Beside it each host has a breaker of its own, which opens for what only this host sees,
//! and which stands as the fleet's last did once the store cannot be reached; limits are then this host's share.

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
    policy::contract::BreakerSignal,
    rng::Rng,
    state::group::{AttemptKind, Report, Settings},
    store::memory::admission::{self as memory, MemoryGate},
    telemetry::Events,
};
use batch::Batches;
use parking_lot::Mutex;
use prefetched::Leased;
use scripts::{Acquired, Frame, Go, LimitDebit, Looked, ProbeTicket};
use shared_breaker::{Fleet, SharedBreakerState, State};
use snapshot::Known;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// When to come back where nobody can tell.
const LATER: Duration = Duration::from_secs(1);
/// What was read longer ago says nothing of now: three beats.
const STALE: Duration = Duration::from_secs(3);

/// All groups of a host whose state is shared.
#[derive(Debug)]
pub struct RedisGates {
    link: RedisConnection,
    /// This process among the fleet's.
    host: String,
    quorum: u32,
    clock: Clock,
    entropy: Rng,
    events: Arc<Events>,
    groups: Mutex<HashMap<String, Arc<RedisGate>>>,
    /// Steps that nobody waits for.
    under_way: TaskTracker,
}

/// One group's.
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
    /// Stands in while the store cannot be reached; its breaker is this host's own.
    alone: MemoryGate,
    known: Mutex<Known>,
    together: Batches,
}

impl RedisGates {
    /// Groups whose state is where `link` leads. A host opens its breaker for the fleet only if `quorum` hosts saw failures.
    pub fn open(link: RedisConnection, quorum: u32, clock: Clock, entropy: Rng, events: Arc<Events>) -> Arc<Self> {
        let host = format!("{:016x}", entropy.next());
        let (groups, under_way) = (Mutex::default(), TaskTracker::new());
        // Closed so that it can be waited for; tasks may begin all the same.
        under_way.close();
        let gates = Arc::new(Self { link, host, quorum, clock, entropy, events, groups, under_way });
        gates.link.beside(heartbeat::listen(Arc::downgrade(&gates), gates.link.pushed()));
        gates
    }

    /// The group of a name: see [`crate::admission::Groups::group`].
    pub fn group(&self, name: &str, settings: impl FnOnce() -> Settings) -> Arc<RedisGate> {
        let mut groups = self.groups.lock();
        let gate = groups.entry(name.to_owned()).or_insert_with(|| Arc::new(RedisGate::new(self, name, settings())));
        Arc::clone(gate)
    }

    /// Hands in what is saved up, and waits for what is under way.
    pub async fn flush(&self) {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        for gate in groups {
            gate.hand_in();
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
            alone: alone.telling(Arc::clone(&gates.events)),
            known: Mutex::new(known),
            together: Batches::default(),
        }
    }

    /// `upstream/group`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the upstream's pause still lasts, as far as this host knows.
    pub fn paused(&self) -> Duration {
        self.alone.paused()
    }

    /// Takes a result: a success is handed in with the next step, anything else at once.
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
        // What was saved up goes before: a failure must not overtake the successes that came before it.
        let saved_up = known.take_saved_up();
        let words = scripts::report(&saved_up, Some((ticket, &report)), slow);
        let (keys, arguments) = self.arguments(&known, self.clock.now(), words);
        drop(known);
        let (gate, own) = (Arc::clone(self), grant.own);
        self.spawn(async move {
            gate.step(&scripts::REPORT, &keys, &arguments).await;
            // If this opened the fleet's breaker, this host's own stands like it, and the ticket is worth nothing any more.
            if let Some(own) = own {
                gate.alone.record(&own, report);
            }
        });
    }

    /// Gives back what was taken for an attempt that was not made.
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

    /// Gives back what the store granted to those who no longer wait.
    fn undo(self: &Arc<Self>, answer: &Value, ask: AttemptKind) {
        if let Some((standing, Acquired::Go(Go { taken, lease, leased, .. }))) =
            self.read(&scripts::ACQUIRE, answer, scripts::acquired)
        {
            let ticket = ProbeTicket { epoch: standing.epoch, lease };
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

    /// The same for a probe's lease that a look brought.
    fn unlook(self: &Arc<Self>, answer: &Value) {
        if let Some((standing, (Looked::Send { lease: Some(lease) }, _))) =
            self.read(&scripts::RECHECK, answer, scripts::looked)
        {
            let ticket = ProbeTicket { epoch: standing.epoch, lease: Some(lease) };
            self.return_to_store(Some(&ticket), true, AttemptKind::First, &LimitDebit::default());
        }
    }

    /// Holds attempts of the whole fleet back; a shorter pause never cuts a longer one.
    pub async fn pause(self: &Arc<Self>, pause: Duration) {
        self.alone.pause(pause);
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), scripts::pause(pause))
        };
        self.step(&scripts::PAUSE, &keys, &arguments).await;
    }

    /// Ends the fleet's pause before its time. False: there is none.
    ///
    /// # Errors
    /// [`LinkError`] where the store cannot be asked.
    pub async fn lift(self: &Arc<Self>) -> Result<bool, LinkError> {
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), Vec::new())
        };
        let answer = self.link.run(&scripts::LIFT_PAUSE, &keys, &arguments).await?;
        let nonsense = LinkError::Nonsense { script: scripts::LIFT_PAUSE.name() };
        let (_, (was_paused, mark)) = self.read(&scripts::LIFT_PAUSE, &answer, scripts::lifted).ok_or(nonsense)?;
        // Of a pause that the store has not learned, only this host knows.
        Ok(self.told_of_lift(mark) || was_paused)
    }

    /// Takes over that the fleet's pause was lifted. Whether this host knew of a pause.
    fn told_of_lift(&self, mark: u64) -> bool {
        // Under the lock: a beat's pause comes before this as a whole, or after it.
        let mut known = self.known.lock();
        known.told_of_lift(mark) && self.alone.lift()
    }

    /// Does what an operator wants of the fleet's breaker. False: there is none.
    ///
    /// # Errors
    /// [`LinkError`] where the store cannot be asked.
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

    /// Takes other settings over: see [`MemoryGate::adopt`]. A limit is known to the fleet by what it allows: one that is changed
    /// begins anew, the others keep what they counted.
    pub fn adopt(&self, settings: Settings) {
        let mut known = self.known.lock();
        if known.settings == settings {
            return;
        }
        known.frame = Arc::new(Frame::new(self.link.keys(), &self.name, &self.host, self.quorum, &settings));
        known.leased = Leased::default();
        if settings.breaker.is_none() {
            // Without a breaker nothing may refuse; with one again, what is found then is how it begins.
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

    /// A step whose answer is not waited for.
    fn later(self: &Arc<Self>, script: &'static Script, own: Vec<String>) {
        let (keys, arguments) = self.arguments(&self.known.lock(), self.clock.now(), own);
        let gate = Arc::clone(self);
        self.spawn(async move {
            gate.step(script, &keys, &arguments).await;
        });
    }

    /// A step of which only the breaker's standing matters. One that fails is lost: leases end by themselves, and what a host
    /// could not report it has counted for itself.
    async fn step(&self, script: &'static Script, keys: &[String], arguments: &[String]) {
        match self.link.run(script, keys, arguments).await {
            Ok(answer) => drop(self.read(script, &answer, |_| Some(()))),
            Err(error) => tracing::debug!(%error, group = %self.name, step = script.name(), "a step was not done"),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the thread ends, and its connection with it.
        if let Ok(runtime) = Handle::try_current() {
            // Told of below the request that it is done for.
            self.under_way.spawn_on(task.in_current_span(), &runtime);
        }
    }

    /// Reads an answer, and takes over how the breaker stands.
    fn read<T>(
        &self,
        script: &'static Script,
        answer: &Value,
        read: impl FnOnce(&[Value]) -> Option<T>,
    ) -> Option<(SharedBreakerState, T)> {
        let found = scripts::standing(answer).and_then(|(standing, own)| Some((standing, read(own)?)));
        match &found {
            Some((standing, _)) => self.observe(standing.clone(), true),
            None => tracing::error!(
                group = %self.name,
                step = script.name(),
                "shared state answered with something else; something other than Triage writes below its prefix"
            ),
        }
        found
    }

    /// Takes over how the fleet's breaker stands.
    fn observe(&self, told: SharedBreakerState, surely: bool) {
        let now = self.clock.now();
        let mut known = self.known.lock();
        if known.settings.breaker.is_none() {
            return;
        }
        let Some(change) = known.fleet.observe(told, now, surely) else { return };
        known.leased = Leased::default();
        // Under the lock: another thread's change comes after this one as a whole.
        let (standing, forced, why, left) = match change.state {
            State::Closed => (breaker::BreakerState::Closed, false, None, Duration::ZERO),
            State::Open { left, why } => (breaker::BreakerState::Open, why == Trip::Forced, Some(why), left),
            State::HalfOpen { why } => (breaker::BreakerState::HalfOpen, false, Some(why), Duration::ZERO),
            State::Held { left } => (breaker::BreakerState::Closed, true, None, left),
        };
        self.alone.follow(standing, forced, why, left);
        drop(known);
        if let Some(transition) = change.transition {
            memory::tell(&self.name, &self.events, transition);
        }
    }
}

#[cfg(test)]
mod tests;
