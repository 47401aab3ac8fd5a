//! Fingerprint locks in memory: equal requests run one at a time, in a queue for each fingerprint.

use crate::idempotency::{Fingerprint, RecordError, records::Lease};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::sync::oneshot;

/// Enough that threads rarely contend.
const SHARDS: usize = 16;

/// Requests that wait for a lock, in order. The map has an entry as long as the lock is held.
type Queue = VecDeque<(u64, oneshot::Sender<PassedLock>)>;

/// The locks of equal requests in this process, by fingerprint. Each has a queue.
pub struct FingerprintLocks {
    max: usize,
    shards: [Mutex<HashMap<Fingerprint, Queue>>; SHARDS],
    held: AtomicUsize,
    next_ticket: AtomicU64,
}

/// The result of asking for a lock.
pub enum LockToken {
    /// The request holds the lock.
    First(LocalLockGuard),
    /// Other requests are before it.
    Queued(LockWaiter),
}

/// The lock, held until drop. Fields are dropped in order: the lock passes on before its permit is free.
pub struct LocalLockGuard {
    _lock: PassedLock,
    _permit: LockPermit,
}

impl Lease for LocalLockGuard {
    fn holds(&self) -> bool {
        true
    }
}

/// A request in the queue. Dropping it leaves the queue.
pub struct LockWaiter {
    fingerprint: Fingerprint,
    ticket: u64,
    lock: oneshot::Receiver<PassedLock>,
    permit: Option<LockPermit>,
    locks: Arc<FingerprintLocks>,
}

/// The lock as it is sent from request to request. If the waiter has left, the lock is dropped with the waiter's channel, and so passes on.
struct PassedLock {
    locks: Arc<FingerprintLocks>,
    fingerprint: Fingerprint,
    spent: bool,
}

/// A permit to hold a lock or wait for one. All queues together have `max` permits.
struct LockPermit(Arc<FingerprintLocks>);

impl FingerprintLocks {
    /// `max`: requests that hold a lock or wait for one, of all fingerprints together.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            shards: std::array::from_fn(|_| Mutex::default()),
            held: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
        }
    }

    /// Requests that hold a lock or wait for one.
    pub(crate) fn len(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Takes the lock, or joins the end of its queue.
    ///
    /// # Errors
    /// [`RecordError::Full`] if `max` requests hold a lock or wait for one.
    pub fn take(self: &Arc<Self>, fingerprint: Fingerprint) -> Result<LockToken, RecordError> {
        let permit = self.permit().ok_or(RecordError::Full { what: "locks of equal requests", max: self.max })?;
        let mut queues = self.shard(fingerprint).lock();
        let Some(queue) = queues.get_mut(&fingerprint) else {
            queues.insert(fingerprint, Queue::new());
            let lock = PassedLock { locks: Arc::clone(self), fingerprint, spent: false };
            return Ok(LockToken::First(LocalLockGuard { _lock: lock, _permit: permit }));
        };
        let ticket = self.next_ticket.fetch_add(1, Relaxed);
        let (pass, lock) = oneshot::channel();
        queue.push_back((ticket, pass));
        Ok(LockToken::Queued(LockWaiter { fingerprint, ticket, lock, permit: Some(permit), locks: Arc::clone(self) }))
    }

    fn permit(self: &Arc<Self>) -> Option<LockPermit> {
        let taken = self.held.fetch_update(Relaxed, Relaxed, |held| (held < self.max).then_some(held + 1));
        taken.ok().map(|_| LockPermit(Arc::clone(self)))
    }

    fn shard(&self, fingerprint: Fingerprint) -> &Mutex<HashMap<Fingerprint, Queue>> {
        let [first, ..] = fingerprint.as_bytes();
        &self.shards[usize::from(*first) % SHARDS]
    }

    /// Removes and returns the next waiter. Without one, removes the queue: the lock is free.
    fn next(&self, fingerprint: Fingerprint) -> Option<oneshot::Sender<PassedLock>> {
        let mut queues = self.shard(fingerprint).lock();
        let next = queues.get_mut(&fingerprint)?.pop_front();
        if next.is_none() {
            queues.remove(&fingerprint);
        }
        next.map(|(_, pass)| pass)
    }
}

impl LockWaiter {
    /// Waits for the lock. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`] if the queue ended; that cannot occur while the locks exist.
    pub async fn wait(mut self) -> Result<LocalLockGuard, RecordError> {
        // Both errors cannot occur: the queue keeps the sender until it passes the lock on, and only this line takes the permit.
        let lock = (&mut self.lock)
            .await
            .map_err(|source| RecordError::Unavailable { source: Box::new(source), maybe_done: true })?;
        let permit = self.permit.take().ok_or(RecordError::Lost)?;
        Ok(LocalLockGuard { _lock: lock, _permit: permit })
    }
}

impl Drop for LockWaiter {
    fn drop(&mut self) {
        // Tickets are drawn under the shard's lock, so the queue is sorted by ticket. A waiter that has been sent the lock is not in it.
        let mut queues = self.locks.shard(self.fingerprint).lock();
        let Some(queue) = queues.get_mut(&self.fingerprint) else { return };
        if let Ok(at) = queue.binary_search_by_key(&self.ticket, |(ticket, _)| *ticket) {
            queue.remove(at);
        }
    }
}

impl Drop for PassedLock {
    fn drop(&mut self) {
        if self.spent {
            return;
        }
        self.spent = true;
        while let Some(pass) = self.locks.next(self.fingerprint) {
            let fresh = Self { locks: Arc::clone(&self.locks), fingerprint: self.fingerprint, spent: false };
            match pass.send(fresh) {
                Ok(()) => return,
                // The waiter has just left. `self` still passes the lock on, so the returned one must not.
                Err(mut back) => back.spent = true,
            }
        }
    }
}

impl Drop for LockPermit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "fingerprint_locks_tests.rs"]
mod tests;
