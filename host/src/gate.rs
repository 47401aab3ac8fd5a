//! What an attempt must pass: breaker, retry budget and every rate limit, all or nothing, in one step.

mod pace;
mod pybreaker;

pub use pace::PaceView;
pub use pybreaker::Pybreaker;

use crate::{
    breaker::{self, Force, Trip},
    clock::Clock,
    config::settings,
    entropy::Entropy,
    policy::contract::{BreakerSignal, Class},
    rate_limit::Quota,
    retry::budget,
    store::{
        memory::gate::{self as memory, MemoryGate},
        redis::{
            LinkError,
            gate::{self as redis, RedisGate, RedisGates},
        },
    },
    telemetry::Events,
};
use pace::{Pace, Paced};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Endpoints that share a breaker, a budget and limits.
#[derive(Debug, Clone)]
pub struct Group {
    gate: Gate,
    pace: Arc<Pace>,
}

/// Where a group's state is.
#[derive(Debug, Clone)]
enum Gate {
    Memory(Arc<MemoryGate>),
    Redis(Arc<RedisGate>),
}

/// A group's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The breaker; none to do without.
    pub breaker: Option<breaker::Settings>,
    /// The limits, all of which an attempt passes.
    pub limits: Vec<Quota>,
    /// The retry budget.
    pub budget: budget::Settings,
    /// Whether places are leased ahead from shared state, so that most attempts ask nobody.
    pub leased: bool,
    /// The breaker of Python workers that is one with it, in shared state.
    pub pybreaker: Option<Pybreaker>,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A first attempt: earns a share of a retry.
    First,
    /// A further attempt: costs a retry.
    Retry,
    /// A look at what became of a write: limits only.
    Probe,
}

impl Ask {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Probe => "probe",
        }
    }
}

/// Why an attempt is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The breaker is open, or its probes are under way.
    BreakerOpen {
        /// When to come back.
        retry_after: Duration,
        /// What tripped it.
        why: Trip,
    },
    /// A limit has no place within the wait that the caller can bear.
    RateLimited {
        /// Which; none for a pause that the upstream asked for.
        quota: Option<Quota>,
        /// When to come back.
        retry_after: Duration,
    },
    /// The upstream throttles, and the rate that it takes has no place within the wait that the caller can bear.
    Paced {
        /// The rate, in requests a minute.
        per_minute: u32,
        /// When to come back.
        retry_after: Duration,
    },
    /// Retries are used up.
    BudgetExhausted {
        /// When to come back.
        retry_after: Duration,
    },
}

/// The look right before the send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recheck {
    /// Send now.
    Send,
    /// The fleet was paused meanwhile: wait so long, then look again.
    Wait(Duration),
    /// The breaker opened meanwhile.
    Refused(Refusal),
}

/// All that there is to see of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// `upstream/group`.
    pub group: String,
    /// The breaker; none where it is switched off.
    pub breaker: Option<breaker::View>,
    /// The limits.
    pub limits: Vec<LimitView>,
    /// This host's adaptive rate; none where it is switched off.
    pub pace: Option<PaceView>,
    /// Retries that are saved up, in thousandths.
    pub budget: u64,
    /// What earns them.
    pub budget_settings: budget::Settings,
    /// How long the upstream's pause still lasts.
    pub paused: Option<Duration>,
}

/// A limit and how far it is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitView {
    /// The limit.
    pub quota: Quota,
    /// Places that are taken, of `burst`; more where some are reserved for later.
    pub taken: u32,
}

impl Settings {
    /// An endpoint's.
    pub fn of(endpoint: &settings::Endpoint) -> Self {
        Self {
            breaker: endpoint.breaker.clone(),
            limits: endpoint.limits.clone(),
            budget: endpoint.budget.clone(),
            leased: endpoint.leased,
            pybreaker: endpoint.pybreaker.clone(),
        }
    }
}

impl Group {
    /// `upstream/group`.
    pub fn name(&self) -> &str {
        match &self.gate {
            Gate::Memory(gate) => gate.name(),
            Gate::Redis(gate) => gate.name(),
        }
    }

    /// What there is to see.
    pub fn view(&self) -> View {
        let view = match &self.gate {
            Gate::Memory(gate) => gate.view(),
            Gate::Redis(gate) => gate.view(),
        };
        View { pace: self.pace.view(), ..view }
    }

    /// Does what an operator wants of the breaker, of the whole fleet's where there is one. False: there is none.
    ///
    /// # Errors
    /// [`LinkError`] where shared state cannot be asked: nothing is known to have been done then.
    pub async fn force(&self, force: Force) -> Result<bool, LinkError> {
        match &self.gate {
            Gate::Memory(gate) => Ok(gate.force(force)),
            Gate::Redis(gate) => gate.force(force).await,
        }
    }

    /// Takes over an endpoint's settings, as a reload brings them. What the group has counted stays: an open breaker stays
    /// open, a limit that is used up stays used up, and only what was not there before starts afresh.
    pub fn adopt(&self, endpoint: &settings::Endpoint) {
        self.pace.adopt(endpoint);
        match &self.gate {
            Gate::Memory(gate) => gate.adopt(Settings::of(endpoint)),
            Gate::Redis(gate) => gate.adopt(Settings::of(endpoint)),
        }
    }
}

/// All groups of a host.
#[derive(Debug)]
pub struct Gates {
    place: Place,
    clock: Clock,
    events: Arc<Events>,
    paces: Mutex<HashMap<String, Arc<Pace>>>,
}

#[derive(Debug)]
enum Place {
    Memory { entropy: Entropy, groups: Mutex<HashMap<String, Arc<MemoryGate>>> },
    Redis(Arc<RedisGates>),
}

impl Gates {
    /// Groups whose state is in this process; transitions are noted in `events`.
    pub fn memory(clock: Clock, entropy: Entropy, events: Arc<Events>) -> Self {
        Self::at(Place::Memory { entropy, groups: Mutex::default() }, clock, events)
    }

    fn at(place: Place, clock: Clock, events: Arc<Events>) -> Self {
        Self { place, clock, events, paces: Mutex::default() }
    }

    /// Groups that a fleet shares.
    pub fn shared(gates: Arc<RedisGates>, clock: Clock, events: Arc<Events>) -> Self {
        Self::at(Place::Redis(gates), clock, events)
    }

    /// The group of a name; the first endpoint that names it brings its settings. A group that is there already keeps its
    /// state and, until [`Group::adopt`], its settings.
    pub fn group(&self, name: &str, endpoint: &settings::Endpoint) -> Group {
        let gate = match &self.place {
            Place::Redis(gates) => Gate::Redis(gates.group(name, || Settings::of(endpoint))),
            Place::Memory { entropy, groups } => {
                let made = || {
                    let gate = MemoryGate::new(name.to_owned(), Settings::of(endpoint), self.clock, entropy.clone());
                    Arc::new(gate.telling(Arc::clone(&self.events)))
                };
                let mut groups = groups.lock();
                Gate::Memory(Arc::clone(groups.entry(name.to_owned()).or_insert_with(made)))
            }
        };
        let made = || Pace::new(name, self.clock, Arc::clone(&self.events), endpoint);
        let pace = Arc::clone(self.paces.lock().entry(name.to_owned()).or_insert_with(made));
        Group { gate, pace }
    }

    /// Waits until shared state has what this host has to tell it. Its own time limits bound it.
    pub async fn flushed(&self) {
        if let Place::Redis(gates) = &self.place {
            gates.flush().await;
        }
    }
}

impl Group {
    /// Asks for one attempt, willing to wait up to `max_wait` for it. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub async fn acquire(&self, ask: Ask, max_wait: Duration) -> Result<Permit, Refusal> {
        let paced = self.pace.reserve(ask, || self.paused(), max_wait)?;
        let wait = paced.as_ref().map_or(Duration::ZERO, |paced| paced.wait)..=max_wait;
        let held = match &self.gate {
            Gate::Memory(gate) => Held::Memory(Arc::clone(gate), gate.acquire(ask, wait)?),
            Gate::Redis(gate) => Held::Redis(Arc::clone(gate), gate.acquire(ask, wait).await?),
        };
        Ok(Permit { held: Some(held), paced })
    }

    /// How long the upstream's pause still lasts, as far as this host knows.
    fn paused(&self) -> Duration {
        match &self.gate {
            Gate::Memory(gate) => gate.paused(),
            Gate::Redis(gate) => gate.paused(),
        }
    }

    /// Holds every attempt of the group back for a time, as the upstream asked.
    pub async fn pause(&self, pause: Duration) {
        self.pace.pause(pause);
        match &self.gate {
            Gate::Memory(gate) => gate.pause(pause),
            Gate::Redis(gate) => gate.pause(pause).await,
        }
    }
}

/// The right to one attempt. Dropping it unreported gives it back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    held: Option<Held>,
    /// Its part in an adaptive rate; none where that is switched off.
    paced: Option<Paced>,
}

#[derive(Debug)]
enum Held {
    Memory(Arc<MemoryGate>, memory::Grant),
    Redis(Arc<RedisGate>, redis::Grant),
}

impl Permit {
    /// How long until the reserved moment.
    pub fn wait(&self) -> Duration {
        match &self.held {
            Some(Held::Memory(_, grant)) => grant.wait,
            Some(Held::Redis(_, grant)) => grant.wait(),
            None => Duration::ZERO,
        }
    }

    /// The wait that an adaptive rate adds, and what that is in requests a minute.
    pub fn paced(&self) -> Option<(Duration, u32)> {
        self.paced.as_ref().filter(|paced| !paced.wait.is_zero()).map(|paced| (paced.wait, paced.per_minute))
    }

    /// What the answer to the attempt was, for an adaptive rate to follow. What that is from now on, in requests a
    /// minute, where it was lowered.
    pub fn answered(&self, class: Class) -> Option<u32> {
        self.paced.as_ref()?.answered(class)
    }

    /// Whether this attempt decides if a half-open breaker closes.
    pub fn is_probe(&self) -> bool {
        match &self.held {
            Some(Held::Memory(_, grant)) => grant.is_probe(),
            Some(Held::Redis(_, grant)) => grant.is_probe(),
            None => false,
        }
    }

    /// Whether a report changes anything: there is a breaker.
    pub fn counts(&self) -> bool {
        match &self.held {
            Some(Held::Memory(_, grant)) => grant.counts(),
            Some(Held::Redis(_, grant)) => grant.counts(),
            None => false,
        }
    }

    /// Whether this host gave it by itself, because shared state could not be reached.
    pub fn is_alone(&self) -> bool {
        matches!(&self.held, Some(Held::Redis(_, redis::Grant::Alone(_))))
    }

    /// The look right before the send: breaker and pause are read again, and a probe's lease starts.
    pub async fn recheck(&mut self) -> Recheck {
        let recheck = match &mut self.held {
            Some(Held::Memory(gate, grant)) => gate.recheck(grant),
            Some(Held::Redis(gate, grant)) => gate.recheck(grant).await,
            None => Recheck::Send,
        };
        if let (Some(paced), Recheck::Send) = (&mut self.paced, recheck) {
            paced.is_sent = true;
        }
        recheck
    }

    /// Reports what the attempt says of the upstream.
    pub fn report(mut self, signal: BreakerSignal, took: Duration) {
        match self.held.take() {
            Some(Held::Memory(gate, grant)) => gate.report(&grant, signal, took),
            Some(Held::Redis(gate, grant)) => gate.report(&grant, signal, took),
            None => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Memory(gate, grant)) => gate.give_back(&grant),
            Some(Held::Redis(gate, grant)) => gate.give_back(&grant),
            None => {}
        }
    }
}
