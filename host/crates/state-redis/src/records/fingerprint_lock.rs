//! The fleet's lock on a fingerprint: equal requests run one at a time. Redis has a queue with one member for each waiting host;
//! the requests of one host queue in memory, so that only one of them polls Redis.

use super::{
    Inner,
    scripts::{self, FINGERPRINT_LOCK_LEASE, InEra, ScriptReply},
};
use crate::{
    idempotency::{FencingToken, Fingerprint, FingerprintLock, RecordError, records::Lease},
    memory::records::fingerprint_locks::LocalLockGuard,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

/// Between two polls for the lock: the first wait, and the longest. A create takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// Membership in the queue. Dropping it leaves the queue, and so passes the lock on.
pub(super) struct QueueTicket {
    inner: Arc<Inner>,
    fingerprint: Fingerprint,
    own: FencingToken,
    /// Earliest end of the membership in Redis, by this host's clock.
    until: Arc<AtomicU64>,
    taken: bool,
}

/// The lock, renewed in the background until it is dropped.
struct HeldLock {
    renewing: Option<AbortHandle>,
    queue_ticket: QueueTicket,
    _local_lock: Option<LocalLockGuard>,
}

impl QueueTicket {
    /// Create this before the call that joins the queue: its drop leaves the queue even if the reply is lost.
    pub(super) fn new(inner: &Arc<Inner>, fingerprint: Fingerprint, own: FencingToken) -> Self {
        Self { inner: Arc::clone(inner), fingerprint, own, until: Arc::new(AtomicU64::new(0)), taken: true }
    }

    /// Records that a call sent at `asked` joined the queue or renewed the membership.
    pub(super) fn record_renewal(&self, asked: Instant) {
        let until = self.inner.clock.timestamp(asked).after(FINGERPRINT_LOCK_LEASE);
        self.until.store(until.0, Relaxed);
    }

    /// Redis has confirmed that the queue was not joined: the drop sends nothing.
    pub(super) fn discard(mut self) {
        self.taken = false;
    }

    fn holds(&self) -> bool {
        self.inner.clock.now().0 < self.until.load(Relaxed)
    }

    /// Waits for the lock. Errors are retried for as long as Redis may still have the membership.
    pub(super) async fn wait(self) -> Result<Self, RecordError> {
        let mut wait = FIRST_WAIT;
        loop {
            let asked = Instant::now();
            match self.enter().await {
                Ok(value) => {
                    self.record_renewal(asked);
                    match ScriptReply::of(&value).map(|answer| answer.word) {
                        Some("ours") => return Ok(self),
                        Some("waits") => {}
                        _ => return Err(super::nonsense("turn")),
                    }
                }
                Err(error) if self.holds() => tracing::debug!(%error, "a request for a fingerprint lock failed; the \
                                                                       host retries"),
                Err(error) => return Err(error),
            }
            sleep(wait.mul_f64(0.75 + (self.inner.entropy.next() % 512) as f64 / 1024.0)).await;
            wait = (wait * 3 / 2).min(LONGEST_WAIT);
        }
    }

    /// Joins the queue, or renews the membership.
    async fn enter(&self) -> Result<super::Value, RecordError> {
        let step = |era: InEra<'_>| scripts::take_lock(self.inner.keys(), self.fingerprint, self.own, era);
        self.inner.in_this_era(&[], step).await
    }

    /// Converts the membership, which has the lock now, into a guard that renews it.
    pub(super) fn hold(self, here: Option<LocalLockGuard>) -> FingerprintLock {
        let renewing = Handle::try_current().ok().map(|runtime| {
            let (inner, fingerprint, own) = (Arc::clone(&self.inner), self.fingerprint, self.own);
            runtime.spawn(renew(inner, fingerprint, own, Arc::clone(&self.until))).abort_handle()
        });
        FingerprintLock::new(HeldLock { renewing, queue_ticket: self, _local_lock: here })
    }
}

async fn renew(inner: Arc<Inner>, fingerprint: Fingerprint, own: FencingToken, until: Arc<AtomicU64>) {
    let mut eras = inner.link.eras();
    eras.mark_unchanged();
    loop {
        // After a loss of data, take the lock again at once, before another request may join the empty queue.
        let lost = timeout(FINGERPRINT_LOCK_LEASE / 3, eras.changed()).await.is_ok();
        let asked = Instant::now();
        let step = match inner.link.known_era().filter(|_| lost) {
            Some(era) => {
                if let Err(error) = inner.recognise().await {
                    tracing::debug!(%error, "a fingerprint lock could not be taken again yet");
                }
                let era = inner.link.known_era().unwrap_or(era);
                scripts::take_lock(inner.keys(), fingerprint, own, inner.in_era(&era))
            }
            None => scripts::renew(inner.keys(), fingerprint, own),
        };
        match inner.run(&step).await {
            Ok(value) if ScriptReply::of(&value).is_some_and(|answer| answer.word == "ours") => {
                until.store(inner.clock.timestamp(asked).after(FINGERPRINT_LOCK_LEASE).0, Relaxed);
            }
            // The server has lost its data again: the next round takes the lock.
            Ok(value) if ScriptReply::of(&value).is_some_and(|answer| answer.word == "strange") => {}
            // Another request has the lock, or may have it.
            Ok(_) => {
                until.store(0, Relaxed);
                return;
            }
            Err(error) => tracing::debug!(%error, "a fingerprint lock could not be renewed"),
        }
    }
}

impl Lease for HeldLock {
    fn holds(&self) -> bool {
        self.queue_ticket.holds()
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Some(renewing) = self.renewing.take() {
            renewing.abort();
        }
    }
}

impl Drop for QueueTicket {
    fn drop(&mut self) {
        if self.taken {
            self.inner.afterwards(scripts::pass(self.inner.keys(), self.fingerprint, self.own));
        }
    }
}
