//! A request's place among its equals that have no answer yet. See [`super::unanswered`].

use super::{
    fingerprint::{Fingerprint, RecordId, RequestDigest, Tenant},
    intent::Intent,
    lease::{LeaseTerm, RenewedLease},
    record::{BeginRequest, FencingToken, Leaving, RecordBegin},
    records::{FingerprintLock, PlaceTerm, RecordError, Records, Renewed},
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

/// Which entry, and which owner of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The list.
    pub digest: RequestDigest,
    /// The entry, and the record that its request runs under.
    pub id: RecordId,
    /// The owner: the fence of its record too.
    pub owner: FencingToken,
    /// How long the entry lives.
    pub terms: Terms,
}

/// A request without a key, as it comes to a store.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// The entry that it gets where it adopts none.
    pub ticket: Ticket,
    /// What its record is opened with.
    pub opening: BeginRequest,
    /// The turn that it takes along where that is free and the store can do both in one step.
    pub turn: Option<Fingerprint>,
    /// Unanswered requests that the store may hold.
    pub max: usize,
    /// What it asks of the upstream, where its record is written at once.
    pub intent: Option<Arc<Intent>>,
}

/// What became of a request that came to a store.
#[derive(Debug)]
pub enum Arrived {
    /// It owns an orphan now.
    Adopted(RecordId),
    /// It is listed.
    Listed {
        /// [`RecordBegin::New`], or [`RecordBegin::Reconcile`] where the store has lost data.
        begin: RecordBegin,
        /// Its turn, where that came along.
        turn: Option<FingerprintLock>,
        /// Whether equal requests with living owners are listed too.
        others: bool,
    },
    /// There is no room: it goes on without a place.
    Full,
}

/// Whose an entry is, as far as its owner can find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the answer of a request whose place is not its own must not be handed out"]
pub enum Ownership {
    /// Its owner's. The store gives it to no other request before the place lapses.
    Held,
    /// Another request may have it, or has had it.
    Lost,
    /// The place has lapsed, and the store does not answer: it may have given the entry to another request.
    Unconfirmed,
}

/// Finds the tenant whose share of the memory a record counts against. A hash, which most requests never need.
pub type ChargedTo = Box<dyn FnOnce() -> Option<Tenant> + Send>;

/// A place among equal requests. Dropping it before [`Entry::answered`] makes an orphan of it.
pub struct Entry {
    records: Arc<dyn Records>,
    clock: Clock,
    /// How long its record may be held without a word.
    lock: Duration,
    state: Mutex<State>,
    shared: Arc<RenewalState>,
}

/// What the renewing task and the owner share.
#[derive(Debug)]
struct RenewalState {
    /// Until when the place is held at least, on this host's own time line; [`LOST`]. An owner whose place has lapsed asks the store,
    /// so that a later renewal may prolong it: the store gives no entry back that another owner had.
    place: AtomicU64,
    /// The caller is there.
    present: AtomicBool,
}

impl RenewalState {
    fn term(&self, now: Timestamp) -> PlaceTerm {
        if !self.present.load(Relaxed) {
            PlaceTerm::GivenUp
        } else if now.0 < self.place.load(Relaxed) {
            PlaceTerm::Lasting
        } else {
            PlaceTerm::Lapsed
        }
    }
}

/// Another request may have the entry.
const LOST: u64 = 0;

struct State {
    ticket: Ticket,
    /// That of its record. Renewals prolong it only as long as it has not lapsed: then a verification or another owner may have the
    /// record, and no renewal gives the right to send back.
    lock: LeaseTerm,
    phase: Phase,
    /// What a store in this process is told only if the entry outlives its caller, and when it came.
    unwritten: Option<(BeginRequest, Timestamp)>,
    charged_to: Option<ChargedTo>,
    renewing: Option<AbortHandle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Present,
    Abandoned,
    /// Its caller was told that the effect is unknown. Its request may be under way.
    Told,
    Over,
}

impl Entry {
    /// The entry of a request that asks the store at this moment: whatever becomes of the question, the place is given up with it.
    pub fn asking(records: &Arc<dyn Records>, clock: Clock, arriving: &Arriving) -> Arc<Self> {
        let now = clock.now();
        let place = AtomicU64::new(now.after(arriving.ticket.terms.lease).0);
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
            shared: Arc::new(RenewalState { place, present: AtomicBool::new(true) }),
        })
    }

    /// Names the tenant of its record, for a store that writes the record only if the entry outlives its caller.
    pub fn charged_to(&self, tenant: ChargedTo) {
        self.state.lock().charged_to = Some(tenant);
    }

    /// Begins to renew the place, where the store asks for that.
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

    /// The record that its request runs under.
    pub fn id(&self) -> RecordId {
        self.state.lock().ticket.id
    }

    /// Its owner.
    pub fn owner(&self) -> FencingToken {
        self.state.lock().ticket.owner
    }

    /// Whether the store has its record.
    pub fn is_written(&self) -> bool {
        self.state.lock().unwritten.is_none()
    }

    /// Whether its caller has gone.
    pub fn is_abandoned(&self) -> bool {
        self.state.lock().phase == Phase::Abandoned
    }

    /// Whether its caller was told that the effect is unknown.
    pub fn is_told(&self) -> bool {
        self.state.lock().phase == Phase::Told
    }

    /// The term of the record's lock.
    pub fn lock(&self) -> LeaseTerm {
        self.state.lock().lock.clone()
    }

    /// The record that it has adopted was begun by its owner, and is locked until then unless this entry renews that.
    pub fn keeps_locked(&self, until: Timestamp) -> LeaseTerm {
        let mut state = self.state.lock();
        let lease = Arc::clone(state.lock.lease());
        let generation = lease.renewed(until, || self.clock.now());
        state.lock = LeaseTerm::of(lease, generation);
        state.lock.clone()
    }

    /// It was not taken by the store, or another entry was taken instead.
    pub fn was_not_taken(&self) {
        self.end(|_, _| ());
    }

    /// It takes the place of an orphan that the store has given to its owner.
    pub fn adopts(&self, id: RecordId) {
        let mut state = self.state.lock();
        let own = state.ticket;
        state.ticket.id = id;
        state.unwritten = None;
        if let Some(renewing) = state.renewing.take() {
            renewing.abort();
        }
        if state.phase == Phase::Abandoned {
            // Its caller left while it was adopted. A record of its own that was written then says that it may have been sent.
            self.records.answered(own, true);
            self.records.abandon(state.ticket);
        }
        drop(state);
        self.keep_alive();
    }

    /// Looks once more for an orphan. One that is found is this entry's from now on, and its own record is forgotten.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`]
    pub async fn look_again(&self) -> Result<Option<RecordId>, RecordError> {
        let ticket = self.state.lock().ticket;
        let found = self.records.look_again(ticket).await?;
        if let Some(id) = found {
            self.adopts(id);
        }
        Ok(found)
    }

    /// Gives the entry up without a response, since its caller has gone or cannot go on: it becomes an orphan for the next equal request.
    /// The store may learn of it a little later.
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

    /// Writes the record where the store has waited with that. False: there is no room for it.
    fn is_written_now(&self, state: &mut State) -> bool {
        let Some((opening, came)) = state.unwritten.take() else { return true };
        let tenant = state.charged_to.take().and_then(|tenant| tenant());
        self.records.write_listed(state.ticket, opening.of_tenant(tenant), came)
    }

    /// Whose the entry is, right before the answer is handed out. A place that lapsed unnoticed may have been given to another
    /// request, which then has the effect: also where this host cannot reach the store, which may serve the other hosts.
    pub async fn ownership(&self) -> Ownership {
        let Some(lease) = self.records.lease() else { return Ownership::Held };
        let place = self.shared.place.load(Relaxed);
        if self.clock.now().0 < place {
            return Ownership::Held;
        }
        let ticket = self.state.lock().ticket;
        let asked = Instant::now();
        match self.records.keep_alive(ticket, self.lock, PlaceTerm::Lapsed).await {
            Ok(Renewed { entry: true, .. }) => {
                self.shared.place.store(self.clock.timestamp(asked).after(lease).0, Relaxed);
                Ownership::Held
            }
            Ok(Renewed { entry: false, .. }) => Ownership::Lost,
            Err(_) if place == LOST => Ownership::Lost,
            Err(error) => {
                tracing::warn!(%error, "an answer is not handed out: its place among equal requests has lapsed");
                Ownership::Unconfirmed
            }
        }
    }

    /// Its caller has its answer: nothing is left to adopt. `forget`: its record is of no use any more either.
    pub fn answered(&self, forget: bool) {
        self.end(|records, state| records.answered(state.ticket, forget && state.unwritten.is_none()));
    }

    /// Its caller was told that the effect is unknown: its next request is one of its own, so that the place ends. The record does
    /// not, and its lock is renewed as long as this entry lives.
    pub fn told(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Told | Phase::Over) {
            return;
        }
        state.phase = Phase::Told;
        self.shared.present.store(false, Relaxed);
        self.records.answered(state.ticket, false);
    }

    /// Its request ended unknown. The place stays until its caller has been told so.
    pub fn ended_unknown(&self, leaving: Leaving) {
        let mut state = self.state.lock();
        if self.is_written_now(&mut state) {
            self.records.abandon_record(state.ticket.id, state.ticket.owner, leaving);
        }
    }

    fn end(&self, tell: impl FnOnce(&dyn Records, &State)) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.phase, Phase::Over) == Phase::Over {
            return;
        }
        if let Some(renewing) = state.renewing.take() {
            renewing.abort();
        }
        tell(&*self.records, &state);
    }
}

/// Renews a place, and the lock of its record.
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
                Ok(renewed) => self.heard(renewed, self.clock.timestamp(asked), lease),
                Err(error) => tracing::debug!(%error, "a place among equal requests could not be renewed"),
            }
        }
    }

    fn heard(&self, renewed: Renewed, asked: Timestamp, lease: Duration) {
        self.shared.place.store(if renewed.entry { asked.after(lease).0 } else { LOST }, Relaxed);
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
