//! This host's copy of the records it held and the claims it made. After a loss of data the host restores them on the server. What
//! does not fit is dropped here, and is in doubt after a loss.

use crate::{
    clock::{Clock, Timestamp},
    idempotency::{
        BeginRequest, ClaimName, ClaimOwner, RecordId, Stored,
        record::{Lost, Record, RecordBegin, RecordRetention},
    },
    memory::records::{
        capacity::Capacity,
        claims::Claims,
        shard::{Entry, RECORD_BYTES, Shard},
    },
};
use parking_lot::Mutex;
use std::time::Duration;

/// Limit of records, and of claims: three hours at ten keyed writes a second.
const MAX_ENTRIES: usize = 100_000;
/// Limit of the records' bytes, with their responses and requests.
const MAX_BYTES: usize = 96 << 20;
/// Expired records that one call removes at most.
const SWEEP: usize = 16;

pub(super) struct LocalCopy {
    clock: Clock,
    records: Mutex<Kept>,
    claims: Mutex<Claims>,
    /// Counts the bytes of claims. Without a limit of its own: the number of claims is limited.
    claims_capacity: Capacity,
}

struct Kept {
    shard: Shard,
    /// Counts the bytes of records, for [`MAX_BYTES`].
    capacity: Capacity,
}

impl Kept {
    fn put(&mut self, id: RecordId, record: Record) {
        self.capacity.charge(None, RECORD_BYTES);
        self.shard.put(id, Entry { record, tenant: None }, &self.capacity);
        while (self.shard.len() > MAX_ENTRIES || self.capacity.taken() > MAX_BYTES)
            && self.shard.remove_next(&self.capacity) > 0
        {}
    }

    fn remove(&mut self, id: RecordId) {
        self.shard.remove(id, &self.capacity);
    }
}

impl Kept {
    fn sweep(&mut self, now: Timestamp, limit: usize) {
        let Self { shard, capacity } = self;
        shard.sweep(now, limit, capacity);
    }
}

impl LocalCopy {
    pub(super) fn new(clock: Clock) -> Self {
        let boundless = || Capacity::new(usize::MAX, usize::MAX);
        let records = Mutex::new(Kept { shard: Shard::default(), capacity: boundless() });
        Self { clock, records, claims: Mutex::new(Claims::new(MAX_ENTRIES)), claims_capacity: boundless() }
    }

    /// Adds a record that this host began with a call sent at `asked`.
    pub(super) fn begun(&self, id: RecordId, opening: &BeginRequest, begin: &RecordBegin, asked: Timestamp) {
        let Some(record) = Record::begun(opening, begin, asked) else { return };
        let mut kept = self.records.lock();
        kept.sweep(asked, SWEEP);
        kept.put(id, record);
    }

    /// Adds or replaces a record.
    pub(super) fn put(&self, id: RecordId, record: Record) {
        self.records.lock().put(id, record);
    }

    /// Applies an owner's transition. No effect if the record was dropped from this copy.
    pub(super) fn change(
        &self,
        id: RecordId,
        change: impl FnOnce(&mut Record, Timestamp) -> Result<RecordRetention, Lost>,
    ) {
        let mut kept = self.records.lock();
        // Replaced as a whole, so that its bytes are counted again.
        let Some(mut record) = kept.shard.get(&id).cloned() else { return };
        match change(&mut record, self.clock.now()) {
            Ok(RecordRetention::Keep) => kept.put(id, record),
            Ok(RecordRetention::Forget) => kept.remove(id),
            Err(Lost) => {}
        }
    }

    pub(super) fn finished(&self, id: RecordId, fence: crate::idempotency::FencingToken, stored: Stored) {
        self.change(id, |record, now| record.finish(fence, stored, now).map(|()| RecordRetention::Keep));
    }

    pub(super) fn forget(&self, id: RecordId) {
        self.records.lock().remove(id);
    }

    pub(super) fn claimed(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) {
        // A claim that does not fit is in doubt after a loss.
        let _ = self.claims.lock().claim(name, owner, keep, self.clock.now(), &self.claims_capacity);
    }

    pub(super) fn record(&self, id: RecordId) -> Option<Record> {
        self.records.lock().shard.get(&id).cloned()
    }

    pub(super) fn records(&self) -> Vec<RecordId> {
        self.records.lock().shard.ids()
    }

    pub(super) fn claims(&self) -> Vec<(ClaimName, ClaimOwner, Duration)> {
        self.claims.lock().living(self.clock.now()).collect()
    }

    /// Removes expired records and claims.
    pub(super) fn purge_expired(&self) {
        let now = self.clock.now();
        self.records.lock().sweep(now, usize::MAX);
        self.claims.lock().sweep(now, usize::MAX, &self.claims_capacity);
    }
}
