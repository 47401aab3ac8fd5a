//! Idempotency records, claims and turns in memory.

use crate::{
    clock::Clock,
    idempotency::{
        Claim, ClaimName, ClaimOwner, Claimant, Fence, Fingerprint, Intent, Leaving, Opened, Opening, RecordError,
        RecordId, Records, Resolution, Resolved, Settings, Stored, Turn, Unsettled,
        record::{Fate, Lost, Record, RecordStatus, StoreFacts},
        records::{Reply, at_hand},
    },
};
use claims::Claims;
use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use shard::{Removed, Shard, bytes_of};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use turns::{Place, Turns};

pub(crate) mod claims;
pub(crate) mod shard;
pub(crate) mod turns;

/// Enough that threads seldom meet; the ids are hashes, so they spread evenly.
const SHARDS: usize = 16;

/// Expired entries that one call clears away at most, so that none pays for a crowd; each call adds one at most.
const SWEEP: usize = 16;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records. Default [`Settings::max_records`]'s.
    pub records: usize,
    /// Claims. Default as many as records.
    pub claims: usize,
    /// Requests that have or wait for a turn. Default 10,000: a host's connections.
    pub turns: usize,
    /// The bytes of all answers and kept requests together; past it only the status of further answers is kept, and further
    /// unknown writes are not verified in the background. Default 256 MiB: a quarter of a small machine.
    pub stored_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Settings::default())
    }
}

impl Limits {
    /// The limits that go with `settings`.
    pub fn of(settings: &Settings) -> Self {
        Self { records: settings.max_records, claims: settings.max_records, turns: 10_000, stored_bytes: 256 << 20 }
    }
}

/// [`Records`] in memory. Nothing is forgotten before its time, since a forgotten key would be sent again: at the limit new keys
/// are refused, and answers that have no room leave their status.
pub struct MemoryRecords {
    clock: Clock,
    limits: Limits,
    shards: [Mutex<Shard>; SHARDS],
    /// Records in all shards, counting places that are reserved for one.
    held: AtomicUsize,
    bytes: AtomicUsize,
    /// One lock: a claim is made once for a write, and a limit over all claims stays exact.
    claims: Mutex<Claims>,
    turns: Arc<Turns>,
}

impl MemoryRecords {
    /// An empty store on `clock`'s time line.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self {
            clock,
            limits,
            shards: std::array::from_fn(|_| Mutex::new(Shard::default())),
            held: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            claims: Mutex::new(Claims::new(limits.claims)),
            turns: Arc::new(Turns::new(limits.turns)),
        }
    }

    /// Records at this moment, for a gauge.
    pub fn len(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all kept answers, for a gauge.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Requests that have or wait for a turn, for a gauge.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// Forgets what has expired. Traffic does so by the way; [`Host::tidy`](crate::Host::tidy) does it for a host
    /// without traffic, whose answers would else lie in memory for longer than they are kept. Whether there was anything.
    pub fn sweep(&self) -> bool {
        let mut swept = false;
        for shard in &self.shards {
            let removed = shard.lock().sweep(self.clock.now(), usize::MAX);
            swept |= removed.records > 0;
            self.account(removed);
        }
        swept
    }

    fn shard(&self, id: RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.as_bytes();
        self.shards[usize::from(*first) % SHARDS].lock()
    }

    fn begin_now(&self, id: RecordId, opening: &Opening) -> Result<Opened, RecordError> {
        loop {
            {
                let mut shard = self.shard(id);
                let now = self.clock.now();
                self.account(shard.sweep(now, SWEEP));
                let existing = shard.get(&id);
                let (begin, write) = Record::begin(existing, opening, &StoreFacts::default(), now);
                let Some(record) = write else { return Ok(begin.into()) };
                // One that expired and is still there gives its place to its successor.
                if existing.is_some() || self.reserve() {
                    // What it asked goes over to the new one.
                    self.bytes.fetch_add(bytes_of(&record), Relaxed);
                    let keyed_sends = record.keyed_sends(now);
                    self.account_bytes(&shard.put(id, record));
                    return Ok(Opened { begin, keyed_sends, turn: None, host: None });
                }
            }
            // Ends: each round another thread took the place that was made, or there is none to make.
            if !self.sweep() {
                return Err(RecordError::Full { what: "idempotency records", max: self.limits.records });
            }
        }
    }

    /// Runs a transition on a record that must be there.
    fn change<T>(&self, id: RecordId, change: impl FnOnce(&mut Record, &Clock) -> Option<(T, Fate)>) -> Option<T> {
        let mut shard = self.shard(id);
        let (result, fate) = shard.edit(id, |record| {
            let before = record.intent().map_or(0, |intent| intent.size());
            let result = change(record, &self.clock);
            // Under the shard's lock: a call that takes the record out finds its bytes counted.
            self.bytes.fetch_add(record.intent().map_or(0, |intent| intent.size()), Relaxed);
            self.bytes.fetch_sub(before, Relaxed);
            result
        })?;
        if fate == Fate::Forget {
            self.account(shard.remove(id));
        }
        Some(result)
    }

    /// As [`Self::change`], for an owner.
    fn own(
        &self,
        id: RecordId,
        change: impl FnOnce(&mut Record, &Clock) -> Result<Fate, Lost>,
    ) -> Result<(), RecordError> {
        self.change(id, |record, clock| change(record, clock).ok().map(|fate| ((), fate))).ok_or(RecordError::Lost)
    }

    /// What there is room for of an answer. Its bytes are counted before it is put in, so that whoever takes it out finds them
    /// counted.
    fn fitting(&self, stored: Stored) -> Arc<Stored> {
        let size = stored.size();
        let room = |held: usize| held.checked_add(size).filter(|all| *all <= self.limits.stored_bytes);
        let stored = match self.bytes.fetch_update(Relaxed, Relaxed, room) {
            Ok(_) => stored,
            Err(_) => {
                let status_only = Stored::TooLarge { status: stored.status() };
                self.bytes.fetch_add(status_only.size(), Relaxed);
                status_only
            }
        };
        Arc::new(stored)
    }

    /// What there is room for of what a write asked: without room its names alone.
    fn fitting_intent(&self, intent: Arc<Intent>) -> Arc<Intent> {
        let held = self.bytes.load(Relaxed);
        let fits = held.checked_add(intent.size()).is_some_and(|all| all <= self.limits.stored_bytes);
        if fits || intent.request.is_none() { intent } else { Arc::new(intent.without_request()) }
    }

    fn reserve(&self) -> bool {
        self.held.fetch_update(Relaxed, Relaxed, |held| (held < self.limits.records).then_some(held + 1)).is_ok()
    }

    fn account(&self, removed: Removed) {
        self.held.fetch_sub(removed.records, Relaxed);
        self.account_bytes(&removed);
    }

    fn account_bytes(&self, removed: &Removed) {
        self.bytes.fetch_sub(removed.bytes, Relaxed);
    }
}

impl Records for MemoryRecords {
    fn begin(&self, id: RecordId, opening: Opening) -> Reply<'_, Opened> {
        at_hand(self.begin_now(id, &opening))
    }

    fn sent(&self, id: RecordId, fence: Fence, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
        let intent = intent.map(|intent| self.fitting_intent(intent));
        at_hand(self.own(id, |record, clock| record.sent(fence, intent, clock.now()).map(|()| Fate::Keep)))
    }

    fn finish(&self, id: RecordId, fence: Fence, stored: Stored) -> Reply<'_, ()> {
        let stored = self.fitting(stored);
        let size = stored.size();
        let finished = self.own(id, |record, clock| record.finish(fence, stored, clock.now()).map(|()| Fate::Keep));
        if finished.is_err() {
            self.bytes.fetch_sub(size, Relaxed);
        }
        at_hand(finished)
    }

    fn release(&self, id: RecordId, fence: Fence) -> Reply<'_, ()> {
        at_hand(self.own(id, |record, clock| record.release(fence, clock.now())))
    }

    fn leave(&self, id: RecordId, fence: Fence, leaving: Leaving) {
        let leaving = Leaving { intent: leaving.intent.map(|intent| self.fitting_intent(intent)), ..leaving };
        // A successor's record is not ours to change, and a dropped owner has nobody to tell.
        let _: Result<(), RecordError> = self.own(id, |record, clock| record.leave(fence, &leaving, clock.now()));
    }

    fn record_unknown(&self, id: RecordId, opening: Opening, leaving: Leaving) {
        let has_room = self.reserve() || (self.sweep() && self.reserve());
        if !has_room {
            tracing::warn!(?id, "a request without a key ended unknown, and there is no room for its record");
            return;
        }
        let now = self.clock.now();
        let leaving = Leaving { intent: leaving.intent.map(|intent| self.fitting_intent(intent)), ..leaving };
        let record = Record::unknown(&opening, &leaving, now);
        let mut shard = self.shard(id);
        if shard.get(&id).is_some_and(|record| !record.expired(now)) {
            self.account(Removed { records: 1, bytes: 0 });
            return;
        }
        self.bytes.fetch_add(bytes_of(&record), Relaxed);
        self.account(shard.put(id, record));
    }

    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
        let mut claims = self.claims.lock();
        at_hand(claims.claim(name, owner, keep, self.clock.now()))
    }

    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
        at_hand(Ok(self.claims.lock().claimant(name, owner, self.clock.now())))
    }

    fn turn(&self, fingerprint: Fingerprint) -> Reply<'static, Turn> {
        match self.turns.take(fingerprint) {
            Err(full) => at_hand(Err(full)),
            Ok(Place::First(guard)) => at_hand(Ok(Turn::new(guard))),
            Ok(Place::Queued(waiting)) => Reply::Right(waiting.wait().map(|turn| turn.map(Turn::new)).boxed()),
        }
    }

    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().unsettled(self.clock.now()));
        }
        found.sort_unstable_by_key(|(expires, unsettled)| (*expires, unsettled.id));
        found.truncate(limit);
        at_hand(Ok(found.into_iter().map(|(_, unsettled)| unsettled).collect()))
    }

    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
        at_hand(Ok(self.shard(id).unsettled_one(id, self.clock.now())))
    }

    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().due(self.clock.now()).take(limit));
        }
        found.sort_unstable();
        found.truncate(limit);
        at_hand(Ok(found.into_iter().map(|(_, id)| id).collect()))
    }

    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        at_hand(Ok(self
            .change(id, |record, clock| Some((record.take(lease, &StoreFacts::default(), clock.now())?, Fate::Keep)))))
    }

    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
        at_hand(Ok(self.shard(id).get(&id).and_then(|record| record.status(&StoreFacts::default(), self.clock.now()))))
    }

    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
        let answer = match resolution {
            Resolution::Applied(stored) => Some(self.fitting(stored)),
            Resolution::NotApplied => None,
        };
        let size = answer.as_ref().map_or(0, |answer| answer.size());
        let resolved =
            self.change(id, |record, clock| Some(((), record.resolve(answer, &StoreFacts::default(), clock.now())?)));
        if resolved.is_none() {
            self.bytes.fetch_sub(size, Relaxed);
        }
        at_hand(Ok(if resolved.is_some() { Resolved::Done } else { Resolved::NotUnsettled }))
    }

    fn tidy(&self) {
        self.sweep();
        self.claims.lock().sweep(self.clock.now(), usize::MAX);
    }
}

impl fmt::Debug for MemoryRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRecords")
            .field("limits", &self.limits)
            .field("records", &self.len())
            .field("stored_bytes", &self.stored_bytes())
            .field("turns", &self.turns())
            .field("claims_held", &self.claims.lock().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
