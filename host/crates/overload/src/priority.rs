//! Priorities: which requests are refused first.

use crate::contract::Effect;

/// A request's priority when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Work that can be done later: imports, prefetching.
    Low,
    /// Requests that can be repeated: reads.
    Normal,
    /// Requests whose refusal loses work: writes.
    High,
}

impl Priority {
    /// Every priority, lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The name in the configuration, in the header and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// Parses a priority's name, in any case.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The default priority of an effect: writes outrank reads, because a refused read can be repeated without harm.
    pub fn usual(effect: Effect) -> Self {
        if effect == Effect::Safe { Self::Normal } else { Self::High }
    }
}
