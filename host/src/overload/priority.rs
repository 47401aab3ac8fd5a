//! Who gives way first.

use crate::policy::contract::Effect;

/// How much a request matters when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// What can be done later: imports, prefetching.
    Low,
    /// What can be asked again: reads.
    Normal,
    /// What is lost work when it is refused: writes.
    High,
}

impl Priority {
    /// Every priority, the lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The name in the configuration, in the header and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// The one of a name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.name().eq_ignore_ascii_case(name.trim()))
    }

    /// Where nobody says more: a read that is refused is repeated without harm, a write is somebody's work.
    pub fn usual(effect: Effect) -> Self {
        if effect == Effect::Safe { Self::Normal } else { Self::High }
    }
}
