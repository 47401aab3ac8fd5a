//! Retries: whether the host follows a policy's verdict.
//!
//! A policy only proposes. [`clamp`], a pure function, decides alone whether a request is sent again, and so keeps the first invariant: an
//! unsafe request is sent again only with proof that it was not processed, or if a policy that the operator trusts to settle this endpoint
//! says so, or with an idempotency key that the upstream honours according to the operator.

pub mod budget;
mod clamp;
pub mod upstream_key;

pub use clamp::{ClampInput, ClampReason, Clamped, NextAction, ObservedResult, clamp};

use std::time::Duration;

/// The host's own limits on retries, which no policy can exceed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The maximum of attempts for a request, the first one included. Default 3, the seed's.
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
