//! One part of the records, with their order of expiry. Not shared: its owner locks it.

use crate::{
    clock::Timestamp,
    idempotency::{
        RecordId, Stored, Unsettled,
        record::{Phase, Record, StoreFacts},
    },
};
use std::collections::{BTreeSet, HashMap};

/// Records by id, and in the order in which they expire: the finished ones, and the live ones, among which the unsettled are found.
#[derive(Default)]
pub(crate) struct Shard {
    records: HashMap<RecordId, Record>,
    live: Order,
    finished: Order,
    /// Those that a host verifies by itself, by when the next verification is due.
    due: Order,
}

type Order = BTreeSet<(Timestamp, RecordId)>;

/// What was taken out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Shard {
    pub(crate) fn get(&self, id: &RecordId) -> Option<&Record> {
        self.records.get(id)
    }

    /// Puts a record in, in the place of an earlier one with its id; gives the bytes that one took.
    pub(crate) fn put(&mut self, id: RecordId, record: Record) -> Removed {
        let replaced = self.remove(id);
        self.order(record.phase()).insert((record.expires(), id));
        self.due.extend(record.due().map(|due| (due, id)));
        self.records.insert(id, record);
        replaced
    }

    /// Changes a record in place and keeps the order true. None if there is no record, or `change` says so.
    pub(crate) fn edit<T>(&mut self, id: RecordId, change: impl FnOnce(&mut Record) -> Option<T>) -> Option<T> {
        let record = self.records.get_mut(&id)?;
        let before = (record.phase(), record.expires(), record.due());
        let result = change(record);
        let after = (record.phase(), record.expires(), record.due());
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

    pub(crate) fn remove(&mut self, id: RecordId) -> Removed {
        let Some(record) = self.records.remove(&id) else { return Removed::default() };
        self.order(record.phase()).remove(&(record.expires(), id));
        if let Some(due) = record.due() {
            self.due.remove(&(due, id));
        }
        Removed { records: 1, bytes: bytes_of(&record) }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Every record.
    pub(crate) fn ids(&self) -> Vec<RecordId> {
        self.records.keys().copied().collect()
    }

    /// Takes out the one that would expire next, a finished one if there is any.
    pub(crate) fn remove_next(&mut self) -> Option<Removed> {
        let (_, id) = *self.finished.first().or(self.live.first())?;
        Some(self.remove(id))
    }

    /// Takes out up to `limit` expired records.
    pub(crate) fn sweep(&mut self, now: Timestamp, limit: usize) -> Removed {
        let mut removed = Removed::default();
        while removed.records < limit {
            let expired = [&self.live, &self.finished].into_iter().filter_map(Order::first).find(|(at, _)| *at <= now);
            let Some((_, id)) = expired.copied() else { break };
            let one = self.remove(id);
            removed.records += one.records;
            removed.bytes += one.bytes;
        }
        removed
    }

    /// The unsettled records and when each expires.
    pub(crate) fn unsettled(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Unsettled)> {
        self.live.iter().filter_map(move |(expires, id)| Some((*expires, self.unsettled_one(*id, now)?)))
    }

    /// One record, where it is unsettled.
    pub(crate) fn unsettled_one(&self, id: RecordId, now: Timestamp) -> Option<Unsettled> {
        let record = self.records.get(&id)?;
        Some(Unsettled {
            id,
            sent_ago: record.unsettled(&StoreFacts::default(), now)?,
            endpoint: record.intent().map(|intent| (intent.upstream.clone(), intent.endpoint.clone())),
            verified_in: record.due().map(|due| due.since(now)),
        })
    }

    /// The records whose verification is due and when it was, the longest due first.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, RecordId)> {
        let is_unsettled = move |id: &RecordId| {
            self.records.get(id).is_some_and(|own| own.unsettled(&StoreFacts::default(), now).is_some())
        };
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
            let record = &self.records[id];
            assert_eq!((record.expires(), record.phase() == Phase::Done), (*at, finished), "{id:?}");
            count += 1;
        }
        assert_eq!(count, self.records.len(), "each record is in one order once");
        let due: Order = self.records.iter().filter_map(|(id, record)| Some((record.due()?, *id))).collect();
        assert_eq!(self.due, due);
    }
}

/// The bytes of what a record keeps: its answer, or what it asked.
pub(crate) fn bytes_of(record: &Record) -> usize {
    record.stored().map_or(0, Stored::size) + record.intent().map_or(0, |intent| intent.size())
}
