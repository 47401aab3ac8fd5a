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
//! A record that was sent and whose request is kept has a time of its next verification. [`Record::take`] moves that time
//! ahead, so that of all hosts one verifies it; a holder that vanishes leaves it due when its lock or its host's lease ends.

use super::{
    compact::Compact,
    fingerprint::{Fingerprint, KeyTag, Tenant},
    intent::Intent,
    stored_response::Stored,
};
use crate::{clock::Timestamp, rng::Rng};
use std::{fmt, sync::Arc, time::Duration};

/// The least time that a caller is told to wait for a request under way: HTTP's Retry-After counts in seconds.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// An owner's proof that it is still the owner: random, drawn anew for every begin, so that it never comes back after a loss.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FencingToken(pub u128);

impl FencingToken {
    /// A new one.
    pub fn draw(entropy: &Rng) -> Self {
        Self(u128::from(entropy.next()) << 64 | u128::from(entropy.next()))
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({:08x})", self.0 as u32)
    }
}

/// How long a host counts as alive after its last heartbeat. Its locks end with it. It is renewed well before, so that one
/// renewal may fail; long beside a server's restart, short beside a lock.
pub const HOST_LEASE: Duration = Duration::from_secs(15);

/// One process among those that share a store: random, drawn anew for every start.
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

/// What a store knows beside a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreFacts {
    /// When the store last lost data, if ever.
    pub lost: Option<Timestamp>,
    /// The end of the heartbeat lease of the host that holds the record; none where the store does not know the host.
    pub host_until: Option<Timestamp>,
}

impl StoreFacts {
    /// The end of the holder's host. A renewal may have been among what was lost: until all hosts had time to renew, a lease from
    /// before the loss says nothing.
    fn host_ends(&self) -> Option<Timestamp> {
        self.host_until.map(|until| until.max(self.lost.map_or(until, |lost| lost.after(HOST_LEASE))))
    }
}

/// Records without an answer that a store may hold before it refuses those of requests without a key. They are kept for as long as
/// those with keys, and a key that finds no room is refused.
pub fn share_without_key(max_records: usize) -> usize {
    max_records.div_ceil(2)
}

/// What a request brings to its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginRequest {
    /// The right that it asks for.
    pub fence: FencingToken,
    /// The host that holds the record, where hosts share the store.
    pub host: Option<HostId>,
    /// What it asks of the upstream.
    pub fingerprint: Fingerprint,
    /// Whether its caller may have sent it before.
    pub maybe_sent: bool,
    /// Whether it takes its turn among equal requests too, where the turn is free and the store can do both in one step.
    pub turn: bool,
    /// The key of the upstream's own that its sends carry.
    pub upstream_key: Option<KeyTag>,
    /// How long it may hold the record. See [`super::Settings::lock`].
    pub lock: Duration,
    /// How long the record is kept. See [`super::Settings::keep`].
    pub keep: Duration,
    /// The tenant whose share of the memory it counts against; none: that of no tenant.
    pub tenant: Option<Tenant>,
    /// How long it is kept once it has an answer.
    pub keep_answer: Duration,
}

impl BeginRequest {
    /// An opening under `settings`.
    pub fn new(fence: FencingToken, fingerprint: Fingerprint, maybe_sent: bool, settings: &super::Settings) -> Self {
        let (lock, keep) = (settings.lock, settings.keep);
        Self {
            fence,
            host: None,
            fingerprint,
            maybe_sent,
            turn: false,
            upstream_key: None,
            lock,
            keep,
            keep_answer: keep,
            tenant: None,
        }
    }

    /// The same, for sends that carry a key of the upstream's own.
    #[must_use]
    pub fn with_upstream_key(self, upstream_key: Option<KeyTag>) -> Self {
        Self { upstream_key, ..self }
    }

    /// The same, with its turn.
    #[must_use]
    pub fn with_turn(self, turn: bool) -> Self {
        Self { turn, ..self }
    }

    /// The same, for one of several tenants.
    #[must_use]
    pub fn of_tenant(self, tenant: Option<Tenant>) -> Self {
        Self { tenant, ..self }
    }

    /// The last moment at which somebody may have sent it whose record the store has lost: all records of that time are over a
    /// lock and a lifetime later.
    fn before_loss(&self, lost: Option<Timestamp>, kept: Duration, now: Timestamp) -> Option<Timestamp> {
        let lost = lost.filter(|lost| now < lost.after(kept).after(self.lock))?;
        Some(lost.after(self.lock).min(now))
    }

    /// The send that a caller's word tells of: it may have been until now. The word is no proof that anything was sent: a caller
    /// says it after each answer that never came.
    fn told(&self, now: Timestamp) -> Option<Prior> {
        self.maybe_sent.then_some(Prior::feared(now))
    }

    /// `earlier`: the record as it is; none for one that is made now.
    fn held(&self, prior: Option<Prior>, earlier: Option<&Record>, now: Timestamp) -> (RecordBegin, Option<Record>) {
        let until = now.after(self.lock);
        let holder =
            Holder { fence: self.fence, host: self.host, key: self.upstream_key, since: now, until, sent: None, prior };
        let begin = prior.map_or(RecordBegin::New, |Prior { sent, doubtful }| RecordBegin::Reconcile {
            sent_ago: now.since(sent),
            doubtful,
        });
        // The store does not know which key the sends carried that a caller or a loss tells of.
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

/// Every send of a record so far carried this key of the upstream's own, and the first one was so long ago.
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
    /// There was no send.
    None,
    /// All the same one, the first at this time.
    Keyed(KeyTag, Timestamp),
    /// Not all the same one, or none.
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
    /// The time since this owner's last byte; none: it sent nothing.
    pub sent_ago: Option<Duration>,
    /// The time until the next verification; none: no host verifies the write by itself any more.
    pub verify_in: Option<Duration>,
    /// What the owner asked of the upstream, where it has not written that with a mark.
    pub intent: Option<Arc<Intent>>,
}

impl Leaving {
    /// Leaves a record whose effect may be verified at once.
    pub fn at_once(sent_ago: Option<Duration>) -> Self {
        Self { sent_ago, verify_in: Some(Duration::ZERO), intent: None }
    }
}

/// What a request gets from its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordBegin {
    /// Nobody sent it yet: the fence now holds the record.
    New,
    /// It was answered before.
    Replay(Arc<Stored>),
    /// It is under way.
    InFlight {
        /// When to ask again: after as long again as it has taken so far, at least a second, at most until the lock runs out.
        retry_after: Duration,
    },
    /// The key belongs to another request.
    Mismatch,
    /// It may have been sent before and nobody knows what came of it: the fence now holds the record, and must find out.
    Reconcile {
        /// The least time since a byte of it may have been sent.
        sent_ago: Duration,
        /// Whether no send is known: only a loss of the store's data, or its caller's word, says that it may have been sent.
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

/// What a record says to the caller whose request it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordStatus {
    /// An owner works on it.
    UnderWay {
        /// For how long so far.
        for_now: Duration,
        /// Whether it may have been sent, by this owner or one before.
        is_sent: bool,
    },
    /// Its effect is unknown, and no request works on it.
    Unknown {
        /// The time since a byte was last sent.
        sent_ago: Duration,
    },
    /// It was answered.
    Done(Arc<Stored>),
}

/// What became of a verification that no host can make now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Postponed {
    /// It is due again later.
    Later,
    /// The write is too old: no host verifies it any more. Told once.
    GivenUp,
    /// Another owner has the record, or it is settled: nothing was changed.
    NotUnsettled,
}

/// What to do with a record after a transition that may end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordRetention {
    /// Keep it as it now is.
    Keep,
    /// Forget it.
    Forget,
}

/// The fence does not hold the record (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// Why a record is not given back to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRestored {
    /// The store knows as much or more, or the host knows nothing of use.
    Kept,
    /// A request is under way under the record: what is known of it may be of use later.
    Busy,
}

/// A record's fields.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// What it was begun with.
    pub fingerprint: Fingerprint,
    /// How long it is kept.
    pub keep: Duration,
    /// How long once there is an answer.
    pub keep_answer: Duration,
    /// Its state.
    pub state: StateFields<'a>,
    /// What was asked of the upstream.
    pub intent: Option<&'a Arc<Intent>>,
    /// When its next verification is due.
    pub due: Option<Timestamp>,
    /// The key of the upstream's own that its holder sends.
    pub upstream_key: Option<KeyTag>,
    /// The key that every send carried, and the first of them; none where they did not all carry the same one.
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
    /// What was asked of the upstream; none before a send and once the record is done.
    intent: Option<Arc<Intent>>,
    /// When the next verification is due; only where the request is kept.
    due: Option<Timestamp>,
    /// Whether its verification was given up: it is told once, and none begins again unless the write is sent again.
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
    /// An administrator has said that it was never sent: the next request is.
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
    /// When this holder last marked a send. A holder that never did has sent nothing.
    sent: Option<Timestamp>,
    prior: Option<Prior>,
}

/// The last moment at which an earlier holder may have sent a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prior {
    sent: Timestamp,
    /// Whether no mark of a send is known: the store has lost records, or the caller says that it may have sent it.
    doubtful: bool,
}

impl Prior {
    fn feared(sent: Timestamp) -> Self {
        Self { sent, doubtful: true }
    }
}

impl Holder {
    /// When the holder stops sending at the latest: its lock ends, or before that its host's heartbeat.
    fn ends(&self, facts: &StoreFacts) -> Timestamp {
        facts.host_ends().filter(|_| self.host.is_some()).map_or(self.until, |ends| ends.min(self.until))
    }

    /// When the holder may end at the earliest, right after a step of it: its host's heartbeat is renewed with that.
    fn first_end(&self, now: Timestamp) -> Timestamp {
        self.host.map_or(self.until, |_| self.until.min(now.after(HOST_LEASE)))
    }

    /// The last moment at which a byte may have been sent, if the holder vanished: any time until it ended.
    fn last_byte_if_vanished(&self, facts: &StoreFacts) -> Option<Prior> {
        let prior = self.prior.map(|prior| prior.sent);
        let own = self.sent.map(|sent| sent.max(self.ends(facts)));
        Some(Prior { sent: own.max(prior)?, doubtful: self.is_doubtful() })
    }

    /// Whether a byte may have been sent, by this holder or one before.
    fn may_have_sent(&self) -> bool {
        self.sent.is_some() || self.prior.is_some()
    }

    /// Whether nothing but a loss or a caller's word says that a byte may have been sent.
    fn is_doubtful(&self) -> bool {
        self.sent.is_none() && self.prior.is_some_and(|prior| prior.doubtful)
    }
}

impl Record {
    /// The record of a request that was begun without one and has ended unknown.
    pub fn unknown(opening: &BeginRequest, leaving: &Leaving, now: Timestamp) -> Self {
        let sent = now.before(leaving.sent_ago.unwrap_or_default());
        let mut record = Self {
            fingerprint: opening.fingerprint,
            keep: opening.keep,
            // When the first one went out is not known.
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

    /// The record of a request without a key, which is marked as sent from the beginning. Orphans are kept for `orphans`, so that
    /// after a loss each request of that time may be the repetition of one that was lost.
    pub fn listed(
        opening: &BeginRequest,
        orphans: Duration,
        intent: Option<Arc<Intent>>,
        lost: Option<Timestamp>,
        now: Timestamp,
    ) -> (RecordBegin, Self) {
        let prior = opening.before_loss(lost, orphans, now).map(Prior::feared);
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

    /// The owner lives: its lock lasts for at least `lock` from now on.
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

    /// Begins a request: what it gets, and the record to write (none: leave it as it is).
    ///
    /// Another payload is a mismatch whatever the phase. A lock that ran out, or whose host's heartbeat ended, is taken over: as
    /// new if nothing was sent under it, else in doubt. A key that the store does not know may have been lost, and so may be what
    /// became of a record that has stood as it does since before the loss.
    pub fn begin(
        existing: Option<&Self>,
        opening: &BeginRequest,
        facts: &StoreFacts,
        now: Timestamp,
    ) -> (RecordBegin, Option<Self>) {
        let Some(record) = existing.filter(|record| !record.expired(now)) else {
            let feared = || opening.before_loss(facts.lost, opening.keep, now).map(Prior::feared);
            return opening.held(opening.told(now).or_else(feared), None, now);
        };
        if record.fingerprint != opening.fingerprint {
            return (RecordBegin::Mismatch, None);
        }
        // A later state of it, or a mark, may have been lost where the store came back with older data.
        let outdated = facts.lost.filter(|lost| record.since() <= *lost);
        let outdated = outdated.and_then(|lost| opening.before_loss(Some(lost), opening.keep, now));
        let taken_over = |known: Option<Prior>, told: Option<Prior>| {
            let known = known.or(told);
            let prior = match (known, outdated) {
                (Some(known), Some(outdated)) => Some(Prior { sent: known.sent.max(outdated), ..known }),
                (known, outdated) => known.or(outdated.map(Prior::feared)),
            };
            let (begin, mut begun) = opening.held(prior, Some(record), now);
            if let Some(begun) = begun.as_mut().filter(|_| told.is_some() || outdated.is_some()) {
                begun.sends = Sends::Mixed;
            }
            (begin, begun)
        };
        match &record.state {
            State::Done { stored, .. } => (RecordBegin::Replay(Arc::new(stored.open())), None),
            State::Unknown { sent, doubtful, .. } => taken_over(Some(Prior { sent: *sent, doubtful: *doubtful }), None),
            State::Cleared { .. } => taken_over(None, None),
            // Asked again: a store on the network may be, where the answer was lost on the way.
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
                taken_over(known, opening.told(now).filter(|_| known.is_none()))
            }
        }
    }

    /// Marks that bytes go out from now on: right before each send. `intent`: what they ask, where it is not written yet.
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

    /// Keeps the answer. Also after the lock ran out, as long as nobody took over.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn finish(&mut self, fence: FencingToken, stored: impl Into<Compact>, now: Timestamp) -> Result<(), Lost> {
        self.holder(fence, now)?;
        self.done(stored.into(), now);
        Ok(())
    }

    /// Whether the owner may forget the record, because it knows that the effect did not take place.
    ///
    /// # Errors
    /// [`Lost`] if another owner has the record.
    pub fn release(&mut self, fence: FencingToken, now: Timestamp) -> Result<RecordRetention, Lost> {
        self.holder(fence, now).map(|_| RecordRetention::Forget)
    }

    /// The owner goes without an answer. If neither it nor an owner before it sent anything the record is forgotten, else it is
    /// unknown from now on.
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

    /// Takes a record whose verification is due, and moves the next one `lease` ahead: what to verify. None if it is not due.
    /// A holder that lives moves it to when it may end.
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

    /// Puts off the verification of a record that no host can verify now: by `wait`, or for good once the write is as old as
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

    /// What was asked of the upstream, of a record that may have been sent and is not done.
    pub fn intent(&self) -> Option<&Arc<Intent>> {
        self.intent.as_ref()
    }

    fn schedule(&mut self, at: Option<Timestamp>) {
        self.due = at.filter(|_| self.intent.as_ref().is_some_and(|intent| intent.request.is_some()));
    }

    /// When it is verified next. Where no host verifies it any more, its request is of no use.
    fn schedule_next(&mut self, wait: Option<Duration>, now: Timestamp) {
        match wait {
            Some(wait) => self.schedule(Some(now.after(wait))),
            None => {
                self.drop_request();
                self.given_up = true;
            }
        }
    }

    /// Drops the request, and leaves the names of its upstream and endpoint: no host verifies it by itself.
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

    /// An administrator's word on a record that nobody works on: the answer to give from now on, or none if the effect is known
    /// not to have taken place. `None` if the record is not unsettled.
    pub fn resolve(&mut self, answer: Option<Compact>, facts: &StoreFacts, now: Timestamp) -> Option<RecordRetention> {
        self.unsettled(facts, now)?;
        let Some(stored) = answer else {
            if !self.is_doubtful() {
                return Some(RecordRetention::Forget);
            }
            // A record that were forgotten would be in doubt again.
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

    /// How long ago a byte was last sent, if what came of it is unknown and nobody is finding out.
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

    /// How long ago a byte was last sent, if what came of it is unknown, also while somebody is finding out. A send that only a loss
    /// makes possible counts once its holder has ended: the request that begins after the loss may be the first one.
    pub fn unknown_for(&self, facts: &StoreFacts, now: Timestamp) -> Option<Duration> {
        self.verified_for(facts, now).or_else(|| self.unsettled(facts, now))
    }

    /// The same, while a holder that has sent nothing itself is finding out.
    pub fn verified_for(&self, facts: &StoreFacts, now: Timestamp) -> Option<Duration> {
        match &self.state {
            State::Held(holder) if holder.sent.is_none() && now < holder.ends(facts) && !self.expired(now) => {
                holder.prior.filter(|prior| !prior.doubtful).map(|prior| now.since(prior.sent))
            }
            _ => None,
        }
    }

    /// What its sends carried of the upstream's own key; none where one may have carried another key or none.
    pub fn keyed_sends(&self, now: Timestamp) -> Option<KeyedSends> {
        match self.sends {
            Sends::Keyed(key, first) => Some(KeyedSends { key, first_ago: now.since(first) }),
            Sends::None | Sends::Mixed => None,
        }
    }

    /// What the record says to the caller whose request it is of; none where nothing may have taken effect, or it is over.
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

    /// When the record may be forgotten: a new one when its lock runs out, others a `keep` after they were last changed, and
    /// a sent one whose owner vanished a `keep` after its lock ran out.
    pub fn expires(&self) -> Timestamp {
        match &self.state {
            State::Held(holder) if !holder.may_have_sent() => holder.until,
            State::Held(holder) => holder.until.after(self.keep),
            State::Unknown { since, .. } | State::Done { since, .. } | State::Cleared { since } => {
                since.after(self.keep)
            }
        }
    }

    /// The host that holds the record.
    pub fn host(&self) -> Option<HostId> {
        match &self.state {
            State::Held(holder) => holder.host,
            State::Unknown { .. } | State::Done { .. } | State::Cleared { .. } => None,
        }
    }

    /// Whether nothing but a loss of the store's data or its caller's word says that a byte may have been sent.
    pub fn is_doubtful(&self) -> bool {
        match &self.state {
            State::Held(holder) => holder.is_doubtful(),
            State::Unknown { doubtful, .. } => *doubtful,
            State::Done { .. } | State::Cleared { .. } => false,
        }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Held(holder) if !holder.may_have_sent() => Phase::New,
            State::Cleared { .. } => Phase::New,
            State::Held(_) | State::Unknown { .. } => Phase::Sent,
            State::Done { .. } => Phase::Done,
        }
    }

    /// The answer that is kept.
    pub fn stored(&self) -> Option<&Compact> {
        match &self.state {
            State::Done { stored, .. } => Some(stored),
            State::Held(_) | State::Unknown { .. } | State::Cleared { .. } => None,
        }
    }

    /// What a host that was given a record knows of it: see [`Record::restore`].
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

    /// Since when the record stands as it does.
    pub fn since(&self) -> Timestamp {
        match &self.state {
            State::Held(Holder { since, .. })
            | State::Unknown { since, .. }
            | State::Cleared { since }
            | State::Done { since, .. } => *since,
        }
    }

    /// Gives back to a store that has lost data what a host still knows: the record to write.
    ///
    /// A record that was begun anew only because of the loss gives way. Of two hosts that know a write as unknown, the later byte
    /// counts, and one that knows its answer goes before both.
    ///
    /// # Errors
    /// [`NotRestored`]
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
        // That it was given up is told once more after a loss.
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

    /// Its fields, for a store that writes them itself.
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

    /// Whether it is over, although it may still be there.
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
