//! An owner's hold on a record. Whatever becomes of the owner, the record ends where the next request can go on: dropping a hold
//! forgets a record for which nothing was sent and leaves any other unknown.

use super::{
    HostLease, LeaseTerm,
    entry::{Arriving, Entry},
    fingerprint::RecordId,
    intent::Intent,
    record::{BeginRequest, FencingToken, KeyedSends, Leaving, RecordBegin},
    records::{Claim, ClaimName, ClaimOwner, FingerprintLock, RecordError, Records, StoreBegin},
    stored_response::Stored,
};
use crate::clock::Clock;
use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};
use tokio::time::{Instant, sleep};

/// What a request got from its record. See [`RecordBegin`].
#[derive(Debug)]
#[must_use = "what may be done with the request depends on it"]
pub enum BeginOutcome {
    /// Nobody sent it yet.
    New(RecordGuard),
    /// It was answered before.
    Replay(Arc<Stored>),
    /// It is under way.
    InFlight {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The key belongs to another request.
    Mismatch,
    /// It may have been sent before: find out what came of it.
    Reconcile {
        /// The record.
        hold: RecordGuard,
        /// The least time since a byte of it may have been sent.
        sent_ago: Duration,
        /// Whether no send is known: only a loss of the store's data, or its caller's word, says that it may have been sent.
        doubtful: bool,
    },
}

/// Begins a request under a key. Dropping the future at any point gives back what the store may have granted.
///
/// # Errors
/// [`RecordError::Full`] and [`RecordError::Unavailable`]: the request must not be sent.
pub async fn begin(
    records: &Arc<dyn Records>,
    clock: Clock,
    id: RecordId,
    opening: BeginRequest,
) -> Result<BeginOutcome, RecordError> {
    // Made before the store is asked: a reply that is never read then has an owner too. The lock is counted from here as well,
    // so that it ends here no later than there.
    let mut hold = RecordGuard::asking(records, clock, id, &opening, lock(clock, &opening));
    let asked = Instant::now();
    let opened = records.begin(id, opening).await;
    let goes_on = |opened: &StoreBegin| matches!(opened.begin, RecordBegin::New | RecordBegin::Reconcile { .. });
    hold.over = match &opened {
        Ok(opened) => !goes_on(opened),
        Err(error) => !error.may_be_done(),
    };
    let StoreBegin { begin, keyed_sends, turn, host } = opened?;
    // The upstream counts from the first send: what the reply took on its way is part of the key's age.
    hold.keyed_sends =
        keyed_sends.map(|sends| KeyedSends { first_ago: sends.first_ago.saturating_add(asked.elapsed()), ..sends });
    hold.turn = turn;
    hold.on_host(host);
    Ok(match begin {
        RecordBegin::New => BeginOutcome::New(hold),
        RecordBegin::Reconcile { sent_ago, doubtful } => BeginOutcome::Reconcile { hold, sent_ago, doubtful },
        RecordBegin::Replay(stored) => BeginOutcome::Replay(stored),
        RecordBegin::InFlight { retry_after } => BeginOutcome::InFlight { retry_after },
        RecordBegin::Mismatch => BeginOutcome::Mismatch,
    })
}

/// A lock that is taken now and that nothing renews.
fn lock(clock: Clock, opening: &BeginRequest) -> LeaseTerm {
    LeaseTerm::until_renewed(clock.now().after(opening.lock))
}

/// Until when a record's owner may send: until its lock ends, or its host's term. A successor counts from there.
#[derive(Debug, Clone)]
pub struct SendLease {
    clock: Clock,
    /// Of a lock that nothing renews, or that a place among equal requests keeps alive.
    lock: LeaseTerm,
    host: Option<LeaseTerm>,
}

impl SendLease {
    /// The time that is left, on this host's own clock. Zero stays zero.
    pub fn left(&self) -> Duration {
        let host = self.host.as_ref().map_or(Duration::MAX, |host| host.until().since(self.clock.now()));
        self.lock_left().min(host)
    }

    fn lock_left(&self) -> Duration {
        self.lock.until().since(self.clock.now())
    }
}

/// The right to send under a record.
#[derive(Debug)]
#[must_use = "dropping it gives the record back"]
pub struct RecordGuard {
    records: Arc<dyn Records>,
    id: RecordId,
    fence: FencingToken,
    lease: SendLease,
    /// The place among equal requests that keeps its lock alive.
    entry: Option<Arc<Entry>>,
    claims_kept: Duration,
    keyed_sends: Option<KeyedSends>,
    turn: Option<FingerprintLock>,
    host: Option<HostLease>,
    /// What the record does not know yet of what the owner asks.
    intent: Option<Arc<Intent>>,
    /// What the store is told only if the request ends unknown.
    unwritten: Option<BeginRequest>,
    /// Its record was begun with that place, marked as sent, or waits there to be written.
    is_listed: bool,
    sent: bool,
    over: bool,
}

impl RecordGuard {
    /// The hold of a request without a key: its record is written only if the request ends unknown. Its id is random, so that no
    /// other request can ask for it before.
    pub fn unwritten(records: &Arc<dyn Records>, clock: Clock, id: RecordId, opening: BeginRequest) -> Self {
        let mut hold = Self::asking(records, clock, id, &opening, lock(clock, &opening));
        hold.unwritten = Some(opening);
        hold
    }

    /// A guard for a request without a key whose entry is listed among equal unanswered requests. `is_new`: its record began with that entry.
    pub fn listed(
        records: &Arc<dyn Records>,
        clock: Clock,
        arriving: &Arriving,
        entry: Arc<Entry>,
        turn: Option<FingerprintLock>,
        is_new: bool,
    ) -> Self {
        let mut hold = Self::asking(records, clock, arriving.ticket.id, &arriving.opening, entry.lock());
        hold.over = false;
        hold.turn = turn;
        hold.entry = Some(entry);
        // What may have been sent by an earlier owner stays unknown: the store knows since when.
        hold.is_listed = is_new;
        hold
    }

    /// The same, whose lock is kept alive from now on by a place among equal requests.
    pub fn renewed_by(mut self, entry: Arc<Entry>) -> Self {
        self.lease.lock = entry.keeps_locked(self.lease.lock.until());
        self.entry = Some(entry);
        self
    }

    fn asking(records: &Arc<dyn Records>, clock: Clock, id: RecordId, opening: &BeginRequest, lock: LeaseTerm) -> Self {
        Self {
            records: Arc::clone(records),
            id,
            fence: opening.fence,
            lease: SendLease { clock, lock, host: None },
            entry: None,
            claims_kept: opening.keep.saturating_add(opening.lock),
            keyed_sends: None,
            turn: None,
            host: None,
            intent: None,
            unwritten: None,
            is_listed: false,
            sent: false,
            over: false,
        }
    }

    /// Whether the store knows of the request, so that no other one is sent under the same record.
    pub fn is_written(&self) -> bool {
        match &self.entry {
            Some(entry) if self.is_listed => entry.is_written(),
            _ => self.unwritten.is_none(),
        }
    }

    /// Whether each send marks its record, and so tells it what is asked. Else the record was written, or is, without a mark.
    pub fn is_marked_by_sends(&self) -> bool {
        !self.is_listed && self.unwritten.is_none()
    }

    /// The place where its record was begun.
    fn place(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref().filter(|_| self.is_listed)
    }

    /// The record.
    pub fn id(&self) -> RecordId {
        self.id
    }

    /// Which key of the upstream's own the earlier sends carried, where all carried the same one. The time since the first of them
    /// is the most that it can have been when [`begin`] returned.
    pub fn keyed_sends(&self) -> Option<KeyedSends> {
        self.keyed_sends
    }

    /// Whether the request's turn came along with the record.
    pub fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// The request's turn, where it came along with the record.
    pub fn take_turn(&mut self) -> Option<FingerprintLock> {
        self.turn.take()
    }

    /// How long the lock still lasts, on this host's own clock. Check it right before the first byte: a send that does not fit
    /// is not begun.
    pub fn lock_left(&self) -> Duration {
        self.lease.lock_left()
    }

    /// Until when this owner may send.
    pub fn lease(&self) -> SendLease {
        self.lease.clone()
    }

    /// Binds the hold to its host's heartbeat.
    fn on_host(&mut self, host: Option<HostLease>) {
        self.lease.host = host.as_ref().map(HostLease::term);
        self.host = host;
    }

    /// Runs a send for as long as the owner of all these records may. None: it was cut off, and a byte may have been sent until
    /// then.
    ///
    /// The time is read before each step of the send, so that a process that was stopped past its lease writes nothing more when
    /// it wakes. That binds only what the send does itself: a connection over TLS or HTTP/2 is driven by a task of its own. Bodies
    /// that it sends end with its lease; a write without a body, once it was handed over, is not held back.
    pub async fn while_held<T>(holds: [Option<&Self>; 2], send: impl Future<Output = T>) -> Option<T> {
        let left = || holds.iter().flatten().map(|hold| hold.lease.left()).min().unwrap_or(Duration::MAX);
        let mut send = pin!(send);
        let mut end = pin!(sleep(left()));
        poll_fn(|context| {
            loop {
                let left = left();
                if left.is_zero() {
                    return Poll::Ready(None);
                }
                if end.as_mut().poll(context).is_pending() {
                    return send.as_mut().poll(context).map(Some);
                }
                // The heartbeat was renewed meanwhile.
                end.as_mut().reset(Instant::now() + left);
            }
        })
        .await
    }

    /// Says what the owner asks of the upstream. It is written with the first mark, or when the record is left unknown.
    pub fn intend(&mut self, intent: Arc<Intent>) {
        self.intent = Some(intent);
    }

    /// Marks that bytes go out from now on. Call it before each send, and send only if it succeeds.
    ///
    /// # Errors
    /// [`RecordError::Lost`] if the lock ran out, [`RecordError::Unavailable`] if the store does not answer.
    pub async fn sent(&mut self) -> Result<(), RecordError> {
        // One with a place is marked from the beginning: that saves a round trip.
        if self.is_written() && !self.is_listed {
            self.records.sent(self.id, self.fence, self.intent.clone()).await?;
        }
        if self.lease.left().is_zero() {
            return Err(RecordError::Lost);
        }
        // Not before the reply: an owner that is dropped while it waits has sent nothing.
        self.sent = true;
        if self.is_written() && !self.is_listed {
            self.intent = None;
        }
        Ok(())
    }

    /// Makes the record the owner of a resource, for as long as the record lives.
    ///
    /// # Errors
    /// [`RecordError::Full`] and [`RecordError::Unavailable`]: the resource must not be adopted.
    pub async fn claim(&self, name: ClaimName) -> Result<Claim, RecordError> {
        self.records.claim(name, ClaimOwner::Record(self.id), self.claims_kept).await
    }

    /// Keeps the answer for replays. The answer of a request whose record was never written is not kept.
    ///
    /// # Errors
    /// [`RecordError::Lost`] if a successor has the record; [`RecordError::Unavailable`] if the store does not answer: the record is then left as unknown.
    pub async fn finish(mut self, stored: Stored) -> Result<(), RecordError> {
        if self.is_written() {
            self.records.finish(self.id, self.fence, stored).await?;
        }
        self.over = true;
        Ok(())
    }

    /// Forgets the record: its effect is known not to have taken place, neither by this owner nor by one before.
    ///
    /// # Errors
    /// [`RecordError::Lost`] if a successor has the record; [`RecordError::Unavailable`] leaves it unknown.
    pub async fn release(mut self) -> Result<(), RecordError> {
        match self.place() {
            Some(entry) => entry.answered(true),
            None if self.is_written() => self.records.release(self.id, self.fence).await?,
            None => {}
        }
        self.over = true;
        Ok(())
    }

    /// Its place is another record's now. Nothing was sent under its own, which is forgotten where it did not go with the place.
    pub fn gives_up_its_place(mut self) {
        self.over = self.is_listed;
    }

    /// Its record goes with its place, which is told so.
    pub fn goes_with_its_place(mut self) {
        self.over = true;
    }

    /// Gives up finding out. `sent_ago` is the time since this owner's last byte may have been sent; it says nothing if this
    /// owner sent nothing, since the record then keeps the age it had.
    pub fn leave_unknown(mut self, sent_ago: Duration) {
        self.leave(sent_ago, Some(Duration::ZERO));
    }

    /// The same, where the next verification has its time; none: no host verifies it by itself any more.
    pub fn leave_until(mut self, verify_in: Option<Duration>) {
        self.leave(Duration::ZERO, verify_in);
    }

    fn leave(&mut self, sent_ago: Duration, verify_in: Option<Duration>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let leaving = Leaving { sent_ago: self.sent.then_some(sent_ago), verify_in, intent: self.intent.take() };
        if let Some(entry) = self.place() {
            if self.sent {
                entry.ended_unknown(leaving);
            } else {
                entry.answered(true);
            }
            return;
        }
        match self.unwritten {
            None => self.records.abandon_record(self.id, self.fence, leaving),
            Some(opening) if self.sent => self.records.record_unknown(self.id, opening, leaving),
            Some(_) => {}
        }
    }
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        // A send that was cut off may have been sending until now.
        self.leave(Duration::ZERO, Some(Duration::ZERO));
    }
}

#[cfg(test)]
#[path = "record_guard/tests.rs"]
mod tests;
