//! Requests without a key that have no response yet: their entries in Redis.

use super::{
    Inner, MAX_LOSSES,
    fingerprint_lock::QueueTicket,
    nonsense,
    scripts::{self, ScriptReply},
    still_begun, unavailable,
};
use crate::{
    LinkError,
    idempotency::{
        Arrived, Arriving, EntryTerm, RecordError, RecordId, Renewed, Ticket,
        record::{Record, RecordBegin, RecordRetention},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

impl Inner {
    pub(super) async fn arrive(self: Arc<Self>, arriving: Arriving) -> Result<Arrived, RecordError> {
        let ticket = arriving.ticket;
        self.report_equals(ticket.digest).await?;
        for _ in 0..MAX_LOSSES {
            let (about, lost) = self.circumstances().await?;
            let asked_at = Instant::now();
            // Created before the call, so that its drop leaves the queue even if the reply is lost.
            let fingerprint_lock = arriving.fingerprint_lock.filter(|_| about.one_node);
            let queue_ticket = fingerprint_lock.map(|fingerprint| QueueTicket::new(&self, fingerprint, ticket.owner));
            let asked = arriving.intent.as_ref().map(|intent| self.asked(ticket.id, intent));
            let value = match self.run(&scripts::arrive(self.keys(), &arriving, asked, &about)).await {
                Ok(value) => value,
                Err(error) => {
                    if let Some(queue_ticket) = queue_ticket.filter(|_| !error.may_be_done()) {
                        queue_ticket.discard();
                    }
                    return Err(error);
                }
            };
            let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("arrive"))?;
            let begin = match (answer.word, answer.duration()) {
                ("new", _) => RecordBegin::New,
                ("reconcile", Some(sent_ago)) => RecordBegin::Reconcile { sent_ago, doubtful: true },
                (word, _) => {
                    if let Some(queue_ticket) = queue_ticket {
                        queue_ticket.discard();
                    }
                    match word {
                        "strange" => {
                            self.recognise().await?;
                            continue;
                        }
                        "adopted" => {
                            return answer.id().map(Arrived::Adopted).ok_or_else(|| nonsense("arrive"));
                        }
                        "full" => return Ok(Arrived::Full),
                        _ => return Err(nonsense("arrive")),
                    }
                }
            };
            if matches!(begin, RecordBegin::New) && self.link.lost_data() != lost {
                // The record was new to a server that had lost data, of which this host learned only after the call: arrive again.
                self.run(&scripts::answered(self.keys(), &ticket, true)).await.map_err(still_begun)?;
                continue;
            }
            let (opening, intent) = (&arriving.opening, arriving.intent.clone());
            let (asked_at_time, lost_at) = (self.clock.timestamp(asked_at), lost.map(|lost| lost.at));
            let (_, record) = Record::listed(opening, ticket.terms.kept, intent, lost_at, asked_at_time);
            self.ledger.put(ticket.id, record);
            let fingerprint_lock = match queue_ticket {
                Some(queue_ticket) if answer.has_lock() => {
                    queue_ticket.record_renewal(asked_at);
                    Some(queue_ticket.hold(None))
                }
                Some(queue_ticket) => {
                    queue_ticket.discard();
                    None
                }
                None => None,
            };
            return Ok(Arrived::Listed { begin, fingerprint_lock, others: answer.others() });
        }
        Err(unavailable(LinkError::Down))
    }

    pub(super) async fn recheck_orphan(&self, ticket: Ticket) -> Result<Option<RecordId>, RecordError> {
        let value = self.run(&scripts::recheck_orphan(self.keys(), &ticket)).await?;
        let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("look_again"))?;
        match answer.word {
            "adopted" => {
                // The script deleted the request's own record with its entry.
                self.ledger.forget(ticket.id);
                answer.id().map(Some).ok_or_else(|| nonsense("look_again"))
            }
            "none" | "lost" => Ok(None),
            _ => Err(nonsense("look_again")),
        }
    }

    pub(super) async fn keep_alive(
        &self,
        ticket: Ticket,
        lock: Duration,
        term: EntryTerm,
    ) -> Result<Renewed, RecordError> {
        let asked = Instant::now();
        let mut renewed = self.renew_entry(ticket, lock, term, false).await?;
        if renewed.0 == "gone"
            && term == EntryTerm::Lasting
            && self.restore_lost(ticket.id).await?.is_some()
            && asked.elapsed() < ticket.terms.lease / 4
        {
            // The server has lost the entry with its record, and no other request can have adopted it: list it again.
            renewed = self.renew_entry(ticket, lock, term, true).await?;
        }
        let (word, is_held) = renewed;
        if is_held {
            self.ledger.change(ticket.id, |record, now| {
                record.keep_alive(ticket.owner, lock, now).map(|()| RecordRetention::Keep)
            });
        }
        Ok(Renewed { entry: word == "ours", lock: is_held })
    }

    /// The state of the entry after the renewal, and whether the owner holds the record.
    async fn renew_entry(
        &self,
        ticket: Ticket,
        lock: Duration,
        term: EntryTerm,
        lists_again: bool,
    ) -> Result<(&'static str, bool), RecordError> {
        let value = self.run(&scripts::keep_alive(self.keys(), &ticket, lock, term, lists_again)).await?;
        let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("keep_alive"))?;
        let word = ["ours", "lost", "gone"].into_iter().find(|word| *word == answer.word);
        Ok((word.ok_or_else(|| nonsense("keep_alive"))?, answer.is_held()))
    }
}
