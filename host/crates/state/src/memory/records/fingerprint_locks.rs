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
type Queue = VecDeque<(u64, oneshot::Sender<Baton>)>;

/// The locks of equal requests in this process, by fingerprint. Each has a queue.
pub struct Turns {
    max: usize,
    shards: [Mutex<HashMap<Fingerprint, Queue>>; SHARDS],
    held: AtomicUsize,
    next_ticket: AtomicU64,
}

/// The result of asking for a lock.
pub enum LockToken {
    /// The request holds the lock.
    First(TurnGuard),
    /// Other requests are before it.
    Queued(Waiting),
}

/// The lock, held until drop. Fields are dropped in order: the lock passes on before the seat is free.
pub struct TurnGuard {
    _baton: Baton,
    _seat: Seat,
}

impl Lease for TurnGuard {
    fn holds(&self) -> bool {
        true
    }
}

/// A place in the queue, left on drop.
pub struct Waiting {
    fingerprint: Fingerprint,
    ticket: u64,
    baton: oneshot::Receiver<Baton>,
    seat: Option<Seat>,
    turns: Arc<Turns>,
}

/// The lock as it is sent from request to request. A baton in the channel of a waiter that left is dropped with the channel, and so
/// passes on.
struct Baton {
    turns: Arc<Turns>,
    fingerprint: Fingerprint,
    spent: bool,
}

/// One of the `max` places that all queues share.
struct Seat(Arc<Turns>);

impl Turns {
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

    /// Takes the lock, or a place at the end of its queue.
    ///
    /// # Errors
    /// [`RecordError::Full`] if `max` requests hold a lock or wait for one.
    pub fn take(self: &Arc<Self>, fingerprint: Fingerprint) -> Result<LockToken, RecordError> {
        let seat = self.seat().ok_or(RecordError::Full { what: "turns of equal requests", max: self.max })?;
        let mut queues = self.shard(fingerprint).lock();
        let Some(queue) = queues.get_mut(&fingerprint) else {
            queues.insert(fingerprint, Queue::new());
            let baton = Baton { turns: Arc::clone(self), fingerprint, spent: false };
            return Ok(LockToken::First(TurnGuard { _baton: baton, _seat: seat }));
        };
        let ticket = self.next_ticket.fetch_add(1, Relaxed);
        let (pass, baton) = oneshot::channel();
        queue.push_back((ticket, pass));
        Ok(LockToken::Queued(Waiting { fingerprint, ticket, baton, seat: Some(seat), turns: Arc::clone(self) }))
    }

    fn seat(self: &Arc<Self>) -> Option<Seat> {
        let taken = self.held.fetch_update(Relaxed, Relaxed, |held| (held < self.max).then_some(held + 1));
        taken.ok().map(|_| Seat(Arc::clone(self)))
    }

    fn shard(&self, fingerprint: Fingerprint) -> &Mutex<HashMap<Fingerprint, Queue>> {
        let [first, ..] = fingerprint.as_bytes();
        &self.shards[usize::from(*first) % SHARDS]
    }

    /// Removes and returns the next waiter. Without one, removes the queue: the lock is free.
    fn next(&self, fingerprint: Fingerprint) -> Option<oneshot::Sender<Baton>> {
        let mut queues = self.shard(fingerprint).lock();
        let next = queues.get_mut(&fingerprint)?.pop_front();
        if next.is_none() {
            queues.remove(&fingerprint);
        }
        next.map(|(_, pass)| pass)
    }
}

impl Waiting {
    /// Waits for the lock. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`] if the queue ended; that cannot occur while the locks exist.
    pub async fn wait(mut self) -> Result<TurnGuard, RecordError> {
        // Both errors cannot occur: the queue holds the sender until it passes the baton on, and only this line takes the seat.
        let baton = (&mut self.baton)
            .await
            .map_err(|source| RecordError::Unavailable { source: Box::new(source), maybe_done: true })?;
        let seat = self.seat.take().ok_or(RecordError::Lost)?;
        Ok(TurnGuard { _baton: baton, _seat: seat })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Tickets are drawn under the shard's lock, so the queue is sorted by ticket. A waiter that has been sent the baton is not in it.
        let mut queues = self.turns.shard(self.fingerprint).lock();
        let Some(queue) = queues.get_mut(&self.fingerprint) else { return };
        if let Ok(at) = queue.binary_search_by_key(&self.ticket, |(ticket, _)| *ticket) {
            queue.remove(at);
        }
    }
}

impl Drop for Baton {
    fn drop(&mut self) {
        if self.spent {
            return;
        }
        self.spent = true;
        while let Some(pass) = self.turns.next(self.fingerprint) {
            let fresh = Self { turns: Arc::clone(&self.turns), fingerprint: self.fingerprint, spent: false };
            match pass.send(fresh) {
                Ok(()) => return,
                // The waiter has just left. `self` still passes the lock on, so the returned baton must not.
                Err(mut back) => back.spent = true,
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "fingerprint_locks_tests.rs"]
mod tests;
