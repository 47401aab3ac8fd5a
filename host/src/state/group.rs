//! The contract between admission and the stores: the settings of a group, the question of an attempt, and the answers.

mod pybreaker;

pub use pybreaker::Pybreaker;

use crate::{
    breaker::{self, Trip},
    policy::contract::BreakerSignal,
    rate_limit::{Quota, adaptive},
    retry::budget,
};
use std::time::Duration;

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

/// The settings that an endpoint brings to its group.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSettings {
    /// The group's.
    pub group: Settings,
    /// Those of the endpoint alone, where it has limits beside the group's.
    pub own: Settings,
    /// The bounds of the adaptive rate. None: it is off.
    pub adaptive_rate: Option<adaptive::Settings>,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptKind {
    /// A first attempt: earns a share of a retry.
    First,
    /// A further attempt: costs a retry.
    Retry,
    /// A look at what became of a write: limits only.
    Probe,
}

impl AttemptKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Probe => "probe",
        }
    }
}

/// What an attempt says of the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Its health.
    pub signal: BreakerSignal,
    /// How long the attempt took.
    pub took: Duration,
    /// For how long the upstream says that it is unavailable: the `Retry-After` of a 503.
    pub retry_after: Option<Duration>,
}

impl Report {
    /// Without a word of the upstream on how long.
    pub fn new(signal: BreakerSignal, took: Duration) -> Self {
        Self { signal, took, retry_after: None }
    }

    /// The time for which a breaker that this report opens, or finds just opened, should stay open.
    pub fn lengthens(&self) -> Option<Duration> {
        self.retry_after.filter(|asked| self.signal == BreakerSignal::Failure && !asked.is_zero())
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
pub struct GroupStatus {
    /// `upstream/group`.
    pub group: String,
    /// The breaker; none where it is switched off.
    pub breaker: Option<breaker::BreakerStatus>,
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

/// All that there is to see of a group's adaptive rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaceView {
    /// Requests a minute; none while it is open.
    pub per_minute: Option<f64>,
    /// How often it was lowered since the start.
    pub decreases: u64,
    /// Its bounds.
    pub settings: adaptive::Settings,
}
