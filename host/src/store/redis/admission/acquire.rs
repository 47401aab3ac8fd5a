//! What an attempt passes: asked of the store in one step, looked at again right before the send.

use super::{
    Grant, LATER, RedisGate, Shared,
    batch::{BatchReply, Missed},
    scripts::{self, Acquired, Go, Looked, ProbeTicket},
    shared_breaker::{SharedBreakerState, State},
};
use crate::{
    breaker::{self, Trip},
    state::group::{AttemptKind, Recheck, Refusal},
    store::redis::metrics,
};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};
use tokio::time::Instant;

impl RedisGate {
    /// All or nothing; the wait is the longest of all, and lies in `wait`. Dropping the future gives back what the store grants
    /// after that.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub async fn acquire(self: &Arc<Self>, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let now = self.clock.now();
        let mut own = Own { gate: self, ticket: None };
        let with_others = {
            let mut known = self.known.lock();
            if ask != AttemptKind::Probe {
                // Nobody needs to ask: whatever closes it before is pushed, and read again with the next beat.
                if let Some((retry_after, why)) = known.fleet.open(now) {
                    return Err(Refusal::BreakerOpen { retry_after, why });
                }
                if known.counts_by_itself() {
                    own.ticket = self.alone.admit()?;
                }
            }
            let is_plain = ask == AttemptKind::First && wait.start().is_zero() && !own.is_probe();
            if is_plain
                && self.alone.paused().is_zero()
                && let Some(shared) = known.take_leased(now)
            {
                return Ok(Grant::Shared(Shared { own: own.keep(), ..shared }));
            }
            is_plain && known.fleet.is_closed()
        };
        // What it waits with others counts: both together cost a request no more than one step may.
        let since = Instant::now();
        let told = if with_others { self.with_others(*wait.end()).await } else { None };
        let told = match told {
            Some(told) => told,
            None => self.by_itself(ask, wait.clone(), since).await,
        };
        match told {
            Ok(handed) => match handed.take() {
                Some(shared) => Ok(Grant::Shared(Shared { own: own.keep(), ..shared })),
                None => self.alone(ask, wait),
            },
            Err(Missed::Refused(refusal)) => Err(refusal),
            Err(Missed::Unanswered { went }) => {
                drop(own);
                // One answer that is late does not make this host alone: the fleet's probes are under way.
                if went == metrics::TIMED_OUT && ask != AttemptKind::Probe {
                    let known = self.known.lock();
                    if known.settings.breaker.is_some() && !known.fleet.is_closed() {
                        return Err(opened(known.fleet.state().unwrap_or(State::Closed), LATER));
                    }
                }
                self.alone(ask, wait)
            }
        }
    }

    /// A step of its own.
    async fn by_itself(
        self: &Arc<Self>,
        ask: AttemptKind,
        wait: RangeInclusive<Duration>,
        since: Instant,
    ) -> BatchReply {
        let (keys, arguments) = {
            let mut known = self.known.lock();
            let places = if ask == AttemptKind::First { known.lot() } else { 0 };
            let saved_up = known.take_saved_up();
            self.arguments(&known, self.clock.now(), scripts::acquire(ask, &wait, &saved_up, places))
        };
        let (standing, Go { wait, taken, lease, leased }) = self.asked(ask, keys, arguments, since).await?;
        let mut known = self.known.lock();
        known.leased.add(leased, self.clock.now());
        let has_breaker = known.settings.breaker.is_some() && ask != AttemptKind::Probe;
        drop(known);
        let ticket = has_breaker.then_some(ProbeTicket { epoch: standing.epoch, lease });
        Ok(self.hand(Shared::new(wait, ask, taken, ticket)))
    }

    /// Takes the step. What comes when nobody waits any more is given back.
    ///
    /// # Errors
    /// [`Missed`]
    pub(super) async fn asked(
        self: &Arc<Self>,
        ask: AttemptKind,
        keys: Vec<String>,
        arguments: Vec<String>,
        since: Instant,
    ) -> Result<(SharedBreakerState, Go), Missed> {
        let gate = Arc::clone(self);
        let late = move |answer| gate.undo(&answer, ask);
        let answer = self.link.run_or_late(&scripts::ACQUIRE, keys, arguments, since, late).await;
        let went = metrics::outcome(answer.as_ref().map(|_| ()));
        let read = answer.ok().and_then(|answer| self.read(&scripts::ACQUIRE, &answer, scripts::acquired));
        let (standing, acquired) = read.ok_or(Missed::Unanswered { went })?;
        Err(Missed::Refused(match acquired {
            Acquired::Go(go) => return Ok((standing, go)),
            Acquired::Limited { which, wait } => {
                let quota = which.and_then(|which| self.known.lock().settings.limits.get(which).copied());
                Refusal::RateLimited { quota, retry_after: wait }
            }
            Acquired::Budget { wait } => Refusal::BudgetExhausted { retry_after: wait },
            Acquired::Open { wait } => opened(standing.state, wait),
        }))
    }

    /// By this host alone, as far as its share goes.
    fn alone(&self, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
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
            if self.known.lock().counts_by_itself() {
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
            self.arguments(&known, self.clock.now(), scripts::look(taken, grant.ticket.as_ref()))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.unlook(&answer);
        let answer = self.link.run_or_late(&scripts::RECHECK, keys, arguments, Instant::now(), late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&scripts::RECHECK, answer, scripts::looked),
            Err(_) => None,
        };
        let answered = answered.map(|(standing, (looked, again))| {
            if again.is_some() {
                (grant.taken, grant.sent) = (again, false);
            }
            (standing, looked)
        });
        match answered {
            Some((standing, Looked::Send { lease })) => {
                grant.ticket = grant.ticket.is_some().then_some(ProbeTicket { epoch: standing.epoch, lease });
                grant.sent = true;
                Recheck::Send
            }
            Some((_, Looked::Wait(wait))) => {
                // It looks again then: the pause may be lifted, and its place void.
                grant.wait = wait;
                Recheck::Wait(wait)
            }
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
                    grant.wait = pause;
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
