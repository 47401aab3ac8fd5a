//! One request under way: its fixed data ([`RequestContext`]) and its state so far ([`Progress`]).

use super::{
    CallerGone, Shared,
    pending_report::PendingReport,
    upstream_key::{KeySends, UpstreamKey},
    verification::Verifying,
};
use crate::{
    config::settings::Redirects,
    flush_notice::Handover,
    idempotency::{ClaimOwner, Entry, Fingerprint, FingerprintLock, Keyed, RecordGuard, RequestDigest, Tenant},
    overload::{AdmissionRequest, MemoryReservation, Overload, Priority, UnderWay},
    policy::contract::{Class, Effect, Failure, Purpose},
    telemetry::{RequestRecorder, trace_context},
    upstream::{
        Body, Outbound, OutboundBody, Transport,
        redirect::{self, Origin, Route},
    },
    upstream_runtime::{Endpoint, UpstreamRuntime},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Equal requests, which run one at a time under one [`FingerprintLock`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct EqualRequests {
    /// The fingerprint that they share.
    pub(crate) fingerprint: Fingerprint,
    /// Whether the fingerprint is that of a condition. If one such request ends unknown, the next one verifies it.
    pub(crate) by_condition: bool,
}

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// In memory: every attempt can send it.
    Buffered(Bytes),
    /// Larger than the buffer: only the first attempt can send it.
    Stream(Option<Body>),
}

/// The fixed data of a request.
#[derive(Debug)]
pub(crate) struct RequestContext {
    pub(crate) shared: Arc<Shared>,
    /// Index of the upstream in the host's list.
    pub(crate) upstream: usize,
    /// The generation that serves this request from its first attempt to its last.
    pub(crate) service: Arc<UpstreamRuntime>,
    /// If a candidate serves: the live generation and its endpoint index, which decide where the candidate fails.
    pub(crate) stand_in: Option<(Arc<UpstreamRuntime>, usize)>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) endpoint: usize,
    pub(crate) effect: Effect,
    pub(crate) priority: Priority,
    pub(crate) method: Method,
    pub(crate) path_and_query: String,
    /// The caller's view of this host (scheme and authority): redirects are rewritten to it.
    pub(crate) origin: Origin,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
    /// Counts the request and its buffered body against the memory limit; moves into the response body later.
    pub(crate) held: Option<MemoryReservation>,
    /// Counts the request against its connection and peer until its work ends; none for the host's own verifications.
    pub(crate) under_way: Option<UnderWay>,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) key: Option<Keyed>,
    /// Set if the request has a key, or if callers may read their records.
    pub(crate) tenant: Option<Tenant>,
    /// Headers that tell this request apart from equal ones of other callers; empty with a key or without orphans. Tenant headers among
    /// them are hashed only if the request becomes an orphan.
    pub(crate) distinguishing_headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// The upstream's own idempotency key. Each send carries it; it is among `headers`.
    pub(crate) upstream_key: Option<UpstreamKey>,
    /// The equal requests that must not run at the same time; none: the request takes no fingerprint lock.
    pub(crate) equal: Option<EqualRequests>,
    /// Finds equal requests; set if the request has no key and orphans are kept.
    pub(crate) digest: Option<RequestDigest>,
    /// Reports that the response has reached the kernel; none if the caller takes it from memory.
    pub(crate) handover: Option<Handover>,
    /// Cancelled when the caller leaves; none for a safe request, which is dropped with its caller.
    pub(crate) caller_gone: Option<CallerGone>,
    /// Set for a verification without a caller; none for a request.
    pub(crate) verifies: Option<Verifying>,
}

impl RequestContext {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.service.endpoints[self.endpoint]
    }

    /// The upstream's adaptive concurrency limit. None if it is switched off, or if the endpoint has a fixed limit: an operator or the
    /// policy knows the endpoint's capacity then.
    pub(crate) fn overload(&self) -> Option<&Arc<Overload>> {
        let applies = self.service.settings.sheds_overload && self.endpoint().settings.concurrency.is_none();
        applies.then(|| &self.shared.rollout.upstreams[self.upstream].overload)
    }

    pub(crate) fn asking(&self) -> AdmissionRequest<'_> {
        let endpoint = self.endpoint();
        let (endpoint, attempt_timeout) = (&*endpoint.described.name, endpoint.settings.attempt_timeout);
        AdmissionRequest { priority: self.priority, endpoint, attempt_timeout }
    }

    /// The request's log span, at debug level: an unused span would cost more than a decision.
    pub(crate) fn span(&self, recorder: &RequestRecorder) -> tracing::Span {
        let trace = recorder.trace.map(tracing::field::display);
        let (upstream, endpoint) = (&*self.service.settings.name, &*self.endpoint().described.name);
        tracing::debug_span!("request", request = %recorder.id, upstream, endpoint, trace)
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the caller of a detached request has hung up.
    pub(crate) fn caller_has_gone(&self) -> bool {
        self.caller_gone.as_ref().is_some_and(CallerGone::is_cancelled)
    }

    /// Resolves when the caller hangs up; never for a safe request.
    pub(crate) async fn caller_leaves(&self) {
        match &self.caller_gone {
            Some(gone) => gone.cancelled().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn buffered(&self) -> &[u8] {
        match &self.body {
            RequestBody::Buffered(bytes) => bytes,
            RequestBody::Stream(_) => &[],
        }
    }

    /// Rewrites redirect URLs that lead to the upstream, so that they lead to this host at the address that the caller used.
    pub(crate) fn rewrite_redirects(&self, headers: &mut HeaderMap) {
        let settings = &self.service.settings;
        if settings.redirects == Redirects::Rewrite {
            let base_url = &settings.connection.base_url;
            let prefix = settings.path_prefix.as_deref().unwrap_or("");
            let (path_and_query, origin) = (&*self.path_and_query, &self.origin);
            redirect::rewrite(headers, &Route { base_url, path_and_query, prefix, origin });
        }
    }

    pub(crate) fn repeatable(&self) -> bool {
        matches!(self.body, RequestBody::Buffered(_))
    }

    /// The request to send as this attempt. Takes a streamed body.
    pub(crate) fn outbound(&mut self, recorder: &RequestRecorder, attempt: u32) -> Outbound {
        let body = match &mut self.body {
            RequestBody::Buffered(bytes) => OutboundBody::Bytes(bytes.clone()),
            RequestBody::Stream(stream) => match stream.take() {
                Some(stream) => OutboundBody::Stream(stream),
                None => OutboundBody::Bytes(Bytes::new()),
            },
        };
        let mut headers = self.headers.clone();
        if let Some(trace) = recorder.trace {
            headers.insert(trace_context::TRACEPARENT, trace.header(recorder.id.span(attempt)));
        }
        Outbound {
            method: self.method.clone(),
            path_and_query: self.path_and_query.clone(),
            headers,
            body,
            guarded: self.effect == Effect::Unsafe,
        }
    }
}

/// A response of the upstream, with the first bytes of its body.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The bytes of the body that were read.
    pub(crate) read: Bytes,
    /// The unread rest; none if `read` is the whole body.
    pub(crate) rest: Option<Body>,
}

/// The result of an attempt.
#[derive(Debug)]
pub(crate) enum AttemptResult {
    Answer(UpstreamResponse),
    Failure(Failure),
}

/// How a request relates to an orphan: an equal request without a key whose caller has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphan {
    None,
    /// An orphan was found right before the first send.
    Found,
    /// The request has adopted the orphan's effect.
    Adopted,
}

/// Why a match is not adopted after shared state has lost its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Only the loss or the caller's `Triage-Maybe-Sent` says that the request was ever sent: an equal request may have made the match.
    NotKnownSent,
    /// The request was sent, and several matches have no claim: one is its own, the others belong to equal requests.
    SeveralUnclaimed,
}

/// The state of a request so far.
// The flags are independent: they do not form one state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
    pub(crate) verifications: u32,
    /// Whether the effect was unknown at some time: a match found later may be this request's own.
    pub(crate) ever_unknown: bool,
    /// Only a loss of shared state or the caller's `Triage-Maybe-Sent` says that the request was sent before.
    pub(crate) doubtful: bool,
    /// Why a match that a verification found was not adopted.
    pub(crate) doubt: Option<Doubt>,
    /// Whether the effect is unknown now.
    pub(crate) unsettled: bool,
    /// When the last byte of the request may have been sent.
    pub(crate) last_sent: Option<Instant>,
    /// The sends under the upstream's own key.
    pub(crate) key_sends: KeySends,
    /// When the last verification was sent. Its result is as old as that.
    pub(crate) verification_sent_at: Option<Instant>,
    pub(crate) previous_delay: Duration,
    pub(crate) taken: Vec<String>,
    /// The report of an attempt whose write is being verified.
    pub(crate) pending: Option<PendingReport>,
    /// The upstream's last result for the request itself, not for a verification.
    pub(crate) last: Option<AttemptResult>,
    pub(crate) class: Class,
    /// The policy's reason for its last verdict.
    pub(crate) reason: String,
    pub(crate) limit: Option<crate::retry::ClampReason>,
    pub(crate) faults: u32,
    pub(crate) owner: ClaimOwner,
    /// The lock that keeps equal requests apart.
    pub(crate) lock: Option<FingerprintLock>,
    /// The record of the request's condition. If the request ends unknown, the next one with the condition verifies.
    pub(crate) condition: MaybeGuard,
    /// The request's entry, if equal requests with living owners were listed on arrival: one of them may be an orphan by the first send.
    pub(crate) listed: Option<Arc<Entry>>,
    pub(crate) orphan: Orphan,
    /// Records the request's events for metrics, traces and the explanation.
    pub(crate) recorder: RequestRecorder,
}

impl Progress {
    /// The time from the last byte sent to the moment that an outcome describes. A verification describes the moment it was sent.
    pub(crate) fn sent_ago(&self, purpose: Purpose, now: Instant) -> Option<Duration> {
        let of = self.verification_sent_at.filter(|_| purpose == Purpose::Probe).unwrap_or(now);
        self.last_sent.map(|sent| of.saturating_duration_since(sent))
    }

    pub(crate) fn new(owner: ClaimOwner, recorder: RequestRecorder) -> Self {
        Self {
            attempts: 0,
            verifications: 0,
            ever_unknown: false,
            doubtful: false,
            doubt: None,
            unsettled: false,
            last_sent: None,
            key_sends: KeySends::default(),
            verification_sent_at: None,
            previous_delay: Duration::ZERO,
            taken: Vec::new(),
            pending: None,
            last: None,
            class: Class::NotApplied,
            reason: String::new(),
            limit: None,
            faults: 0,
            owner,
            lock: None,
            condition: None,
            listed: None,
            orphan: Orphan::None,
            recorder,
        }
    }
}

/// The guard of the request's record; none for requests that need no record.
pub(crate) type MaybeGuard = Option<RecordGuard>;
