//! Retries: how far a verdict is followed.
//!
//! A policy proposes, [`clamp`] disposes: it alone decides whether a request is sent again, and it is a pure function. The
//! first invariant lives here: an unsafe request goes out again only with proof that it was not processed, or on the word
//! of a policy that the operator trusts to settle this endpoint, or with the idempotency key that the operator says the upstream
//! honours.

pub mod budget;
mod clamp;
pub mod upstream_key;

pub use clamp::{ClampInput, ClampReason, Clamped, NextAction, ObservedResult, clamp};

use std::time::Duration;

/// The host's own limits on retrying; no policy goes beyond them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Attempts a request may make, the first one counted. Default 3, the seed's.
    pub max_attempts: u32,
    /// The shortest wait before a retry that has no hint from the upstream. Default 2 s, the seed's.
    pub min_wait: Duration,
    /// The longest wait before a retry that has no hint from the upstream. Default 10 s, the seed's.
    pub max_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_attempts: 3, min_wait: Duration::from_secs(2), max_wait: Duration::from_secs(10) }
    }
}
