//! Rate limits: GCRA arithmetic and reservations.

use std::{num::NonZeroU32, time::Duration};

/// A limit that cannot be wrong: `requests` each `period` over the long run, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests a period.
    pub requests: NonZeroU32,
    /// The period, at least a microsecond for each request.
    pub period: Duration,
    /// Requests at one instant.
    pub burst: NonZeroU32,
}
