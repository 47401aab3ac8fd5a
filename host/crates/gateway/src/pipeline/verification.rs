//! One verification of an unknown write, without its caller. The request is restored from its record, the live policy says what to ask the
//! upstream, and the result is recorded.
//!
//! Nothing here sends the write. A verdict that would send it again means that its absence is proven, so the key is freed.

use super::{
    RequestContext, SharedVerifications,
    decide::NO_RESPONSE,
    request_context::{AttemptResult, MaybeGuard, Progress, RequestBody},
    response::CallerResponse,
};
use crate::{
    host::Host,
    idempotency::{
        self, BeginOutcome, BeginRequest, ClaimOwner, FencingToken, Fingerprint, Intent, KeptRequest, Postponed,
        RecordId, Stored,
    },
    overload::Priority,
    policy::contract::{Class, Effect, Purpose},
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

/// The longest wait for the endpoint's limits: the record is held meanwhile.
const MAX_LIMIT_WAIT: Duration = Duration::from_secs(1);
/// The longest wait for the fingerprint lock, which an equal request under way may hold.
const MAX_FINGERPRINT_LOCK_WAIT: Duration = Duration::from_secs(1);
/// The longest timeout of one request, even if its endpoint allows more.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(60);
/// The time that a record's lock adds to the request's, to record the result.
const LOCK_RESERVE: Duration = Duration::from_secs(2);
/// Different requests that one verification may send: a policy may follow a list by a second page or a resource.
const MAX_REQUESTS: usize = 4;
/// When to try again if no host can verify a write now: only a new configuration or policy changes that.
const UNVERIFIABLE_WAIT: Duration = Duration::from_secs(60);

/// How a verification ended.
enum VerificationEnd {
    /// The effect is known and recorded.
    Recorded(Class),
    /// The effect is known, but the store did not record it.
    Unrecorded,
    /// The effect is not known. `asked`: whether the upstream was asked.
    Open { asked: bool },
}

/// The proof that a verification found.
enum Proof {
    /// The write is in effect; with the response to replay, if there is one.
    InPlace(Option<CallerResponse>),
    /// The write is not in effect, and never will be.
    NotInEffect,
}

impl Host {
    /// Verifies a due record, unless another host has it.
    pub(crate) async fn verify(&self, id: RecordId, shared: &SharedVerifications) -> VerificationResult {
        // This lease keeps the record from other hosts until the verification takes its lock.
        let lease = MAX_LIMIT_WAIT + MAX_FINGERPRINT_LOCK_WAIT + LOCK_RESERVE;
        let intent = match self.shared.records.take(id, lease).await {
            Ok(Some(intent)) => intent,
            Ok(None) => return VerificationResult::Open,
            Err(error) => {
                tracing::debug!(%error, "an unknown write could not be taken for verification");
                return VerificationResult::Open;
            }
        };
        // An upstream that is no longer configured cannot be asked, and its record lifetimes are unknown.
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
            // The store keeps the host.
            host: None,
            fingerprint: request.fingerprint,
            maybe_sent: false,
            fingerprint_lock: true,
            upstream_key: None,
            lock: request_time + MAX_LIMIT_WAIT + LOCK_RESERVE,
            keep: idempotency.keep,
            // The store keeps the tenant too.
            tenant: None,
            keep_answer: idempotency.orphans.filter(|_| !request.keyed).unwrap_or(idempotency.keep),
        };
        let mut begun = idempotency::begin(&self.shared.records, self.shared.clock, id, opening).await;
        if matches!(begun, Ok(BeginOutcome::Mismatch)) && !request.keyed {
            // A record without a key may have its own fingerprint, which is not that of equal requests.
            let own = BeginRequest { fingerprint: Fingerprint::of_record(id), fingerprint_lock: false, ..opening };
            begun = idempotency::begin(&self.shared.records, self.shared.clock, id, own).await;
        }
        let settled = |class| settled(&intent, class);
        let Ok(BeginOutcome::Reconcile { guard, sent_ago, doubtful }) = begun else {
            return VerificationResult::Open;
        };
        if doubtful && self.shared.is_after_loss(idempotency) {
            // After a loss of shared state, a verification does not show which request created the match: the caller or an operator settles
            // it.
            guard.leave_until(None);
            return settled(Class::Unknown);
        }
        let since = Instant::now().checked_sub(sent_ago);
        let settings = &self.shared.settlement.settings;
        let restored = self.restored(&intent, request, &service, request_time + MAX_LIMIT_WAIT);
        let schedule = Schedule { commit_within, margin: settings.margin, interval: settings.interval };
        let mut guard = Some(guard);
        let ended = match restored {
            None => VerificationEnd::Open { asked: true },
            Some(mut context) => {
                let recorder = RequestRecorder::background(&self.telemetry);
                context.verified(&mut guard, (since, doubtful), recorder, shared).await
            }
        };
        let asked = match (ended, &guard) {
            (VerificationEnd::Recorded(class), _) => return settled(class),
            // The record is due again at the time that its guard has set.
            (VerificationEnd::Unrecorded, _) | (_, None) => return VerificationResult::Open,
            (VerificationEnd::Open { asked }, Some(_)) => asked,
        };
        let age = since.map_or(sent_ago, |since| since.elapsed());
        let next = schedule.next(age, asked);
        if let Some(guard) = guard {
            guard.leave_until(next);
        }
        if next.is_none() { settled(Class::Unknown) } else { VerificationResult::Open }
    }

    /// Postpones a record that this host has taken and cannot verify.
    async fn postpone(&self, id: RecordId, intent: &Intent, commit_within: Duration) -> VerificationResult {
        let longest_age = commit_within.saturating_add(self.shared.settlement.settings.margin);
        match self.shared.records.postpone(id, UNVERIFIABLE_WAIT, longest_age).await {
            Ok(Postponed::GivenUp) => settled(intent, Class::Unknown),
            Ok(Postponed::Later | Postponed::NotUnsettled) => VerificationResult::Open,
            Err(error) => {
                tracing::debug!(%error, "the verification of an unknown write could not be postponed");
                VerificationResult::Open
            }
        }
    }

    /// Restores the part of the request that its policy reads, for the live generation. None if that generation cannot verify it.
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
            // The write was unsafe when it was sent.
            effect: Effect::Unsafe,
            priority: Priority::usual(Effect::Safe),
            method: request.method.clone(),
            path_and_query: request.path_and_query.clone(),
            // Unused: the response goes into the record without a rewrite.
            origin: Origin { scheme: "http", authority: None },
            headers: request.headers.clone(),
            body: RequestBody::Buffered(request.body.clone()),
            held: None,
            // Not counted: the schedule bounds the number of verifications.
            under_way: None,
            started,
            deadline: started + allowed,
            key: None,
            tenant: None,
            distinguishing_headers: Vec::new(),
            fingerprint: Some(request.fingerprint),
            // A verification takes the fingerprint lock itself.
            equal: None,
            // A verification sends no write that could carry the key.
            upstream_key: None,
            digest: None,
            handover: None,
            caller_gone: None,
            verifies: Some(Verifying { keyed: request.keyed }),
        }))
    }
}

/// Set in the context of a verification without a caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verifying {
    /// Whether the write had an idempotency key.
    pub(crate) keyed: bool,
}

fn settled(intent: &Intent, class: Class) -> VerificationResult {
    VerificationResult::Settled { upstream: intent.upstream.clone(), endpoint: intent.endpoint.clone(), class }
}

/// The endpoint of a write in the live policy: found by name, else by method and path.
fn endpoint(intent: &Intent, service: &UpstreamRuntime) -> Option<usize> {
    let named = service.endpoints.iter().position(|own| own.described.name == intent.endpoint);
    named.or_else(|| {
        let request = intent.request.as_ref()?;
        service.find(&request.method, request.path_and_query.split('?').next().unwrap_or("/"))
    })
}

/// How late the upstream may still apply a write; zero if its endpoint no longer exists.
fn commit_within(intent: &Intent, service: &UpstreamRuntime) -> Duration {
    endpoint(intent, service).and_then(|own| service.endpoints[own].described.commit_within).unwrap_or_default()
}

/// The timeout of one request: that of the upstream's slowest read.
fn longest_read(service: &UpstreamRuntime) -> Duration {
    let reads = service.endpoints.iter().filter(|own| own.described.effect == Effect::Safe);
    let times = reads.map(|own| own.settings.attempt_timeout);
    times.max().unwrap_or(Duration::from_secs(5)).min(MAX_REQUEST_TIME)
}

impl RequestContext {
    /// The intent for the request's record: the part of the request that a verification needs.
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
                // Copy, because a slice would keep the whole body in memory.
                body: Bytes::copy_from_slice(&self.buffered()[..read_bytes]),
                keyed: self.key.is_some(),
            })
        });
        let (upstream, endpoint) = (self.service.settings.name.clone(), endpoint.described.name.clone());
        Arc::new(Intent { upstream, endpoint, request })
    }

    /// Verifies the write once. Takes the guard if the result was recorded. `doubtful`: no send of the write is known.
    async fn verified(
        &mut self,
        guard: &mut MaybeGuard,
        (since, doubtful): (Option<Instant>, bool),
        mut recorder: RequestRecorder,
        shared: &SharedVerifications,
    ) -> VerificationEnd {
        recorder.counting_for(&self.endpoint().meters);
        let (Some(own), Some(fingerprint)) = (guard.as_mut(), self.fingerprint) else {
            return VerificationEnd::Open { asked: false };
        };
        let mut progress = Progress::new(ClaimOwner::Record(own.id()), recorder);
        progress.last_sent = Some(since.unwrap_or(self.started));
        // Kept, so that a later loss of shared state leaves the write to its caller or an operator.
        progress.doubtful = doubtful;
        progress.ever_unknown = true;
        progress.unsettled = true;
        // An equal request under way may be about to claim the match that this verification would find.
        progress.lock = match own.take_fingerprint_lock() {
            Some(fingerprint_lock) => Some(fingerprint_lock),
            None => match timeout(MAX_FINGERPRINT_LOCK_WAIT, self.shared.records.lock_fingerprint(fingerprint)).await {
                Ok(Ok(fingerprint_lock)) => Some(fingerprint_lock),
                Ok(Err(_)) | Err(_) => return VerificationEnd::Open { asked: false },
            },
        };
        let proof = self.proof(&mut progress, guard, shared).await;
        let asked = progress.verifications > 0;
        let Some(proof) = proof else { return VerificationEnd::Open { asked } };
        let Some(own) = guard.take() else { return VerificationEnd::Open { asked } };
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
                tracing::warn!(%error, endpoint = %self.endpoint().described.name, "the record of a settled write \
                                                                                    could not be stored");
                VerificationEnd::Unrecorded
            }
        }
    }

    /// Asks the upstream as the policy says, until the write is settled or nothing new is left to ask.
    async fn proof(
        &mut self,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
        shared: &SharedVerifications,
    ) -> Option<Proof> {
        let arrival = AttemptResult::Failure(NO_RESPONSE);
        let clamped = self.decide(Purpose::Request, &arrival, progress, guard).await.1;
        let mut step = self.follow(clamped, progress);
        let mut made: Vec<(http::Method, String)> = Vec::new();
        loop {
            let NextAction::Verify(probe) = step else { return proven(step, progress, !made.is_empty()) };
            let target = (probe.method.clone(), probe.path_and_query.clone());
            // The policy repeats a request while the effect is not visible yet: leave that to the next verification.
            if made.len() == MAX_REQUESTS || made.contains(&target) {
                return None;
            }
            made.push(target);
            let arrival = shared.request(self, &probe, progress, guard).await?;
            let (_, clamped) = self.decide(Purpose::Probe, &arrival, progress, guard).await;
            step = self.follow(clamped, progress);
        }
    }
}

/// The proof that an action gives. Before the upstream was asked, only a replacement response by the policy is a proof.
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
