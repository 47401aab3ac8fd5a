//! The admission of an attempt, from Redis or from this host alone.

use super::scripts::{LimitDebit, ProbeTicket};
use crate::{breaker, group::AttemptKind, memory::admission as memory};
use std::time::Duration;

/// An admitted attempt, and what it consumed.
#[derive(Debug)]
pub enum Grant {
    /// Admitted by this host alone, because Redis could not be reached.
    Alone(memory::Grant),
    /// Admitted by Redis.
    Shared(Shared),
}

/// An admission by Redis.
#[derive(Debug)]
pub struct Shared {
    pub(super) wait: Duration,
    pub(super) ask: AttemptKind,
    /// The reservations in the limits; `None` for a prefetched permit.
    pub(super) taken: Option<LimitDebit>,
    pub(super) ticket: Option<ProbeTicket>,
    pub(super) own: Option<breaker::Ticket>,
    pub(super) sent: bool,
}

impl Shared {
    pub(super) fn new(wait: Duration, ask: AttemptKind, taken: LimitDebit, ticket: Option<ProbeTicket>) -> Self {
        Self { wait, ask, taken: Some(taken), ticket, own: None, sent: false }
    }

    /// A first attempt with a prefetched permit.
    pub(super) fn leased(ticket: Option<ProbeTicket>) -> Self {
        Self { wait: Duration::ZERO, ask: AttemptKind::First, taken: None, ticket, own: None, sent: false }
    }
}

impl Grant {
    /// Time until the reserved moment.
    pub fn wait(&self) -> Duration {
        match self {
            Self::Alone(grant) => grant.wait,
            Self::Shared(grant) => grant.wait,
        }
    }

    /// Whether a breaker counts the attempt's result.
    pub fn counts(&self) -> bool {
        match self {
            Self::Alone(grant) => grant.counts(),
            Self::Shared(grant) => grant.ticket.is_some() || grant.own.is_some(),
        }
    }

    /// Whether the attempt is a probe of the fleet's breaker or of this host's own.
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
