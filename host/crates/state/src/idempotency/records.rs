//! What keeping records, claims and turns asks of a store.

#[cfg(any(test, feature = "fixtures"))]
pub mod forwarded;

use super::{
    HostLease,
    entry::{Arrived, Arriving, Ticket},
    fingerprint::{Fingerprint, Likeness, RecordId, RequestDigest, digest, short},
    intent::Intent,
    record::{BeginRequest, FencingToken, KeyedSends, Leaving, Postponed, RecordBegin, RecordStatus},
    stored_response::Stored,
};
use crate::clock::Timestamp;
use futures_util::future::{BoxFuture, Either, Ready, ready};
use std::{fmt, sync::Arc, time::Duration};

/// A store's answer: at hand, without an allocation, for one that keeps its state in this process; else awaited.
pub type Reply<'a, T> = Either<Ready<Result<T, RecordError>>, BoxFuture<'a, Result<T, RecordError>>>;

/// A reply that is at hand.
pub fn at_hand<'a, T>(result: Result<T, RecordError>) -> Reply<'a, T> {
    Either::Left(ready(result))
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is no room, and nothing that may be forgotten to make some.
    #[error("{what} hold {max} entries, the most allowed, all in use; try again later or raise the limit")]
    Full {
        /// Which table.
        what: &'static str,
        /// Its limit.
        max: usize,
    },
    /// There is no memory for it, and nothing that may be forgotten to make some.
    #[error(
        "{what} take all but a reserve of {max_bytes} bytes, or their tenant's share of it; try again later or raise the limit"
    )]
    NoRoom {
        /// What takes it.
        what: &'static str,
        /// All of the room, in bytes.
        max_bytes: usize,
    },
    /// The lock ran out or another owner has the record. Nothing may be sent under it.
    #[error("the record's lock ran out or another request took it over; send nothing more under it")]
    Lost,
    /// The store failed.
    #[error("the store of idempotency records did not answer; try again later")]
    Unavailable {
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether it may have done it all the same.
        maybe_done: bool,
    },
}

impl RecordError {
    /// Whether what was asked may have been done although this came back.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Self::Unavailable { maybe_done: true, .. })
    }
}

/// Keeps records, claims and turns for all hosts that share it.
///
/// Each method is one atomic step. A method may take effect as soon as it is called, before the reply is awaited, and also if the
/// reply is dropped; a later call for the same record, `leave` above all, takes effect after it.
pub trait Records: fmt::Debug + Send + Sync + 'static {
    /// [`super::record::Record::begin`]. Owners call [`super::begin`] instead, which gives the record back whatever happens.
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin>;

    /// [`super::record::Record::sent`].
    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()>;

    /// [`super::record::Record::finish`].
    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()>;

    /// [`super::record::Record::release`].
    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()>;

    /// [`super::record::Record::leave`], at once or soon: called when an owner is dropped, which cannot wait.
    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving);

    /// Writes [`super::record::Record::unknown`] where there is no record yet, at once or soon: called when an owner is dropped,
    /// which cannot wait.
    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving);

    /// How long an owner holds its place among equal requests without a word; none where no owner can vanish by itself.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// The digest under which this store lists equal requests.
    fn digest(&self, request: &Likeness<'_>) -> RequestDigest {
        RequestDigest::of(request)
    }

    /// [`super::unanswered::Unanswered::arrive`]: a request without a key comes. Where it is listed, its record is begun as one that
    /// may be sent from now on; a store whose records end with its owners may wait with that until the caller has gone.
    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived>;

    /// [`super::unanswered::Unanswered::look_again`]. What is found has taken the place of the own entry and record.
    fn look_again(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>>;

    /// [`super::record::Record::keep_alive`], and unless the place is [`PlaceTerm::GivenUp`]
    /// [`super::unanswered::Unanswered::renew`]. Where it is [`PlaceTerm::Lasting`] a store that has lost the entry with other data
    /// lists it again.
    fn keep_alive(&self, ticket: Ticket, lock: Duration, place: PlaceTerm) -> Reply<'_, Renewed>;

    /// Writes the record of a listed request that came at `came`, where this store has waited with that: before its entry can be
    /// found by another request. False: there is no room for it.
    fn write_listed(&self, ticket: Ticket, opening: BeginRequest, came: Timestamp) -> bool {
        let _ = (ticket, opening, came);
        true
    }

    /// [`super::unanswered::Unanswered::abandon`], at once or soon.
    fn abandon(&self, ticket: Ticket);

    /// [`super::unanswered::Unanswered::remove`], at once or soon. `forget`: with the record.
    fn answered(&self, ticket: Ticket, forget: bool);

    /// Makes `owner` the one owner of what `name` names, for at least `keep`.
    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim>;

    /// Whose it is what `name` names, as `owner` sees it. Claims nothing.
    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant>;

    /// Waits until no request with this fingerprint is under way, first come first served. Dropping the reply leaves the queue.
    fn turn(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock>;

    /// Records whose effect is unknown, also while they are verified, at most `limit` of them, the next to be forgotten first.
    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>>;

    /// One of them; none where it is not unsettled.
    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>>;

    /// Unsettled records whose verification is due, at most `limit` of them, the longest due first.
    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>>;

    /// [`super::record::Record::take`]: what to verify; none where another host has taken it or it is not due. Without a request
    /// where this host cannot read that.
    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>>;

    /// [`super::record::Record::postpone`]: the verification of a record that no host can verify now.
    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed>;

    /// [`super::record::Record::status`]; none where there is no record.
    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>>;

    /// An administrator's word on an unsettled record.
    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved>;

    /// How long ago the store last lost data, as far as this process knows; none: never. A store in this process is lost with it.
    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    /// Forgets what has expired, for a store that does not do so by itself: the service calls it now and then.
    fn purge_expired(&self) {}

    /// Waits until what [`Records::abandon_record`] and dropped turns began is done: before the process ends.
    fn flushed(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// How the place of an owner stands that renews it, by the owner's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceTerm {
    /// Its caller has gone or was told: only the record is renewed.
    GivenUp,
    /// Its caller is there. The place may have lapsed, and the entry may be another's or gone with it.
    Lapsed,
    /// Its caller is there, and the place lasts: no other request can have the entry.
    Lasting,
}

/// What an owner still has of what it asked to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The entry is the owner's.
    pub entry: bool,
    /// The record is held by the owner, and its lock was renewed. An entry may have gone to another request before that, and a
    /// record to a verification.
    pub lock: bool,
}

impl Renewed {
    /// All of it.
    pub const ALL: Self = Self { entry: true, lock: true };
}

/// What a request gets from its record, and its turn where that came along.
#[derive(Debug)]
pub struct StoreBegin {
    /// What it gets.
    pub begin: RecordBegin,
    /// Which key of the upstream's own its earlier sends carried, where all carried the same one.
    pub keyed_sends: Option<KeyedSends>,
    /// Its turn, if [`BeginRequest::turn`] asked for it, it was free, and the request may go on.
    pub turn: Option<FingerprintLock>,
    /// How long this host counts as alive; none where the store is in this process, or the request does not go on.
    pub host: Option<HostLease>,
}

impl From<RecordBegin> for StoreBegin {
    fn from(begin: RecordBegin) -> Self {
        Self { begin, keyed_sends: None, turn: None, host: None }
    }
}

/// What an upstream made, as a policy names it within its upstream: hashed, so that a guest's text takes a fixed room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimName([u8; 32]);

impl ClaimName {
    /// The claim that a policy calls `name` at `upstream`.
    pub fn of(upstream: &str, name: &str) -> Self {
        Self(digest("claim", &[upstream.as_bytes(), name.as_bytes()]))
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short("ClaimName", &self.0, f)
    }
}

/// Who owns a claim: a record, so that a repetition of the request finds its own claims; or one request without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimOwner {
    /// All requests with this record.
    Record(RecordId),
    /// One request without a key, by a fence drawn for it.
    Request(FencingToken),
}

/// Whose a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claimant {
    /// No owner has claimed it.
    Nobody,
    /// The owner that asks.
    Asker,
    /// Another owner.
    Other,
}

/// Whether a claim was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a claim that is taken must not be adopted"]
pub enum Claim {
    /// The owner has it, by this call or an earlier one.
    Ours,
    /// Another owner has it.
    Taken,
}

/// The right to be the one request of its fingerprint under way. Dropping it, also by a panic, calls the next in the queue.
#[must_use = "the turn ends when this is dropped"]
pub struct FingerprintLock(Box<dyn Lease>);

/// What a store gives for a turn: dropping it ends the turn.
pub trait Lease: Send + Sync + 'static {
    /// Whether it still holds, by this host's own clock. One that is kept in another process ends when it is not renewed.
    fn holds(&self) -> bool;
}

#[cfg(test)]
impl Lease for () {
    fn holds(&self) -> bool {
        true
    }
}

impl FingerprintLock {
    /// A turn that ends when `lease` is dropped.
    pub fn new(lease: impl Lease) -> Self {
        Self(Box::new(lease))
    }

    /// Whether it is still this request's turn. Look right before the first byte.
    pub fn holds(&self) -> bool {
        self.0.holds()
    }
}

impl fmt::Debug for FingerprintLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn")
    }
}

/// A record whose effect is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// Which.
    pub id: RecordId,
    /// How long ago a byte was last sent.
    pub sent_ago: Duration,
    /// The names of its upstream and endpoint; none where its owner sent nothing itself.
    pub endpoint: Option<(String, String)>,
    /// The time until a host verifies it by itself, zero while it is verified; none: no host does.
    pub verified_in: Option<Duration>,
}

/// What an administrator found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The effect took place: repetitions get this answer.
    Applied(Stored),
    /// It did not: the next request with the key is sent.
    NotApplied,
}

/// What became of an administrator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "the record may not have been unsettled"]
pub enum Resolved {
    /// It holds.
    Done,
    /// There is no such record, it is settled, or a request is settling it: nothing was changed.
    NotUnsettled,
}
