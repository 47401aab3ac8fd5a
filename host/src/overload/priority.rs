//! Who gives way first.

use std::fmt;

/// How much a request matters when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// What can be done later: imports, prefetching.
    Low,
    /// Everything else.
    #[default]
    Normal,
    /// What people wait for.
    High,
}

impl Priority {
    /// The name in the configuration and in the header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// The one of a name, in any case.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Low, Self::Normal, Self::High].into_iter().find(|own| own.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The part of the limit that it may fill, in percent: the rest is kept for those above it.
    pub(super) fn share_percent(self) -> usize {
        match self {
            Self::Low => 60,
            Self::Normal => 90,
            Self::High => 100,
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
