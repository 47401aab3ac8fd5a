//! A record's transitions: pure, `(record, event, now) -> record`.
//!
//! ```text
//!            begin            sent              finish
//!   (none) --------> new -----------> sent ------------> done --keep--> (none)
//!      ^              |                |  ^
//!      |<- leave, lock ran out         |  | begin: Reconcile
//!      |<------------ release ---------+  |
//!                                leave, lock ran out: unknown
//! ```
//!
//! A sent record whose request is kept has a time for its next verification. [`Record::take`] postpones that time, so that only one
//! host verifies the record. If a holder crashes, the verification is due when its lock or its host's lease ends.

mod begin;
mod fields;
mod owner;
mod settling;
mod status;

pub use begin::{BeginRequest, RecordBegin, share_without_key};
pub use fields::{Fields, NotRestored, StateFields};
pub use owner::{FencingToken, HOST_LEASE, HostId, KeyedSends, StoreFacts};
pub use settling::Postponed;
pub use status::{Phase, RecordStatus};

use super::{compact::Compact, fingerprint::Fingerprint, intent::Intent};
use crate::clock::Timestamp;
use owner::{Holder, Prior, Sends};
use std::{sync::Arc, time::Duration};

/// The shortest `Retry-After` for a request under way: the header counts in whole seconds.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How an owner leaves a record without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// The time since this owner's last byte; none if the owner sent nothing.
    pub sent_ago: Option<Duration>,
    /// The time until the next verification; none if hosts do not verify the write by themselves any more.
    pub verify_in: Option<Duration>,
    /// The request to the upstream, if the owner has not written it with a mark ([`Record::sent`]).
    pub intent: Option<Arc<Intent>>,
}

impl Leaving {
    /// Leaves a record that any host may verify at once.
    pub fn at_once(sent_ago: Option<Duration>) -> Self {
        Self { sent_ago, verify_in: Some(Duration::ZERO), intent: None }
    }
}

/// Whether a store keeps a record after a transition that may end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordRetention {
    /// Keep the changed record.
    Keep,
    /// Delete the record: its key is free.
    Forget,
}

/// The fence does not hold the record, or no longer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// One key's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    fingerprint: Fingerprint,
    keep: Duration,
    sends: Sends,
    keep_answer: Duration,
    state: State,
    /// The request to the upstream; none before a send and once the record is done.
    intent: Option<Arc<Intent>>,
    /// When the next verification is due; only where the request is kept.
    due: Option<Timestamp>,
    /// Whether verification was given up. That is reported once, and verification resumes only if the write is sent again.
    given_up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Held(Holder),
    Unknown {
        sent: Timestamp,
        doubtful: bool,
        since: Timestamp,
    },
    /// An administrator resolved the record as not applied: the next request is sent.
    Cleared {
        since: Timestamp,
    },
    Done {
        stored: Compact,
        since: Timestamp,
    },
}

impl Record {
    /// The record of a request that began without a record and ended with an unknown effect.
    pub fn unknown(opening: &BeginRequest, leaving: &Leaving, now: Timestamp) -> Self {
        let sent = now.before(leaving.sent_ago.unwrap_or_default());
        let mut record = Self {
            fingerprint: opening.fingerprint,
            keep: opening.keep,
            // The time of the first send is unknown.
            sends: Sends::Mixed,
            keep_answer: opening.keep_answer,
            state: State::Unknown { sent, doubtful: false, since: now },
            intent: leaving.intent.clone(),
            due: None,
            given_up: false,
        };
        record.schedule_next(leaving.verify_in, now);
        record
    }

    /// The record of a request without a key, marked as sent from the beginning. `orphans`: how long an orphan is kept. For that time and
    /// the time of a lock after a loss of data, the request may repeat an earlier one whose record was lost, so its record begins as
    /// unknown.
    pub fn listed(
        opening: &BeginRequest,
        orphans: Duration,
        intent: Option<Arc<Intent>>,
        lost: Option<Timestamp>,
        now: Timestamp,
    ) -> (RecordBegin, Self) {
        let prior = opening.before_loss(lost, orphans, now).map(Prior::assumed);
        let until = now.after(opening.lock);
        let key = opening.upstream_key;
        let holder = Holder { fence: opening.fence, host: None, key, since: now, until, sent: Some(now), prior };
        let earlier = if prior.is_some() { Sends::Mixed } else { Sends::None };
        let mut record = Self {
            fingerprint: opening.fingerprint,
            keep: opening.keep,
            keep_answer: opening.keep_answer,
            sends: earlier.with(key, now),
            state: State::Held(holder),
            intent,
            due: None,
            given_up: false,
        };
        record.schedule(Some(until));
        let begin = prior.map_or(RecordBegin::New, |prior| RecordBegin::Reconcile {
            sent_ago: now.since(prior.sent),
            doubtful: true,
        });
        (begin, record)
    }

    /// Extends the owner's lock to at least `lock` from now.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn keep_alive(&mut self, fence: FencingToken, lock: Duration, now: Timestamp) -> Result<(), Lost> {
        let holder = self.holder(fence, now)?;
        holder.until = holder.until.max(now.after(lock));
        let until = holder.until;
        self.schedule(Some(until));
        Ok(())
    }

    /// Begins a request: its result, and the record to write (none: leave the record as it is).
    ///
    /// Another payload is a mismatch in every phase. If the holder's lock or its host's lease has ended, the request takes the record
    /// over: as new if nothing was sent under it, else to reconcile. After a loss, an unknown key may be one whose record was lost. A
    /// record that has not changed since before the loss may lack its latest changes.
    pub fn begin(
        existing: Option<&Self>,
        opening: &BeginRequest,
        facts: &StoreFacts,
        now: Timestamp,
    ) -> (RecordBegin, Option<Self>) {
        let Some(record) = existing.filter(|record| !record.expired(now)) else {
            let assumed = || opening.before_loss(facts.lost, opening.keep, now).map(Prior::assumed);
            return opening.held(opening.claimed_send(now).or_else(assumed), None, now);
        };
        if record.fingerprint != opening.fingerprint {
            return (RecordBegin::Mismatch, None);
        }
        // The store may have returned with older data: a later state of the record, or a mark of a send, may be lost.
        let outdated = facts.lost.filter(|lost| record.since() <= *lost);
        let outdated = outdated.and_then(|lost| opening.before_loss(Some(lost), opening.keep, now));
        let taken_over = |known: Option<Prior>, claimed_send: Option<Prior>| {
            let known = known.or(claimed_send);
            let prior = match (known, outdated) {
                (Some(known), Some(outdated)) => Some(Prior { sent: known.sent.max(outdated), ..known }),
                (known, outdated) => known.or(outdated.map(Prior::assumed)),
            };
            let (begin, mut begun) = opening.held(prior, Some(record), now);
            if let Some(begun) = begun.as_mut().filter(|_| claimed_send.is_some() || outdated.is_some()) {
                begun.sends = Sends::Mixed;
            }
            (begin, begun)
        };
        match &record.state {
            State::Done { stored, .. } => (RecordBegin::Replay(Arc::new(stored.open())), None),
            State::Unknown { sent, doubtful, .. } => taken_over(Some(Prior { sent: *sent, doubtful: *doubtful }), None),
            State::Cleared { .. } => taken_over(None, None),
            // The same owner repeats its begin: a store on the network may have executed the first one and lost its reply.
            State::Held(holder)
                if now < holder.ends(facts) && holder.fence == opening.fence && holder.sent.is_none() =>
            {
                opening.held(holder.prior, Some(record), now)
            }
            State::Held(holder) if now < holder.ends(facts) => {
                let retry_after = now.since(holder.since).max(MIN_RETRY_AFTER).min(holder.ends(facts).since(now));
                (RecordBegin::InFlight { retry_after }, None)
            }
            State::Held(holder) => {
                let known = holder.last_byte_if_vanished(facts);
                taken_over(known, opening.claimed_send(now).filter(|_| known.is_none()))
            }
        }
    }

    /// Marks a send, right before its first byte. `intent`: the request to the upstream, if the record does not have it yet.
    ///
    /// # Errors
    /// [`Lost`] if the lock ran out or another owner has the record: nothing may be sent.
    pub fn sent(&mut self, fence: FencingToken, intent: Option<Arc<Intent>>, now: Timestamp) -> Result<(), Lost> {
        let holder = self.holder(fence, now)?;
        if holder.until <= now {
            return Err(Lost);
        }
        holder.sent = Some(now);
        let (first_end, key) = (holder.first_end(now), holder.key);
        self.sends = self.sends.with(key, now);
        self.given_up = false;
        self.intent = intent.or_else(|| self.intent.take());
        self.schedule(Some(first_end));
        Ok(())
    }

    /// Keeps the answer. The lock may have ended, as long as no other owner took the record over.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn finish(&mut self, fence: FencingToken, stored: impl Into<Compact>, now: Timestamp) -> Result<(), Lost> {
        self.holder(fence, now)?;
        self.done(stored.into(), now);
        Ok(())
    }

    /// Ends a record whose owner knows that the write did not take effect.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn release(&mut self, fence: FencingToken, now: Timestamp) -> Result<RecordRetention, Lost> {
        self.holder(fence, now).map(|_| RecordRetention::Forget)
    }

    /// The owner gives the record back without an answer. If neither this owner nor an earlier one sent anything, the record is
    /// deleted, else its effect is unknown from now on.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn leave(&mut self, fence: FencingToken, leaving: &Leaving, now: Timestamp) -> Result<RecordRetention, Lost> {
        let holder = self.holder(fence, now)?;
        let own = leaving.sent_ago.map(|ago| now.before(ago).max(holder.sent.unwrap_or_default()));
        let Some(sent) = own.max(holder.prior.map(|prior| prior.sent)) else { return Ok(RecordRetention::Forget) };
        let doubtful = own.is_none() && holder.prior.is_some_and(|prior| prior.doubtful);
        self.state = State::Unknown { sent, doubtful, since: now };
        self.intent = leaving.intent.clone().or_else(|| self.intent.take());
        self.given_up &= own.is_none();
        self.schedule_next(leaving.verify_in.filter(|_| !self.given_up), now);
        Ok(RecordRetention::Keep)
    }

    fn done(&mut self, stored: Compact, now: Timestamp) {
        self.keep = self.keep_answer;
        self.state = State::Done { stored, since: now };
        self.intent = None;
        self.due = None;
        self.given_up = false;
    }

    /// The record as its new owner knows it, for [`Record::restore`]; none if `begin` did not give the record.
    pub fn begun(opening: &BeginRequest, begin: &RecordBegin, now: Timestamp) -> Option<Self> {
        let prior = match begin {
            RecordBegin::New => None,
            RecordBegin::Reconcile { sent_ago, doubtful } => {
                Some(Prior { sent: now.before(*sent_ago), doubtful: *doubtful })
            }
            RecordBegin::Replay(_) | RecordBegin::InFlight { .. } | RecordBegin::Mismatch => return None,
        };
        opening.held(prior, None, now).1
    }

    fn holder(&mut self, fence: FencingToken, now: Timestamp) -> Result<&mut Holder, Lost> {
        let expired = self.expired(now);
        match &mut self.state {
            State::Held(holder) if holder.fence == fence && !expired => Ok(holder),
            _ => Err(Lost),
        }
    }
}

#[cfg(test)]
#[path = "record/tests.rs"]
mod tests;
