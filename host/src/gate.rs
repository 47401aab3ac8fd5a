//! What an attempt must pass: breaker, retry budget and every rate limit, all or nothing, in one step.

use crate::{
    breaker::{self, Trip},
    clock::Clock,
    config::settings,
    entropy::Entropy,
    policy::contract::BreakerSignal,
    rate_limit::Quota,
    retry::budget,
    store::memory::gate::{Grant, MemoryGate},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Endpoints that share a breaker, a budget and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(usize);

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

/// All groups of a host.
#[derive(Debug)]
pub struct Gates {
    clock: Clock,
    entropy: Entropy,
    names: HashMap<String, usize>,
    groups: Vec<Arc<MemoryGate>>,
}

impl Gates {
    /// Groups whose state is in this process.
    pub fn memory(clock: Clock, entropy: Entropy) -> Self {
        Self { clock, entropy, names: HashMap::new(), groups: Vec::new() }
    }

    /// The group of a name; the first endpoint that names it brings its settings.
    pub fn group(&mut self, name: &str, endpoint: &settings::Endpoint) -> Group {
        if let Some(index) = self.names.get(name) {
            return Group(*index);
        }
        let settings = Settings {
            breaker: endpoint.breaker.clone(),
            limits: endpoint.limits.clone(),
            budget: endpoint.budget.clone(),
        };
        let gate = MemoryGate::new(name.to_owned(), settings, self.clock, self.entropy.clone());
        self.names.insert(name.to_owned(), self.groups.len());
        self.groups.push(Arc::new(gate));
        Group(self.groups.len() - 1)
    }

    /// Asks for one attempt, willing to wait up to `max_wait` for it. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    #[allow(clippy::unused_async)]
    pub async fn acquire(&self, group: Group, ask: Ask, max_wait: Duration) -> Result<Permit, Refusal> {
        let gate = &self.groups[group.0];
        let grant = gate.acquire(ask, max_wait)?;
        Ok(Permit { gate: Arc::clone(gate), grant: Some(grant) })
    }

    /// Holds every attempt of the group back for a time, as the upstream asked.
    #[allow(clippy::unused_async)]
    pub async fn pause(&self, group: Group, pause: Duration) {
        self.groups[group.0].pause(pause);
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
