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

use super::{
    compact::Compact,
    fingerprint::{Fingerprint, KeyTag, Tenant},
    intent::Intent,
    stored_response::Stored,
};
use crate::{clock::Timestamp, rng::Rng};
use std::{fmt, sync::Arc, time::Duration};

/// The shortest `Retry-After` for a request under way: the header counts in whole seconds.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// An owner's proof that it still owns the record. Each begin draws a random one, so that no token recurs after a loss of data.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FencingToken(pub u128);

impl FencingToken {
    /// Draws a random token.
    pub fn draw(entropy: &Rng) -> Self {
        Self(u128::from(entropy.next()) << 64 | u128::from(entropy.next()))
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({:08x})", self.0 as u32)
    }
}

/// How long a host counts as alive after its last heartbeat; its locks end when the lease ends. Hosts renew it early enough for one
/// renewal to fail. It outlasts a restart of the server and is much shorter than a lock.
pub const HOST_LEASE: Duration = Duration::from_secs(15);

/// The id of one of the processes that share a store. Each start draws a random one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// Facts of the store that decide whether a record is up to date and its holder alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreFacts {
    /// When the store last lost data, if ever.
    pub lost: Option<Timestamp>,
    /// The end of the heartbeat lease of the host that holds the record; none if the store does not know the host.
    pub host_until: Option<Timestamp>,
}

impl StoreFacts {
    /// The end of the lease of the holder's host. The store may have lost a renewal: a lease from before the loss counts as running
    /// until all hosts had time to renew.
    fn host_ends(&self) -> Option<Timestamp> {
        self.host_until.map(|until| until.max(self.lost.map_or(until, |lost| lost.after(HOST_LEASE))))
    }
}

/// The number of records without a response at which a store refuses further records of requests without a key: half of its limit. The
/// other half stays for keyed requests, which a full store refuses with 503. Without this share, unsettled writes without a key could fill
/// the store, because their records live as long as those of keyed requests.
pub fn share_without_key(max_records: usize) -> usize {
    max_records.div_ceil(2)
}

/// The input of [`Record::begin`]: what a request asks of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginRequest {
    /// The token that holds the record if the request gets it.
    pub fence: FencingToken,
    /// The host that handles the request; none if hosts do not share the store.
    pub host: Option<HostId>,
    /// The digest of the request's content. Another content under the same key is a mismatch.
    pub fingerprint: Fingerprint,
    /// Whether the caller says that it may have sent the request before (`Triage-Maybe-Sent`).
    pub maybe_sent: bool,
    /// Whether to take the fingerprint's lock too, if the lock is free and the store can do both in one step.
    pub fingerprint_lock: bool,
    /// The key of the upstream's own that its sends carry.
    pub upstream_key: Option<KeyTag>,
    /// How long the request may hold the record. See [`super::Settings::lock`].
    pub lock: Duration,
    /// How long the record is kept. See [`super::Settings::keep`].
    pub keep: Duration,
    /// The tenant whose share of the memory the record counts against; none: no tenant's.
    pub tenant: Option<Tenant>,
    /// How long the record is kept once it has an answer.
    pub keep_answer: Duration,
}

impl BeginRequest {
    /// A request under `settings`, without host, upstream key, lock of the fingerprint or tenant.
    pub fn new(fence: FencingToken, fingerprint: Fingerprint, maybe_sent: bool, settings: &super::Settings) -> Self {
        let (lock, keep) = (settings.lock, settings.keep);
        Self {
            fence,
            host: None,
            fingerprint,
            maybe_sent,
            fingerprint_lock: false,
            upstream_key: None,
            lock,
            keep,
            keep_answer: keep,
            tenant: None,
        }
    }

    /// Sets the upstream's own key that the sends carry.
    #[must_use]
    pub fn with_upstream_key(self, upstream_key: Option<KeyTag>) -> Self {
        Self { upstream_key, ..self }
    }

    /// Sets whether to take the fingerprint's lock too.
    #[must_use]
    pub fn with_fingerprint_lock(self, fingerprint_lock: bool) -> Self {
        Self { fingerprint_lock, ..self }
    }

    /// Sets the tenant whose share of the memory the record counts against.
    #[must_use]
    pub fn of_tenant(self, tenant: Option<Tenant>) -> Self {
        Self { tenant, ..self }
    }

    /// The last moment at which an earlier owner may have sent the request under a record that the store has lost. None once a
    /// lifetime and a lock have passed since the loss: no record of that time would still exist.
    fn before_loss(&self, lost: Option<Timestamp>, kept: Duration, now: Timestamp) -> Option<Timestamp> {
        let lost = lost.filter(|lost| now < lost.after(kept).after(self.lock))?;
        Some(lost.after(self.lock).min(now))
    }

    /// The send that the caller's `Triage-Maybe-Sent` claims, at the latest now. The header proves no send: a caller sets it after
    /// every missing answer.
    fn claimed_send(&self, now: Timestamp) -> Option<Prior> {
        self.maybe_sent.then_some(Prior::assumed(now))
    }

    /// A record that this request holds. `earlier`: the record before; none if there is none.
    fn held(&self, prior: Option<Prior>, earlier: Option<&Record>, now: Timestamp) -> (RecordBegin, Option<Record>) {
        let until = now.after(self.lock);
        let holder =
            Holder { fence: self.fence, host: self.host, key: self.upstream_key, since: now, until, sent: None, prior };
        let begin = prior.map_or(RecordBegin::New, |Prior { sent, doubtful }| RecordBegin::Reconcile {
            sent_ago: now.since(sent),
            doubtful,
        });
        // The store does not know the key of a send that only the caller or a loss of data suggests.
        let unknown = if prior.is_some() { Sends::Mixed } else { Sends::None };
        let mut record = Record {
            fingerprint: self.fingerprint,
            keep: self.keep,
            sends: earlier.map_or(unknown, |earlier| earlier.sends),
            keep_answer: self.keep_answer,
            state: State::Held(holder),
            intent: earlier.filter(|_| prior.is_some()).and_then(|earlier| earlier.intent.clone()),
            due: None,
            given_up: earlier.is_some_and(|earlier| prior.is_some() && earlier.given_up),
        };
        record.schedule(Some(holder.first_end(now)));
        (begin, Some(record))
    }
}

/// The upstream's own key, if every send of a record so far carried the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedSends {
    /// The key.
    pub key: KeyTag,
    /// The time since the first send.
    pub first_ago: Duration,
}

/// Which key of the upstream's own a record's sends carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sends {
    /// No send so far.
    None,
    /// Every send carried this key, the first at this time.
    Keyed(KeyTag, Timestamp),
    /// The keys differ, or a send carried none.
    Mixed,
}

impl Sends {
    fn with(self, key: Option<KeyTag>, now: Timestamp) -> Self {
        match (self, key) {
            (Self::None, Some(key)) => Self::Keyed(key, now),
            (Self::Keyed(first, at), Some(key)) if first == key => Self::Keyed(first, at),
            _ => Self::Mixed,
        }
    }
}

/// How an owner leaves a record without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// The time since this owner's last byte; none if the owner sent nothing.
    pub sent_ago: Option<Duration>,
    /// The time until the next verification; none if no host shall verify the write by itself any more.
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

/// The result of [`Record::begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordBegin {
    /// The request was not sent so far: the fence now holds the record.
    New,
    /// The request was answered before: the kept answer.
    Replay(Arc<Stored>),
    /// Another owner holds the record.
    InFlight {
        /// The time until the caller should repeat: as long as the request has taken so far, at least 1 s, at most the holder's lock.
        retry_after: Duration,
    },
    /// The key belongs to another request.
    Mismatch,
    /// The request may have been sent before, with an unknown effect: the fence now holds the record, and its owner must verify.
    Reconcile {
        /// The shortest possible time since the last byte.
        sent_ago: Duration,
        /// Whether no send is known: only a loss of the store's data, or the caller, suggests one.
        doubtful: bool,
    },
}

/// A record's phase, for listings and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing was sent.
    New,
    /// It may have been sent.
    Sent,
    /// It was answered.
    Done,
}

/// The state of a record for the caller that owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordStatus {
    /// An owner holds the record.
    UnderWay {
        /// The time since that owner began.
        for_now: Duration,
        /// Whether this owner, or one before it, may have sent the request.
        is_sent: bool,
    },
    /// The effect is unknown, and no owner holds the record.
    Unknown {
        /// The time since a byte was last sent.
        sent_ago: Duration,
    },
    /// It was answered.
    Done(Arc<Stored>),
}

/// The result of [`Record::postpone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Postponed {
    /// The verification is due again later.
    Later,
    /// The write is too old: no host verifies it any more. Reported once.
    GivenUp,
    /// Another owner holds the record, or the record is settled: nothing was changed.
    NotUnsettled,
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

/// Why [`Record::restore`] did not write a record back to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRestored {
    /// The store keeps its record, because it has another fingerprint, is settled, or says as much as the host's record. Or the host's
    /// record adds nothing: it has expired, is doubtful, or an administrator cleared it.
    Kept,
    /// A request holds the store's record: try again later.
    Busy,
}

/// The fields of a [`Record`], for a store that writes its own format.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The digest of the request's content.
    pub fingerprint: Fingerprint,
    /// How long the record is kept without an answer.
    pub keep: Duration,
    /// How long the record is kept once it has an answer.
    pub keep_answer: Duration,
    /// The state, with its own fields.
    pub state: StateFields<'a>,
    /// The request to the upstream.
    pub intent: Option<&'a Arc<Intent>>,
    /// When its next verification is due.
    pub due: Option<Timestamp>,
    /// The upstream's own key that the holder sends.
    pub upstream_key: Option<KeyTag>,
    /// The key that every send carried, and the time of the first send; none if the keys differ or a send carried none.
    pub sends: Option<(KeyTag, Timestamp)>,
}

/// A state's fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // as those of the states themselves
pub enum StateFields<'a> {
    Held { fence: FencingToken, since: Timestamp, until: Timestamp, sent: Option<Timestamp>, prior: Option<Timestamp> },
    Unknown { sent: Timestamp, since: Timestamp },
    Done { stored: &'a Compact, since: Timestamp },
    Cleared { since: Timestamp },
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    fence: FencingToken,
    /// The key of the upstream's own that its sends carry.
    key: Option<KeyTag>,
    host: Option<HostId>,
    since: Timestamp,
    until: Timestamp,
    /// When this holder last marked a send; none if it sent nothing.
    sent: Option<Timestamp>,
    prior: Option<Prior>,
}

/// The last moment at which an earlier holder may have sent a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prior {
    sent: Timestamp,
    /// Whether no send is marked, and only a loss of the store's data, or the caller, suggests one.
    doubtful: bool,
}

impl Prior {
    fn assumed(sent: Timestamp) -> Self {
        Self { sent, doubtful: true }
    }
}

impl Holder {
    /// The latest time at which the holder may send: the end of its lock or of its host's lease, the earlier of both.
    fn ends(&self, facts: &StoreFacts) -> Timestamp {
        facts.host_ends().filter(|_| self.host.is_some()).map_or(self.until, |ends| ends.min(self.until))
    }

    /// The earliest time at which the holder may end, right after one of its transitions, which renews its host's lease.
    fn first_end(&self, now: Timestamp) -> Timestamp {
        self.host.map_or(self.until, |_| self.until.min(now.after(HOST_LEASE)))
    }

    /// The last moment at which a crashed holder may have sent a byte: the end of its lock or lease, if it ever marked a send.
    fn last_byte_if_vanished(&self, facts: &StoreFacts) -> Option<Prior> {
        let prior = self.prior.map(|prior| prior.sent);
        let own = self.sent.map(|sent| sent.max(self.ends(facts)));
        Some(Prior { sent: own.max(prior)?, doubtful: self.is_doubtful() })
    }

    /// Whether this holder, or one before it, may have sent a byte.
    fn may_have_sent(&self) -> bool {
        self.sent.is_some() || self.prior.is_some()
    }

    /// Whether only a loss of data, or the caller, suggests a send.
    fn is_doubtful(&self) -> bool {
        self.sent.is_none() && self.prior.is_some_and(|prior| prior.doubtful)
    }
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

    /// The record of a request without a key, marked as sent from the beginning. Orphans live for `orphans`: for that long (and a
    /// lock) after a loss, each request may repeat one whose record was lost.
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

    /// Takes a record whose verification is due: returns the write to verify, and schedules the next verification `lease` from now.
    /// None if it is not due. While a holder is alive, the verification is postponed to the holder's end.
    pub fn take(&mut self, lease: Duration, facts: &StoreFacts, now: Timestamp) -> Option<Arc<Intent>> {
        self.due.filter(|due| *due <= now)?;
        if self.unsettled(facts, now).is_some() {
            self.due = Some(now.after(lease));
            return self.intent.clone();
        }
        if let State::Held(holder) = &self.state
            && !self.expired(now)
        {
            let ends = holder.ends(facts);
            self.schedule(Some(ends).filter(|ends| *ends > now));
        }
        None
    }

    /// Postpones the verification of a record that no host can verify now: by `wait`, or for good once the write is as old as
    /// `longest_age`.
    pub fn postpone(&mut self, wait: Duration, longest_age: Duration, facts: &StoreFacts, now: Timestamp) -> Postponed {
        let Some(age) = self.unsettled(facts, now).filter(|_| self.due.is_some()) else {
            return Postponed::NotUnsettled;
        };
        if age >= longest_age {
            self.schedule_next(None, now);
            return Postponed::GivenUp;
        }
        self.schedule(Some(now.after(wait)));
        Postponed::Later
    }

    /// When the next verification is due.
    pub fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// The request to the upstream; none before a send and once the record is done.
    pub fn intent(&self) -> Option<&Arc<Intent>> {
        self.intent.as_ref()
    }

    fn schedule(&mut self, at: Option<Timestamp>) {
        self.due = at.filter(|_| self.intent.as_ref().is_some_and(|intent| intent.request.is_some()));
    }

    /// Schedules the next verification after `wait`. Without a wait no host verifies the record again, so its request is dropped.
    fn schedule_next(&mut self, wait: Option<Duration>, now: Timestamp) {
        match wait {
            Some(wait) => self.schedule(Some(now.after(wait))),
            None => {
                self.drop_request();
                self.given_up = true;
            }
        }
    }

    /// Drops the request and keeps the names of its upstream and endpoint. No host can verify the record by itself afterwards.
    pub fn drop_request(&mut self) {
        self.due = None;
        if let Some(intent) = self.intent.as_mut().filter(|intent| intent.request.is_some()) {
            *intent = Arc::new(intent.without_request());
        }
    }

    fn done(&mut self, stored: Compact, now: Timestamp) {
        self.keep = self.keep_answer;
        self.state = State::Done { stored, since: now };
        self.intent = None;
        self.due = None;
        self.given_up = false;
    }

    /// Settles an unsettled record for an administrator. `answer`: the answer to replay from now on; none if the write did not take
    /// effect. Returns `None`, and changes nothing, if the record is not unsettled.
    pub fn resolve(&mut self, answer: Option<Compact>, facts: &StoreFacts, now: Timestamp) -> Option<RecordRetention> {
        self.unsettled(facts, now)?;
        let Some(stored) = answer else {
            if !self.is_doubtful() {
                return Some(RecordRetention::Forget);
            }
            // Without a record, the next request with this key would be doubtful again.
            self.state = State::Cleared { since: now };
            self.sends = Sends::None;
            self.intent = None;
            self.due = None;
            self.given_up = false;
            return Some(RecordRetention::Keep);
        };
        self.done(stored, now);
        Some(RecordRetention::Keep)
    }

    /// The time since the last byte, if the effect is unknown and no owner is verifying it.
    pub fn unsettled(&self, facts: &StoreFacts, now: Timestamp) -> Option<Duration> {
        let sent = match &self.state {
            _ if self.expired(now) => None,
            State::Unknown { sent, .. } => Some(*sent),
            State::Held(holder) if holder.ends(facts) <= now => {
                holder.last_byte_if_vanished(facts).map(|prior| prior.sent)
            }
            State::Held(_) | State::Done { .. } | State::Cleared { .. } => None,
        };
        sent.map(|sent| now.since(sent))
    }

    /// The time since the last byte, if the effect is unknown, also while an owner is verifying it. A send that only a loss suggests
    /// counts once its holder has ended: the request that begins after the loss may be the first one.
    pub fn unknown_for(&self, facts: &StoreFacts, now: Timestamp) -> Option<Duration> {
        self.verified_for(facts, now).or_else(|| self.unsettled(facts, now))
    }

    /// The time since the last byte of an earlier owner, while a holder that has sent nothing itself is verifying its effect.
    pub fn verified_for(&self, facts: &StoreFacts, now: Timestamp) -> Option<Duration> {
        match &self.state {
            State::Held(holder) if holder.sent.is_none() && now < holder.ends(facts) && !self.expired(now) => {
                holder.prior.filter(|prior| !prior.doubtful).map(|prior| now.since(prior.sent))
            }
            _ => None,
        }
    }

    /// The upstream's own key, if every send carried it; none if a send may have carried another key or none.
    pub fn keyed_sends(&self, now: Timestamp) -> Option<KeyedSends> {
        match self.sends {
            Sends::Keyed(key, first) => Some(KeyedSends { key, first_ago: now.since(first) }),
            Sends::None | Sends::Mixed => None,
        }
    }

    /// The state for the caller that owns the record; none if the record has expired, or nothing can have taken effect.
    pub fn status(&self, facts: &StoreFacts, now: Timestamp) -> Option<RecordStatus> {
        match &self.state {
            _ if self.expired(now) => None,
            State::Cleared { .. } => None,
            State::Done { stored, .. } => Some(RecordStatus::Done(Arc::new(stored.open()))),
            State::Held(holder) if now < holder.ends(facts) => {
                Some(RecordStatus::UnderWay { for_now: now.since(holder.since), is_sent: holder.may_have_sent() })
            }
            State::Held(_) | State::Unknown { .. } => {
                self.unsettled(facts, now).map(|sent_ago| RecordStatus::Unknown { sent_ago })
            }
        }
    }

    /// When the record expires: a new one when its lock ends, a sent one that is still held `keep` after its lock ends, any other
    /// `keep` after its last change.
    pub fn expires(&self) -> Timestamp {
        match &self.state {
            State::Held(holder) if !holder.may_have_sent() => holder.until,
            State::Held(holder) => holder.until.after(self.keep),
            State::Unknown { since, .. } | State::Done { since, .. } | State::Cleared { since } => {
                since.after(self.keep)
            }
        }
    }

    /// The host that holds the record; none if no owner does, or hosts do not share the store.
    pub fn host(&self) -> Option<HostId> {
        match &self.state {
            State::Held(holder) => holder.host,
            State::Unknown { .. } | State::Done { .. } | State::Cleared { .. } => None,
        }
    }

    /// Whether only a loss of the store's data, or the caller, suggests that a byte was sent.
    pub fn is_doubtful(&self) -> bool {
        match &self.state {
            State::Held(holder) => holder.is_doubtful(),
            State::Unknown { doubtful, .. } => *doubtful,
            State::Done { .. } | State::Cleared { .. } => false,
        }
    }

    /// The phase that listings show. A cleared record counts as new.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Held(holder) if !holder.may_have_sent() => Phase::New,
            State::Cleared { .. } => Phase::New,
            State::Held(_) | State::Unknown { .. } => Phase::Sent,
            State::Done { .. } => Phase::Done,
        }
    }

    /// The kept answer; none if the record is not done.
    pub fn stored(&self) -> Option<&Compact> {
        match &self.state {
            State::Done { stored, .. } => Some(stored),
            State::Held(_) | State::Unknown { .. } | State::Cleared { .. } => None,
        }
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

    /// When the record took its present state.
    pub fn since(&self) -> Timestamp {
        match &self.state {
            State::Held(Holder { since, .. })
            | State::Unknown { since, .. }
            | State::Cleared { since }
            | State::Done { since, .. } => *since,
        }
    }

    /// Restores a host's knowledge to a store that has lost data: the record to write.
    ///
    /// A doubtful record, which began anew only because of the loss, is overwritten. If two hosts know a write as unknown, the later
    /// byte counts. A known answer overrides both.
    ///
    /// # Errors
    /// [`NotRestored`] if the store's record must stay as it is.
    pub fn restore(
        existing: Option<&Self>,
        known: &Self,
        facts: &StoreFacts,
        now: Timestamp,
    ) -> Result<Self, NotRestored> {
        let is_over = match &known.state {
            State::Held(holder) => holder.until <= now,
            State::Cleared { .. } => true,
            State::Unknown { .. } | State::Done { .. } => known.expired(now),
        };
        if is_over || known.is_doubtful() {
            return Err(NotRestored::Kept);
        }
        // After a loss, the end of verification is reported once more.
        let known = &Self { given_up: false, ..known.clone() };
        let Some(there) = existing.filter(|there| !there.expired(now)) else { return Ok(known.clone()) };
        if there.fingerprint != known.fingerprint {
            return Err(NotRestored::Kept);
        }
        match (&there.state, &known.state) {
            (State::Done { .. } | State::Cleared { .. }, _) => Err(NotRestored::Kept),
            _ if there.is_doubtful() => Ok(known.clone()),
            (State::Held(holder), _) if now < holder.ends(facts) => Err(NotRestored::Busy),
            (_, State::Done { .. }) => Ok(known.clone()),
            (State::Unknown { sent: own, .. }, State::Unknown { sent, since, .. }) => {
                let state = State::Unknown { sent: *own.max(sent), doubtful: false, since: *since };
                Ok(Self { state, sends: Sends::Mixed, ..known.clone() })
            }
            _ => Err(NotRestored::Kept),
        }
    }

    /// The fields, for a store that writes its own format.
    pub fn fields(&self) -> Fields<'_> {
        let state = match &self.state {
            State::Held(Holder { fence, since, until, sent, prior, .. }) => StateFields::Held {
                fence: *fence,
                since: *since,
                until: *until,
                sent: *sent,
                prior: prior.map(|prior| prior.sent),
            },
            State::Unknown { sent, since, .. } => StateFields::Unknown { sent: *sent, since: *since },
            State::Done { stored, since } => StateFields::Done { stored, since: *since },
            State::Cleared { since } => StateFields::Cleared { since: *since },
        };
        Fields {
            fingerprint: self.fingerprint,
            keep: self.keep,
            keep_answer: self.keep_answer,
            state,
            intent: self.intent.as_ref(),
            due: self.due,
            upstream_key: match &self.state {
                State::Held(holder) => holder.key,
                _ => None,
            },
            sends: match self.sends {
                Sends::Keyed(key, first) => Some((key, first)),
                Sends::None | Sends::Mixed => None,
            },
        }
    }

    /// Whether the record counts as deleted, although the store may still hold it.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires() <= now
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
