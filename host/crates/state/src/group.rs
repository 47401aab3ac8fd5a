//! The contract between admission and the stores: settings of a group, the kinds of attempt, refusals and status.

mod pybreaker;

pub use pybreaker::Pybreaker;

use crate::{
    breaker::{self, Trip},
    contract::BreakerSignal,
    rate_limit::{Quota, adaptive},
    retry::budget,
};
use std::time::Duration;

/// Settings of a group of endpoints that share a breaker, limits and a retry budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Settings of the breaker; `None`: off.
    pub breaker: Option<breaker::Settings>,
    /// The rate limits; an attempt must pass all of them.
    pub limits: Vec<Quota>,
    /// Settings of the retry budget.
    pub budget: budget::Settings,
    /// Whether to prefetch permits from shared state, so that most attempts need no call to Redis.
    pub leased: bool,
    /// The pybreaker breaker of Python workers that mirrors this one in shared state.
    pub pybreaker: Option<Pybreaker>,
}

/// Settings of an endpoint: those of its group, and its own.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSettings {
    /// Settings of the group.
    pub group: Settings,
    /// Settings of the endpoint alone, if it has limits beside the group's.
    pub own: Settings,
    /// Bounds of the adaptive rate; `None`: off.
    pub adaptive_rate: Option<adaptive::Settings>,
}

impl EndpointSettings {
    /// Settings of the group of safe requests, whose limits are those of the whole group.
    #[must_use]
    pub fn reads(&self) -> Self {
        let group = Settings { limits: Vec::new(), pybreaker: None, ..self.group.clone() };
        let own = Settings { limits: Vec::new(), ..self.own.clone() };
        Self { group, own, adaptive_rate: None }
    }
}

/// The kind of an attempt: which of breaker, budget and limits apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum AttemptKind {
    /// A first attempt: adds to the retry budget.
    First,
    /// A further attempt: takes one retry from the budget.
    Retry,
    /// A verification of an unknown write: subject to limits only.
    Probe,
}

impl AttemptKind {
    /// The name in scripts and logs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The result of an attempt, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How the breaker counts the attempt.
    pub signal: BreakerSignal,
    /// Duration of the attempt.
    pub took: Duration,
    /// The `Retry-After` of a 503: how long the upstream expects to be unavailable.
    pub retry_after: Option<Duration>,
}

impl Report {
    /// A report without `Retry-After`.
    pub fn new(signal: BreakerSignal, took: Duration) -> Self {
        Self { signal, took, retry_after: None }
    }

    /// The open time that the upstream asks for, if this report opens the breaker or finds it just opened.
    pub fn lengthens(&self) -> Option<Duration> {
        self.retry_after.filter(|asked| self.signal == BreakerSignal::Failure && !asked.is_zero())
    }
}

/// Why an attempt is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The breaker is open, or half-open with all its probes under way.
    BreakerOpen {
        /// When a retry may be admitted.
        retry_after: Duration,
        /// What opened the breaker.
        why: Trip,
    },
    /// A limit would delay the attempt for longer than its caller accepts.
    RateLimited {
        /// The limit; `None` for a pause that the upstream asked for.
        quota: Option<Quota>,
        /// When a retry may be admitted.
        retry_after: Duration,
    },
    /// The adaptive rate would delay the attempt for longer than its caller accepts.
    Paced {
        /// The adaptive rate, in requests per minute.
        per_minute: u32,
        /// When a retry may be admitted.
        retry_after: Duration,
    },
    /// The retry budget is used up.
    BudgetExhausted {
        /// When a retry may be admitted.
        retry_after: Duration,
    },
}

/// The result of the recheck right before the send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recheck {
    /// The attempt may be sent now.
    Send,
    /// The fleet was paused meanwhile: wait this long, then recheck.
    Wait(Duration),
    /// The breaker opened meanwhile.
    Refused(Refusal),
}

/// Status of a group, for operators.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupStatus {
    /// The name: `upstream/group`.
    pub group: String,
    /// Status of the breaker; `None`: off.
    pub breaker: Option<breaker::BreakerStatus>,
    /// The limits, in the order of the settings.
    pub limits: Vec<LimitView>,
    /// This host's adaptive rate; `None`: off.
    pub pace: Option<PaceView>,
    /// Retries in the budget, in thousandths.
    pub budget: u64,
    /// Settings of the budget.
    pub budget_settings: budget::Settings,
    /// Time left of the upstream's pause; `None` without one.
    pub paused: Option<Duration>,
}

/// A limit and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitView {
    /// The configured limit.
    pub quota: Quota,
    /// Places taken, of `burst`; more than `burst` if some are reserved for later.
    pub taken: u32,
}

/// Status of a group's adaptive rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaceView {
    /// Requests per minute; `None` while the rate is unlimited.
    pub per_minute: Option<f64>,
    /// Decreases since the start.
    pub decreases: u64,
    /// Bounds of the rate.
    pub settings: adaptive::Settings,
}
