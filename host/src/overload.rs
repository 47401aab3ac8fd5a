//! How many attempts an upstream bears at once, and who gives way where more are wanted.
//!
//! The limit follows latency: where answers take far longer than they usually do, more is under way than the upstream works on,
//! and the limit falls in proportion (the gradient of Netflix's concurrency-limits, also Envoy's adaptive concurrency). Latency is
//! compared endpoint by endpoint, so that a create of five seconds beside a read of a millisecond is no slowdown. Above the limit
//! a line forms, which high priorities pass; once it stands, it is kept short and the others are told to come back.
//!
//! What may have been sent already is never held up: it only counts.

mod limiter;
mod memory_limiter;
pub mod peers;
mod priority;
mod wait_queue;

pub use limiter::{Limiter, Sample, SampleOutcome};
pub use memory_limiter::{Buffered, Memory, MemoryReservation, Scarce, Spare};
pub use peers::{Peers, UnderWay};
pub use priority::Priority;
pub use wait_queue::WaitQueue;

use crate::{
    clock::{Clock, Timestamp},
    telemetry::Events,
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// Answers below this part of the attempt timeout are never late: nobody is harmed by them, whatever is usual. Large, so that
/// nobody is refused without need: four fifths are left until attempts fail.
const HARMLESS: u32 = 5;
/// A burst may wait for this part of the attempt timeout, and a line that lasts longer stands.
const BURST: u32 = 5;
/// In a line that stands, for this part.
const BRIEF: u32 = 200;

/// The longest line: it holds requests with their bodies.
const LONGEST: usize = 10_000;
/// Between two events that tell of it.
const TELL_AGAIN: Duration = Duration::from_mins(1);

/// Who asks for a place.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// How much it matters.
    pub priority: Priority,
    /// The endpoint's name.
    pub endpoint: &'a str,
    /// What one attempt may take there: what counts as late follows from it.
    pub attempt_timeout: Duration,
}

/// What there is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverloadStatus {
    /// The most attempts at once.
    pub limit: usize,
    /// Attempts under way.
    pub under_way: usize,
    /// Requests in line.
    pub waiting: usize,
    /// Requests that were refused since the start, by priority, the lowest first.
    pub shed: [u64; Priority::ALL.len()],
}

/// One upstream's limit and line, shared by its workers and its generations.
#[derive(Debug)]
pub struct Overload {
    upstream: String,
    clock: Clock,
    events: Arc<Events>,
    state: Mutex<State>,
    /// Whether somebody waits or was refused lately: else nobody need ask.
    pressed: AtomicBool,
    shed: [AtomicU64; Priority::ALL.len()],
}

#[derive(Debug, Default)]
struct State {
    limiter: Limiter,
    line: WaitQueue<oneshot::Sender<Admission>>,
    told: Option<Timestamp>,
}

/// The upstream has more to do than it bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed;

/// The right to one attempt. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping a place gives it back"]
pub struct Admission {
    /// None once it was given back.
    overload: Option<Arc<Overload>>,
    sent: Timestamp,
    /// How long it was waited for in line; none where nobody was.
    pub waited: Option<Duration>,
}

impl Overload {
    /// With nothing under way.
    pub fn new(upstream: String, clock: Clock, events: Arc<Events>) -> Arc<Self> {
        let (state, pressed, shed) = (Mutex::default(), AtomicBool::new(false), Default::default());
        Arc::new(Self { upstream, clock, events, state, pressed, shed })
    }

    /// What there is to see.
    pub fn view(&self) -> OverloadStatus {
        let state = self.state.lock();
        OverloadStatus {
            limit: state.limiter.limit(),
            under_way: state.limiter.under_way(),
            waiting: state.line.len(),
            shed: std::array::from_fn(|priority| self.shed[priority].load(Relaxed)),
        }
    }

    /// Looks whether there is any hope before anything is done for a request.
    ///
    /// # Errors
    /// [`Shed`]: as many are in line before it as can be served in time.
    pub fn can_admit(&self, asking: &AdmissionRequest<'_>) -> Result<(), Shed> {
        if !self.pressed.load(Relaxed) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.limiter.has_room() && state.line.is_empty() {
            state.line.passed(now);
            return Ok(());
        }
        if !state.is_hopeless(asking, now) {
            return Ok(());
        }
        state.limiter.pressed(now);
        Err(self.refuse(state, asking.priority, now))
    }

    /// A place for an attempt that must not be held up.
    pub fn enter_now(self: &Arc<Self>) -> Admission {
        let now = self.clock.now();
        self.state.lock().limiter.begin();
        self.place(now)
    }

    fn place(self: &Arc<Self>, now: Timestamp) -> Admission {
        Admission { overload: Some(Arc::clone(self)), sent: now, waited: None }
    }

    /// A place for an attempt, after its turn in the line and within `most`. Dropping the future leaves the line.
    ///
    /// # Errors
    /// [`Shed`]; nothing was taken then.
    pub async fn enter(self: &Arc<Self>, asking: AdmissionRequest<'_>, most: Duration) -> Result<Admission, Shed> {
        let priority = asking.priority;
        let now = self.clock.now();
        let (ticket, turn, patience) = {
            let mut state = self.state.lock();
            if state.limiter.has_room() && state.line.is_empty() {
                state.line.passed(now);
                state.limiter.begin();
                return Ok(self.place(now));
            }
            state.limiter.pressed(now);
            self.pressed.store(true, Relaxed);
            if state.is_hopeless(&asking, now) {
                return Err(self.refuse(state, priority, now));
            }
            let stands = state.line.pressed(asking.burst(), now);
            let (send, turn) = oneshot::channel();
            (state.line.push(priority, send, now), turn, asking.patience(stands))
        };
        let _left = Leaving { overload: self, priority, ticket };
        match tokio::time::timeout(patience.min(most), turn).await {
            Ok(Ok(mut place)) => {
                place.waited = Some(place.sent.since(now));
                Ok(place)
            }
            _ => Err(self.refuse(self.state.lock(), priority, self.clock.now())),
        }
    }

    fn refuse(&self, mut state: MutexGuard<'_, State>, priority: Priority, now: Timestamp) -> Shed {
        self.shed[priority as usize].fetch_add(1, Relaxed);
        if state.told.is_none_or(|told| now.since(told) >= TELL_AGAIN) {
            state.told = Some(now);
            let (limit, upstream) = (state.limiter.limit(), &self.upstream);
            drop(state);
            tracing::warn!(%upstream, limit, "the upstream is overloaded: requests are refused, the least important first");
            let text = format!("answers take too long with more than {limit} attempts at once: requests are refused");
            self.events.note("overloaded", upstream, text);
        }
        Shed
    }

    /// Lets in who is next, as far as there is room.
    fn advance(self: &Arc<Self>, state: &mut State, now: Timestamp) {
        while state.limiter.has_room() {
            let Some(next) = state.line.pop() else {
                if !state.line.is_pressed(now) {
                    self.pressed.store(false, Relaxed);
                }
                return;
            };
            state.limiter.begin();
            if let Err(mut unwanted) = next.send(self.place(now)) {
                // Who gave up at this moment. Given back here: dropping it would ask for the lock that is held.
                unwanted.overload = None;
                state.limiter.end();
            }
        }
    }
}

impl State {
    /// The line stands, and as many are before it as can be served while it waits: a limit is worked off in about the time that
    /// harms nobody.
    fn is_hopeless(&mut self, asking: &AdmissionRequest<'_>, now: Timestamp) -> bool {
        let stands = self.line.pressed(asking.burst(), now);
        if !stands {
            return self.line.len() >= LONGEST;
        }
        let part = asking.patience(stands).as_secs_f64() / asking.harmless().as_secs_f64().max(1e-9);
        let servable = (self.limiter.limit() as f64 * part).max(1.0);
        self.line.ahead(asking.priority) as f64 >= servable
    }
}

impl AdmissionRequest<'_> {
    fn harmless(&self) -> Duration {
        self.attempt_timeout / HARMLESS
    }

    fn burst(&self) -> Duration {
        self.attempt_timeout / BURST
    }

    fn patience(&self, stands: bool) -> Duration {
        if stands { self.attempt_timeout / BRIEF } else { self.burst() }
    }
}

impl Admission {
    /// Tells how the attempt went, and gives the place back.
    pub fn over(mut self, asking: &AdmissionRequest<'_>, went: SampleOutcome) {
        let Some(overload) = self.overload.take() else { return };
        let now = overload.clock.now();
        let sample = Sample { endpoint: asking.endpoint, harmless: asking.harmless(), sent: self.sent, went };
        let mut state = overload.state.lock();
        state.limiter.observe(&sample, now);
        state.limiter.end();
        overload.advance(&mut state, now);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Some(overload) = self.overload.take() else { return };
        let now = overload.clock.now();
        let mut state = overload.state.lock();
        state.limiter.end();
        overload.advance(&mut state, now);
    }
}

/// Takes who no longer waits out of the line.
struct Leaving<'a> {
    overload: &'a Overload,
    priority: Priority,
    ticket: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.overload.state.lock().line.leave(self.priority, self.ticket);
    }
}

#[cfg(test)]
#[path = "overload/tests.rs"]
mod tests;
