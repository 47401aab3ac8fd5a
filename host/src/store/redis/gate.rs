//! Groups' gates in shared state: breaker, budget and limits of a whole fleet.
//!
//! ```text
//! steps    the scripts: what goes out, what comes back      fleet    what this host knows of the shared breaker
//! beat     once a second: alive, handed in, read again      view     what there is to see
//! ```
//!
//! While the store answers it decides. Beside it each host has a breaker of its own, which opens for what only this host sees,
//! and which stands as the fleet's last did once the store cannot be reached; limits are then this host's share.

mod beat;
mod fleet;
mod leased;
mod steps;
mod view;

use super::{Link, LinkError, Script, Value};
use crate::{
    breaker::{self, Force, Trip},
    clock::{Clock, Timestamp},
    entropy::Entropy,
    gate::{Ask, Recheck, Refusal, Settings},
    policy::contract::BreakerSignal,
    store::memory::gate::{self as memory, MemoryGate},
    telemetry::Events,
};
use fleet::{Fleet, Standing, State};
use leased::Leased;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use steps::{Acquired, Beaten, Frame, Looked, SavedUp, Taken, Ticket};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// When to come back where nobody can tell.
const LATER: Duration = Duration::from_secs(1);
/// What was read longer ago says nothing of now: three beats.
const STALE: Duration = Duration::from_secs(3);

/// All groups of a host whose state is shared.
#[derive(Debug)]
pub struct RedisGates {
    link: Link,
    /// This process among the fleet's.
    host: String,
    quorum: u32,
    clock: Clock,
    entropy: Entropy,
    events: Arc<Events>,
    groups: Mutex<HashMap<String, Arc<RedisGate>>>,
    /// Steps that nobody waits for.
    under_way: TaskTracker,
}

/// One group's.
#[derive(Debug)]
pub struct RedisGate {
    name: String,
    link: Link,
    host: String,
    quorum: u32,
    clock: Clock,
    entropy: Entropy,
    events: Arc<Events>,
    under_way: TaskTracker,
    /// Stands in while the store cannot be reached; its breaker is this host's own.
    alone: MemoryGate,
    known: Mutex<Known>,
}

/// What this host knows of the group.
#[derive(Debug)]
struct Known {
    settings: Settings,
    frame: Arc<Frame>,
    fleet: Fleet,
    saved_up: SavedUp,
    leased: Leased,
    /// The last beat's answer, and when it came. None: this host has never learned its share.
    beaten: Option<(Beaten, Timestamp)>,
}

/// What was taken for an attempt.
#[derive(Debug)]
pub enum Grant {
    /// By this host alone: the store could not be reached.
    Alone(memory::Grant),
    /// Of the fleet.
    Shared(Shared),
}

/// What was taken of the fleet's.
#[derive(Debug)]
pub struct Shared {
    wait: Duration,
    ask: Ask,
    /// None: a place that was leased before.
    taken: Option<Taken>,
    ticket: Option<Ticket>,
    own: Option<breaker::Ticket>,
    sent: bool,
}

impl Grant {
    /// Until the reserved moment.
    pub fn wait(&self) -> Duration {
        match self {
            Self::Alone(grant) => grant.wait,
            Self::Shared(grant) => grant.wait,
        }
    }

    /// Whether there is a breaker that the attempt's result counts for.
    pub fn counts(&self) -> bool {
        match self {
            Self::Alone(grant) => grant.counts(),
            Self::Shared(grant) => grant.ticket.is_some() || grant.own.is_some(),
        }
    }

    /// Whether the attempt holds a probe's place, of the fleet's breaker or of this host's own.
    pub fn is_probe(&self) -> bool {
        match self {
            Self::Alone(grant) => grant.is_probe(),
            Self::Shared(grant) => {
                grant.ticket.as_ref().is_some_and(|ticket| ticket.lease.is_some())
                    || grant.own.is_some_and(|ticket| ticket.is_probe())
            }
        }
    }
}

impl RedisGates {
    /// Groups whose state is where `link` leads. A host opens its breaker for the fleet only if `quorum` hosts saw failures.
    pub fn open(link: Link, quorum: u32, clock: Clock, entropy: Entropy, events: Arc<Events>) -> Arc<Self> {
        let host = format!("{:016x}", entropy.next());
        let (groups, under_way) = (Mutex::default(), TaskTracker::new());
        // Closed so that it can be waited for; tasks may begin all the same.
        under_way.close();
        let gates = Arc::new(Self { link, host, quorum, clock, entropy, events, groups, under_way });
        gates.link.beside(beat::listen(Arc::downgrade(&gates), gates.link.pushed()));
        gates
    }

    /// The group of a name: see [`crate::gate::Gates::group`].
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
        let known = Known {
            settings,
            frame,
            fleet: Fleet::default(),
            saved_up: SavedUp::default(),
            leased: Leased::default(),
            beaten: None,
        };
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
        }
    }

    /// `upstream/group`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All or nothing; the wait is the longest of all. Dropping the future gives back what the store grants after that.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub async fn acquire(self: &Arc<Self>, ask: Ask, max_wait: Duration) -> Result<Grant, Refusal> {
        let now = self.clock.now();
        let mut own = Own { gate: self, ticket: None };
        let (keys, arguments) = {
            let mut known = self.known.lock();
            if ask != Ask::Probe {
                // Nobody needs to ask: whatever closes it before is pushed, and read again with the next beat.
                if let Some((retry_after, why)) = known.fleet.open(now) {
                    return Err(Refusal::BreakerOpen { retry_after, why });
                }
                if known.fleet.is_closed() {
                    own.ticket = self.alone.admit()?;
                }
            }
            let may_lease = ask == Ask::First && !own.is_probe() && self.alone.paused().is_zero();
            if may_lease && let Some(ticket) = known.take_leased(now) {
                let (wait, own) = (Duration::ZERO, own.keep());
                return Ok(Grant::Shared(Shared { wait, ask, taken: None, ticket, own, sent: false }));
            }
            let places = if ask == Ask::First { known.lot() } else { 0 };
            let saved_up = known.take_saved_up();
            self.arguments(&known, now, steps::acquire(ask, max_wait, &saved_up, places))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.undo(&answer, ask);
        let answer = self.link.run_or_late(&steps::ACQUIRE, keys, arguments, late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&steps::ACQUIRE, answer, steps::acquired),
            Err(_) => None,
        };
        let Some((standing, acquired)) = answered else {
            drop(own);
            // One answer that is late does not make this host alone: the fleet's probes are under way.
            if ask != Ask::Probe && matches!(answer, Err(LinkError::TimedOut(_))) {
                let known = self.known.lock();
                if known.settings.breaker.is_some() && !known.fleet.is_closed() {
                    return Err(opened(known.fleet.state().unwrap_or(State::Closed), LATER));
                }
            }
            return self.alone(ask, max_wait);
        };
        match acquired {
            Acquired::Go { wait, taken, lease, leased } => {
                let mut known = self.known.lock();
                known.leased.add(leased, self.clock.now());
                let has_breaker = known.settings.breaker.is_some() && ask != Ask::Probe;
                drop(known);
                let ticket = has_breaker.then_some(Ticket { epoch: standing.epoch, lease });
                let own = own.keep();
                Ok(Grant::Shared(Shared { wait, ask, taken: Some(taken), ticket, own, sent: false }))
            }
            Acquired::Limited { which, wait } => {
                let quota = which.and_then(|which| self.known.lock().settings.limits.get(which).copied());
                Err(Refusal::RateLimited { quota, retry_after: wait })
            }
            Acquired::Open { wait } => Err(opened(standing.state, wait)),
            Acquired::Budget { wait } => Err(Refusal::BudgetExhausted { retry_after: wait }),
        }
    }

    /// By this host alone, as far as its share goes.
    fn alone(&self, ask: Ask, max_wait: Duration) -> Result<Grant, Refusal> {
        let known = self.known.lock();
        if known.beaten.is_none()
            && let Some(quota) = known.settings.limits.first()
        {
            // Whoever never learned its share would guess it.
            return Err(Refusal::RateLimited { quota: Some(*quota), retry_after: LATER });
        }
        drop(known);
        self.alone.acquire(ask, max_wait).map(Grant::Alone)
    }

    /// The look right before the send. One that is not needed costs nothing: what was granted a moment ago still holds.
    pub async fn recheck(self: &Arc<Self>, grant: &mut Grant) -> Recheck {
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.recheck(grant),
            Grant::Shared(grant) => grant,
        };
        if let Some(own) = grant.own
            && !self.alone.still_admits(&own)
        {
            // This host's own breaker changed while the attempt waited; so it does when the fleet's did.
            grant.own = None;
            if self.known.lock().fleet.is_closed() {
                match self.alone.admit() {
                    Ok(fresh) => grant.own = fresh,
                    Err(refusal) => return Recheck::Refused(refusal),
                }
            }
        }
        let (same, state) = self.known.lock().stands(grant.ticket.as_ref());
        let Some(taken) = &grant.taken else {
            let pause = self.alone.paused();
            if !pause.is_zero() {
                return Recheck::Wait(pause);
            }
            if !same {
                return Recheck::Refused(opened(state, LATER));
            }
            grant.sent = true;
            return Recheck::Send;
        };
        let is_probe = grant.ticket.as_ref().is_some_and(|ticket| ticket.lease.is_some());
        if grant.wait.is_zero() && same && !is_probe && self.alone.paused().is_zero() {
            grant.sent = true;
            return Recheck::Send;
        }
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), steps::look(taken, grant.ticket.as_ref()))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.unlook(&answer);
        let answer = self.link.run_or_late(&steps::LOOK, keys, arguments, late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&steps::LOOK, answer, steps::looked),
            Err(_) => None,
        };
        match answered {
            Some((standing, Looked::Send { lease })) => {
                grant.ticket = grant.ticket.is_some().then_some(Ticket { epoch: standing.epoch, lease });
                grant.sent = true;
                Recheck::Send
            }
            Some((_, Looked::Wait(wait))) => Recheck::Wait(wait),
            Some((standing, Looked::Open { wait })) => {
                grant.ticket = None;
                Recheck::Refused(opened(standing.state, wait))
            }
            // Its place is reserved, and what this host knows must do. A probe without a lease would be one too many.
            None if is_probe || (!same && matches!(state, State::Open { .. } | State::HalfOpen { .. })) => {
                Recheck::Refused(opened(state, LATER))
            }
            None => {
                let pause = self.alone.paused();
                if !pause.is_zero() {
                    return Recheck::Wait(pause);
                }
                grant.sent = true;
                Recheck::Send
            }
        }
    }

    /// Takes a result: a success is handed in with the next step, anything else at once.
    pub fn report(self: &Arc<Self>, grant: &Grant, signal: BreakerSignal, took: Duration) {
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.report(grant, signal, took),
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
                self.alone.record(own, signal, took);
            }
            return;
        }
        // What was saved up goes before: a failure must not overtake the successes that came before it.
        let saved_up = known.take_saved_up();
        let words = steps::report(&saved_up, Some((ticket, signal)), slow);
        let (keys, arguments) = self.arguments(&known, self.clock.now(), words);
        drop(known);
        let (gate, own) = (Arc::clone(self), grant.own);
        self.spawn(async move {
            gate.step(&steps::REPORT, &keys, &arguments).await;
            // If this opened the fleet's breaker, this host's own stands like it, and the ticket is worth nothing any more.
            if let Some(own) = own {
                gate.alone.record(&own, signal, took);
            }
        });
    }

    /// Gives back what was taken for an attempt that was not made.
    pub fn give_back(self: &Arc<Self>, grant: &Grant) {
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.give_back(grant),
            Grant::Shared(grant) => grant,
        };
        if let Some(own) = &grant.own {
            self.alone.release(own);
        }
        match &grant.taken {
            None if !grant.sent => self.known.lock().leased.give_back(),
            Some(taken) => self.return_to_store(grant.ticket.as_ref(), grant.sent, grant.ask, taken),
            None => {}
        }
    }

    fn return_to_store(self: &Arc<Self>, ticket: Option<&Ticket>, sent: bool, ask: Ask, taken: &Taken) {
        let holds_lease = ticket.is_some_and(|ticket| ticket.lease.is_some());
        if !holds_lease && (sent || (taken.is_empty() && ask != Ask::Retry)) {
            return;
        }
        self.later(&steps::GIVE_BACK, steps::give_back(ticket, sent, ask, taken));
    }

    /// Gives back what the store granted to one who no longer waits.
    fn undo(self: &Arc<Self>, answer: &Value, ask: Ask) {
        if let Some((standing, Acquired::Go { taken, lease, leased, .. })) =
            self.read(&steps::ACQUIRE, answer, steps::acquired)
        {
            self.known.lock().leased.add(leased, self.clock.now());
            let ticket = Ticket { epoch: standing.epoch, lease };
            self.return_to_store(Some(&ticket), false, ask, &taken);
        }
    }

    /// The same for a probe's lease that a look brought.
    fn unlook(self: &Arc<Self>, answer: &Value) {
        if let Some((standing, Looked::Send { lease: Some(lease) })) = self.read(&steps::LOOK, answer, steps::looked) {
            let ticket = Ticket { epoch: standing.epoch, lease: Some(lease) };
            self.return_to_store(Some(&ticket), true, Ask::First, &Taken::default());
        }
    }

    /// Holds attempts of the whole fleet back; a shorter pause never cuts a longer one.
    pub async fn pause(self: &Arc<Self>, pause: Duration) {
        self.alone.pause(pause);
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), steps::pause(pause))
        };
        self.step(&steps::PAUSE, &keys, &arguments).await;
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
            self.arguments(&known, self.clock.now(), steps::force(force))
        };
        let answer = self.link.run(&steps::FORCE, &keys, &arguments).await?;
        let nonsense = LinkError::Nonsense { script: steps::FORCE.name() };
        self.read(&steps::FORCE, &answer, |_| Some(())).ok_or(nonsense)?;
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
            self.under_way.spawn_on(task, &runtime);
        }
    }

    /// Reads an answer, and takes over how the breaker stands.
    fn read<T>(
        &self,
        script: &'static Script,
        answer: &Value,
        read: impl FnOnce(&[Value]) -> Option<T>,
    ) -> Option<(Standing, T)> {
        let found = steps::standing(answer).and_then(|(standing, own)| Some((standing, read(own)?)));
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
    fn observe(&self, told: Standing, surely: bool) {
        let now = self.clock.now();
        let mut known = self.known.lock();
        if known.settings.breaker.is_none() {
            return;
        }
        let Some(change) = known.fleet.observe(told, now, surely) else { return };
        known.leased = Leased::default();
        // Under the lock: another thread's change comes after this one as a whole.
        let (standing, forced, why, left) = match change.state {
            State::Closed => (breaker::Standing::Closed, false, None, Duration::ZERO),
            State::Open { left, why } => (breaker::Standing::Open, why == Trip::Forced, Some(why), left),
            State::HalfOpen { why } => (breaker::Standing::HalfOpen, false, Some(why), Duration::ZERO),
            State::Held { left } => (breaker::Standing::Closed, true, None, left),
        };
        self.alone.follow(standing, forced, why, left);
        drop(known);
        if let Some(transition) = change.transition {
            memory::tell(&self.name, &self.events, transition);
        }
    }
}

/// A ticket of this host's own breaker, until it is known to be used.
struct Own<'a> {
    gate: &'a RedisGate,
    ticket: Option<breaker::Ticket>,
}

impl Own<'_> {
    fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }

    fn keep(mut self) -> Option<breaker::Ticket> {
        self.ticket.take()
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.gate.alone.release(ticket);
        }
    }
}

fn opened(state: State, retry_after: Duration) -> Refusal {
    let why = match state {
        State::Open { why, .. } | State::HalfOpen { why } => why,
        State::Closed | State::Held { .. } => Trip::ProbeFailed,
    };
    Refusal::BreakerOpen { retry_after, why }
}

#[cfg(test)]
mod tests;
