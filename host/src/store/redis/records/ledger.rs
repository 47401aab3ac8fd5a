//! What this host has entrusted to the server: the records that it held and the claims that it made. A server that has lost its data
//! is given it again. What has no room is forgotten here, and only doubted after a loss.

use crate::{
    clock::{Clock, Timestamp},
    idempotency::{
        ClaimName, ClaimOwner, Opening, RecordId, Stored,
        record::{Begin, Fate, Lost, Record},
    },
    store::memory::records::{
        claims::Claims,
        shard::{Shard, bytes_of},
    },
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

/// Records and claims that a host remembers: three hours at ten keyed writes a second, some 40 MB.
const MAX_ENTRIES: usize = 100_000;
/// The bytes of the answers and requests among them.
const MAX_BYTES: usize = 32 << 20;
/// Expired records that one call clears away at most.
const SWEEP: usize = 16;

pub(super) struct Ledger {
    clock: Clock,
    records: Mutex<Kept>,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Kept {
    shard: Shard,
    bytes: usize,
}

impl Kept {
    fn put(&mut self, id: RecordId, record: Record) {
        self.bytes += bytes_of(&record);
        self.bytes -= self.shard.put(id, record).bytes;
        while self.shard.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some(removed) = self.shard.remove_next() else { return };
            self.bytes -= removed.bytes;
        }
    }

    fn remove(&mut self, id: RecordId) {
        self.bytes -= self.shard.remove(id).bytes;
    }
}

impl Ledger {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, records: Mutex::default(), claims: Mutex::new(Claims::new(MAX_ENTRIES)) }
    }

    /// This host was given a record that it asked for at `asked`.
    pub(super) fn begun(&self, id: RecordId, opening: &Opening, begin: &Begin, asked: Timestamp) {
        let Some(record) = Record::begun(opening, begin, asked) else { return };
        let mut kept = self.records.lock();
        let swept = kept.shard.sweep(asked, SWEEP);
        kept.bytes -= swept.bytes;
        kept.put(id, record);
    }

    /// Notes a record whole.
    pub(super) fn put(&self, id: RecordId, record: Record) {
        self.records.lock().put(id, record);
    }

    /// Runs an owner's transition. One of an owner whose record is not here any more changes nothing.
    pub(super) fn change(&self, id: RecordId, change: impl FnOnce(&mut Record, Timestamp) -> Result<Fate, Lost>) {
        let mut kept = self.records.lock();
        // Taken out and put back, so that its bytes are counted.
        let Some(mut record) = kept.shard.get(&id).cloned() else { return };
        match change(&mut record, self.clock.now()) {
            Ok(Fate::Keep) => kept.put(id, record),
            Ok(Fate::Forget) => kept.remove(id),
            Err(Lost) => {}
        }
    }

    pub(super) fn finished(&self, id: RecordId, fence: crate::idempotency::Fence, stored: Stored) {
        self.change(id, |record, now| record.finish(fence, Arc::new(stored), now).map(|()| Fate::Keep));
    }

    pub(super) fn forget(&self, id: RecordId) {
        self.records.lock().remove(id);
    }

    pub(super) fn claimed(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) {
        // One that has no room is doubted after a loss.
        let _ = self.claims.lock().claim(name, owner, keep, self.clock.now());
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

    /// What has expired takes no room.
    pub(super) fn tidy(&self) {
        let now = self.clock.now();
        let mut kept = self.records.lock();
        let swept = kept.shard.sweep(now, usize::MAX);
        kept.bytes -= swept.bytes;
        drop(kept);
        self.claims.lock().sweep(now, usize::MAX);
    }
}
