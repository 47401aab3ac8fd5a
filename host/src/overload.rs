//! How many attempts an upstream bears at once: a limit that follows its latency, and who is refused above it.
//!
//! After the gradient of Netflix's concurrency-limits and Envoy's adaptive concurrency filter: where answers take longer than
//! they usually do, more attempts are under way than the upstream works on, and the limit falls in proportion; where they do
//! not, it grows by its square root. Latency is compared endpoint by endpoint, so that a create of five seconds beside a read of a
//! millisecond is no slowdown.

mod limiter;
mod priority;

pub use limiter::{Limiter, Sample, Settings};
pub use priority::Priority;

use crate::clock::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;

/// One upstream's limit, shared by its workers and its generations.
#[derive(Debug)]
pub struct Overload(Mutex<Limiter>);

/// The right to one attempt. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping a place gives it back"]
pub struct Place {
    overload: Arc<Overload>,
    sent: Timestamp,
}

impl Overload {
    /// With nothing under way.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Limiter::new(settings))))
    }

    /// A place for one attempt, if there is one for its priority.
    pub fn enter(self: &Arc<Self>, priority: Priority, now: Timestamp) -> Option<Place> {
        let admitted = self.0.lock().admit(priority);
        admitted.then(|| Place { overload: Arc::clone(self), sent: now })
    }

    /// The limit, and how many places are taken.
    pub fn view(&self) -> (usize, usize) {
        let limiter = self.0.lock();
        (limiter.limit(), limiter.under_way())
    }

    /// Puts other bounds into force; what was learned stays.
    pub fn adopt(&self, settings: Settings) {
        self.0.lock().adopt(settings);
    }
}

impl Place {
    /// Tells how the attempt went.
    pub fn report(self, endpoint: &str, sample: Sample, now: Timestamp) {
        self.overload.0.lock().observe(endpoint, self.sent, sample, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.overload.0.lock().release();
    }
}
