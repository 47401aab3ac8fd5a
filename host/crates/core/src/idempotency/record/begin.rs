//! A request that begins a record, and the result.

use super::{
    Record, State,
    owner::{FencingToken, Holder, HostId, Prior, Sends},
};
use crate::{
    clock::Timestamp,
    idempotency::{
        Settings,
        fingerprint::{Fingerprint, KeyTag, Tenant},
        stored_response::Stored,
    },
};
use std::{sync::Arc, time::Duration};

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
    /// How long the request may hold the record. See [`Settings::lock`].
    pub lock: Duration,
    /// How long the record is kept. See [`Settings::keep`].
    pub keep: Duration,
    /// The tenant whose share of the memory the record counts against; none: no tenant's.
    pub tenant: Option<Tenant>,
    /// How long the record is kept once it has an answer.
    pub keep_answer: Duration,
}

impl BeginRequest {
    /// A request under `settings`, without host, upstream key, lock of the fingerprint or tenant.
    pub fn new(fence: FencingToken, fingerprint: Fingerprint, maybe_sent: bool, settings: &Settings) -> Self {
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
    pub(super) fn before_loss(&self, lost: Option<Timestamp>, kept: Duration, now: Timestamp) -> Option<Timestamp> {
        let lost = lost.filter(|lost| now < lost.after(kept).after(self.lock))?;
        Some(lost.after(self.lock).min(now))
    }

    /// The send that the caller's `Triage-Maybe-Sent` claims, at the latest now. The header proves no send: a caller sets it after
    /// every missing answer.
    pub(super) fn claimed_send(&self, now: Timestamp) -> Option<Prior> {
        self.maybe_sent.then_some(Prior::assumed(now))
    }

    /// A record of which this request is the holder, and the result of its begin. `earlier`: the record that the store has under the same key;
    /// none for a new key.
    pub(super) fn held(
        &self,
        prior: Option<Prior>,
        earlier: Option<&Record>,
        now: Timestamp,
    ) -> (RecordBegin, Option<Record>) {
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
