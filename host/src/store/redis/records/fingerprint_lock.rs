//! Equal requests of a whole fleet go one at a time: a queue on the server, a place in it for each host, and among the requests of
//! one host the queue in memory, so that only one of them asks.

use super::{
    Inner,
    scripts::{self, InEra, ScriptReply, TURN_LEASE},
};
use crate::{
    idempotency::{FencingToken, Fingerprint, FingerprintLock, RecordError, records::Lease},
    store::memory::records::fingerprint_locks::TurnGuard,
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

/// Between two questions whether it is our turn: the first wait, and the longest. A create takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// A place in the queue. Dropping it leaves the queue, and so passes the turn on.
pub(super) struct QueueTicket {
    inner: Arc<Inner>,
    fingerprint: Fingerprint,
    own: FencingToken,
    /// Until when the server holds the place at least, on this host's own time line.
    until: Arc<AtomicU64>,
    taken: bool,
}

/// The turn, renewed as long as it is held.
struct HeldLock {
    renewing: Option<AbortHandle>,
    place: QueueTicket,
    _here: Option<TurnGuard>,
}

impl QueueTicket {
    /// A place that may have been taken: whatever becomes of the question, it is given up with this.
    pub(super) fn new(inner: &Arc<Inner>, fingerprint: Fingerprint, own: FencingToken) -> Self {
        Self { inner: Arc::clone(inner), fingerprint, own, until: Arc::new(AtomicU64::new(0)), taken: true }
    }

    /// Notes that the server heard of it when it was asked at `asked`.
    pub(super) fn heard(&self, asked: Instant) {
        let until = self.inner.clock.timestamp(asked).after(TURN_LEASE);
        self.until.store(until.0, Relaxed);
    }

    /// The server has said that there is no such place.
    pub(super) fn was_not_taken(mut self) {
        self.taken = false;
    }

    fn holds(&self) -> bool {
        self.inner.clock.now().0 < self.until.load(Relaxed)
    }

    /// Waits for the turn. A server that does not answer is asked again for as long as the place may still be there.
    pub(super) async fn wait(self) -> Result<Self, RecordError> {
        let mut wait = FIRST_WAIT;
        loop {
            let asked = Instant::now();
            match self.enter().await {
                Ok(value) => {
                    self.heard(asked);
                    match ScriptReply::of(&value).map(|answer| answer.word) {
                        Some("ours") => return Ok(self),
                        Some("waits") => {}
                        _ => return Err(super::nonsense("turn")),
                    }
                }
                Err(error) if self.holds() => tracing::debug!(%error, "a turn is asked for again"),
                Err(error) => return Err(error),
            }
            sleep(wait.mul_f64(0.75 + (self.inner.entropy.next() % 512) as f64 / 1024.0)).await;
            wait = (wait * 3 / 2).min(LONGEST_WAIT);
        }
    }

    /// Takes a place, or keeps it.
    async fn enter(&self) -> Result<super::Value, RecordError> {
        let step = |era: InEra<'_>| scripts::turn(self.inner.keys(), self.fingerprint, self.own, era);
        self.inner.in_this_era(&[], step).await
    }

    /// The turn, which is ours now, for as long as it is held.
    pub(super) fn hold(self, here: Option<TurnGuard>) -> FingerprintLock {
        let renewing = Handle::try_current().ok().map(|runtime| {
            let (inner, fingerprint, own) = (Arc::clone(&self.inner), self.fingerprint, self.own);
            runtime.spawn(renew(inner, fingerprint, own, Arc::clone(&self.until))).abort_handle()
        });
        FingerprintLock::new(HeldLock { renewing, place: self, _here: here })
    }
}

async fn renew(inner: Arc<Inner>, fingerprint: Fingerprint, own: FencingToken, until: Arc<AtomicU64>) {
    let mut eras = inner.link.eras();
    eras.mark_unchanged();
    loop {
        // A server that has lost its data is told at once, before others may enter the queue.
        let lost = timeout(TURN_LEASE / 3, eras.changed()).await.is_ok();
        let asked = Instant::now();
        let step = match inner.link.known_era().filter(|_| lost) {
            Some(era) => {
                if let Err(error) = inner.recognise().await {
                    tracing::debug!(%error, "a turn could not be taken again yet");
                }
                let era = inner.link.known_era().unwrap_or(era);
                scripts::turn(inner.keys(), fingerprint, own, inner.in_era(&era))
            }
            None => scripts::renew(inner.keys(), fingerprint, own),
        };
        match inner.run(&step).await {
            Ok(value) if ScriptReply::of(&value).is_some_and(|answer| answer.word == "ours") => {
                until.store(inner.clock.timestamp(asked).after(TURN_LEASE).0, Relaxed);
            }
            // The server has lost its data once more.
            Ok(value) if ScriptReply::of(&value).is_some_and(|answer| answer.word == "strange") => {}
            // Another has it, or may have.
            Ok(_) => {
                until.store(0, Relaxed);
                return;
            }
            Err(error) => tracing::debug!(%error, "a turn could not be renewed"),
        }
    }
}

impl Lease for HeldLock {
    fn holds(&self) -> bool {
        self.place.holds()
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
