//! Equal requests without a key that have no answer yet: pure, `(list, event, now) -> list`.
//!
//! Each has an owner, which holds its place for a lease and renews it. An entry without a living owner is an *orphan*: its caller
//! has gone, or its host. The next equal request takes the oldest orphan over, and is then its owner. No entry with a living owner
//! is given to another request, so that equal requests whose callers wait are never merged.

use super::{fingerprint::RecordId, record::FencingToken};
use crate::clock::Timestamp;
use std::time::Duration;

/// Equal requests that are listed at most: a caller that sends more at once goes on without a place.
pub const MAX_EQUAL: usize = 64;

/// A clock that was set back by more than this moves what lies ahead with it.
const SET_BACK: Duration = Duration::from_secs(1);

/// How long entries live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long an owner holds its place without a word. [`Duration::MAX`] where no owner can vanish.
    pub lease: Duration,
    /// How long an orphan is kept. See [`super::Settings::orphans`].
    pub kept: Duration,
}

/// One request's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    id: RecordId,
    owner: FencingToken,
    /// Its place in the order of arrival. Unique in its list.
    since: Timestamp,
    alive_until: Timestamp,
}

/// The entries of equal requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unanswered(Vec<Listed>);

/// What a request finds when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// An orphan, which the request owns now. It has no entry of its own.
    Adopted(RecordId),
    /// None: the request is listed.
    Listed {
        /// Whether equal requests with living owners are listed too.
        others: bool,
    },
    /// None, and the request is not listed: there are [`MAX_EQUAL`] already.
    Full,
}

impl Unanswered {
    /// A request comes. It takes the oldest orphan over, or is listed.
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

    /// The owner of a place that has not lapsed is told that it is not listed: the store has lost it with other data. False: it is
    /// listed, or there is no room.
    pub fn list_again(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let is_lost = self.0.len() < MAX_EQUAL && self.0.iter().all(|entry| entry.id != id);
        if is_lost {
            self.list(id, owner, terms, now);
        }
        is_lost
    }

    /// Takes the oldest orphan over, where there is one.
    pub fn take_over(&mut self, owner: FencingToken, terms: Terms, now: Timestamp) -> Option<RecordId> {
        self.purge_expired(terms.kept, now);
        self.adopt(owner, terms, now)
    }

    /// A listed request that has sent nothing looks once more: if there is an orphan it gives its own entry up for that.
    pub fn look_again(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> Option<RecordId> {
        self.purge_expired(terms.kept, now);
        let own = self.place(id, owner)?;
        // Its own place may have lapsed: it is no orphan to itself.
        let before = self.0.swap_remove(own);
        let adopted = self.adopt(owner, terms, now);
        if adopted.is_none() {
            self.0.push(before);
        }
        adopted
    }

    /// The owner lives. False: the entry is another's, or gone.
    pub fn renew(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let Some(own) = self.place(id, owner) else { return false };
        self.0[own].alive_until = now.after(terms.lease);
        true
    }

    /// The owner's caller has gone: the entry is an orphan from now on.
    pub fn abandon(&mut self, id: RecordId, owner: FencingToken, terms: Terms, now: Timestamp) -> bool {
        self.purge_expired(terms.kept, now);
        let Some(own) = self.place(id, owner) else { return false };
        self.0[own].alive_until = now;
        true
    }

    /// The owner's caller has its answer. False: the entry is another's, or gone.
    pub fn remove(&mut self, id: RecordId, owner: FencingToken) -> bool {
        self.place(id, owner).map(|own| self.0.swap_remove(own)).is_some()
    }

    /// Forgets what has been an orphan for long enough, and how many that were.
    pub fn purge_expired(&mut self, kept: Duration, now: Timestamp) -> usize {
        let ahead = self.0.iter().map(|entry| entry.since.since(now)).max().unwrap_or_default();
        if ahead > SET_BACK {
            for entry in &mut self.0 {
                entry.since = entry.since.before(ahead);
                entry.alive_until = entry.alive_until.before(ahead);
            }
        }
        let before = self.0.len();
        self.0.retain(|entry| now < entry.alive_until.after(kept));
        before - self.0.len()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
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

    fn place(&self, id: RecordId, owner: FencingToken) -> Option<usize> {
        self.0.iter().position(|entry| entry.id == id && entry.owner == owner)
    }
}

#[cfg(test)]
#[path = "unanswered/tests.rs"]
mod tests;
