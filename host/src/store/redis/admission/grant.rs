//! What an attempt was given: by the fleet, or by this host alone.

use super::scripts::{LimitDebit, ProbeTicket};
use crate::{breaker, state::group::AttemptKind, store::memory::admission as memory};
use std::time::Duration;

/// What was taken for an attempt.
#[derive(Debug)]
pub enum Grant {
    /// By this host alone: the store could not be reached.
    Alone(memory::Grant),
    /// Of the fleet.
    Shared(Shared),
}

/// What was taken of the fleet's.
#[derive(Debug)]
pub struct Shared {
    pub(super) wait: Duration,
    pub(super) ask: AttemptKind,
    /// None: a place that was leased before.
    pub(super) taken: Option<LimitDebit>,
    pub(super) ticket: Option<ProbeTicket>,
    pub(super) own: Option<breaker::Ticket>,
    pub(super) sent: bool,
}

impl Shared {
    pub(super) fn new(wait: Duration, ask: AttemptKind, taken: LimitDebit, ticket: Option<ProbeTicket>) -> Self {
        Self { wait, ask, taken: Some(taken), ticket, own: None, sent: false }
    }

    /// A first attempt's place that was taken before.
    pub(super) fn leased(ticket: Option<ProbeTicket>) -> Self {
        Self { wait: Duration::ZERO, ask: AttemptKind::First, taken: None, ticket, own: None, sent: false }
    }
}

impl Grant {
    /// Until the reserved moment.
    pub fn wait(&self) -> Duration {
        match self {
            Self::Alone(grant) => grant.wait,
            Self::Shared(grant) => grant.wait,
        }
    }

    /// Whether there is a breaker that the attempt's result counts for.
    pub fn counts(&self) -> bool {
        match self {
            Self::Alone(grant) => grant.counts(),
            Self::Shared(grant) => grant.ticket.is_some() || grant.own.is_some(),
        }
    }

    /// Whether the attempt holds a probe's place, of the fleet's breaker or of this host's own.
    pub fn is_probe(&self) -> bool {
        match self {
            Self::Alone(grant) => grant.is_probe(),
            Self::Shared(grant) => {
                grant.ticket.as_ref().is_some_and(|ticket| ticket.lease.is_some())
                    || grant.own.is_some_and(|ticket| ticket.is_probe())
            }
        }
    }
}
