//! The status of a record's request, read without a change of the record.

use super::{
    Record, State,
    owner::{Holder, HostId, KeyedSends, Sends, StoreFacts},
};
use crate::{
    clock::Timestamp,
    idempotency::{compact::Compact, stored_response::Stored},
};
use std::{sync::Arc, time::Duration};

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

impl Record {
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

    /// When the record took its present state.
    pub fn since(&self) -> Timestamp {
        match &self.state {
            State::Held(Holder { since, .. })
            | State::Unknown { since, .. }
            | State::Cleared { since }
            | State::Done { since, .. } => *since,
        }
    }

    /// Whether the record counts as deleted, although the store may still hold it.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires() <= now
    }
}
