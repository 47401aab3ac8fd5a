//! Limits how many attempts run at an upstream at once, and chooses which requests are refused above the limit.
//!
//! The limit follows latency. If responses take far longer than usual, more attempts run than the upstream works on, and the limit falls in
//! proportion (the gradient of Netflix's concurrency-limits, also Envoy's adaptive concurrency). Latency is compared per endpoint, so that
//! a create of five seconds beside a read of a millisecond is no slowdown. Above the limit, requests queue by priority. If the queue does
//! not empty, it is kept short, and further requests are refused.
//!
//! An attempt that must not wait, because its request may have been sent already, only counts.

#[cfg(test)]
use triage_core::rng;
use triage_core::{clock, contract};
use triage_telemetry as telemetry;

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

/// Responses faster than this fraction (1/n) of the attempt timeout never count as slow, even if they are usually faster. The fraction is
/// large, so that no request is refused without need: four fifths of the timeout are left.
const HARMLESS_DIVISOR: u32 = 5;
/// A burst may wait for this fraction (1/n) of the attempt timeout. A queue that lasts longer is standing.
const BURST_DIVISOR: u32 = 5;
/// In a standing queue, a request may wait for this fraction (1/n) of the attempt timeout.
const STANDING_WAIT_DIVISOR: u32 = 200;

/// The longest queue: it holds requests with their bodies.
const MAX_QUEUED: usize = 10_000;
/// The shortest time between two `overloaded` events.
const MIN_EVENT_INTERVAL: Duration = Duration::from_mins(1);

/// A request for admission.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// The request's priority.
    pub priority: Priority,
    /// The endpoint's name; latency is compared per endpoint.
    pub endpoint: &'a str,
    /// The endpoint's attempt timeout: the limits on waits and slow responses derive from it.
    pub attempt_timeout: Duration,
}

/// The status of an upstream's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverloadStatus {
    /// The most attempts at once.
    pub limit: usize,
    /// Attempts under way.
    pub under_way: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests refused since the start, by priority, lowest first.
    pub shed: [u64; Priority::ALL.len()],
}

/// One upstream's limit and queue, shared by its workers and its generations.
#[derive(Debug)]
pub struct Overload {
    upstream: String,
    clock: Clock,
    events: Arc<Events>,
    state: Mutex<State>,
    /// Whether requests wait or were refused lately; if not, [`Overload::can_admit`] skips the lock.
    pressed: AtomicBool,
    shed: [AtomicU64; Priority::ALL.len()],
}

#[derive(Debug, Default)]
struct State {
    limiter: Limiter,
    queue: WaitQueue<oneshot::Sender<Admission>>,
    last_event_at: Option<Timestamp>,
}

/// The request was refused: the upstream is overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed;

/// The right to one attempt. Dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping an admission releases it"]
pub struct Admission {
    /// None once released.
    overload: Option<Arc<Overload>>,
    sent: Timestamp,
    /// How long the request waited in the queue; none if it did not.
    pub waited: Option<Duration>,
}

impl Overload {
    /// A limit with nothing under way.
    pub fn new(upstream: String, clock: Clock, events: Arc<Events>) -> Arc<Self> {
        let (state, pressed, shed) = (Mutex::default(), AtomicBool::new(false), Default::default());
        Arc::new(Self { upstream, clock, events, state, pressed, shed })
    }

    /// The present status.
    pub fn view(&self) -> OverloadStatus {
        let state = self.state.lock();
        OverloadStatus {
            limit: state.limiter.limit(),
            under_way: state.limiter.under_way(),
            waiting: state.queue.len(),
            shed: std::array::from_fn(|priority| self.shed[priority].load(Relaxed)),
        }
    }

    /// Checks, before any work on a request, whether it could be admitted in time.
    ///
    /// # Errors
    /// [`Shed`]: the requests ahead in the queue use up all attempts that can be served in time.
    pub fn can_admit(&self, asking: &AdmissionRequest<'_>) -> Result<(), Shed> {
        if !self.pressed.load(Relaxed) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.limiter.has_room() && state.queue.is_empty() {
            state.queue.passed(now);
            return Ok(());
        }
        if !state.is_hopeless(asking, now) {
            return Ok(());
        }
        state.limiter.pressed(now);
        Err(self.refuse(state, asking.priority, now))
    }

    /// Admits an attempt that must not wait.
    pub fn enter_now(self: &Arc<Self>) -> Admission {
        let now = self.clock.now();
        self.state.lock().limiter.begin();
        self.admit_now(now)
    }

    fn admit_now(self: &Arc<Self>, now: Timestamp) -> Admission {
        Admission { overload: Some(Arc::clone(self)), sent: now, waited: None }
    }

    /// Waits in the queue for admission, for at most `most`. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Shed`]; nothing was taken.
    pub async fn enter(self: &Arc<Self>, asking: AdmissionRequest<'_>, most: Duration) -> Result<Admission, Shed> {
        let priority = asking.priority;
        let now = self.clock.now();
        let (ticket, admitted, max_wait) = {
            let mut state = self.state.lock();
            if state.limiter.has_room() && state.queue.is_empty() {
                state.queue.passed(now);
                state.limiter.begin();
                return Ok(self.admit_now(now));
            }
            state.limiter.pressed(now);
            self.pressed.store(true, Relaxed);
            if state.is_hopeless(&asking, now) {
                return Err(self.refuse(state, priority, now));
            }
            let is_standing = state.queue.pressed(asking.burst(), now);
            let (send, admitted) = oneshot::channel();
            (state.queue.push(priority, send, now), admitted, asking.max_wait(is_standing))
        };
        let _left = Leaving { overload: self, priority, ticket };
        match tokio::time::timeout(max_wait.min(most), admitted).await {
            Ok(Ok(mut admission)) => {
                admission.waited = Some(admission.sent.since(now));
                Ok(admission)
            }
            _ => Err(self.refuse(self.state.lock(), priority, self.clock.now())),
        }
    }

    fn refuse(&self, mut state: MutexGuard<'_, State>, priority: Priority, now: Timestamp) -> Shed {
        self.shed[priority as usize].fetch_add(1, Relaxed);
        if state.last_event_at.is_none_or(|last_event_at| now.since(last_event_at) >= MIN_EVENT_INTERVAL) {
            state.last_event_at = Some(now);
            let (limit, upstream) = (state.limiter.limit(), &self.upstream);
            drop(state);
            tracing::warn!(%upstream, limit, "the upstream is overloaded: the host refuses requests, the lowest \
                                              priority first");
            let text = format!(
                "answers take too long with more than {limit} attempts at once: the host refuses \
                                requests"
            );
            self.events.note("overloaded", upstream, text);
        }
        Shed
    }

    /// Admits requests from the queue while the limit has space.
    fn advance(self: &Arc<Self>, state: &mut State, now: Timestamp) {
        while state.limiter.has_room() {
            let Some(next) = state.queue.pop() else {
                if !state.queue.is_pressed(now) {
                    self.pressed.store(false, Relaxed);
                }
                return;
            };
            state.limiter.begin();
            if let Err(mut unwanted) = next.send(self.admit_now(now)) {
                // The waiter gave up at this moment. Released here: dropping it would take the lock that is held.
                unwanted.overload = None;
                state.limiter.end();
            }
        }
    }
}

impl State {
    /// Whether the queue is standing and holds as many requests ahead as can be served within the wait. The upstream completes about one
    /// limit's worth of attempts within the harmless time.
    fn is_hopeless(&mut self, asking: &AdmissionRequest<'_>, now: Timestamp) -> bool {
        let is_standing = self.queue.pressed(asking.burst(), now);
        if !is_standing {
            return self.queue.len() >= MAX_QUEUED;
        }
        let part = asking.max_wait(is_standing).as_secs_f64() / asking.harmless().as_secs_f64().max(1e-9);
        let servable = (self.limiter.limit() as f64 * part).max(1.0);
        self.queue.ahead(asking.priority) as f64 >= servable
    }
}

impl AdmissionRequest<'_> {
    fn harmless(&self) -> Duration {
        self.attempt_timeout / HARMLESS_DIVISOR
    }

    fn burst(&self) -> Duration {
        self.attempt_timeout / BURST_DIVISOR
    }

    fn max_wait(&self, is_standing: bool) -> Duration {
        if is_standing { self.attempt_timeout / STANDING_WAIT_DIVISOR } else { self.burst() }
    }
}

impl Admission {
    /// Records the attempt's outcome, and releases the admission.
    pub fn over(mut self, asking: &AdmissionRequest<'_>, outcome: SampleOutcome) {
        let Some(overload) = self.overload.take() else { return };
        let now = overload.clock.now();
        let sample = Sample { endpoint: asking.endpoint, harmless: asking.harmless(), sent: self.sent, outcome };
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

/// Removes a request from the queue when it stops waiting.
struct Leaving<'a> {
    overload: &'a Overload,
    priority: Priority,
    ticket: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.overload.state.lock().queue.leave(self.priority, self.ticket);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
