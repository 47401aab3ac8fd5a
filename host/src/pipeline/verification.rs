//! One verification of a write that was left unknown, without its caller. The request is put together again from what its record
//! keeps, the policy that serves now says what to ask the upstream, and what the answer shows is recorded.
//!
//! Nothing here sends the write: a verdict that would send it again means that its absence is proven, and frees its key.

use super::{
    Host, RequestContext, SharedVerifications,
    request_context::{AttemptResult, MaybeGuard, Progress, RequestBody},
    response::CallerResponse,
};
use crate::{
    idempotency::{
        self, BeginOutcome, BeginRequest, ClaimOwner, FencingToken, Fingerprint, Intent, KeptRequest, Postponed,
        RecordId, Stored,
    },
    overload::Priority,
    policy::contract::{Class, Effect, Failure, FailureKind, Purpose},
    retry::NextAction,
    settlement::{Schedule, VerificationResult},
    telemetry::RequestRecorder,
    upstream::redirect::Origin,
    upstream_runtime::UpstreamRuntime,
};
use bytes::Bytes;
use http::StatusCode;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// The wait for a place of the endpoint's limits: the record is held meanwhile.
const MAX_LIMIT_WAIT: Duration = Duration::from_secs(1);
/// The wait for the turn among equal requests, one of which may be under way.
const MAX_TURN_WAIT: Duration = Duration::from_secs(1);
/// The longest request, whatever its endpoint allows.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(60);
/// What a record's lock has over that: the time to record the result.
const LOCK_RESERVE: Duration = Duration::from_secs(2);
/// Different requests of one verification: a policy may follow a list by a second page or a resource.
const MAX_REQUESTS: usize = 4;
/// Until a write is verified again that no host can verify now: only another configuration or policy changes that.
const UNVERIFIABLE_WAIT: Duration = Duration::from_secs(60);

/// The outcome of a write of which nothing was heard.
const NEVER_HEARD: Failure = Failure::new(FailureKind::Reset, true);

/// How a verification ended.
enum VerificationEnd {
    /// The effect is known and recorded.
    Recorded(Class),
    /// It is known, and the store did not take it.
    Unrecorded,
    /// It is not known. Whether the upstream was asked.
    Open { asked: bool },
}

/// What a verification proves.
enum Proof {
    /// The effect took place; the answer to replay, where there is one.
    InPlace(Option<CallerResponse>),
    /// It did not, and will not.
    NotInEffect,
}

impl Host {
    /// Verifies a record that is due, unless another host has it.
    pub(crate) async fn verify(&self, id: RecordId, shared: &SharedVerifications) -> VerificationResult {
        // Until the lock of the verification begins, the record is kept from other hosts by this.
        let lease = MAX_LIMIT_WAIT + MAX_TURN_WAIT + LOCK_RESERVE;
        let intent = match self.shared.records.take(id, lease).await {
            Ok(Some(intent)) => intent,
            Ok(None) => return VerificationResult::Open,
            Err(error) => {
                tracing::debug!(%error, "an unknown write could not be taken");
                return VerificationResult::Open;
            }
        };
        // Of an upstream that is configured no longer nothing can be asked, and its records' lifetimes are not known.
        let name = |serving: &&Arc<crate::rollout::UpstreamPolicy>| serving.settings.name == intent.upstream;
        let service = self.shared.rollout.upstreams.iter().find(name).map(|serving| serving.current());
        let commit_within = service.as_ref().map(|service| commit_within(&intent, service)).unwrap_or_default();
        let (Some(request), Some(service)) = (&intent.request, service) else {
            return self.postpone(id, &intent, commit_within).await;
        };
        let request_time = longest_read(&service);
        let idempotency = &service.settings.idempotency;
        let opening = BeginRequest {
            fence: FencingToken::draw(&self.shared.entropy),
            // The store knows it.
            host: None,
            fingerprint: request.fingerprint,
            maybe_sent: false,
            turn: true,
            upstream_key: None,
            lock: request_time + MAX_LIMIT_WAIT + LOCK_RESERVE,
            keep: idempotency.keep,
            // The store knows it too.
            tenant: None,
            keep_answer: idempotency.orphans.filter(|_| !request.keyed).unwrap_or(idempotency.keep),
        };
        let mut begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
        if matches!(begun, Ok(BeginOutcome::Mismatch)) && !request.keyed {
            // The record of a request without a key may have a fingerprint of its own, which tells nothing of equal requests.
            let own = BeginRequest { fingerprint: Fingerprint::of_record(id), turn: false, ..opening };
            begun = idempotency::begin(&self.shared.records, self.shared.clock, id, own).await;
        }
        let settled = |class| settled(&intent, class);
        let Ok(BeginOutcome::Reconcile { hold, sent_ago, doubtful }) = begun else { return VerificationResult::Open };
        if doubtful && self.shared.is_after_loss(idempotency) {
            // After a loss no verification tells which request made what it finds: the caller or an operator settles it.
            hold.leave_until(None);
            return settled(Class::Unknown);
        }
        let since = Instant::now().checked_sub(sent_ago);
        let settings = &self.shared.settlement.settings;
        let restored = self.restored(&intent, request, &service, request_time + MAX_LIMIT_WAIT);
        let schedule = Schedule { commit_within, margin: settings.margin, interval: settings.interval };
        let mut hold = Some(hold);
        let ended = match restored {
            None => VerificationEnd::Open { asked: true },
            Some(mut exchange) => {
                let account = RequestRecorder::background(&self.desk);
                exchange.verified(&mut hold, (since, doubtful), account, shared).await
            }
        };
        let asked = match (ended, &hold) {
            (VerificationEnd::Recorded(class), _) => return settled(class),
            // The record is due again, as its hold has left it.
            (VerificationEnd::Unrecorded, _) | (_, None) => return VerificationResult::Open,
            (VerificationEnd::Open { asked }, Some(_)) => asked,
        };
        let age = since.map_or(sent_ago, |since| since.elapsed());
        let next = schedule.next(age, asked);
        if let Some(hold) = hold {
            hold.leave_until(next);
        }
        if next.is_none() { settled(Class::Unknown) } else { VerificationResult::Open }
    }

    /// Puts off a record that this host has taken and cannot verify.
    async fn postpone(&self, id: RecordId, intent: &Intent, commit_within: Duration) -> VerificationResult {
        let longest_age = commit_within.saturating_add(self.shared.settlement.settings.margin);
        match self.shared.records.postpone(id, UNVERIFIABLE_WAIT, longest_age).await {
            Ok(Postponed::GivenUp) => settled(intent, Class::Unknown),
            Ok(Postponed::Later | Postponed::NotUnsettled) => VerificationResult::Open,
            Err(error) => {
                tracing::debug!(%error, "an unknown write that cannot be verified could not be put off");
                VerificationResult::Open
            }
        }
    }

    /// The request as far as its policy reads it, for the generation that serves now. None where that cannot verify it.
    fn restored(
        &self,
        intent: &Intent,
        request: &KeptRequest,
        service: &Arc<UpstreamRuntime>,
        allowed: Duration,
    ) -> Option<Box<RequestContext>> {
        let upstream =
            self.shared.rollout.upstreams.iter().position(|serving| serving.settings.name == intent.upstream)?;
        let endpoint = endpoint(intent, service)?;
        let own = &service.endpoints[endpoint];
        if !own.granted || !own.commits_late() {
            return None;
        }
        let started = Instant::now();
        Some(Box::new(RequestContext {
            shared: Arc::clone(&self.shared),
            upstream,
            service: Arc::clone(service),
            stand_in: None,
            transport: self.transport(upstream),
            endpoint,
            // It was unsafe when it was sent.
            effect: Effect::Unsafe,
            priority: Priority::usual(Effect::Safe),
            method: request.method.clone(),
            path_and_query: request.path_and_query.clone(),
            // Its answer goes into the record as it is.
            origin: Origin { scheme: "http", authority: None },
            headers: request.headers.clone(),
            body: RequestBody::Buffered(request.body.clone()),
            held: None,
            // The schedule bounds how many there are.
            under_way: None,
            started,
            deadline: started + allowed,
            key: None,
            tenant: None,
            telling_apart: Vec::new(),
            fingerprint: Some(request.fingerprint),
            // A verification takes the turn of its fingerprint itself.
            equal: None,
            // Nothing is sent that could carry it.
            upstream_key: None,
            digest: None,
            handover: None,
            caller_gone: None,
            verifies: Some(Verifying { keyed: request.keyed }),
        }))
    }
}

/// What an exchange knows that verifies a write without its caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verifying {
    /// Whether the caller gave a key.
    pub(crate) keyed: bool,
}

fn settled(intent: &Intent, class: Class) -> VerificationResult {
    VerificationResult::Settled { upstream: intent.upstream.clone(), endpoint: intent.endpoint.clone(), class }
}

/// The endpoint of a write, as the policy that serves now has it: by its name, else by the request.
fn endpoint(intent: &Intent, service: &UpstreamRuntime) -> Option<usize> {
    let named = service.endpoints.iter().position(|own| own.described.name == intent.endpoint);
    named.or_else(|| {
        let request = intent.request.as_ref()?;
        service.find(&request.method, request.path_and_query.split('?').next().unwrap_or("/"))
    })
}

/// How late the upstream may still apply a write; zero where its endpoint is not known any more.
fn commit_within(intent: &Intent, service: &UpstreamRuntime) -> Duration {
    endpoint(intent, service).and_then(|own| service.endpoints[own].described.commit_within).unwrap_or_default()
}

/// How long one request may take: as long as the slowest read of the upstream.
fn longest_read(service: &UpstreamRuntime) -> Duration {
    let reads = service.endpoints.iter().filter(|own| own.described.effect == Effect::Safe);
    let times = reads.map(|own| own.settings.attempt_timeout);
    times.max().unwrap_or(Duration::from_secs(5)).min(MAX_REQUEST_TIME)
}

impl RequestContext {
    /// What was asked of the upstream, for the request's record.
    pub(super) fn intent(&self) -> Arc<Intent> {
        let endpoint = self.endpoint();
        let settings = &self.shared.settlement.settings;
        let interest = &endpoint.described.interest;
        let read_bytes = interest.request_body_bytes.min(self.buffered().len());
        let is_verifiable = settings.enabled
            && self.effect == Effect::Unsafe
            && endpoint.granted
            && endpoint.commits_late()
            && self.repeatable()
            && read_bytes <= settings.max_request_bytes;
        let request = self.fingerprint.filter(|_| is_verifiable).and_then(|fingerprint| {
            Some(KeptRequest {
                fingerprint,
                method: self.method.clone(),
                path_and_query: self.path_and_query.clone(),
                headers: self.headers_to_verify(&interest.request_headers)?,
                // A copy: a slice would keep the whole body.
                body: Bytes::copy_from_slice(&self.buffered()[..read_bytes]),
                keyed: self.key.is_some(),
            })
        });
        let (upstream, endpoint) = (self.service.settings.name.clone(), endpoint.described.name.clone());
        Arc::new(Intent { upstream, endpoint, request })
    }

    /// Verifies the write once. The hold is gone where the result was recorded. `doubtful`: no send of it is known.
    async fn verified(
        &mut self,
        hold: &mut MaybeGuard,
        (since, doubtful): (Option<Instant>, bool),
        mut account: RequestRecorder,
        shared: &SharedVerifications,
    ) -> VerificationEnd {
        account.counting_for(&self.endpoint().meters);
        let (Some(own), Some(fingerprint)) = (hold.as_mut(), self.fingerprint) else {
            return VerificationEnd::Open { asked: false };
        };
        let mut progress = Progress::new(ClaimOwner::Record(own.id()), account);
        progress.last_sent = Some(since.unwrap_or(self.started));
        // A loss from now on leaves it to its caller or an operator.
        progress.doubtful = doubtful;
        progress.ever_unknown = true;
        progress.unsettled = true;
        // An equal request that is under way may be about to claim what this one would find.
        progress.turn = match own.take_turn() {
            Some(turn) => Some(turn),
            None => match timeout(MAX_TURN_WAIT, self.shared.records.turn(fingerprint)).await {
                Ok(Ok(turn)) => Some(turn),
                Ok(Err(_)) | Err(_) => return VerificationEnd::Open { asked: false },
            },
        };
        let proof = self.proof(&mut progress, hold, shared).await;
        let asked = progress.probes > 0;
        let Some(proof) = proof else { return VerificationEnd::Open { asked } };
        let Some(own) = hold.take() else { return VerificationEnd::Open { asked } };
        let class = progress.class;
        let recorded = match proof {
            Proof::NotInEffect => own.release().await,
            Proof::InPlace(None) => own.finish(Stored::TooLarge { status: StatusCode::OK }).await,
            Proof::InPlace(Some(answer)) => {
                let most = self.service.settings.idempotency.max_response_bytes;
                let (_, stored) = answer.store(self, &mut progress, most).await;
                own.finish(stored).await
            }
        };
        match recorded {
            Ok(()) => VerificationEnd::Recorded(class),
            Err(error) => {
                tracing::warn!(%error, endpoint = %self.endpoint().described.name, "a settled write could not be recorded");
                VerificationEnd::Unrecorded
            }
        }
    }

    /// Has the policy say what to ask the upstream, and asks.
    async fn proof(
        &mut self,
        progress: &mut Progress,
        hold: &mut MaybeGuard,
        shared: &SharedVerifications,
    ) -> Option<Proof> {
        let arrival = AttemptResult::Failure(NEVER_HEARD);
        let clamped = self.judged(Purpose::Request, &arrival, progress, hold).await.ok()?.1;
        let mut step = self.follow(clamped, progress);
        let mut made: Vec<(http::Method, String)> = Vec::new();
        loop {
            let NextAction::Verify(probe) = step else { return proven(step, progress, !made.is_empty()) };
            let target = (probe.method.clone(), probe.path_and_query.clone());
            // "Not there yet" asks for the same again: that is the next verification.
            if made.len() == MAX_REQUESTS || made.contains(&target) {
                return None;
            }
            made.push(target);
            let arrival = shared.request(self, &probe, progress, hold).await?;
            let (_, clamped) = self.judged(Purpose::Probe, &arrival, progress, hold).await.ok()?;
            step = self.follow(clamped, progress);
        }
    }
}

/// What a step says of the write. Before the upstream was asked, only an answer that the policy gives is a proof.
fn proven(step: NextAction, progress: &Progress, asked: bool) -> Option<Proof> {
    match (step, progress.class) {
        (NextAction::Unsettled | NextAction::Verify(_) | NextAction::Resend(_), _) | (_, Class::Unknown) => None,
        (NextAction::Replace(answer), Class::Applied | Class::AlreadyApplied) => {
            Some(Proof::InPlace(Some(answer.into())))
        }
        (NextAction::Deliver | NextAction::Retry(_), Class::Applied | Class::AlreadyApplied) => {
            asked.then_some(Proof::InPlace(None))
        }
        (_, Class::NotApplied | Class::Throttled | Class::Rejected) => {
            (asked && !progress.unsettled).then_some(Proof::NotInEffect)
        }
    }
}
