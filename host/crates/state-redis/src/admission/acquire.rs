//! Admission of an attempt: one script call, and a recheck right before the send.

use super::{
    DEFAULT_RETRY_AFTER, Grant, RedisGate, Shared,
    batch::{BatchReply, Missed},
    scripts::{self, Acquired, Go, ProbeTicket, RecheckDecision},
    shared_breaker::{SharedBreakerState, State},
};
use crate::{
    breaker::{self, Trip},
    group::{AttemptKind, Recheck, Refusal},
    metrics,
};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};
use tokio::time::Instant;

impl RedisGate {
    /// Asks breaker, retry budget and limits at once: all or nothing. The wait is the longest of theirs, and within `wait`. If the future
    /// is dropped, a later grant is refunded.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub async fn acquire(self: &Arc<Self>, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let now = self.clock.now();
        let mut own = Own { gate: self, ticket: None };
        let join_batch = {
            let mut known = self.known.lock();
            if ask != AttemptKind::Probe {
                // No script call: pub/sub announces an earlier close, and the next heartbeat reads it too.
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
        // The time in the batch counts: batch and own call together take at most `state.timeout`.
        let since = Instant::now();
        let reply = if join_batch { self.join_batch(*wait.end()).await } else { None };
        let reply = match reply {
            Some(reply) => reply,
            None => self.by_itself(ask, wait.clone(), since).await,
        };
        match reply {
            Ok(handed) => match handed.take() {
                Some(shared) => Ok(Grant::Shared(Shared { own: own.keep(), ..shared })),
                None => self.alone(ask, wait),
            },
            Err(Missed::Refused(refusal)) => Err(refusal),
            Err(Missed::Unanswered { outcome }) => {
                drop(own);
                // A single late reply is no outage. While the fleet's breaker is not closed, a fallback to this host would add a probe
                // to the fleet's.
                if outcome == metrics::TIMED_OUT && ask != AttemptKind::Probe {
                    let known = self.known.lock();
                    if known.settings.breaker.is_some() && !known.fleet.is_closed() {
                        return Err(opened(known.fleet.state().unwrap_or(State::Closed), DEFAULT_RETRY_AFTER));
                    }
                }
                self.alone(ask, wait)
            }
        }
    }

    /// Asks with a script call of its own.
    async fn by_itself(
        self: &Arc<Self>,
        ask: AttemptKind,
        wait: RangeInclusive<Duration>,
        since: Instant,
    ) -> BatchReply {
        let (keys, arguments) = {
            let mut known = self.known.lock();
            let permits = if ask == AttemptKind::First { known.lot() } else { 0 };
            let saved_up = known.take_saved_up();
            self.arguments(&known, self.clock.now(), scripts::acquire(ask, &wait, &saved_up, permits))
        };
        let (shared, Go { wait, taken, lease, leased }) = self.asked(ask, keys, arguments, since).await?;
        let mut known = self.known.lock();
        known.leased.add(leased, self.clock.now());
        let has_breaker = known.settings.breaker.is_some() && ask != AttemptKind::Probe;
        drop(known);
        let ticket = has_breaker.then_some(ProbeTicket { epoch: shared.epoch, lease });
        Ok(self.unclaimed_grant(Shared::new(wait, ask, taken, ticket)))
    }

    /// Runs the script. A grant that arrives after the caller has gone is refunded.
    ///
    /// # Errors
    /// [`Missed`] if Redis refuses or does not reply in time.
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
        let outcome = metrics::outcome(answer.as_ref().map(|_| ()));
        let read = answer.ok().and_then(|answer| self.read(&scripts::ACQUIRE, &answer, scripts::acquired));
        let (shared, acquired) = read.ok_or(Missed::Unanswered { outcome })?;
        Err(Missed::Refused(match acquired {
            Acquired::Go(go) => return Ok((shared, go)),
            Acquired::Limited { which, wait } => {
                let quota = which.and_then(|which| self.known.lock().settings.limits.get(which).copied());
                Refusal::RateLimited { quota, retry_after: wait }
            }
            Acquired::Budget { wait } => Refusal::BudgetExhausted { retry_after: wait },
            Acquired::Open { wait } => opened(shared.state, wait),
        }))
    }

    /// Asks this host's own admission, within its share of the limits.
    fn alone(&self, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let known = self.known.lock();
        if known.heartbeat.is_none()
            && let Some(quota) = known.settings.limits.first()
        {
            // This host does not know its share of the limits yet.
            return Err(Refusal::RateLimited { quota: Some(*quota), retry_after: DEFAULT_RETRY_AFTER });
        }
        drop(known);
        self.alone.acquire(ask, wait).map(Grant::Alone)
    }

    /// The recheck right before the send. An attempt that did not wait, under an unchanged breaker, needs no script call.
    pub async fn recheck(self: &Arc<Self>, grant: &mut Grant) -> Recheck {
        let grant = match grant {
            Grant::Alone(grant) => return self.alone.recheck(grant),
            Grant::Shared(grant) => grant,
        };
        if let Some(own) = grant.own
            && !self.alone.still_admits(&own)
        {
            // This host's own breaker changed while the attempt waited. It also changes with the fleet's.
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
                return Recheck::Refused(opened(state, DEFAULT_RETRY_AFTER));
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
            self.arguments(&known, self.clock.now(), scripts::recheck(taken, grant.ticket.as_ref()))
        };
        let gate = Arc::clone(self);
        let late = move |answer| gate.release_late_lease(&answer);
        let answer = self.link.run_or_late(&scripts::RECHECK, keys, arguments, Instant::now(), late).await;
        let answered = match &answer {
            Ok(answer) => self.read(&scripts::RECHECK, answer, scripts::recheck_reply),
            Err(_) => None,
        };
        let answered = answered.map(|(shared, (decision, again))| {
            if again.is_some() {
                (grant.taken, grant.sent) = (again, false);
            }
            (shared, decision)
        });
        match answered {
            Some((shared, RecheckDecision::Send { lease })) => {
                grant.ticket = grant.ticket.is_some().then_some(ProbeTicket { epoch: shared.epoch, lease });
                grant.sent = true;
                Recheck::Send
            }
            Some((_, RecheckDecision::Wait(wait))) => {
                // A wait above zero makes the next recheck ask Redis: the pause may be lifted, and the reservation void.
                grant.wait = wait;
                Recheck::Wait(wait)
            }
            Some((shared, RecheckDecision::Open { wait })) => {
                grant.ticket = None;
                Recheck::Refused(opened(shared.state, wait))
            }
            // The limits are reserved, so this host's copy of the breaker decides. A probe needs its lease: without one it would exceed the
            // allowed number.
            None if is_probe || (!same && matches!(state, State::Open { .. } | State::HalfOpen { .. })) => {
                Recheck::Refused(opened(state, DEFAULT_RETRY_AFTER))
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

/// A ticket of this host's own breaker; released on drop unless `keep` takes it.
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
