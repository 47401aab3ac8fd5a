//! Idempotency records, claims and fingerprint locks in memory.

use crate::{
    clock::{Clock, Timestamp},
    idempotency::{
        Arrived, Arriving, BeginRequest, Claim, ClaimName, ClaimOwner, Claimant, Compact, EntryTerm, FencingToken,
        Fingerprint, FingerprintLock, Intent, Leaving, Likeness, Postponed, RecordError, RecordId, Records, Renewed,
        RequestDigest, Resolution, Resolved, Settings, StoreBegin, Stored, Tenant, Ticket, Unsettled,
        record::{Lost, Record, RecordBegin, RecordRetention, RecordStatus, StoreFacts, share_without_key},
        records::{Reply, ready_reply},
        unanswered::Arrival,
    },
    telemetry::Events,
};
use capacity::Capacity;
use claims::Claims;
use fingerprint_locks::{FingerprintLocks, LockToken};
use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use shard::{Entry, RECORD_BYTES, Shard};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use unanswered::Unanswereds;

pub mod capacity;
pub mod claims;
pub mod fingerprint_locks;
pub mod shard;
mod unanswered;

/// Enough that threads rarely contend. Ids are hashes, so they spread evenly.
const SHARDS: usize = 16;

/// Expired entries that one call removes at most, so that no call is slow. A call adds at most one.
const SWEEP: usize = 16;

/// Limits of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum of records. Default: that of [`Settings::max_records`].
    pub records: usize,
    /// Maximum of claims. Default: as many as records.
    pub claims: usize,
    /// Maximum of requests that hold a fingerprint lock or wait for one. Default 10,000: a host's connections.
    pub fingerprint_locks: usize,
    /// Maximum bytes of records, responses, kept requests and claims together. New keys are refused from seven eighths on. When all is
    /// used, only the status of a response is kept. Default 256 MiB: a quarter of a small machine.
    pub bytes: usize,
    /// Maximum bytes of one tenant. Default: all.
    pub tenant_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Settings::default())
    }
}

impl Limits {
    /// Limits by `settings.max_records`, the rest by default.
    pub fn of(settings: &Settings) -> Self {
        Self {
            records: settings.max_records,
            claims: settings.max_records,
            fingerprint_locks: 10_000,
            bytes: 256 << 20,
            tenant_bytes: 256 << 20,
        }
    }
}

/// [`Records`] in memory. No record is evicted, because an evicted key would be sent again. At the limit new keys are refused, and a
/// response that does not fit is reduced to its status.
pub struct MemoryRecords {
    clock: Clock,
    limits: Limits,
    shards: [Mutex<Shard>; SHARDS],
    /// Records in all shards, including reservations for new ones.
    held: AtomicUsize,
    capacity: Capacity,
    /// One lock for all: a write claims once, and the limit stays exact.
    claims: Mutex<Claims>,
    fingerprint_locks: Arc<FingerprintLocks>,
    unanswered: Unanswereds,
    events: Arc<Events>,
}

impl MemoryRecords {
    /// An empty store.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self {
            clock,
            limits,
            shards: std::array::from_fn(|_| Mutex::new(Shard::default())),
            held: AtomicUsize::new(0),
            capacity: Capacity::new(limits.bytes, limits.tenant_bytes),
            claims: Mutex::new(Claims::new(limits.claims)),
            fingerprint_locks: Arc::new(FingerprintLocks::new(limits.fingerprint_locks)),
            unanswered: Unanswereds::new(),
            events: Arc::new(Events::new(clock)),
        }
    }

    /// Reports records for which there was no space to `events`.
    #[must_use]
    pub fn with_events(self, events: Arc<Events>) -> Self {
        Self { events, ..self }
    }

    /// Number of records, for a gauge.
    pub fn len(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Whether the store has no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of records, responses, kept requests and claims, for a gauge.
    pub fn bytes(&self) -> usize {
        self.capacity.taken()
    }

    /// Requests that hold a fingerprint lock or wait for one, for a gauge.
    pub fn fingerprint_locks(&self) -> usize {
        self.fingerprint_locks.len()
    }

    /// Removes expired records. Requests do so too; `Host::purge_expired` does it for a host without traffic, whose
    /// responses would otherwise stay in memory. True: there were some.
    pub fn sweep(&self) -> bool {
        let mut swept = false;
        for shard in &self.shards {
            let removed = shard.lock().sweep(self.clock.now(), usize::MAX, &self.capacity);
            swept |= removed > 0;
            self.held.fetch_sub(removed, Relaxed);
        }
        swept
    }

    fn shard(&self, id: RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.as_bytes();
        self.shards[usize::from(*first) % SHARDS].lock()
    }

    fn begin_now(&self, id: RecordId, opening: &BeginRequest) -> Result<StoreBegin, RecordError> {
        loop {
            let refused = {
                let mut shard = self.shard(id);
                let now = self.clock.now();
                self.held.fetch_sub(shard.sweep(now, SWEEP, &self.capacity), Relaxed);
                let existing = shard.get(&id);
                let (begin, write) = Record::begin(existing, opening, &StoreFacts::default(), now);
                let Some(record) = write else { return Ok(begin.into()) };
                // A record that is taken over, or that has expired and is still in the table, keeps its count and its tenant.
                let tenant = shard.tenant(&id).or(opening.tenant);
                let is_there = existing.is_some();
                let reserved = if is_there {
                    self.capacity.charge(tenant, RECORD_BYTES);
                    Ok(())
                } else {
                    self.reserve(tenant, Capacity::admit)
                };
                match reserved {
                    Ok(()) => {
                        let keyed_sends = record.keyed_sends(now);
                        let replaced = shard.put(id, Entry { record, tenant }, &self.capacity);
                        // The replaced record was counted already; a reservation would have counted it twice and could exceed the limit.
                        self.held.fetch_sub(replaced.saturating_sub(usize::from(is_there)), Relaxed);
                        return Ok(StoreBegin { begin, keyed_sends, fingerprint_lock: None, host: None });
                    }
                    Err(refused) => refused,
                }
            };
            // The loop ends when nothing has expired. It repeats only if another thread took the space that this one made.
            if !self.sweep() {
                return Err(refused);
            }
        }
    }

    /// Applies a transition to an existing record.
    fn change<T>(
        &self,
        id: RecordId,
        change: impl FnOnce(&mut Record, &Clock) -> Option<(T, RecordRetention)>,
    ) -> Option<T> {
        let mut shard = self.shard(id);
        let (result, fate) = shard.edit(id, &self.capacity, |record| change(record, &self.clock))?;
        if fate == RecordRetention::Forget {
            self.held.fetch_sub(shard.remove(id, &self.capacity), Relaxed);
        }
        Some(result)
    }

    /// As [`Self::change`], for an owner's transition. An error: another owner has the record.
    fn own(
        &self,
        id: RecordId,
        change: impl FnOnce(&mut Record, &Clock) -> Result<RecordRetention, Lost>,
    ) -> Result<(), RecordError> {
        self.change(id, |record, clock| change(record, clock).ok().map(|fate| ((), fate))).ok_or(RecordError::Lost)
    }

    /// Stores a response in its record by `change`; only its status if there is no space. `None` if `change` refuses. The response is
    /// copied before the shard is locked, and its bytes are counted before it is stored.
    fn answer(
        &self,
        id: RecordId,
        stored: &Stored,
        change: impl FnOnce(&mut Record, Compact, &Clock) -> Option<RecordRetention>,
    ) -> Option<()> {
        let whole = Compact::of(stored);
        let mut shard = self.shard(id);
        let tenant = shard.tenant(&id);
        let kept = if self.capacity.extend(tenant, whole.size()) {
            whole
        } else {
            let status_only = Compact::of(&Stored::TooLarge { status: stored.status() });
            self.capacity.charge(tenant, status_only.size());
            status_only
        };
        let size = kept.size();
        let changed = shard.edit(id, &self.capacity, |record| change(record, kept, &self.clock));
        // The record's own count includes the bytes now, or the response was not stored.
        self.capacity.give_back(tenant, size);
        changed.map(|_| ())
    }

    /// As [`Self::own`], and stores the write's request; without space only the names of upstream and endpoint.
    fn own_intent(
        &self,
        id: RecordId,
        intent: Option<Arc<Intent>>,
        change: impl FnOnce(&mut Record, Option<Arc<Intent>>, &Clock) -> Result<RecordRetention, Lost>,
    ) -> Result<(), RecordError> {
        let Some(intent) = intent else { return self.own(id, |record, clock| change(record, None, clock)) };
        let tenant = self.shard(id).tenant(&id);
        let size = intent.size();
        let fits = self.capacity.extend(tenant, size);
        if !fits && intent.request.is_some() {
            self.events.note_unverified(&intent.subject());
        }
        let kept = Arc::new(if fits { intent.copied() } else { intent.without_request() });
        let owned = self.own(id, |record, clock| change(record, Some(kept), clock));
        if fits {
            // The record's own count includes the bytes now, or the request was not stored.
            self.capacity.give_back(tenant, size);
        }
        owned
    }

    /// Reserves a record for a request without a key. It may use the bytes that are kept free for requests under way, because this was
    /// one. Refused when records without a response reach half the limit: the other half is for keyed requests.
    fn reserve_without_key(&self, tenant: Option<Tenant>) -> bool {
        let most = share_without_key(self.limits.records);
        let live = || self.shards.iter().map(|shard| shard.lock().live_len()).sum::<usize>();
        let reserve = || live() < most && self.reserve(tenant, Capacity::extend).is_ok();
        reserve() || (self.sweep() && reserve())
    }

    /// Reserves a new record, in number and in bytes.
    fn reserve(
        &self,
        tenant: Option<Tenant>,
        take: impl Fn(&Capacity, Option<Tenant>, usize) -> bool,
    ) -> Result<(), RecordError> {
        const WHAT: &str = "idempotency records";
        let max = self.limits.records;
        let one_more = |held| (held < max).then_some(held + 1);
        if self.held.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            return Err(RecordError::Full { what: WHAT, max });
        }
        if !take(&self.capacity, tenant, RECORD_BYTES) {
            self.held.fetch_sub(1, Relaxed);
            return Err(RecordError::NoCapacity { what: WHAT, max_bytes: self.capacity.max() });
        }
        Ok(())
    }
}

impl Records for MemoryRecords {
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        ready_reply(self.begin_now(id, &opening))
    }

    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
        let sent = |record: &mut Record, intent, clock: &Clock| {
            record.sent(fence, intent, clock.now()).map(|()| RecordRetention::Keep)
        };
        ready_reply(self.own_intent(id, intent, sent))
    }

    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()> {
        let finish = |record: &mut Record, kept, clock: &Clock| record.finish(fence, kept, clock.now()).ok();
        let finished =
            self.answer(id, &stored, |record, kept, clock| finish(record, kept, clock).map(|()| RecordRetention::Keep));
        ready_reply(finished.ok_or(RecordError::Lost))
    }

    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()> {
        ready_reply(self.own(id, |record, clock| record.release(fence, clock.now())))
    }

    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving) {
        let Leaving { intent, sent_ago, verify_in } = leaving;
        // An error means that a successor has the record. A dropped owner has no caller to report it to.
        let _: Result<(), RecordError> = self.own_intent(id, intent, |record, intent, clock| {
            record.leave(fence, &Leaving { sent_ago, verify_in, intent }, clock.now())
        });
    }

    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving) {
        if !self.reserve_without_key(opening.tenant) {
            let subject = leaving.intent.map(|intent| intent.subject()).unwrap_or_default();
            self.events.note_unrecorded(&subject, self.limits.records);
            return;
        }
        let now = self.clock.now();
        let size = leaving.intent.as_ref().map_or(0, |intent| intent.size());
        let fits = self.capacity.extend(opening.tenant, size);
        if let Some(intent) = leaving.intent.as_ref().filter(|intent| !fits && intent.request.is_some()) {
            self.events.note_unverified(&intent.subject());
        }
        let kept = |intent: Arc<Intent>| Arc::new(if fits { intent.copied() } else { intent.without_request() });
        let leaving = Leaving { intent: leaving.intent.map(kept), ..leaving };
        let record = Record::unknown(&opening, &leaving, now);
        let mut shard = self.shard(id);
        if fits {
            // The record's own count includes the bytes, or the record is not stored.
            self.capacity.give_back(opening.tenant, size);
        }
        if shard.get(&id).is_some_and(|record| !record.expired(now)) {
            self.capacity.give_back(opening.tenant, RECORD_BYTES);
            self.held.fetch_sub(1, Relaxed);
            return;
        }
        let replaced = shard.put(id, Entry { record, tenant: opening.tenant }, &self.capacity);
        self.held.fetch_sub(replaced, Relaxed);
    }

    fn digest(&self, request: &Likeness<'_>) -> RequestDigest {
        self.unanswered.digest(request)
    }

    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived> {
        ready_reply(Ok(match self.unanswered.arrive(&arriving, self.clock.now()) {
            Arrival::Adopted(id) => Arrived::Adopted(id),
            Arrival::Listed { others } => Arrived::Listed { begin: RecordBegin::New, fingerprint_lock: None, others },
            Arrival::Full => Arrived::Full,
        }))
    }

    fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>> {
        let found = self.unanswered.recheck_orphan(ticket, self.clock.now());
        if found.is_some() {
            // Delete the request's own record with its entry. The record exists only if the caller has left meanwhile.
            let _: Result<(), RecordError> =
                self.own(ticket.id, |record, clock| record.release(ticket.owner, clock.now()));
        }
        ready_reply(Ok(found))
    }

    fn keep_alive(&self, _: Ticket, _: Duration, _: EntryTerm) -> Reply<'_, Renewed> {
        ready_reply(Ok(Renewed::ALL))
    }

    fn write_listed(&self, ticket: Ticket, opening: BeginRequest, arrived_at: Timestamp) -> bool {
        let has_room = self.reserve_without_key(opening.tenant);
        if has_room {
            let (_, record) = Record::listed(&opening, ticket.terms.kept, None, None, arrived_at);
            let replaced =
                self.shard(ticket.id).put(ticket.id, Entry { record, tenant: opening.tenant }, &self.capacity);
            self.held.fetch_sub(replaced, Relaxed);
        } else {
            self.events.note_unrecorded("", self.limits.records);
        }
        has_room
    }

    fn abandon(&self, ticket: Ticket) {
        self.unanswered.abandon(ticket, self.clock.now());
    }

    fn answered(&self, ticket: Ticket, forget: bool) {
        let was_ours = self.unanswered.remove(ticket);
        if !forget {
            return;
        }
        if was_ours {
            let removed = self.shard(ticket.id).remove(ticket.id, &self.capacity);
            self.held.fetch_sub(removed, Relaxed);
        } else {
            // Another owner has the entry, and usually the record. Delete the record if this owner still holds it.
            let _: Result<(), RecordError> =
                self.own(ticket.id, |record, clock| record.release(ticket.owner, clock.now()));
        }
    }

    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
        let mut claims = self.claims.lock();
        ready_reply(claims.claim(name, owner, keep, self.clock.now(), &self.capacity))
    }

    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
        ready_reply(Ok(self.claims.lock().claimant(name, owner, self.clock.now())))
    }

    fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock> {
        match self.fingerprint_locks.take(fingerprint) {
            Err(full) => ready_reply(Err(full)),
            Ok(LockToken::First(guard)) => ready_reply(Ok(FingerprintLock::new(guard))),
            Ok(LockToken::Queued(waiting)) => {
                Reply::Right(waiting.wait().map(|fingerprint_lock| fingerprint_lock.map(FingerprintLock::new)).boxed())
            }
        }
    }

    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().unsettled(self.clock.now()));
        }
        found.sort_unstable_by_key(|(expires, unsettled)| (*expires, unsettled.id));
        found.truncate(limit);
        ready_reply(Ok(found.into_iter().map(|(_, unsettled)| unsettled).collect()))
    }

    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
        ready_reply(Ok(self.shard(id).unsettled_one(id, self.clock.now())))
    }

    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().due(self.clock.now()).take(limit));
        }
        found.sort_unstable();
        found.truncate(limit);
        ready_reply(Ok(found.into_iter().map(|(_, id)| id).collect()))
    }

    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        ready_reply(Ok(self.change(id, |record, clock| {
            Some((record.take(lease, &StoreFacts::default(), clock.now())?, RecordRetention::Keep))
        })))
    }

    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed> {
        let postpone = |record: &mut Record, clock: &Clock| {
            Some((record.postpone(wait, longest_age, &StoreFacts::default(), clock.now()), RecordRetention::Keep))
        };
        ready_reply(Ok(self.change(id, postpone).unwrap_or(Postponed::NotUnsettled)))
    }

    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
        ready_reply(Ok(self
            .shard(id)
            .get(&id)
            .and_then(|record| record.status(&StoreFacts::default(), self.clock.now()))))
    }

    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
        let resolved = match resolution {
            Resolution::Applied(stored) => self.answer(id, &stored, |record, kept, clock| {
                record.resolve(Some(kept), &StoreFacts::default(), clock.now())
            }),
            Resolution::NotApplied => {
                self.change(id, |record, clock| Some(((), record.resolve(None, &StoreFacts::default(), clock.now())?)))
            }
        };
        ready_reply(Ok(if resolved.is_some() { Resolved::Done } else { Resolved::NotUnsettled }))
    }

    fn purge_expired(&self) {
        self.sweep();
        self.claims.lock().sweep(self.clock.now(), usize::MAX, &self.capacity);
        self.unanswered.sweep(self.clock.now());
    }
}

impl fmt::Debug for MemoryRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRecords")
            .field("limits", &self.limits)
            .field("records", &self.len())
            .field("bytes", &self.bytes())
            .field("turns", &self.fingerprint_locks())
            .field("claims_held", &self.claims.lock().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
