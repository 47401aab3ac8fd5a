//! What an attempt must pass: breaker, retry budget and every rate limit, all or nothing, in one step.

use crate::{
    breaker::{self, Force, Trip},
    clock::Clock,
    config::settings,
    entropy::Entropy,
    policy::contract::BreakerSignal,
    rate_limit::Quota,
    retry::budget,
    store::memory::gate::{Grant, MemoryGate},
    telemetry::Events,
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Endpoints that share a breaker, a budget and limits.
#[derive(Debug, Clone)]
pub struct Group(Arc<MemoryGate>);

/// A group's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The breaker; none to do without.
    pub breaker: Option<breaker::Settings>,
    /// The limits, all of which an attempt passes.
    pub limits: Vec<Quota>,
    /// The retry budget.
    pub budget: budget::Settings,
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
        Self { breaker: endpoint.breaker.clone(), limits: endpoint.limits.clone(), budget: endpoint.budget.clone() }
    }
}

impl Group {
    /// `upstream/group`.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What there is to see.
    pub fn view(&self) -> View {
        self.0.view()
    }

    /// Does what an operator wants of the breaker. False: there is none.
    pub fn force(&self, force: Force) -> bool {
        self.0.force(force)
    }

    /// Takes over an endpoint's settings, as a reload brings them. What the group has counted stays: an open breaker stays
    /// open, a limit that is used up stays used up, and only what was not there before starts afresh.
    pub fn adopt(&self, endpoint: &settings::Endpoint) {
        self.0.adopt(Settings::of(endpoint));
    }
}

/// All groups of a host.
#[derive(Debug)]
pub struct Gates {
    clock: Clock,
    entropy: Entropy,
    events: Arc<Events>,
    groups: Mutex<HashMap<String, Arc<MemoryGate>>>,
}

impl Gates {
    /// Groups whose state is in this process; transitions are noted in `events`.
    pub fn memory(clock: Clock, entropy: Entropy, events: Arc<Events>) -> Self {
        Self { clock, entropy, events, groups: Mutex::default() }
    }

    /// The group of a name; the first endpoint that names it brings its settings. A group that is there already keeps its
    /// state and, until [`Group::adopt`], its settings.
    pub fn group(&self, name: &str, endpoint: &settings::Endpoint) -> Group {
        let mut groups = self.groups.lock();
        let made = || {
            let settings = Settings::of(endpoint);
            let gate = MemoryGate::new(name.to_owned(), settings, self.clock, self.entropy.clone());
            Arc::new(gate.telling(Arc::clone(&self.events)))
        };
        Group(Arc::clone(groups.entry(name.to_owned()).or_insert_with(made)))
    }

    /// Asks for one attempt, willing to wait up to `max_wait` for it. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    #[allow(clippy::unused_async)]
    pub async fn acquire(&self, group: &Group, ask: Ask, max_wait: Duration) -> Result<Permit, Refusal> {
        let grant = group.0.acquire(ask, max_wait)?;
        Ok(Permit { gate: Arc::clone(&group.0), grant: Some(grant) })
    }

    /// Holds every attempt of the group back for a time, as the upstream asked.
    #[allow(clippy::unused_async)]
    pub async fn pause(&self, group: &Group, pause: Duration) {
        group.0.pause(pause);
    }
}

/// The right to one attempt. Dropping it unreported gives it back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    gate: Arc<MemoryGate>,
    grant: Option<Grant>,
}

impl Permit {
    /// How long until the reserved moment.
    pub fn wait(&self) -> Duration {
        self.grant.as_ref().map_or(Duration::ZERO, |grant| grant.wait)
    }

    /// Whether this attempt decides if a half-open breaker closes.
    pub fn is_probe(&self) -> bool {
        self.grant.as_ref().is_some_and(Grant::is_probe)
    }

    /// Whether a report changes anything: there is a breaker.
    pub fn counts(&self) -> bool {
        self.grant.as_ref().is_some_and(Grant::counts)
    }

    /// The look right before the send: breaker and pause are read again, and a probe's lease starts.
    #[allow(clippy::unused_async)]
    pub async fn recheck(&mut self) -> Recheck {
        self.grant.as_mut().map_or(Recheck::Send, |grant| self.gate.recheck(grant))
    }

    /// Reports what the attempt says of the upstream.
    pub fn report(mut self, signal: BreakerSignal, took: Duration) {
        if let Some(grant) = self.grant.take() {
            self.gate.report(&grant, signal, took);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            self.gate.give_back(&grant);
        }
    }
}
