//! Priorities: which requests are refused first.

use crate::contract::Effect;

/// A request's priority when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case", ascii_case_insensitive)]
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
        self.into()
    }

    /// Parses a priority's name, in any case.
    pub fn of(name: &str) -> Option<Self> {
        name.trim().parse().ok()
    }

    /// The default priority of an effect: writes outrank reads, because a refused read can be repeated without harm.
    pub fn usual(effect: Effect) -> Self {
        if effect == Effect::Safe { Self::Normal } else { Self::High }
    }
}
