//! A request's entry in the list of equal requests without a response. [`super::unanswered`] explains the list.

use super::{
    fingerprint::{Fingerprint, RecordId, RequestDigest, Tenant},
    intent::Intent,
    lease::{LeaseTerm, RenewedLease},
    record::{BeginRequest, FencingToken, Leaving, RecordBegin},
    records::{EntryTerm, FingerprintLock, RecordError, Records, Renewed},
    unanswered::Terms,
};
use crate::clock::{Clock, Timestamp};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep},
};

/// Identifies an entry and one owner of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The digest of the equal requests, which names their list.
    pub digest: RequestDigest,
    /// The entry's id, and that of the record under which its request runs.
    pub id: RecordId,
    /// The entry's owner, which is also the fencing token of the record.
    pub owner: FencingToken,
    /// How long the entry lives.
    pub terms: Terms,
}

/// A request without a key that asks a store for an entry.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// The entry that the request gets if it adopts none.
    pub ticket: Ticket,
    /// The data with which its record begins.
    pub opening: BeginRequest,
    /// The fingerprint whose lock it takes too, if that lock is free and the store can do both in one step.
    pub fingerprint_lock: Option<Fingerprint>,
    /// The most entries that the store may hold.
    pub max: usize,
    /// Its request to the upstream, for a store that writes the record at once.
    pub intent: Option<Arc<Intent>>,
}

/// A store's reply to a new request without a key.
#[derive(Debug)]
pub enum Arrived {
    /// The request now owns this orphan.
    Adopted(RecordId),
    /// The request got an entry of its own.
    Listed {
        /// [`RecordBegin::New`], or [`RecordBegin::Reconcile`] where the store has lost data.
        begin: RecordBegin,
        /// Its [`FingerprintLock`], if the store granted it in the same step.
        fingerprint_lock: Option<FingerprintLock>,
        /// Whether equal requests with living owners are listed too.
        others: bool,
    },
    /// The list or the store is full: the request continues without an entry.
    Full,
}

/// Whether an entry still belongs to its owner, as far as the owner can find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the answer of a request that lost its entry must not be delivered"]
pub enum Ownership {
    /// The owner has it. The store gives it to no other request before its lease ends.
    Held,
    /// Another request may have it, or may have had it.
    Lost,
    /// The entry's lease has ended, and the store does not answer: the store may have given the entry to another request.
    Unconfirmed,
}

/// Computes the tenant whose share of the memory a record counts against. It costs a hash that most requests never need, so it is computed
/// late.
pub type ChargedTo = Box<dyn FnOnce() -> Option<Tenant> + Send>;

/// An entry among equal requests. Dropping it before [`Entry::answered`] makes it an orphan.
pub struct Entry {
    records: Arc<dyn Records>,
    clock: Clock,
    /// The lock's duration: how long its record stays locked after a renewal.
    lock: Duration,
    state: Mutex<State>,
    shared: Arc<RenewalState>,
}

/// The state that the renewing task and the owner share.
#[derive(Debug)]
struct RenewalState {
    /// The earliest end of the entry's lease, on this host's own timeline; or [`LOST`]. An owner whose lease has ended asks the store, so a
    /// later renewal may extend the lease: the store never returns an entry that another owner had.
    lease_end: AtomicU64,
    /// Whether the caller still waits.
    present: AtomicBool,
}

impl RenewalState {
    fn term(&self, now: Timestamp) -> EntryTerm {
        if !self.present.load(Relaxed) {
            EntryTerm::GivenUp
        } else if now.0 < self.lease_end.load(Relaxed) {
            EntryTerm::Lasting
        } else {
            EntryTerm::Lapsed
        }
    }
}

/// The lease end of an entry that another request may have.
const LOST: u64 = 0;

struct State {
    ticket: Ticket,
    /// The lock of its record. Renewals extend it only until it has lapsed once: a verification or another owner may have the record after
    /// that, and no renewal gives the right to send back.
    lock: LeaseTerm,
    phase: Phase,
    /// The record's data and the request's arrival time, for a store in this process: it writes them only if the entry outlives its caller.
    unwritten: Option<(BeginRequest, Timestamp)>,
    charged_to: Option<ChargedTo>,
    renewing: Option<AbortHandle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Present,
    Abandoned,
    /// The caller got the response that the effect is unknown. The request may still be in flight.
    AnsweredUnknown,
    Over,
}

impl Entry {
    /// The entry of a request that asks the store now. Create it before the call, so that a dropped call gives the entry up too.
    pub fn asking(records: &Arc<dyn Records>, clock: Clock, arriving: &Arriving) -> Arc<Self> {
        let now = clock.now();
        let lease_end = AtomicU64::new(now.after(arriving.ticket.terms.lease).0);
        Arc::new(Self {
            records: Arc::clone(records),
            clock,
            lock: arriving.opening.lock,
            state: Mutex::new(State {
                ticket: arriving.ticket,
                lock: LeaseTerm::until_renewed(now.after(arriving.opening.lock)),
                phase: Phase::Present,
                unwritten: records.lease().is_none().then_some((arriving.opening, now)),
                charged_to: None,
                renewing: None,
            }),
            shared: Arc::new(RenewalState { lease_end, present: AtomicBool::new(true) }),
        })
    }

    /// Sets the tenant of its record, for a store that writes the record only if the entry outlives its caller.
    pub fn charged_to(&self, tenant: ChargedTo) {
        self.state.lock().charged_to = Some(tenant);
    }

    /// Starts to renew the entry, if the store needs renewals.
    pub fn keep_alive(&self) {
        let (Some(lease), Ok(runtime)) = (self.records.lease(), Handle::try_current()) else { return };
        let mut state = self.state.lock();
        if state.phase == Phase::Over || state.renewing.is_some() {
            return;
        }
        let renewal = Renewal {
            records: Arc::clone(&self.records),
            clock: self.clock,
            ticket: state.ticket,
            lock: self.lock,
            locked: Arc::clone(state.lock.lease()),
            shared: Arc::clone(&self.shared),
        };
        state.renewing = Some(runtime.spawn(renewal.run(lease)).abort_handle());
    }

    /// The record under which its request runs.
    pub fn id(&self) -> RecordId {
        self.state.lock().ticket.id
    }

    /// The token of its owner.
    pub fn owner(&self) -> FencingToken {
        self.state.lock().ticket.owner
    }

    /// Whether the store has its record.
    pub fn is_written(&self) -> bool {
        self.state.lock().unwritten.is_none()
    }

    /// Whether its caller has closed the connection or cannot continue.
    pub fn is_abandoned(&self) -> bool {
        self.state.lock().phase == Phase::Abandoned
    }

    /// Whether its caller got the response that the effect is unknown.
    pub fn is_answered_unknown(&self) -> bool {
        self.state.lock().phase == Phase::AnsweredUnknown
    }

    /// The term of the record's lock.
    pub fn lock(&self) -> LeaseTerm {
        self.state.lock().lock.clone()
    }

    /// Takes over the lock of the adopted record, which this entry's owner began. The lock lasts until `until`; this entry's renewals
    /// extend it.
    pub fn adopt_lock(&self, until: Timestamp) -> LeaseTerm {
        let mut state = self.state.lock();
        let lease = Arc::clone(state.lock.lease());
        let generation = lease.renewed(until, || self.clock.now());
        state.lock = LeaseTerm::of(lease, generation);
        state.lock.clone()
    }

    /// Ends the entry without a call to the store: the store did not list it, or another entry replaces it.
    pub fn discard(&self) {
        self.end(|_, _| ());
    }

    /// Makes this the entry of an orphan, which the store has given to its owner.
    pub fn adopts(&self, id: RecordId) {
        let mut state = self.state.lock();
        let own = state.ticket;
        state.ticket.id = id;
        state.unwritten = None;
        if let Some(renewing) = state.renewing.take() {
            renewing.abort();
        }
        if state.phase == Phase::Abandoned {
            // The caller left during the adoption. If the entry's own record was written then, it wrongly says that a byte may have been
            // sent: remove it.
            self.records.answered(own, true);
            self.records.abandon(state.ticket);
        }
        drop(state);
        self.keep_alive();
    }

    /// Checks again for an orphan. If there is one, this entry becomes the orphan's, and its own record is removed.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`]
    pub async fn recheck_orphan(&self) -> Result<Option<RecordId>, RecordError> {
        let ticket = self.state.lock().ticket;
        let found = self.records.recheck_orphan(ticket).await?;
        if let Some(id) = found {
            self.adopts(id);
        }
        Ok(found)
    }

    /// Gives the entry up without a response, because its caller has gone or cannot continue: it becomes an orphan for the next equal
    /// request. The store may learn of it a little later.
    pub fn abandon(&self) {
        let mut state = self.state.lock();
        if state.phase != Phase::Present {
            return;
        }
        state.phase = Phase::Abandoned;
        self.shared.present.store(false, Relaxed);
        if self.is_written_now(&mut state) {
            self.records.abandon(state.ticket);
        } else {
            self.records.answered(state.ticket, false);
        }
    }

    /// Writes the record if the store has postponed that. False: the store has no space for it.
    fn is_written_now(&self, state: &mut State) -> bool {
        let Some((opening, arrived_at)) = state.unwritten.take() else { return true };
        let tenant = state.charged_to.take().and_then(|tenant| tenant());
        self.records.write_listed(state.ticket, opening.of_tenant(tenant), arrived_at)
    }

    /// Whether the entry still belongs to its owner. Check it right before the response is delivered: if the lease ended unnoticed, another
    /// request may own the entry, and the effect with it. That also happens if only this host cannot reach the store.
    pub async fn ownership(&self) -> Ownership {
        let Some(lease) = self.records.lease() else { return Ownership::Held };
        let lease_end = self.shared.lease_end.load(Relaxed);
        if self.clock.now().0 < lease_end {
            return Ownership::Held;
        }
        let ticket = self.state.lock().ticket;
        let asked = Instant::now();
        match self.records.keep_alive(ticket, self.lock, EntryTerm::Lapsed).await {
            Ok(Renewed { entry: true, .. }) => {
                self.shared.lease_end.store(self.clock.timestamp(asked).after(lease).0, Relaxed);
                Ownership::Held
            }
            Ok(Renewed { entry: false, .. }) => Ownership::Lost,
            Err(_) if lease_end == LOST => Ownership::Lost,
            Err(error) => {
                tracing::warn!(%error, "an answer is not delivered: its entry among equal requests has lapsed");
                Ownership::Unconfirmed
            }
        }
    }

    /// Ends the entry, because its caller has its response. `forget`: remove the record too.
    pub fn answered(&self, forget: bool) {
        self.end(|records, state| records.answered(state.ticket, forget && state.unwritten.is_none()));
    }

    /// Ends the list entry after its caller got the response that the effect is unknown: the caller's next request is then a new request.
    /// The record stays, and its lock is renewed while this value lives.
    pub fn answered_unknown(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::AnsweredUnknown | Phase::Over) {
            return;
        }
        state.phase = Phase::AnsweredUnknown;
        self.shared.present.store(false, Relaxed);
        self.records.answered(state.ticket, false);
    }

    /// Marks the record as unknown. The list entry stays until the caller gets that response.
    pub fn ended_unknown(&self, leaving: Leaving) {
        let mut state = self.state.lock();
        if self.is_written_now(&mut state) {
            self.records.abandon_record(state.ticket.id, state.ticket.owner, leaving);
        }
    }

    fn end(&self, report: impl FnOnce(&dyn Records, &State)) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.phase, Phase::Over) == Phase::Over {
            return;
        }
        if let Some(renewing) = state.renewing.take() {
            renewing.abort();
        }
        report(&*self.records, &state);
    }
}

/// Renews an entry and the lock of its record.
struct Renewal {
    records: Arc<dyn Records>,
    clock: Clock,
    ticket: Ticket,
    lock: Duration,
    locked: Arc<RenewedLease>,
    shared: Arc<RenewalState>,
}

impl Renewal {
    async fn run(self, lease: Duration) {
        loop {
            sleep(lease / 3).await;
            let asked = Instant::now();
            match self.records.keep_alive(self.ticket, self.lock, self.shared.term(self.clock.now())).await {
                Ok(renewed) => self.apply(renewed, self.clock.timestamp(asked), lease),
                Err(error) => tracing::debug!(%error, "an entry among equal requests could not be renewed"),
            }
        }
    }

    fn apply(&self, renewed: Renewed, asked: Timestamp, lease: Duration) {
        self.shared.lease_end.store(if renewed.entry { asked.after(lease).0 } else { LOST }, Relaxed);
        if renewed.lock {
            self.locked.renewed(asked.after(self.lock), || self.clock.now());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.abandon();
        if let Some(renewing) = self.state.get_mut().renewing.take() {
            renewing.abort();
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Entry").field("ticket", &state.ticket).field("phase", &state.phase).finish_non_exhaustive()
    }
}
