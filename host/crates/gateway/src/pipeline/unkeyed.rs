//! A write without a key: it adopts an orphan (an equal request whose caller has gone), or is listed as a new entry among equal requests.

use super::{
    RequestContext,
    delivery::{Pending, Received},
    record_lifecycle::{self, Begins, Start},
    request_context::{Orphan, Progress},
    response::{self, ADOPTED, CallerResponse},
    upstream_key::KeySends,
};
use crate::{
    error::Problem,
    idempotency::{
        self, Arrived, Arriving, BeginOutcome, BeginRequest, ClaimOwner, Entry, FencingToken, Fingerprint, Ownership,
        RecordGuard, RecordId, Stored, Tenant, Ticket, record::RecordBegin, unanswered::Terms,
    },
    overload::MemoryReservation,
    policy::contract::Effect,
    telemetry::{OrphanResult, WaitedFor},
    upstream::Body,
};
use http::{HeaderValue, Response};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long to wait for an earlier caller's close. A caller that gave up may repeat its request over another connection before the close of
/// the first one is noticed. So if an equal request is under way, a new one waits for a few rounds of a worker's event loop, then checks
/// again.
const CLOSE_NOTICE: Duration = Duration::from_millis(5);

/// The first and the longest wait between two checks whether an orphan under way has ended. A create takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const MAX_WAIT: Duration = Duration::from_millis(250);

impl RequestContext {
    /// Whether the request runs under a record without a key. A streamed body can neither be compared nor sent again.
    pub(super) fn has_own_record(&self) -> bool {
        self.effect == Effect::Unsafe && self.key.is_none() && self.repeatable()
    }

    fn opening(&self, fence: FencingToken, id: RecordId) -> BeginRequest {
        let settings = &self.service.settings.idempotency;
        let opening = BeginRequest::new(fence, Fingerprint::of_record(id), false, settings);
        let lock = self.shared.records.lease().map(|lease| lease + self.endpoint().settings.attempt_timeout);
        BeginRequest {
            lock: lock.unwrap_or(settings.lock),
            keep_answer: settings.orphans.unwrap_or(settings.keep),
            upstream_key: self.upstream_key.map(|key| key.tag),
            ..opening
        }
    }

    /// Adopts an orphan, or lists the request among equal ones.
    pub(super) async fn arrive(&mut self, fence: FencingToken, progress: &mut Progress) -> Result<Begins, Problem> {
        let entropy = &self.shared.entropy;
        let id = self.digest.map_or_else(|| RecordId::draw(entropy), |digest| RecordId::draw_beside(entropy, digest));
        self.carry_upstream_key(id.as_bytes());
        let settings = &self.service.settings.idempotency;
        let records = &self.shared.records;
        let (Some(digest), Some(kept)) = (self.digest, settings.orphans) else {
            let guard = RecordGuard::unwritten(records, self.shared.clock, id, self.opening(fence, id));
            return Ok(Begins::unlisted(Some(guard), Start::Fresh));
        };
        let opening = self.opening(fence, id);
        let terms = Terms { lease: records.lease().unwrap_or(Duration::MAX), kept };
        let ticket = Ticket { digest, id, owner: fence, terms };
        let fingerprint_lock = self.equal.map(|equal| equal.fingerprint);
        // A shared store writes the record at once. The intent then describes the write to a verification without its caller.
        let intent = records.lease().map(|_| self.intent());
        let arriving = Arriving { ticket, opening, fingerprint_lock, max: settings.max_orphans, intent };
        let entry = Entry::asking(records, self.shared.clock, &arriving);
        if records.lease().is_none() {
            let (service, values) = (Arc::clone(&self.service), std::mem::take(&mut self.distinguishing_headers));
            entry.charged_to(Box::new(move || {
                let tenant = Tenant::of_values(&service.settings.idempotency.tenant_headers, &values);
                Some(tenant).filter(|tenant| !tenant.is_every_caller())
            }));
        }
        if let Some(gone) = &self.caller_gone {
            gone.takes(&entry);
        }
        let arrived = records.arrive(arriving.clone()).await.map_err(|error| {
            if error.may_be_done() {
                entry.answered(true);
            } else {
                entry.discard();
            }
            record_lifecycle::problem(error)
        })?;
        match arrived {
            Arrived::Adopted(id) => {
                entry.adopts(id);
                self.adopt(entry, progress).await
            }
            Arrived::Listed { begin, fingerprint_lock, others } => {
                entry.keep_alive();
                let start = match begin {
                    RecordBegin::Reconcile { sent_ago, doubtful } => {
                        progress.doubtful = doubtful;
                        progress.key_sends = KeySends::reconciled(self.upstream_key, None, Instant::now());
                        Start::since(sent_ago, self.started)
                    }
                    _ => Start::Fresh,
                };
                let guard = RecordGuard::listed(
                    records,
                    self.shared.clock,
                    &arriving,
                    Arc::clone(&entry),
                    fingerprint_lock,
                    start.is_fresh(),
                );
                Ok(Begins::with(Some(guard), start, Some(entry), others))
            }
            Arrived::Full => {
                entry.discard();
                progress.recorder.orphan(OrphanResult::NotKept);
                Ok(Begins::unlisted(
                    Some(RecordGuard::unwritten(records, self.shared.clock, id, opening)),
                    Start::Fresh,
                ))
            }
        }
    }

    /// Checks for an orphan again, after the close of an earlier caller has had time to be noticed. True: the entry is now the orphan's.
    pub(super) async fn found_orphan(&self, entry: &Entry, since: Instant) -> Result<bool, Problem> {
        let left = CLOSE_NOTICE.saturating_sub(since.elapsed()).min(self.remaining());
        if !left.is_zero() {
            tokio::select! {
                () = sleep(left) => {}
                () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
            }
        }
        Ok(entry.recheck_orphan().await.map_err(record_lifecycle::problem)?.is_some())
    }

    /// Continues an orphan: waits while it runs, replays its response, verifies it if its effect is unknown, or sends the request if it is
    /// known not to be in effect.
    pub(super) async fn adopt(&mut self, entry: Arc<Entry>, progress: &mut Progress) -> Result<Begins, Problem> {
        let adopted = self.adopted(&entry, progress).await;
        if adopted.is_err() {
            // Leave the orphan to the next equal request, which may have more time.
            entry.abandon();
        }
        adopted
    }

    async fn adopted(&mut self, entry: &Arc<Entry>, progress: &mut Progress) -> Result<Begins, Problem> {
        let id = entry.id();
        // Sends must carry the orphan's own upstream key.
        self.carry_upstream_key(id.as_bytes());
        let records = &self.shared.records;
        let opening = self.opening(entry.owner(), id);
        let mut wait = FIRST_WAIT;
        let (begun, asked) = loop {
            // Read the clock before asking the store: an age counted back from this moment is never understated.
            let asked = Instant::now();
            match idempotency::begin(records, self.shared.clock, id, opening)
                .await
                .map_err(record_lifecycle::problem)?
            {
                BeginOutcome::InFlight { retry_after } => {
                    if self.remaining() <= wait {
                        progress.recorder.waited(WaitedFor::EqualRequest);
                        progress.recorder.orphan(OrphanResult::InFlight);
                        return Err(Problem::InFlight { retry_after });
                    }
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = self.caller_leaves() => return Err(Problem::DeadlineBeforeSend),
                    }
                    wait = (wait * 3 / 2).min(MAX_WAIT);
                }
                begun => break (begun, asked),
            }
        };
        progress.recorder.waited(WaitedFor::EqualRequest);
        let beginning = |guard: RecordGuard, start: Start| {
            let guard = Some(guard.renewed_by(Arc::clone(entry)));
            // If the request is sent after all, check again for older orphans whose close is noticed only now.
            Begins::with(guard, start, Some(Arc::clone(entry)), start.is_fresh())
        };
        Ok(match begun {
            BeginOutcome::New(guard) => {
                progress.recorder.orphan(OrphanResult::Unsent);
                beginning(guard, Start::Fresh)
            }
            BeginOutcome::Reconcile { guard, sent_ago, doubtful } => {
                progress.doubtful = doubtful;
                progress.recorder.orphan(OrphanResult::Reconcile);
                progress.key_sends = KeySends::reconciled(self.upstream_key, guard.keyed_sends(), asked);
                progress.orphan = Orphan::Adopted;
                beginning(guard, Start::since(sent_ago, self.started))
            }
            BeginOutcome::Replay(stored) => match entry.ownership().await {
                Ownership::Held => {
                    progress.recorder.orphan(OrphanResult::Answer);
                    progress.orphan = Orphan::Adopted;
                    Begins::Answered(self.replayed(&stored, entry, progress))
                }
                Ownership::Lost => {
                    // Another request adopted the orphan while this host stood still. Nothing was sent here: start again.
                    entry.discard();
                    return Box::pin(self.arrive(entry.owner(), progress)).await;
                }
                Ownership::Unconfirmed => return Err(Problem::StoreUnavailable),
            },
            BeginOutcome::Mismatch | BeginOutcome::InFlight { .. } => return Err(Problem::StoreUnavailable),
        })
    }

    fn replayed(&self, stored: &Stored, entry: &Arc<Entry>, progress: &mut Progress) -> Response<Body> {
        let mut response = self.replay(stored).unwrap_or_else(|problem| {
            progress.recorder.refused(&problem);
            problem.into_response()
        });
        response.headers_mut().remove(response::REPLAY);
        response.headers_mut().insert(ADOPTED, HeaderValue::from_static("true"));
        self.undelivered(Arc::clone(entry), Received::Answer, progress).behind(
            response,
            &self.method,
            self.handover.clone(),
        )
    }

    /// The delivery of a response that no record waits for.
    pub(super) fn undelivered(&self, entry: Arc<Entry>, received: Received, progress: &Progress) -> Pending {
        Pending::entry(entry, received, self.shared.detached.clone(), progress.recorder.shared_meter())
    }

    /// Delivers a response that says that the effect is unknown. It leaves an orphan only if it does not arrive.
    pub(super) fn deliver_unknown(
        &self,
        response: Response<Body>,
        entry: Option<Arc<Entry>>,
        progress: &Progress,
    ) -> Response<Body> {
        match entry {
            Some(entry) => self.undelivered(entry, Received::Unknown, progress).behind(
                response,
                &self.method,
                self.handover.clone(),
            ),
            None => response,
        }
    }

    /// Streams the response of a request in effect, and keeps it only if the caller does not receive it.
    pub(super) async fn deliver(
        &self,
        outgoing: CallerResponse,
        entry: Arc<Entry>,
        guard: RecordGuard,
        progress: &mut Progress,
    ) -> Response<Body> {
        if entry.is_answered_unknown() {
            // The caller got the early 504 and may count the effect itself, so no other request may have it.
            guard.end_with_entry();
            entry.answered(true);
            return outgoing.into_response(self, progress);
        }
        let most = self.service.settings.idempotency.max_response_bytes;
        let head = outgoing.head(self, progress);
        let spare = self.held.as_ref().and_then(MemoryReservation::spare);
        let pending =
            self.undelivered(Arc::clone(&entry), Received::Answer, progress).with_answer(guard, head, most, spare);
        if !entry.is_abandoned() {
            let ownership = entry.ownership().await;
            if ownership != Ownership::Held {
                // Another request may have been given the effect, so the response stays with the record.
                let owner = entry.owner();
                pending.kept_without_caller(Some(outgoing.into_response(self, progress).into_body()));
                progress.owner = ClaimOwner::Request(owner);
                let response = response::refused(Problem::EffectUnknown, self, progress);
                if ownership == Ownership::Lost {
                    entry.abandon();
                    return response;
                }
                return self.deliver_unknown(response, Some(entry), progress);
            }
        }
        pending.behind(outgoing.into_response(self, progress), &self.method, self.handover.clone())
    }
}

#[cfg(test)]
#[path = "unkeyed/tests.rs"]
mod tests;
