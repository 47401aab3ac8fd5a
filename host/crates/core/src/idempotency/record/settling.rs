//! Transitions of an unknown record without its caller: when it is verified, by whom, and how it is resolved.

use super::{
    Record, RecordRetention, State,
    owner::{Sends, StoreFacts},
};
use crate::{
    clock::Timestamp,
    idempotency::{compact::Compact, intent::Intent},
};
use std::{sync::Arc, time::Duration};

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

impl Record {
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

    pub(super) fn schedule(&mut self, at: Option<Timestamp>) {
        self.due = at.filter(|_| self.intent.as_ref().is_some_and(|intent| intent.request.is_some()));
    }

    /// Schedules the next verification after `wait`. Without a wait no host verifies the record again, so its request is dropped.
    pub(super) fn schedule_next(&mut self, wait: Option<Duration>, now: Timestamp) {
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
}
