//! The fleet's records, with this host's own as a fallback while Redis cannot be reached: for operators who prefer the risk that
//! a write is repeated, by this host or another, to refusing writes.
//!
//! A record that began in this host's own store ends there, and that store is still consulted when Redis is back. During the
//! fallback this host does not see records that it began in Redis: it may repeat a write of the same key or fingerprint itself.

use super::memory::records::MemoryRecords;
use crate::idempotency::{
    Arrived, Arriving, BeginRequest, Claim, ClaimName, ClaimOwner, Claimant, EntryTerm, FencingToken, Fingerprint,
    FingerprintLock, Intent, Leaving, Postponed, RecordError, RecordId, RecordStatus, Records, Renewed, Resolution,
    Resolved, StoreBegin, Stored, Ticket, Unsettled, record::RecordBegin, records::Reply,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};

/// [`Records`] that fall back to this host's own.
#[derive(Debug)]
pub struct AloneIfNeeded {
    shared: Arc<dyn Records>,
    own: Arc<MemoryRecords>,
    /// Owners whose records are in `own`.
    alone: Mutex<HashSet<FencingToken>>,
}

impl AloneIfNeeded {
    /// `shared` while Redis can be reached, else `own`.
    pub fn new(shared: Arc<dyn Records>, own: MemoryRecords) -> Self {
        Self { shared, own: Arc::new(own), alone: Mutex::default() }
    }

    fn is_alone(&self, fence: FencingToken) -> bool {
        self.alone.lock().contains(&fence)
    }

    /// The store with the record of this owner, for the owner's last call: the entry in `alone` is removed.
    fn last(&self, fence: FencingToken) -> &dyn Records {
        if self.alone.lock().remove(&fence) { &*self.own } else { &*self.shared }
    }

    async fn begin_alone(&self, id: RecordId, opening: BeginRequest) -> Result<StoreBegin, RecordError> {
        // Before the record exists: an owner that is dropped meanwhile must release it in the right store.
        self.alone.lock().insert(opening.fence);
        let opened = self.own.begin(id, opening).await;
        if !matches!(&opened, Ok(StoreBegin { begin: RecordBegin::New | RecordBegin::Reconcile { .. }, .. })) {
            self.alone.lock().remove(&opening.fence);
        }
        opened
    }

    async fn begin_somewhere(&self, id: RecordId, opening: BeginRequest) -> Result<StoreBegin, RecordError> {
        if !self.own.is_empty() {
            match self.begin_alone(id, BeginRequest { maybe_sent: false, ..opening }).await {
                // Unknown to this host's own store: release the record that the check just began.
                Ok(StoreBegin { begin: RecordBegin::New, .. }) => {
                    self.last(opening.fence).release(id, opening.fence).await?;
                }
                Ok(known) => return Ok(known),
                // The own store is full, so it has no record of this id.
                Err(_) => {}
            }
        }
        match self.shared.begin(id, opening).await {
            Err(RecordError::Unavailable { source, maybe_done }) => {
                tracing::debug!(error = %source, "a write continues with this host's own records only");
                if maybe_done {
                    self.shared.abandon_record(id, opening.fence, Leaving::at_once(None));
                }
                self.begin_alone(id, opening).await
            }
            opened => opened,
        }
    }
}

impl Records for AloneIfNeeded {
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        Reply::Right(self.begin_somewhere(id, opening).boxed())
    }

    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
        if self.is_alone(fence) { self.own.sent(id, fence, intent) } else { self.shared.sent(id, fence, intent) }
    }

    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()> {
        self.last(fence).finish(id, fence, stored)
    }

    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()> {
        self.last(fence).release(id, fence)
    }

    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving) {
        self.last(fence).abandon_record(id, fence, leaving);
    }

    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving) {
        self.shared.record_unknown(id, opening, leaving);
    }

    fn lease(&self) -> Option<Duration> {
        self.shared.lease()
    }

    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived> {
        let ticket = arriving.ticket;
        let arrive = async move {
            match self.shared.arrive(arriving).await {
                Err(RecordError::Unavailable { source, maybe_done }) => {
                    tracing::debug!(error = %source, "a write continues without an entry among equal requests");
                    if maybe_done {
                        self.shared.answered(ticket, true);
                    }
                    Ok(Arrived::Full)
                }
                arrived => arrived,
            }
        };
        Reply::Right(arrive.boxed())
    }

    fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>> {
        self.shared.recheck_orphan(ticket)
    }

    fn keep_alive(&self, ticket: Ticket, lock: Duration, term: EntryTerm) -> Reply<'_, Renewed> {
        self.shared.keep_alive(ticket, lock, term)
    }

    fn abandon(&self, ticket: Ticket) {
        self.shared.abandon(ticket);
    }

    fn answered(&self, ticket: Ticket, forget: bool) {
        self.shared.answered(ticket, forget);
    }

    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
        let claim = async move {
            match self.shared.claim(name, owner, keep).await {
                Err(RecordError::Unavailable { .. }) => self.own.claim(name, owner, keep).await,
                claim => claim,
            }
        };
        Reply::Right(claim.boxed())
    }

    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
        let claimant = async move {
            match self.shared.claimant(name, owner).await {
                Err(RecordError::Unavailable { .. }) => self.own.claimant(name, owner).await,
                claimant => claimant,
            }
        };
        Reply::Right(claimant.boxed())
    }

    fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock> {
        let (shared, own) = (self.shared.lock_fingerprint(fingerprint), Arc::clone(&self.own));
        let fingerprint_lock = async move {
            match shared.await {
                Err(RecordError::Unavailable { .. }) => own.lock_fingerprint(fingerprint).await,
                fingerprint_lock => fingerprint_lock,
            }
        };
        Reply::Right(fingerprint_lock.boxed())
    }

    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
        let unsettled = async move {
            let mut found = self.own.unsettled(limit).await?;
            match self.shared.unsettled(limit).await {
                Ok(others) => found.extend(others),
                Err(RecordError::Unavailable { .. }) if !self.own.is_empty() => {}
                Err(error) => return Err(error),
            }
            found.truncate(limit);
            Ok(found)
        };
        Reply::Right(unsettled.boxed())
    }

    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
        let one = async move {
            match self.own.unsettled_one(id).await? {
                None => self.shared.unsettled_one(id).await,
                own => Ok(own),
            }
        };
        Reply::Right(one.boxed())
    }

    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
        let due = async move {
            let mut found = self.own.due(limit).await?;
            match self.shared.due(limit).await {
                Ok(others) => found.extend(others),
                Err(RecordError::Unavailable { .. }) if !self.own.is_empty() => {}
                Err(error) => return Err(error),
            }
            found.truncate(limit);
            Ok(found)
        };
        Reply::Right(due.boxed())
    }

    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed> {
        let postpone = async move {
            match self.own.postpone(id, wait, longest_age).await? {
                Postponed::NotUnsettled => self.shared.postpone(id, wait, longest_age).await,
                own => Ok(own),
            }
        };
        Reply::Right(postpone.boxed())
    }

    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        let take = async move {
            match self.own.take(id, lease).await? {
                None => self.shared.take(id, lease).await,
                own => Ok(own),
            }
        };
        Reply::Right(take.boxed())
    }

    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
        let status = async move {
            match self.own.status(id).await? {
                Some(status) => Ok(Some(status)),
                None => self.shared.status(id).await,
            }
        };
        Reply::Right(status.boxed())
    }

    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
        let resolve = async move {
            match self.own.resolve(id, resolution.clone()).await? {
                Resolved::Done => Ok(Resolved::Done),
                Resolved::NotUnsettled => self.shared.resolve(id, resolution).await,
            }
        };
        Reply::Right(resolve.boxed())
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.shared.lost_ago()
    }

    fn purge_expired(&self) {
        self.own.purge_expired();
        self.shared.purge_expired();
    }

    fn flushed(&self) -> BoxFuture<'_, ()> {
        self.shared.flushed()
    }
}
