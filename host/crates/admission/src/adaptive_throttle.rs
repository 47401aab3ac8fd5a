//! Applies a group's adaptive rate to its attempts. Each host of a fleet has its own rate: see [`adaptive`].

use crate::{
    clock::{Clock, Timestamp},
    policy::contract::Class,
    rate_limit::{
        Quota,
        adaptive::{AdaptiveRate, DecreaseEpoch, Reservation, Settings},
    },
    state::group::{AttemptKind, EndpointSettings, PaceView, Refusal},
    telemetry::Events,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// Requests may wait for at most a third of the time left after a pause. While demand exceeds the rate, the queue is always as long as
/// allowed, and a longer one serves no more requests. A queue as long as the deadline would expire whole when a pause delays it.
/// Verifications may use all of their time: they are few, and a skipped one leaves a write unknown.
const WAIT_DIVISOR: u32 = 3;
/// The shortest time between two `slowed` events.
const MIN_EVENT_INTERVAL: Duration = Duration::from_mins(1);

/// A group's adaptive rate, with its settings and its events.
#[derive(Debug)]
pub(super) struct Pace {
    group: String,
    clock: Clock,
    events: Arc<Events>,
    /// Off by default; then this check is the only cost.
    is_on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Option<Settings>,
    /// Requests per minute that the configured limits allow.
    ceiling: f64,
    rate: AdaptiveRate,
    paused_until: Timestamp,
    last_event_at: Option<Timestamp>,
}

/// An attempt's reservation in the adaptive rate.
#[derive(Debug)]
pub(super) struct Throttled {
    pace: Arc<Pace>,
    decrease_epoch: DecreaseEpoch,
    /// None while the rate is unlimited.
    reservation: Option<Reservation>,
    /// The wait, counted from the reservation.
    pub(super) wait: Duration,
    /// The rate at the time of the reservation.
    pub(super) per_minute: u32,
    pub(super) is_sent: bool,
}

impl Pace {
    pub(super) fn new(group: &str, clock: Clock, events: Arc<Events>, endpoint: &EndpointSettings) -> Arc<Self> {
        let state = State {
            settings: None,
            ceiling: f64::INFINITY,
            rate: AdaptiveRate::default(),
            paused_until: Timestamp::default(),
            last_event_at: None,
        };
        let (is_on, state) = (AtomicBool::new(false), Mutex::new(state));
        let own = Self { group: group.to_owned(), clock, events, is_on, state };
        own.adopt(endpoint);
        Arc::new(own)
    }

    /// Applies new settings; the learned rate stays.
    pub(super) fn adopt(&self, endpoint: &EndpointSettings) {
        let mut state = self.state.lock();
        state.settings = endpoint.adaptive_rate;
        state.ceiling = endpoint.group.limits.iter().map(Quota::per_minute).fold(f64::INFINITY, f64::min);
        self.is_on.store(state.settings.is_some(), Relaxed);
    }

    /// Reserves a moment at the present rate, not before the end of `pause`. None: the adaptive rate is switched off.
    pub(super) fn reserve(
        self: &Arc<Self>,
        ask: AttemptKind,
        pause: impl FnOnce() -> Duration,
        max_wait: Duration,
    ) -> Result<Option<Throttled>, Refusal> {
        if !self.is_on.load(Relaxed) {
            return Ok(None);
        }
        // Read the clock before the pause: the other order could overstate the time left.
        let now = self.clock.now();
        let pause = pause();
        let mut state = self.state.lock();
        // Only the gate knows pauses that other hosts received and pauses that an operator lifted.
        if pause.is_zero() {
            state.lift(now);
        }
        state.pause(pause, now);
        // The gate refuses a pause that outlasts the deadline.
        let Some(rate) = state.per_minute(now).filter(|_| pause <= max_wait) else {
            let decrease_epoch = state.rate.decrease_epoch();
            let (wait, per_minute) = (Duration::ZERO, u32::MAX);
            return Ok(Some(Throttled {
                pace: Arc::clone(self),
                decrease_epoch,
                reservation: None,
                wait,
                per_minute,
                is_sent: false,
            }));
        };
        let per_minute = shown(rate);
        let part = if ask == AttemptKind::Probe { 1 } else { WAIT_DIVISOR };
        let max_wait = pause.saturating_add(max_wait.saturating_sub(pause) / part);
        let reservation = state.rate.reserve(rate, now.after(pause), now, max_wait);
        let reservation = reservation.map_err(|retry_after| Refusal::Paced { per_minute, retry_after })?;
        let (decrease_epoch, wait) = (state.rate.decrease_epoch(), reservation.due.since(now));
        Ok(Some(Throttled {
            pace: Arc::clone(self),
            decrease_epoch,
            reservation: Some(reservation),
            wait,
            per_minute,
            is_sent: false,
        }))
    }

    /// The upstream asked for a pause: delays all reservations by the time that it adds to a pause under way.
    pub(super) fn pause(&self, pause: Duration) {
        if !self.is_on.load(Relaxed) {
            return;
        }
        let now = self.clock.now();
        self.state.lock().pause(pause, now);
    }

    pub(super) fn view(&self) -> Option<PaceView> {
        let now = self.clock.now();
        let state = self.state.lock();
        let settings = state.settings?;
        Some(PaceView { per_minute: state.per_minute(now), decreases: state.rate.decreases(), settings })
    }
}

impl State {
    fn per_minute(&self, now: Timestamp) -> Option<f64> {
        self.rate.per_minute(self.settings.as_ref()?, self.ceiling, now)
    }

    /// Advances all reservations by the rest of a pause that was lifted.
    fn lift(&mut self, now: Timestamp) {
        let left = self.paused_until.since(now);
        if !left.is_zero() {
            self.rate.move_back(left);
            self.paused_until = now;
        }
    }

    /// Delays all reservations by the time that a pause adds to one under way.
    fn pause(&mut self, pause: Duration, now: Timestamp) {
        let (until, paused) = (now.after(pause), self.paused_until.max(now));
        let by = until.since(paused);
        if !by.is_zero() {
            self.rate.delay(by);
            self.paused_until = until;
        }
    }
}

impl Throttled {
    /// Learns from a response. Returns the new rate in requests per minute if it was lowered.
    pub(super) fn answered(&self, class: Class) -> Option<u32> {
        let (pace, now) = (&self.pace, self.pace.clock.now());
        let mut state = pace.state.lock();
        match class {
            Class::Applied | Class::AlreadyApplied => {
                state.rate.took(self.decrease_epoch, now);
                return None;
            }
            Class::Rejected => {
                state.rate.rejected(now);
                return None;
            }
            // Neither class shows that the upstream accepts a higher rate.
            Class::NotApplied | Class::Unknown => return None,
            Class::Throttled => {}
        }
        let (settings, ceiling) = (state.settings?, state.ceiling);
        let per_minute = shown(state.rate.throttled(&settings, ceiling, self.decrease_epoch, now)?);
        let tell = state.last_event_at.is_none_or(|last_event_at| now.since(last_event_at) >= MIN_EVENT_INTERVAL);
        if tell {
            state.last_event_at = Some(now);
        }
        drop(state);
        if tell {
            tracing::warn!(group = %pace.group, per_minute, "the upstream throttles: the host sends fewer requests");
            pace.events.note(
                "slowed",
                &pace.group,
                format!("the upstream throttles: the host sends at most {per_minute} requests a minute"),
            );
        }
        Some(per_minute)
    }
}

fn shown(per_minute: f64) -> u32 {
    (per_minute as u32).max(1)
}

impl Drop for Throttled {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.filter(|_| !self.is_sent) {
            let now = self.pace.clock.now();
            self.pace.state.lock().rate.refund(&reservation, now);
        }
    }
}

#[cfg(test)]
#[path = "adaptive_throttle/tests.rs"]
mod tests;
