//! One group's breaker, budget and limits behind one lock, held for nanoseconds and never across an await.

use crate::{
    breaker::{Admission, Breaker, Ticket, Transition},
    clock::{Clock, Timestamp},
    entropy::Entropy,
    gate::{Ask, Recheck, Refusal, Settings},
    policy::contract::BreakerSignal,
    rate_limit::{Gcra, Reservation},
    retry::budget::Budget,
};
use parking_lot::Mutex;
use std::time::Duration;

/// A group's state and settings.
#[derive(Debug)]
pub struct MemoryGate {
    name: String,
    settings: Settings,
    clock: Clock,
    entropy: Entropy,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    budget: Budget,
    limits: Vec<Gcra>,
    paused_until: Timestamp,
    /// By how much pauses have moved all that was reserved, since the start.
    moved: Duration,
}

/// What was taken for an attempt.
#[derive(Debug)]
pub struct Grant {
    /// Until the reserved moment.
    pub wait: Duration,
    /// The reserved moment, and how far pauses had moved everything when it was reserved.
    due: Timestamp,
    moved: Duration,
    ticket: Option<Ticket>,
    reservations: Vec<Reservation>,
    ask: Ask,
    /// The send began: limits and budget are used up, whatever becomes of it.
    sent: bool,
}

impl Grant {
    /// Whether there is a breaker that the attempt's result counts for.
    pub fn counts(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether the attempt holds a probe's place.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }
}

impl MemoryGate {
    /// A closed breaker, free limits.
    pub fn new(name: String, settings: Settings, clock: Clock, entropy: Entropy) -> Self {
        let state = State {
            breaker: Breaker::new(entropy.next()),
            budget: Budget::new(&settings.budget, clock.now()),
            limits: vec![Gcra::default(); settings.limits.len()],
            paused_until: Timestamp::default(),
            moved: Duration::ZERO,
        };
        Self { name, settings, clock, entropy, state: Mutex::new(state) }
    }

    /// All or nothing; the wait is the longest of all.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub fn acquire(&self, ask: Ask, max_wait: Duration) -> Result<Grant, Refusal> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let pause = state.paused_until.since(now);
        if pause > max_wait {
            return Err(Refusal::RateLimited { quota: None, retry_after: pause });
        }
        // Whoever comes during a pause stands in line for its end.
        let from = now.max(state.paused_until);
        let earliest = state.limits.iter().zip(&self.settings.limits);
        let last = earliest.map(|(gcra, quota)| (gcra.earliest(quota, from), quota)).max_by_key(|(due, _)| *due);
        let due = last.map_or(from, |(due, _)| due);
        let wait = due.since(now);
        if wait > max_wait {
            let quota = last.map(|(_, quota)| *quota);
            return Err(Refusal::RateLimited { quota, retry_after: wait });
        }
        let ticket = self.ticket(&mut state, ask, now)?;
        if ask == Ask::Retry
            && let Err(exhausted) = state.budget.withdraw(&self.settings.budget, now)
        {
            if let Some(ticket) = &ticket {
                state.breaker.give_back(ticket);
            }
            return Err(Refusal::BudgetExhausted { retry_after: exhausted.retry_after });
        }
        if ask == Ask::First {
            state.budget.deposit(&self.settings.budget);
        }
        let moved = state.moved;
        let limits = state.limits.iter_mut().zip(&self.settings.limits);
        let reservations = limits.map(|(gcra, quota)| gcra.take(quota, due)).collect();
        Ok(Grant { wait, due, moved, ticket, reservations, ask, sent: false })
    }

    fn ticket(&self, state: &mut State, ask: Ask, now: Timestamp) -> Result<Option<Ticket>, Refusal> {
        let Some(settings) = self.settings.breaker.as_ref().filter(|_| ask != Ask::Probe) else { return Ok(None) };
        match state.breaker.admit(now, settings) {
            Admission::Pass(ticket) => Ok(Some(ticket)),
            Admission::Refused { retry_after, why } => Err(Refusal::BreakerOpen { retry_after, why }),
        }
    }

    /// The look right before the send.
    pub fn recheck(&self, grant: &mut Grant) -> Recheck {
        let now = self.clock.now();
        let mut state = self.state.lock();
        // A pause moves all that waits, each as far: they do not leave it in a crowd.
        let due = grant.due.after(state.moved.saturating_sub(grant.moved)).max(state.paused_until);
        if due > now {
            return Recheck::Wait(due.since(now));
        }
        if let (Some(ticket), Some(settings)) = (grant.ticket, &self.settings.breaker)
            && !state.breaker.recheck(&ticket, now, settings)
        {
            // The epoch moved on while this attempt waited: it needs a ticket of the new one, perhaps a probe's.
            grant.ticket = None;
            match state.breaker.admit(now, settings) {
                Admission::Pass(fresh) => grant.ticket = Some(fresh),
                Admission::Refused { retry_after, why } => {
                    return Recheck::Refused(Refusal::BreakerOpen { retry_after, why });
                }
            }
        }
        grant.sent = true;
        Recheck::Send
    }

    /// Takes a result.
    pub fn report(&self, grant: &Grant, signal: BreakerSignal, took: Duration) {
        let (Some(ticket), Some(settings)) = (&grant.ticket, &self.settings.breaker) else { return };
        let now = self.clock.now();
        let random = if signal == BreakerSignal::Failure { self.entropy.next() } else { 0 };
        let transition = self.state.lock().breaker.record(ticket, signal, took, now, random, settings);
        match transition {
            Some(Transition::Opened { why, open_for }) => {
                tracing::warn!(group = %self.name, %why, ?open_for, "circuit breaker opened");
            }
            Some(Transition::Closed) => tracing::warn!(group = %self.name, "circuit breaker closed"),
            None => {}
        }
    }

    /// Gives back what was taken for an attempt that was not made.
    pub fn give_back(&self, grant: &Grant) {
        let mut state = self.state.lock();
        if let Some(ticket) = &grant.ticket {
            state.breaker.give_back(ticket);
        }
        if grant.sent {
            return;
        }
        let moved = state.moved.saturating_sub(grant.moved);
        for (gcra, reservation) in state.limits.iter_mut().zip(&grant.reservations) {
            gcra.refund(reservation, moved);
        }
        if grant.ask == Ask::Retry {
            state.budget.refund(&self.settings.budget);
        }
    }

    /// Holds attempts back; a shorter pause never cuts a longer one.
    pub fn pause(&self, pause: Duration) {
        let now = self.clock.now();
        let until = now.after(pause);
        let mut state = self.state.lock();
        let by = until.since(state.paused_until.max(now));
        if by.is_zero() {
            return;
        }
        state.paused_until = until;
        state.moved = state.moved.saturating_add(by);
        for gcra in &mut state.limits {
            gcra.delay(by);
        }
    }
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
