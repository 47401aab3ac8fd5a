//! Breaker, retry budget and limits of a group behind one lock, which is held for nanoseconds and never across an await.

use crate::{
    breaker::{Admission, Breaker, BreakerState, Force, Ticket, Transition, Trip},
    clock::{Clock, Timestamp},
    contract::BreakerSignal,
    group::{AttemptKind, GroupStatus, LimitView, Recheck, Refusal, Report, Settings},
    rate_limit::{Gcra, Reservation},
    retry::budget::Budget,
    rng::Rng,
    rounded::Rounded,
    telemetry::Events,
};
use parking_lot::Mutex;
use std::{ops::RangeInclusive, sync::Arc, time::Duration};

/// How much a lift adds to `State::moved`: the smallest unit of the clock, as in `lift_pause.lua`.
const LIFT_MARK: Duration = Duration::from_micros(1);

/// Admission of one group in this process.
#[derive(Debug)]
pub struct MemoryGate {
    name: String,
    clock: Clock,
    entropy: Rng,
    events: Arc<Events>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    breaker: Breaker,
    budget: Budget,
    limits: Vec<Gcra>,
    paused_until: Timestamp,
    /// Total time by which pauses have moved reservations.
    moved: Duration,
    /// `moved` at the last lift of a pause: earlier reservations are void.
    lifted: Duration,
    /// Number of changes of the settings.
    edition: u64,
}

/// An admitted attempt, and what it consumed.
#[derive(Debug)]
pub struct Grant {
    /// Time until the reserved moment.
    pub wait: Duration,
    /// The reserved moment, and `State::moved` at the reservation.
    due: Timestamp,
    moved: Duration,
    ticket: Option<Ticket>,
    reservations: Vec<Reservation>,
    ask: AttemptKind,
    /// The send began: limits and budget are not refunded any more.
    sent: bool,
    /// `State::edition` at the reservation: a later edition's limits are not refunded.
    edition: u64,
}

impl Grant {
    /// Whether a breaker counts the attempt's result.
    pub fn counts(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether the attempt is a probe of the half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }
}

impl MemoryGate {
    /// A group with a closed breaker and unused limits.
    pub fn new(name: String, settings: Settings, clock: Clock, entropy: Rng) -> Self {
        let state = State {
            breaker: Breaker::new(entropy.next()),
            budget: Budget::new(&settings.budget, clock.now()),
            limits: vec![Gcra::default(); settings.limits.len()],
            paused_until: Timestamp::default(),
            moved: Duration::ZERO,
            lifted: Duration::ZERO,
            edition: 0,
            settings,
        };
        Self { name, clock, entropy, events: Arc::new(Events::new(clock)), state: Mutex::new(state) }
    }

    /// Reports transitions of the breaker to `events`.
    #[must_use]
    pub fn reporting_to(mut self, events: Arc<Events>) -> Self {
        self.events = events;
        self
    }

    /// The name: `upstream/group`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks breaker, retry budget and limits: all or nothing. The wait is the longest of theirs, and within `wait`.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken then.
    pub fn acquire(&self, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Grant, Refusal> {
        let (least, max_wait) = wait.into_inner();
        let now = self.clock.now();
        let mut state = self.state.lock();
        let pause = state.paused_until.since(now);
        if pause > max_wait {
            return Err(Refusal::RateLimited { quota: None, retry_after: pause });
        }
        // During a pause, reserve from its end on.
        let from = now.after(least).max(state.paused_until);
        let state = &mut *state;
        let earliest = state.limits.iter().zip(&state.settings.limits);
        let last = earliest.map(|(gcra, quota)| (gcra.earliest(quota, from), quota)).max_by_key(|(due, _)| *due);
        let due = last.map_or(from, |(due, _)| due);
        let wait = due.since(now);
        if wait > max_wait {
            let quota = last.map(|(_, quota)| *quota);
            return Err(Refusal::RateLimited { quota, retry_after: wait });
        }
        let ticket = ticket(state, ask, now)?;
        if ask == AttemptKind::Retry
            && let Err(exhausted) = state.budget.withdraw(&state.settings.budget, now)
        {
            if let Some(ticket) = &ticket {
                state.breaker.give_back(ticket);
            }
            return Err(Refusal::BudgetExhausted { retry_after: exhausted.retry_after });
        }
        if ask == AttemptKind::First {
            state.budget.deposit(&state.settings.budget);
        }
        let moved = state.moved;
        let limits = state.limits.iter_mut().zip(&state.settings.limits);
        let reservations = limits.map(|(gcra, quota)| gcra.take(quota, due)).collect();
        Ok(Grant { wait, due, moved, ticket, reservations, ask, sent: false, edition: state.edition })
    }

    /// The recheck right before the send.
    pub fn recheck(&self, grant: &mut Grant) -> Recheck {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.readmit(grant, now);
        // A pause moves all waiting attempts by the same time, so that they are not sent in a burst at its end.
        let due = grant.due.after(state.moved.saturating_sub(grant.moved)).max(state.paused_until);
        if due > now {
            return Recheck::Wait(due.since(now));
        }
        let state = &mut *state;
        if let (Some(ticket), Some(settings)) = (grant.ticket, &state.settings.breaker)
            && !state.breaker.recheck(&ticket, now, settings)
        {
            // The epoch changed while this attempt waited: it needs a ticket of the new one, perhaps a probe's.
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

    /// Records the result of an attempt.
    pub fn report(&self, grant: &Grant, report: Report) {
        if let Some(ticket) = &grant.ticket {
            self.record(ticket, report);
        }
    }

    fn report_transition(&self, transition: Transition) {
        report_transition(&self.name, &self.events, transition);
    }

    /// Applies an operator's command to the breaker. False: the group has no breaker.
    pub fn force(&self, force: Force) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.settings.breaker.is_none() {
            return false;
        }
        let transition = state.breaker.force(force, now);
        drop(state);
        if let Some(transition) = transition {
            self.report_transition(transition);
        }
        true
    }

    /// Status for operators.
    pub fn view(&self) -> GroupStatus {
        let now = self.clock.now();
        let state = self.state.lock();
        let limits = state.limits.iter().zip(&state.settings.limits);
        GroupStatus {
            group: self.name.clone(),
            breaker: state.settings.breaker.as_ref().map(|settings| state.breaker.view(now, settings)),
            limits: limits.map(|(gcra, quota)| LimitView { quota: *quota, taken: gcra.taken(quota, now) }).collect(),
            pace: None,
            budget: state.budget.saved(&state.settings.budget, now),
            budget_settings: state.settings.budget.clone(),
            paused: Some(state.paused_until.since(now)).filter(|pause| !pause.is_zero()),
        }
    }

    /// Refunds what was consumed for an attempt that was not made.
    pub fn give_back(&self, grant: &Grant) {
        let mut state = self.state.lock();
        if let Some(ticket) = &grant.ticket {
            state.breaker.give_back(ticket);
        }
        if grant.sent {
            return;
        }
        let state = &mut *state;
        if grant.edition == state.edition && !state.is_void(grant) {
            let moved = state.moved.saturating_sub(grant.moved);
            for (gcra, reservation) in state.limits.iter_mut().zip(&grant.reservations) {
                gcra.refund(reservation, moved);
            }
        }
        if grant.ask == AttemptKind::Retry {
            state.budget.refund(&state.settings.budget);
        }
    }

    /// Applies changed settings. Breaker and budget keep their state. A limit keeps its count, or takes over that of the limit at the
    /// same index.
    pub fn adopt(&self, settings: Settings) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.settings == settings {
            return;
        }
        let counted = |(index, quota)| {
            let same = state.settings.limits.iter().position(|own| own == quota);
            same.or(Some(index)).and_then(|index| state.limits.get(index).copied()).unwrap_or_default()
        };
        state.limits = settings.limits.iter().enumerate().map(counted).collect();
        state.settings = settings;
        state.edition += 1;
    }

    /// Delays attempts. A shorter pause never cuts a longer one.
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

    /// Ends a pause early. False: there was none.
    ///
    /// Requests that waited for it keep waiting until their reserved moment, and then reserve again by the ordinary limits.
    pub fn lift(&self) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.paused_until <= now {
            return false;
        }
        state.paused_until = now;
        // Distinguishes earlier reservations from later ones.
        state.moved = state.moved.saturating_add(LIFT_MARK);
        state.lifted = state.moved;
        for (gcra, quota) in state.limits.iter_mut().zip(&state.settings.limits) {
            gcra.void_reserved(quota, now);
        }
        true
    }
}

impl State {
    /// Whether a pause was lifted since the reservation.
    fn is_void(&self, grant: &Grant) -> bool {
        grant.moved < self.lifted
    }

    /// Reserves again for a grant whose reservation is void.
    fn readmit(&mut self, grant: &mut Grant, now: Timestamp) {
        if !self.is_void(grant) {
            return;
        }
        let from = now.max(self.paused_until);
        let limits = || self.limits.iter().zip(&self.settings.limits);
        let due = limits().map(|(gcra, quota)| gcra.earliest(quota, from)).fold(from, Timestamp::max);
        let limits = self.limits.iter_mut().zip(&self.settings.limits);
        grant.reservations = limits.map(|(gcra, quota)| gcra.take(quota, due)).collect();
        (grant.due, grant.moved, grant.edition, grant.sent) = (due, self.moved, self.edition, false);
    }
}

/// The breaker alone, for `RedisGate`, which falls back to this gate.
impl MemoryGate {
    /// Asks this host's own breaker.
    ///
    /// # Errors
    /// [`Refusal::BreakerOpen`].
    pub fn admit(&self) -> Result<Option<Ticket>, Refusal> {
        let now = self.clock.now();
        ticket(&mut self.state.lock(), AttemptKind::First, now)
    }

    /// Whether a ticket is still valid. Starts a probe's lease.
    pub fn still_admits(&self, ticket: &Ticket) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.settings.breaker.as_ref().is_none_or(|settings| state.breaker.recheck(ticket, now, settings))
    }

    /// Records a result in this host's own breaker.
    pub fn record(&self, ticket: &Ticket, report: Report) {
        let Report { signal, took, .. } = report;
        let now = self.clock.now();
        let random = if signal == BreakerSignal::Failure { self.entropy.next() } else { 0 };
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(settings) = &state.settings.breaker else { return };
        let transition = state.breaker.record(ticket, signal, took, now, random, settings);
        let longer = report.lengthens().and_then(|asked| state.breaker.lengthen(ticket, asked, now, settings));
        match (transition, longer) {
            (Some(Transition::Opened { why, .. }), Some(open_for)) => {
                self.report_transition(Transition::Opened { why, open_for });
            }
            (Some(transition), _) => self.report_transition(transition),
            (None, Some(open_for)) => {
                tracing::info!(group = %self.name, open_for = %Rounded(open_for), "the circuit breaker stays open for as long as \
                                                                               the upstream asks");
            }
            (None, None) => {}
        }
    }

    /// Returns an unused ticket.
    pub fn release(&self, ticket: &Ticket) {
        self.state.lock().breaker.give_back(ticket);
    }

    /// Sets the breaker to the state of the fleet's.
    pub fn follow(&self, state: BreakerState, forced: bool, why: Option<Trip>, left: Duration) {
        let now = self.clock.now();
        self.state.lock().breaker.follow(state, forced, why, left, now);
    }

    /// The time left of the upstream's pause.
    pub fn paused(&self) -> Duration {
        let now = self.clock.now();
        self.state.lock().paused_until.since(now)
    }
}

/// Logs a transition and reports it to `events`. Dashboards of the stack that Triage replaces search for this message.
pub fn report_transition(group: &str, events: &Events, transition: Transition) {
    const MESSAGE: &str = "Circuit breaker state changed";
    let mut failures = None;
    match transition {
        Transition::Opened { why, open_for } => {
            failures = events.tripped(group, why);
            let of = failures.as_ref().map(tracing::field::display);
            tracing::warn!(%group, state = "open", %why, of, open_for = %Rounded(open_for), "{MESSAGE}");
        }
        Transition::Closed => tracing::warn!(%group, state = "closed", "{MESSAGE}"),
        Transition::Held { hold } => {
            tracing::warn!(%group, state = "held-closed", hold = %Rounded(hold), "{MESSAGE}");
        }
    }
    events.transition(group, transition, failures.as_ref());
}

fn ticket(state: &mut State, ask: AttemptKind, now: Timestamp) -> Result<Option<Ticket>, Refusal> {
    let Some(settings) = state.settings.breaker.as_ref().filter(|_| ask != AttemptKind::Probe) else { return Ok(None) };
    match state.breaker.admit(now, settings) {
        Admission::Pass(ticket) => Ok(Some(ticket)),
        Admission::Refused { retry_after, why } => Err(Refusal::BreakerOpen { retry_after, why }),
    }
}

#[cfg(test)]
#[path = "admission/tests.rs"]
mod tests;
