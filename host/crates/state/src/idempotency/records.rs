//! The interface of a store for idempotency records, claims, entries of equal requests, and fingerprint locks.

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

/// A store's reply: immediate and without an allocation if the store keeps its state in this process, else a future.
pub type Reply<'a, T> = Either<Ready<Result<T, RecordError>>, BoxFuture<'a, Result<T, RecordError>>>;

/// An immediate reply.
pub fn ready_reply<'a, T>(result: Result<T, RecordError>) -> Reply<'a, T> {
    Either::Left(ready(result))
}

/// Why a store did not carry out a call.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The table is full, and no entry of it may be removed.
    #[error("{what} hold {max} entries, the maximum, and all are in use; try again later or raise the limit")]
    Full {
        /// The table's name.
        what: &'static str,
        /// The most entries that it may hold.
        max: usize,
    },
    /// The memory is used up, and no record may be removed to free some.
    #[error(
        "{what} use all memory but a reserve of {max_bytes} bytes, or the share of their tenant; try again later or \
         raise the limit"
    )]
    NoCapacity {
        /// The kind of data that uses the memory.
        what: &'static str,
        /// The limit, in bytes.
        max_bytes: usize,
    },
    /// The lock ran out or another owner has the record. Nothing may be sent under it.
    #[error("the record's lock expired, or another request took it over; send nothing more under it")]
    Lost,
    /// The store failed or gave no reply.
    #[error("the store of idempotency records did not answer; try again later")]
    Unavailable {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether the store may have carried out the call.
        maybe_done: bool,
    },
}

impl RecordError {
    /// Whether the store may have carried out the call despite this error.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Self::Unavailable { maybe_done: true, .. })
    }
}

/// Keeps records, claims, entries and fingerprint locks for all hosts that share the store.
///
/// Each method is one atomic step. A method may take effect as soon as it is called, before the reply is awaited, even if the reply is
/// dropped. A later call for the same record takes effect after it; this matters most for [`Records::abandon_record`].
pub trait Records: fmt::Debug + Send + Sync + 'static {
    /// [`super::record::Record::begin`]. Owners call [`super::begin`] instead, whose [`super::RecordGuard`] releases the record in every
    /// case.
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin>;

    /// [`super::record::Record::sent`].
    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()>;

    /// [`super::record::Record::finish`].
    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()>;

    /// [`super::record::Record::release`].
    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()>;

    /// [`super::record::Record::leave`], now or soon after. Called when an owner is dropped, which cannot wait.
    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving);

    /// Writes [`super::record::Record::unknown`] if there is no record yet, now or soon after. Called when an owner is dropped, which
    /// cannot wait.
    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving);

    /// The time that an owner keeps its entry without a renewal. None: entries need no renewal, because no owner can vanish without being
    /// dropped.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// The digest under which this store lists equal requests.
    fn digest(&self, request: &Likeness<'_>) -> RequestDigest {
        RequestDigest::of(request)
    }

    /// [`super::unanswered::Unanswered::arrive`] for a request without a key. If the request is listed, its record begins as one that may
    /// be sent from now on. A store whose records end with its owners may postpone that until the caller has gone.
    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived>;

    /// [`super::unanswered::Unanswered::recheck_orphan`]. An orphan that is found replaces the request's own entry and record.
    fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>>;

    /// [`super::record::Record::keep_alive`], and [`super::unanswered::Unanswered::renew`] unless `term` is [`EntryTerm::GivenUp`]. With
    /// [`EntryTerm::Lasting`], a store that lost the entry with other data lists it again.
    fn keep_alive(&self, ticket: Ticket, lock: Duration, term: EntryTerm) -> Reply<'_, Renewed>;

    /// Writes the record of a listed request that arrived at `arrived_at`, for a store that has postponed that. The record is written
    /// before another request can find the entry. False: the store has no space for it.
    fn write_listed(&self, ticket: Ticket, opening: BeginRequest, arrived_at: Timestamp) -> bool {
        let _ = (ticket, opening, arrived_at);
        true
    }

    /// [`super::unanswered::Unanswered::abandon`], now or soon after.
    fn abandon(&self, ticket: Ticket);

    /// [`super::unanswered::Unanswered::remove`], now or soon after. `forget`: removes the record too.
    fn answered(&self, ticket: Ticket, forget: bool);

    /// Makes `owner` the only owner of the resource that `name` names, for at least `keep`.
    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim>;

    /// Returns the owner of the resource that `name` names, relative to `owner`. Claims nothing.
    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant>;

    /// Takes the lock of a fingerprint. Waits in a queue, first come, first served, while another request has it. Dropping the reply leaves
    /// the queue.
    fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock>;

    /// Records whose effect is unknown, including those under verification: at most `limit` of them, the first to expire first.
    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>>;

    /// The unsettled record `id`. None: it is not unsettled.
    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>>;

    /// Unsettled records whose verification is due: at most `limit` of them, the longest overdue first.
    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>>;

    /// [`super::record::Record::take`]: takes a record for verification. None: another host has taken it, or it is not due. The intent has
    /// no request if this host cannot decrypt it.
    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>>;

    /// [`super::record::Record::postpone`], for a record that no host can verify now.
    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed>;

    /// [`super::record::Record::status`]. None: there is no such record.
    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>>;

    /// Settles an unsettled record as an administrator says.
    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved>;

    /// The time since the store last lost data, as far as this process knows. None: never. A store in this process ends with the process,
    /// so it never reports a loss.
    fn lost_ago(&self) -> Option<Duration> {
        None
    }

    /// Removes expired data, for a store that does not expire it by itself. The service calls it from time to time.
    fn purge_expired(&self) {}

    /// Waits until all calls begun by [`Records::abandon_record`] and by dropped locks are done. Called before the process ends.
    fn flushed(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// The state of an owner's entry at a renewal, by the owner's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryTerm {
    /// The caller has gone, or got the response that the effect is unknown: only the record is renewed.
    GivenUp,
    /// The caller still waits, but the entry's lease may have ended: another request may have the entry, or it may be gone.
    Lapsed,
    /// The caller still waits, and the entry's lease lasts: no other request can have the entry.
    Lasting,
}

/// The result of a renewal: the rights that the owner still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The owner still has the entry.
    pub entry: bool,
    /// The owner still has the record, and its lock was renewed. Independent of `entry`: another request may have the entry, or a
    /// verification the record.
    pub lock: bool,
}

impl Renewed {
    /// The owner still has both.
    pub const ALL: Self = Self { entry: true, lock: true };
}

/// The reply to [`Records::begin`]: the record's state, and the fingerprint lock if the store granted it too.
#[derive(Debug)]
pub struct StoreBegin {
    /// The record's state for this request.
    pub begin: RecordBegin,
    /// The upstream key that all earlier sends carried; none if they did not all carry the same one.
    pub keyed_sends: Option<KeyedSends>,
    /// The fingerprint lock, if [`BeginRequest::fingerprint_lock`] asked for it, it was free, and the request may continue.
    pub fingerprint_lock: Option<FingerprintLock>,
    /// This host's lease. None: the store is in this process, or the request does not continue.
    pub host: Option<HostLease>,
}

impl From<RecordBegin> for StoreBegin {
    fn from(begin: RecordBegin) -> Self {
        Self { begin, keyed_sends: None, fingerprint_lock: None, host: None }
    }
}

/// The name that a policy gives to a resource of an upstream. Hashed, so that a guest's text takes a fixed amount of memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimName([u8; 32]);

impl ClaimName {
    /// The hash of the claim `name` at `upstream`.
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

/// The owner of a claim: a record, so that a repetition of the request finds its own claims; or one request without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimOwner {
    /// All requests with this record.
    Record(RecordId),
    /// One request without a key, identified by a token drawn for it.
    Request(FencingToken),
}

/// The owner of a resource, relative to a given owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claimant {
    /// No owner has claimed it.
    Nobody,
    /// The given owner has claimed it.
    Asker,
    /// Another owner has claimed it.
    Other,
}

/// The result of [`Records::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a claim that is taken must not be adopted"]
pub enum Claim {
    /// The owner has the claim, from this call or an earlier one.
    Ours,
    /// Another owner has the claim.
    Taken,
}

/// The lock of a fingerprint: only its holder may send a request with that fingerprint. Dropping it, even in a panic, passes the lock to
/// the next request in the queue.
#[must_use = "the turn ends when this is dropped"]
pub struct FingerprintLock(Box<dyn Lease>);

/// A store's side of a [`FingerprintLock`]. Dropping it releases the lock.
pub trait Lease: Send + Sync + 'static {
    /// Whether the lock is still held, by this host's clock. A lock that another process keeps ends if it is not renewed.
    fn holds(&self) -> bool;
}

#[cfg(test)]
impl Lease for () {
    fn holds(&self) -> bool {
        true
    }
}

impl FingerprintLock {
    /// A lock that is released when `lease` is dropped.
    pub fn new(lease: impl Lease) -> Self {
        Self(Box::new(lease))
    }

    /// Whether this request still has the lock. Check it right before the first byte.
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
    /// The record's id.
    pub id: RecordId,
    /// The time since a byte was last sent.
    pub sent_ago: Duration,
    /// The names of its upstream and endpoint. None: its owner sent nothing itself.
    pub endpoint: Option<(String, String)>,
    /// The time until a host verifies it by itself, zero during a verification. None: hosts do not verify it.
    pub verified_in: Option<Duration>,
}

/// An administrator's finding about an unsettled record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The write is in effect: repetitions of the request get this response.
    Applied(Stored),
    /// The write is not in effect: the next request with the key is sent.
    NotApplied,
}

/// The result of [`Records::resolve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "the record may not have been unsettled"]
pub enum Resolved {
    /// The record is settled as the administrator said.
    Done,
    /// Nothing was changed: there is no such record, it is settled already, or a request is settling it.
    NotUnsettled,
}
