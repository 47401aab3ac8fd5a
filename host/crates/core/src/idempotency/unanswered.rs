//! Equal requests without a key that have no answer yet, as pure functions: `(list, event, now) -> list`.
//!
//! Each entry has an owner, which renews the entry's lease. If the caller disconnects or the host crashes, the entry becomes an
//! *orphan*. The next equal request adopts the oldest orphan and becomes its owner. An entry with a living owner is never given to
//! another request, so that equal requests whose callers still wait are never merged.

use super::{fingerprint::RecordId, record::FencingToken};
use crate::clock::Timestamp;
use smallvec::SmallVec;
use std::time::Duration;

/// The maximum number of listed equal requests. A request above it proceeds without an entry.
pub const MAX_EQUAL: usize = 64;

/// If the clock was set back by more than this, entries that lie in the future are moved back too.
const MAX_CLOCK_STEP: Duration = Duration::from_secs(1);

/// How long entries live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long an entry counts as owned after its owner's last renewal. [`Duration::MAX`] if no owner can crash.
    pub lease: Duration,
    /// How long an orphan is kept. See [`super::Settings::orphans`].
    pub kept: Duration,
}

/// One request's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    id: RecordId,
    owner: FencingToken,
    /// The time of arrival, which orders the list. Unique in its list.
    since: Timestamp,
    alive_until: Timestamp,
}

/// The entries of equal requests. Most lists have one entry, which needs no allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unanswered(SmallVec<[Listed; 1]>);

/// The result of [`Unanswered::arrive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The request owns this orphan now, and has no entry of its own.
    Adopted(RecordId),
    /// There is no orphan: the request has an entry.
    Listed {
        /// Whether the list has other entries, all with living owners.
        others: bool,
    },
    /// There is no orphan, and no entry for the request: the list has [`MAX_EQUAL`] entries.
    Full,
}

impl Unanswered {
    /// A new request adopts the oldest orphan, or gets an entry.
    pub fn arrive(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> Arrival {
        if let Some(adopted) = self.take_over(owner, terms, now) {
            return Arrival::Adopted(adopted);
        }
        if self.0.len() >= MAX_EQUAL {
            return Arrival::Full;
        }
        let others = !self.0.is_empty();
        self.list(id, owner, terms, now);
        Arrival::Listed { others }
    }

    fn list(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) {
        let last = self.0.iter().map(|entry| entry.since).max();
        let since = last.map_or(now, |last| now.max(last.after(Duration::from_micros(1))));
        self.0.push(Listed { id, owner, since, alive_until: now.after(terms.lease) });
    }

    /// Lists a request again whose entry the store has lost, although its lease has not expired. False: the entry exists, or the list
    /// is full.
    pub fn list_again(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let is_lost = self.0.len() < MAX_EQUAL && self.0.iter().all(|entry| entry.id != id);
        if is_lost {
            self.list(id, owner, terms, now);
        }
        is_lost
    }

    /// Adopts the oldest orphan, if there is one.
    pub fn take_over(&mut self, owner: FencingToken, terms: Terms, now: Timestamp) -> Option<RecordId> {
        self.purge_expired(terms.kept, now);
        self.adopt(owner, terms, now)
    }

    /// Checks for an orphan once more, for a listed request that has sent nothing. If it adopts one, it gives up its own entry.
    pub fn recheck_orphan(
        &mut self,
        id: RecordId,
        owner: FencingToken,
        terms: Terms,
        now: Timestamp,
    ) -> Option<RecordId> {
        self.purge_expired(terms.kept, now);
        let own = self.position(id, owner)?;
        // The request's own entry may have expired: remove it first, so that the request does not adopt itself.
        let before = self.0.swap_remove(own);
        let adopted = self.adopt(owner, terms, now);
        if adopted.is_none() {
            self.0.push(before);
        }
        adopted
    }

    /// Renews the owner's lease. False: another owner has the entry, or it does not exist.
    pub fn renew(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let Some(own) = self.position(id, owner) else { return false };
        self.0[own].alive_until = now.after(terms.lease);
        true
    }

    /// The owner's caller has disconnected: the entry is an orphan from now on.
    pub fn abandon(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let Some(own) = self.position(id, owner) else { return false };
        self.0[own].alive_until = now;
        true
    }

    /// Removes the entry once its caller has the answer. False: another owner has the entry, or it does not exist.
    pub fn remove(&mut self, id: RecordId, owner: FencingToken) -> bool {
        self.position(id, owner).map(|own| self.0.swap_remove(own)).is_some()
    }

    /// Removes orphans that are older than `kept`; returns their number.
    pub fn purge_expired(&mut self, kept: Duration, now: Timestamp) -> usize {
        let ahead = self.0.iter().map(|entry| entry.since.since(now)).max().unwrap_or_default();
        if ahead > MAX_CLOCK_STEP {
            for entry in &mut self.0 {
                entry.since = entry.since.before(ahead);
                entry.alive_until = entry.alive_until.before(ahead);
            }
        }
        let before = self.0.len();
        self.0.retain(|entry| now < entry.alive_until.after(kept));
        before - self.0.len()
    }

    /// The number of entries, orphans included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn adopt(&mut self, owner: FencingToken, terms: Terms, now: Timestamp) -> Option<RecordId> {
        let orphans = self.0.iter_mut().filter(|entry| entry.alive_until <= now);
        let oldest = orphans.min_by_key(|entry| entry.since)?;
        oldest.owner = owner;
        oldest.alive_until = now.after(terms.lease);
        Some(oldest.id)
    }

    fn position(&self, id: RecordId, owner: FencingToken) -> Option<usize> {
        self.0.iter().position(|entry| entry.id == id && entry.owner == owner)
    }
}

#[cfg(test)]
#[path = "unanswered/tests.rs"]
mod tests;
