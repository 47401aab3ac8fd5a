//! Equal requests go one at a time: a queue for each fingerprint that is under way.

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

/// Enough that threads seldom meet.
const SHARDS: usize = 16;

/// Who waits behind a request under way, in order. The entry is there as long as somebody has the turn.
type Queue = VecDeque<(u64, oneshot::Sender<Baton>)>;

pub(crate) struct Turns {
    max: usize,
    shards: [Mutex<HashMap<Fingerprint, Queue>>; SHARDS],
    held: AtomicUsize,
    next_ticket: AtomicU64,
}

/// A request's place in its queue.
pub(crate) enum LockToken {
    /// It has the turn.
    First(TurnGuard),
    /// Others are before it.
    Queued(Waiting),
}

/// A turn. Fields are dropped in order: the turn passes on before the seat is free.
pub(crate) struct TurnGuard {
    _baton: Baton,
    _seat: Seat,
}

impl Lease for TurnGuard {
    fn holds(&self) -> bool {
        true
    }
}

/// A place in a queue that is given up when dropped.
pub(crate) struct Waiting {
    fingerprint: Fingerprint,
    ticket: u64,
    baton: oneshot::Receiver<Baton>,
    seat: Option<Seat>,
    turns: Arc<Turns>,
}

/// The turn itself, as it goes from hand to hand. One that lies in the channel of a waiter who left is dropped with it, and
/// so goes on.
struct Baton {
    turns: Arc<Turns>,
    fingerprint: Fingerprint,
    spent: bool,
}

/// One of the places that all queues share.
struct Seat(Arc<Turns>);

impl Turns {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            shards: std::array::from_fn(|_| Mutex::default()),
            held: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
        }
    }

    /// Requests with a place in a queue.
    pub(crate) fn len(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Takes the turn, or a place at the end of the queue for it.
    pub(crate) fn take(self: &Arc<Self>, fingerprint: Fingerprint) -> Result<LockToken, RecordError> {
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

    /// The next in the queue; without one the queue goes.
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
    /// Waits for the turn.
    pub(crate) async fn wait(mut self) -> Result<TurnGuard, RecordError> {
        // Neither can be missing: a queue that holds our sender passes the baton on, and the seat is taken once, here.
        let baton = (&mut self.baton)
            .await
            .map_err(|source| RecordError::Unavailable { source: Box::new(source), maybe_done: true })?;
        let seat = self.seat.take().ok_or(RecordError::Lost)?;
        Ok(TurnGuard { _baton: baton, _seat: seat })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Tickets are drawn under the lock, so a queue is in their order. One that was called is no longer in it.
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
                // That one has just left. The turn is still here, not in the baton that came back.
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
