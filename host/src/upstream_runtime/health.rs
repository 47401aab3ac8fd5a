//! Whether an upstream may have fallen asleep.

use crate::{clock::Timestamp, policy::contract::HealthCall};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// When an upstream was last heard of, and who wakes it.
#[derive(Debug)]
pub struct Wakefulness {
    call: Option<HealthCall>,
    last_heard_us: AtomicU64,
    /// One waker at a time; the others wait for it and find the upstream awake.
    pub waking: Mutex<()>,
}

impl Wakefulness {
    /// Never heard of: it may be asleep.
    pub fn new(call: Option<HealthCall>) -> Self {
        Self { call, last_heard_us: AtomicU64::new(0), waking: Mutex::new(()) }
    }

    /// Takes over when the upstream was heard of.
    pub fn remember(&self, other: &Self) {
        self.last_heard_us.store(other.last_heard_us.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The health call, where the policy names one.
    pub fn call(&self) -> Option<&HealthCall> {
        self.call.as_ref()
    }

    /// Notes an answer.
    pub fn heard(&self, now: Timestamp) {
        self.last_heard_us.store(now.0, Ordering::Relaxed);
    }

    /// The health call to wake it with, if it has been idle for so long that it may be asleep.
    pub fn asleep(&self, now: Timestamp) -> Option<&HealthCall> {
        let call = self.call.as_ref()?;
        let idle = now.since(Timestamp(self.last_heard_us.load(Ordering::Relaxed)));
        call.asleep_after.filter(|limit| idle >= *limit).map(|_| call)
    }
}
