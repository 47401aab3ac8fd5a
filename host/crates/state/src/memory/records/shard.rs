//! One shard of the records, ordered by expiry. Without a lock of its own: its user locks it.

use super::capacity::Capacity;
use crate::{
    clock::Timestamp,
    idempotency::{
        Compact, RecordId, Tenant, Unsettled,
        record::{Phase, Record, StoreFacts},
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    mem::size_of,
    time::Duration,
};

/// Memory of a record without its response: twice its entries, because the hash table doubles and nodes of the trees may be half full.
pub const RECORD_BYTES: usize = 2 * (size_of::<(RecordId, Entry)>() + 1) + 4 * size_of::<(Timestamp, RecordId)>();

/// Records by id and by expiry. Live records, which include the unsettled ones, are ordered separately from finished ones.
#[derive(Default)]
pub struct Shard {
    records: HashMap<RecordId, Entry>,
    live: Order,
    finished: Order,
    /// Records that a host verifies in the background, by the time of the next verification.
    due: Order,
}

type Order = BTreeSet<(Timestamp, RecordId)>;

/// A record, and the tenant whose bytes it counts against.
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The tenant that is charged; `None` for callers that give no credentials.
    pub tenant: Option<Tenant>,
}

impl Entry {
    /// Memory of the record with its response and its request.
    fn bytes(&self) -> usize {
        let kept = self.record.stored().map_or(0, Compact::size);
        RECORD_BYTES + kept + self.record.intent().map_or(0, |intent| intent.size())
    }
}

impl Shard {
    /// The record of an id, whether or not it has expired.
    pub fn get(&self, id: &RecordId) -> Option<&Record> {
        self.records.get(id).map(|entry| &entry.record)
    }

    /// The tenant whose bytes a record counts against.
    pub fn tenant(&self, id: &RecordId) -> Option<Tenant> {
        self.records.get(id)?.tenant
    }

    /// Inserts a record, for which [`RECORD_BYTES`] are counted already, and removes one of the same id. Returns the number removed.
    pub fn put(&mut self, id: RecordId, entry: Entry, capacity: &Capacity) -> usize {
        let replaced = self.remove(id, capacity);
        let record = &entry.record;
        // The record may have taken over the request of an earlier one.
        capacity.charge(entry.tenant, entry.bytes() - RECORD_BYTES);
        let (phase, expires, due) = (record.phase(), record.expires(), record.due());
        self.order(phase).insert((expires, id));
        self.due.extend(due.map(|due| (due, id)));
        self.records.insert(id, entry);
        replaced
    }

    /// Changes a record in place, and updates its orders and its bytes. `None` if there is no record or `change` returns it.
    pub fn edit<T>(
        &mut self,
        id: RecordId,
        capacity: &Capacity,
        change: impl FnOnce(&mut Record) -> Option<T>,
    ) -> Option<T> {
        let entry = self.records.get_mut(&id)?;
        let (tenant, bytes) = (entry.tenant, entry.bytes());
        let position = |record: &Record| (record.phase(), record.expires(), record.due());
        let before = position(&entry.record);
        let result = change(&mut entry.record);
        let after = position(&entry.record);
        let bytes_now = entry.bytes();
        // Under the shard's lock, so that a call that removes the record finds its bytes counted.
        capacity.charge(tenant, bytes_now.saturating_sub(bytes));
        capacity.give_back(tenant, bytes.saturating_sub(bytes_now));
        if before != after {
            self.order(before.0).remove(&(before.1, id));
            self.order(after.0).insert((after.1, id));
            if let Some(due) = before.2 {
                self.due.remove(&(due, id));
            }
            self.due.extend(after.2.map(|due| (due, id)));
        }
        result
    }

    /// Removes a record and subtracts its bytes. Returns the number removed.
    pub fn remove(&mut self, id: RecordId, capacity: &Capacity) -> usize {
        let Some(entry) = self.records.remove(&id) else { return 0 };
        self.order(entry.record.phase()).remove(&(entry.record.expires(), id));
        if let Some(due) = entry.record.due() {
            self.due.remove(&(due, id));
        }
        capacity.give_back(entry.tenant, entry.bytes());
        1
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Number of records without a response: under way, or unsettled.
    pub fn live_len(&self) -> usize {
        self.live.len()
    }

    /// The ids of all records.
    pub fn ids(&self) -> Vec<RecordId> {
        self.records.keys().copied().collect()
    }

    /// Removes the record that expires next, a finished one if there is any. Returns the number removed.
    pub fn remove_next(&mut self, capacity: &Capacity) -> usize {
        let next = self.finished.first().or(self.live.first()).copied();
        next.map_or(0, |(_, id)| self.remove(id, capacity))
    }

    /// Removes up to `limit` expired records. Returns the number removed.
    pub fn sweep(&mut self, now: Timestamp, limit: usize, capacity: &Capacity) -> usize {
        let mut removed = 0;
        while removed < limit {
            let expired = [&self.live, &self.finished].into_iter().filter_map(Order::first).find(|(at, _)| *at <= now);
            let Some((_, id)) = expired.copied() else { break };
            removed += self.remove(id, capacity);
        }
        // A hash table never shrinks by itself: after a peak it would keep its memory.
        if limit == usize::MAX && self.records.capacity() > 4 * self.records.len().max(64) {
            self.records.shrink_to_fit();
        }
        removed
    }

    /// The unsettled records, including those being verified, each with its expiry.
    pub fn unsettled(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Unsettled)> {
        self.live.iter().filter_map(move |(expires, id)| Some((*expires, self.unsettled_one(*id, now)?)))
    }

    /// One record, if it is unsettled.
    pub fn unsettled_one(&self, id: RecordId, now: Timestamp) -> Option<Unsettled> {
        let (record, facts) = (self.get(&id)?, StoreFacts::default());
        let is_verified_now = record.verified_for(&facts, now).is_some();
        Some(Unsettled {
            id,
            sent_ago: record.unknown_for(&facts, now)?,
            endpoint: record.intent().map(|intent| (intent.upstream.clone(), intent.endpoint.clone())),
            verified_in: if is_verified_now { Some(Duration::ZERO) } else { record.due().map(|due| due.since(now)) },
        })
    }

    /// The records whose verification is due, each with its time, the longest due first.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, RecordId)> {
        let is_unsettled =
            move |id: &RecordId| self.get(id).is_some_and(|own| own.unsettled(&StoreFacts::default(), now).is_some());
        self.due.iter().take_while(move |(due, _)| *due <= now).filter(move |(_, id)| is_unsettled(id)).copied()
    }

    fn order(&mut self, phase: Phase) -> &mut Order {
        match phase {
            Phase::New | Phase::Sent => &mut self.live,
            Phase::Done => &mut self.finished,
        }
    }

    #[cfg(test)]
    pub(crate) fn check(&self) {
        let ordered =
            self.live.iter().map(|entry| (entry, false)).chain(self.finished.iter().map(|entry| (entry, true)));
        let mut count = 0;
        for ((at, id), finished) in ordered {
            let record = &self.records[id].record;
            assert_eq!((record.expires(), record.phase() == Phase::Done), (*at, finished), "{id:?}");
            count += 1;
        }
        assert_eq!(count, self.records.len(), "each record is in one order once");
        let due: Order = self.records.iter().filter_map(|(id, entry)| Some((entry.record.due()?, *id))).collect();
        assert_eq!(self.due, due);
    }
}
