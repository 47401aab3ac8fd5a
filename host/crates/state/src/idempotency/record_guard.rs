//! The guard of a record: its owner's right to send. Dropping the guard always leaves the record usable for the next request: it removes a
//! record for which nothing was sent, and marks any other record as unknown.

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

/// The result of [`begin`]: [`RecordBegin`], with a guard where the request may continue.
#[derive(Debug)]
#[must_use = "what may be done with the request depends on it"]
pub enum BeginOutcome {
    /// No request was sent under this record yet.
    New(RecordGuard),
    /// An earlier request got this response.
    Replay(Arc<Stored>),
    /// Another owner holds the record.
    InFlight {
        /// When the caller should repeat the request.
        retry_after: Duration,
    },
    /// The key was used for a different request.
    Mismatch,
    /// An earlier owner may have sent it: verify the effect before sending again.
    Reconcile {
        /// The record.
        guard: RecordGuard,
        /// The minimum time since a byte of it may have been sent.
        sent_ago: Duration,
        /// True if no send is known: the send is only assumed, because the store lost data or the caller says that it may have sent the
        /// request.
        doubtful: bool,
    },
}

/// Begins a request under a key. Dropping the future at any point releases a record that the store may have granted.
///
/// # Errors
/// [`RecordError::Full`] and [`RecordError::Unavailable`]: the request must not be sent.
pub async fn begin(
    records: &Arc<dyn Records>,
    clock: Clock,
    id: RecordId,
    opening: BeginRequest,
) -> Result<BeginOutcome, RecordError> {
    // Create the guard before asking the store, so that a record has an owner even if the reply is never read. Start the lock's time here
    // too: the lock must not end later here than in the store.
    let mut guard = RecordGuard::asking(records, clock, id, &opening, lock(clock, &opening));
    let asked = Instant::now();
    let opened = records.begin(id, opening).await;
    let goes_on = |opened: &StoreBegin| matches!(opened.begin, RecordBegin::New | RecordBegin::Reconcile { .. });
    guard.over = match &opened {
        Ok(opened) => !goes_on(opened),
        Err(error) => !error.may_be_done(),
    };
    let StoreBegin { begin, keyed_sends, fingerprint_lock, host } = opened?;
    // The upstream counts a key's age from the first send, so add the time that the reply took.
    guard.keyed_sends =
        keyed_sends.map(|sends| KeyedSends { first_ago: sends.first_ago.saturating_add(asked.elapsed()), ..sends });
    guard.fingerprint_lock = fingerprint_lock;
    guard.on_host(host);
    Ok(match begin {
        RecordBegin::New => BeginOutcome::New(guard),
        RecordBegin::Reconcile { sent_ago, doubtful } => BeginOutcome::Reconcile { guard, sent_ago, doubtful },
        RecordBegin::Replay(stored) => BeginOutcome::Replay(stored),
        RecordBegin::InFlight { retry_after } => BeginOutcome::InFlight { retry_after },
        RecordBegin::Mismatch => BeginOutcome::Mismatch,
    })
}

/// The term of a lock that begins now and is never renewed.
fn lock(clock: Clock, opening: &BeginRequest) -> LeaseTerm {
    LeaseTerm::until_renewed(clock.now().after(opening.lock))
}

/// The time for which a record's owner may send: until its lock or its host's lease ends. A successor may send after that time.
#[derive(Debug, Clone)]
pub struct SendLease {
    clock: Clock,
    /// The record's lock. An entry among equal requests renews it; without an entry it is never renewed.
    lock: LeaseTerm,
    host: Option<LeaseTerm>,
}

impl SendLease {
    /// The remaining time by this host's clock. A lease that has reached zero stays at zero.
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
    /// The entry among equal requests that renews the lock.
    entry: Option<Arc<Entry>>,
    claims_kept: Duration,
    keyed_sends: Option<KeyedSends>,
    fingerprint_lock: Option<FingerprintLock>,
    host: Option<HostLease>,
    /// The owner's request to the upstream, while the store does not have it yet.
    intent: Option<Arc<Intent>>,
    /// The data of a record that is written only if the request ends unknown.
    unwritten: Option<BeginRequest>,
    /// Whether the record was begun together with the entry, and is therefore marked as sent already (or will be when it is written).
    is_listed: bool,
    sent: bool,
    over: bool,
}

impl RecordGuard {
    /// A guard for a request without a key. Its record is written only if the request ends unknown. The record's id is random, so no other
    /// request can ask for it earlier.
    pub fn unwritten(records: &Arc<dyn Records>, clock: Clock, id: RecordId, opening: BeginRequest) -> Self {
        let mut guard = Self::asking(records, clock, id, &opening, lock(clock, &opening));
        guard.unwritten = Some(opening);
        guard
    }

    /// A guard for a request without a key whose entry is listed among equal unanswered requests. `is_new`: its record began with that
    /// entry.
    pub fn listed(
        records: &Arc<dyn Records>,
        clock: Clock,
        arriving: &Arriving,
        entry: Arc<Entry>,
        fingerprint_lock: Option<FingerprintLock>,
        is_new: bool,
    ) -> Self {
        let mut guard = Self::asking(records, clock, arriving.ticket.id, &arriving.opening, entry.lock());
        guard.over = false;
        guard.fingerprint_lock = fingerprint_lock;
        guard.entry = Some(entry);
        // If an earlier owner may have sent the request, this record is not a new one: the store keeps the age of that send.
        guard.is_listed = is_new;
        guard
    }

    /// Lets `entry` renew this guard's lock from now on.
    pub fn renewed_by(mut self, entry: Arc<Entry>) -> Self {
        self.lease.lock = entry.adopt_lock(self.lease.lock.until());
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
            fingerprint_lock: None,
            host: None,
            intent: None,
            unwritten: None,
            is_listed: false,
            sent: false,
            over: false,
        }
    }

    /// Whether the store has the record, so that no other request is sent under it.
    pub fn is_written(&self) -> bool {
        match &self.entry {
            Some(entry) if self.is_listed => entry.is_written(),
            _ => self.unwritten.is_none(),
        }
    }

    /// Whether each send writes a mark to the record, with the intent. A record that is listed or unwritten gets no mark.
    pub fn is_marked_by_sends(&self) -> bool {
        !self.is_listed && self.unwritten.is_none()
    }

    /// The entry with which the record was begun, if any.
    fn listed_entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref().filter(|_| self.is_listed)
    }

    /// The record.
    pub fn id(&self) -> RecordId {
        self.id
    }

    /// The upstream key that all earlier sends carried, if they carried the same one. The time since the first of them is an upper bound,
    /// as of the return of [`begin`].
    pub fn keyed_sends(&self) -> Option<KeyedSends> {
        self.keyed_sends
    }

    /// Takes the [`FingerprintLock`] that the store granted together with the record.
    pub fn take_fingerprint_lock(&mut self) -> Option<FingerprintLock> {
        self.fingerprint_lock.take()
    }

    /// The remaining time of the lock by this host's clock. Check it right before the first byte, and do not begin a send that takes
    /// longer.
    pub fn lock_left(&self) -> Duration {
        self.lease.lock_left()
    }

    /// The time for which this owner may send.
    pub fn lease(&self) -> SendLease {
        self.lease.clone()
    }

    /// Ends the guard's lease with its host's heartbeat.
    fn on_host(&mut self, host: Option<HostLease>) {
        self.lease.host = host.as_ref().map(HostLease::term);
        self.host = host;
    }

    /// Runs a send while the leases of all these guards last. None: the lease ended first, and bytes may have been sent until then.
    ///
    /// Reads the clock before each poll of the send, so that a process that stood still past its lease writes nothing more when it resumes.
    /// This stops only the send itself. A separate task drives a connection over TLS or HTTP/2: the caller must end a body over such a
    /// connection with the [`SendLease`], and a write without a body cannot be stopped once that task has it.
    pub async fn while_held<T>(guards: [Option<&Self>; 2], send: impl Future<Output = T>) -> Option<T> {
        let left = || guards.iter().flatten().map(|guard| guard.lease.left()).min().unwrap_or(Duration::MAX);
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
                // The heartbeat was renewed meanwhile: wait for the new end.
                end.as_mut().reset(Instant::now() + left);
            }
        })
        .await
    }

    /// Sets the intent: the owner's request to the upstream. The store gets it with the first mark, or when the record is left unknown.
    pub fn intend(&mut self, intent: Arc<Intent>) {
        self.intent = Some(intent);
    }

    /// Marks the record as sent. Call it before each send, and send only if it succeeds.
    ///
    /// # Errors
    /// [`RecordError::Lost`] if the lock ran out, [`RecordError::Unavailable`] if the store does not answer.
    pub async fn sent(&mut self) -> Result<(), RecordError> {
        // A record with an entry is marked as sent from its beginning, which saves a round trip.
        if self.is_written() && !self.is_listed {
            self.records.sent(self.id, self.fence, self.intent.clone()).await?;
        }
        if self.lease.left().is_zero() {
            return Err(RecordError::Lost);
        }
        // Set this after the reply: an owner that is dropped while it waits for the reply has sent nothing.
        self.sent = true;
        if self.is_written() && !self.is_listed {
            self.intent = None;
        }
        Ok(())
    }

    /// Claims a resource for the record, for as long as the record lives.
    ///
    /// # Errors
    /// [`RecordError::Full`] and [`RecordError::Unavailable`]: the resource must not be adopted.
    pub async fn claim(&self, name: ClaimName) -> Result<Claim, RecordError> {
        self.records.claim(name, ClaimOwner::Record(self.id), self.claims_kept).await
    }

    /// Stores the response for replays. A record that was never written stores no response.
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

    /// Removes the record. Call it only if the write is known not to be in effect, from this owner or an earlier one.
    ///
    /// # Errors
    /// [`RecordError::Lost`] if a successor has the record; [`RecordError::Unavailable`] leaves it unknown.
    pub async fn release(mut self) -> Result<(), RecordError> {
        match self.listed_entry() {
            Some(entry) => entry.answered(true),
            None if self.is_written() => self.records.release(self.id, self.fence).await?,
            None => {}
        }
        self.over = true;
        Ok(())
    }

    /// Ends the guard after its entry adopted another record. This owner has sent nothing under its own record. If the record was begun
    /// with the entry, the store has removed it already. Otherwise the store removes it now, unless an earlier owner may have sent its
    /// request.
    pub fn end_after_adoption(mut self) {
        self.over = self.is_listed;
    }

    /// Ends the guard without a call to the store: the caller ends the entry, and the record with it.
    pub fn end_with_entry(mut self) {
        self.over = true;
    }

    /// Leaves the record as unknown. `sent_ago` is the time since this owner's last byte may have been sent. It is ignored if this owner
    /// sent nothing: the record then keeps its age.
    pub fn leave_unknown(mut self, sent_ago: Duration) {
        self.leave(sent_ago, Some(Duration::ZERO));
    }

    /// Leaves the record as unknown, with its next verification after `verify_in`. None: hosts no longer verify it by themselves.
    pub fn leave_until(mut self, verify_in: Option<Duration>) {
        self.leave(Duration::ZERO, verify_in);
    }

    fn leave(&mut self, sent_ago: Duration, verify_in: Option<Duration>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let leaving = Leaving { sent_ago: self.sent.then_some(sent_ago), verify_in, intent: self.intent.take() };
        if let Some(entry) = self.listed_entry() {
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
        // A send that was cut off may have written bytes until now.
        self.leave(Duration::ZERO, Some(Duration::ZERO));
    }
}

#[cfg(test)]
#[path = "record_guard/tests.rs"]
mod tests;
