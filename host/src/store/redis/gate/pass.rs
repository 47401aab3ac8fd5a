//! What an attempt passes: asked of the store in one step, looked at again right before the send.

use super::{
    Grant, LATER, RedisGate, Shared,
    fleet::State,
    steps::{self, Acquired, Looked, Ticket},
};
use crate::{
    breaker::{self, Trip},
    gate::{Ask, Recheck, Refusal},
    store::redis::LinkError,
};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};

impl RedisGate {
    /// All or nothing; the wait is the longest of all, and lies in `wait`. Dropping the future gives back what the store grants after that.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub async fn acquire(self: &Arc<Self>, ask: Ask, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let now = self.clock.now();
        let mut own = Own { gate: self, ticket: None };
        let (keys, arguments) = {
            let mut known = self.known.lock();
            if ask != Ask::Probe {
                // Nobody needs to ask: whatever closes it before is pushed, and read again with the next beat.
                if let Some((retry_after, why)) = known.fleet.open(now) {
                    return Err(Refusal::BreakerOpen { retry_after, why });
                }
                if known.fleet.is_closed() {
                    own.ticket = self.alone.admit()?;
                }
            }
            let may_lease =
                ask == Ask::First && wait.start().is_zero() && !own.is_probe() && self.alone.paused().is_zero();
            if may_lease && let Some(ticket) = known.take_leased(now) {
                let (wait, own) = (Duration::ZERO, own.keep());
                return Ok(Grant::Shared(Shared { wait, ask, taken: None, ticket, own, sent: false }));
            }
            let places = if ask == Ask::First { known.lot() } else { 0 };
            let saved_up = known.take_saved_up();
            self.arguments(&known, now, steps::acquire(ask, &wait, &saved_up, places))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.undo(&answer, ask);
        let answer = self.link.run_or_late(&steps::ACQUIRE, keys, arguments, late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&steps::ACQUIRE, answer, steps::acquired),
            Err(_) => None,
        };
        let Some((standing, acquired)) = answered else {
            drop(own);
            // One answer that is late does not make this host alone: the fleet's probes are under way.
            if ask != Ask::Probe && matches!(answer, Err(LinkError::TimedOut(_))) {
                let known = self.known.lock();
                if known.settings.breaker.is_some() && !known.fleet.is_closed() {
                    return Err(opened(known.fleet.state().unwrap_or(State::Closed), LATER));
                }
            }
            return self.alone(ask, wait);
        };
        match acquired {
            Acquired::Go { wait, taken, lease, leased } => {
                let mut known = self.known.lock();
                known.leased.add(leased, self.clock.now());
                let has_breaker = known.settings.breaker.is_some() && ask != Ask::Probe;
                drop(known);
                let ticket = has_breaker.then_some(Ticket { epoch: standing.epoch, lease });
                let own = own.keep();
                Ok(Grant::Shared(Shared { wait, ask, taken: Some(taken), ticket, own, sent: false }))
            }
            Acquired::Limited { which, wait } => {
                let quota = which.and_then(|which| self.known.lock().settings.limits.get(which).copied());
                Err(Refusal::RateLimited { quota, retry_after: wait })
            }
            Acquired::Open { wait } => Err(opened(standing.state, wait)),
            Acquired::Budget { wait } => Err(Refusal::BudgetExhausted { retry_after: wait }),
        }
    }

    /// By this host alone, as far as its share goes.
    fn alone(&self, ask: Ask, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let known = self.known.lock();
        if known.beaten.is_none()
            && let Some(quota) = known.settings.limits.first()
        {
            // Whoever never learned its share would guess it.
            return Err(Refusal::RateLimited { quota: Some(*quota), retry_after: LATER });
        }
        drop(known);
        self.alone.acquire(ask, wait).map(Grant::Alone)
    }

    /// The look right before the send. One that is not needed costs nothing: what was granted a moment ago still holds.
    pub async fn recheck(self: &Arc<Self>, grant: &mut Grant) -> Recheck {
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.recheck(grant),
            Grant::Shared(grant) => grant,
        };
        if let Some(own) = grant.own
            && !self.alone.still_admits(&own)
        {
            // This host's own breaker changed while the attempt waited; so it does when the fleet's did.
            grant.own = None;
            if self.known.lock().fleet.is_closed() {
                match self.alone.admit() {
                    Ok(fresh) => grant.own = fresh,
                    Err(refusal) => return Recheck::Refused(refusal),
                }
            }
        }
        let (same, state) = self.known.lock().stands(grant.ticket.as_ref());
        let Some(taken) = &grant.taken else {
            let pause = self.alone.paused();
            if !pause.is_zero() {
                return Recheck::Wait(pause);
            }
            if !same {
                return Recheck::Refused(opened(state, LATER));
            }
            grant.sent = true;
            return Recheck::Send;
        };
        let is_probe = grant.ticket.as_ref().is_some_and(|ticket| ticket.lease.is_some());
        if grant.wait.is_zero() && same && !is_probe && self.alone.paused().is_zero() {
            grant.sent = true;
            return Recheck::Send;
        }
        let (keys, arguments) = {
            let known = self.known.lock();
            self.arguments(&known, self.clock.now(), steps::look(taken, grant.ticket.as_ref()))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.unlook(&answer);
        let answer = self.link.run_or_late(&steps::LOOK, keys, arguments, late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&steps::LOOK, answer, steps::looked),
            Err(_) => None,
        };
        match answered {
            Some((standing, Looked::Send { lease })) => {
                grant.ticket = grant.ticket.is_some().then_some(Ticket { epoch: standing.epoch, lease });
                grant.sent = true;
                Recheck::Send
            }
            Some((_, Looked::Wait(wait))) => Recheck::Wait(wait),
            Some((standing, Looked::Open { wait })) => {
                grant.ticket = None;
                Recheck::Refused(opened(standing.state, wait))
            }
            // Its place is reserved, and what this host knows must do. A probe without a lease would be one too many.
            None if is_probe || (!same && matches!(state, State::Open { .. } | State::HalfOpen { .. })) => {
                Recheck::Refused(opened(state, LATER))
            }
            None => {
                let pause = self.alone.paused();
                if !pause.is_zero() {
                    return Recheck::Wait(pause);
                }
                grant.sent = true;
                Recheck::Send
            }
        }
    }
}

/// A ticket of this host's own breaker, until it is known to be used.
struct Own<'a> {
    gate: &'a RedisGate,
    ticket: Option<breaker::Ticket>,
}

impl Own<'_> {
    fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }

    fn keep(mut self) -> Option<breaker::Ticket> {
        self.ticket.take()
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.gate.alone.release(ticket);
        }
    }
}

fn opened(state: State, retry_after: Duration) -> Refusal {
    let why = match state {
        State::Open { why, .. } | State::HalfOpen { why } => why,
        State::Closed | State::Held { .. } => Trip::ProbeFailed,
    };
    Refusal::BreakerOpen { retry_after, why }
}
