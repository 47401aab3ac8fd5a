//! Tracks whether an upstream may be asleep.

use crate::{clock::Timestamp, policy::contract::HealthCall};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// When an upstream last responded, and the lock to wake it.
#[derive(Debug)]
pub struct Wakefulness {
    call: Option<HealthCall>,
    last_response_us: AtomicU64,
    /// One request wakes the upstream at a time; the others wait and find it awake.
    pub waking: Mutex<()>,
}

impl Wakefulness {
    /// An upstream that has not responded yet: it may be asleep.
    pub fn new(call: Option<HealthCall>) -> Self {
        Self { call, last_response_us: AtomicU64::new(0), waking: Mutex::new(()) }
    }

    /// Copies the time of the last response.
    pub fn remember(&self, other: &Self) {
        self.last_response_us.store(other.last_response_us.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The health call, if the policy names one.
    pub fn call(&self) -> Option<&HealthCall> {
        self.call.as_ref()
    }

    /// Records a response.
    pub fn record_response(&self, now: Timestamp) {
        self.last_response_us.store(now.0, Ordering::Relaxed);
    }

    /// The health call, if the upstream has been idle for so long that it may be asleep.
    pub fn asleep(&self, now: Timestamp) -> Option<&HealthCall> {
        let call = self.call.as_ref()?;
        let idle = now.since(Timestamp(self.last_response_us.load(Ordering::Relaxed)));
        call.asleep_after.filter(|limit| idle >= *limit).map(|_| call)
    }
}
