//! The fields of a record, for stores that write their own format, and the restore after a loss of data.

use super::{
    Record, State,
    owner::{FencingToken, Holder, Sends, StoreFacts},
};
use crate::{
    clock::Timestamp,
    idempotency::{
        compact::Compact,
        fingerprint::{Fingerprint, KeyTag},
        intent::Intent,
    },
};
use std::{sync::Arc, time::Duration};

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

impl Record {
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
}
