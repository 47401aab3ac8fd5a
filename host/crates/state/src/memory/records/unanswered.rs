//! Requests without a key that have no response yet, in memory.

use crate::{
    clock::Timestamp,
    idempotency::{
        Arriving, Likeness, RecordId, RequestDigest, Ticket,
        unanswered::{Arrival, Unanswered},
    },
};
use parking_lot::{Mutex, MutexGuard};
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// Enough that threads rarely contend. Digests are hashes, so they spread evenly.
const SHARDS: usize = 16;

/// Between two sweeps of a full store: each goes through all entries.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

type Lists = HashMap<RequestDigest, Unanswered, BuildHasherDefault<DigestBytes>>;

/// Uses a digest's own bytes as its hash, because they are a keyed hash already. Other bytes select the shard, so that the keys of a
/// shard differ in all bits.
#[derive(Default)]
struct DigestBytes(u64);

impl Hasher for DigestBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(second_word) = bytes.get(8..).and_then(<[u8]>::first_chunk) {
            self.0 = u64::from_le_bytes(*second_word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The lists of all digests.
pub(super) struct Unanswereds {
    shards: [Mutex<Lists>; SHARDS],
    held: AtomicUsize,
    swept: AtomicU64,
    kept_longest: AtomicU64,
    /// Secret and random, so that no caller can construct two requests with the same digest.
    key: [u64; 2],
}

impl Unanswereds {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            held: AtomicUsize::new(0),
            swept: AtomicU64::new(0),
            kept_longest: AtomicU64::new(0),
            // The standard library seeds each state from the operating system's random numbers.
            key: std::array::from_fn(|_| RandomState::new().hash_one(())),
        }
    }

    /// Number of entries in all lists.
    pub(super) fn len(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// The digest of a request, valid in this process only: SipHash-1-3 with 128 bits, at an eighth of the cost of SHA-256.
    pub(super) fn digest(&self, request: &Likeness<'_>) -> RequestDigest {
        let mut hasher = SipHasher13::new_with_keys(self.key[0], self.key[1]);
        let mut part = |bytes: &[u8]| {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        };
        for (name, value) in request.distinguishing_headers {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        let identity = &request.identity;
        match request.fingerprint {
            Some(fingerprint) => part(fingerprint.as_bytes()),
            None => {
                part(&request.asking.len().to_le_bytes());
                for (name, value) in request.asking {
                    part(name.as_bytes());
                    part(value);
                }
                [
                    identity.upstream.as_bytes(),
                    identity.endpoint.as_bytes(),
                    identity.method.as_str().as_bytes(),
                    identity.path_and_query.as_bytes(),
                    identity.body,
                ]
                .into_iter()
                .for_each(&mut part);
            }
        }
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(&hasher.finish128().as_bytes());
        RequestDigest::from_bytes(digest)
    }

    pub(super) fn arrive(&self, arriving: &Arriving, now: Timestamp) -> Arrival {
        let Ticket { digest, id, owner, terms } = arriving.ticket;
        self.kept_longest.fetch_max(crate::clock::micros(terms.kept), Relaxed);
        if self.len() >= arriving.max {
            self.sweep_a_full_store(now);
        }
        let mut lists = self.shard(digest);
        let list = lists.entry(digest).or_default();
        let before = list.len();
        let arrival = if self.len() < arriving.max {
            list.arrive(id, owner, terms, now)
        } else {
            list.take_over(owner, terms, now).map_or(Arrival::Full, Arrival::Adopted)
        };
        self.changed(&mut lists, digest, before);
        arrival
    }

    pub(super) fn recheck_orphan(&self, ticket: Ticket, now: Timestamp) -> Option<RecordId> {
        self.change(ticket.digest, |list| list.recheck_orphan(ticket.id, ticket.owner, ticket.terms, now)).flatten()
    }

    pub(super) fn abandon(&self, ticket: Ticket, now: Timestamp) -> bool {
        self.change(ticket.digest, |list| list.abandon(ticket.id, ticket.owner, ticket.terms, now)).unwrap_or(false)
    }

    pub(super) fn remove(&self, ticket: Ticket) -> bool {
        self.change(ticket.digest, |list| list.remove(ticket.id, ticket.owner)).unwrap_or(false)
    }

    /// Removes expired orphans.
    pub(super) fn sweep(&self, now: Timestamp) {
        let kept = Duration::from_micros(self.kept_longest.load(Relaxed));
        for shard in &self.shards {
            let mut forgotten = 0;
            shard.lock().retain(|_, list| {
                forgotten += list.purge_expired(kept, now);
                !list.is_empty()
            });
            self.held.fetch_sub(forgotten, Relaxed);
        }
    }

    fn sweep_a_full_store(&self, now: Timestamp) {
        let due = |last| (now.since(Timestamp(last)) >= SWEEP_EVERY).then_some(now.0);
        if self.swept.fetch_update(Relaxed, Relaxed, due).is_ok() {
            self.sweep(now);
        }
    }

    fn shard(&self, digest: RequestDigest) -> MutexGuard<'_, Lists> {
        let [first, ..] = digest.as_bytes();
        self.shards[usize::from(*first) % SHARDS].lock()
    }

    fn change<T>(&self, digest: RequestDigest, change: impl FnOnce(&mut Unanswered) -> T) -> Option<T> {
        let mut lists = self.shard(digest);
        let list = lists.get_mut(&digest)?;
        let before = list.len();
        let result = change(list);
        self.changed(&mut lists, digest, before);
        Some(result)
    }

    /// Updates the count after a change, and removes an empty list.
    fn changed(&self, lists: &mut Lists, digest: RequestDigest, before: usize) {
        let after = lists.get(&digest).map_or(0, Unanswered::len);
        if after == 0 {
            lists.remove(&digest);
        }
        if after > before {
            self.held.fetch_add(after - before, Relaxed);
        } else {
            self.held.fetch_sub(before - after, Relaxed);
        }
    }
}
