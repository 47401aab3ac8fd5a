//! One request under way: what is fixed about it, and what it has come to.

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

/// Requests that go one at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EqualRequests {
    /// What they have in common.
    pub(crate) fingerprint: Fingerprint,
    /// Whether that is a condition, by which what one of them left unknown is verified by the next.
    pub(crate) by_condition: bool,
}

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// In memory: can be sent again.
    Buffered(Bytes),
    /// Larger than the buffer: can be sent once, and is gone then.
    Stream(Option<Body>),
}

/// What is fixed about a request.
#[derive(Debug)]
pub(crate) struct RequestContext {
    pub(crate) shared: Arc<Shared>,
    /// Which of the host's upstreams.
    pub(crate) upstream: usize,
    /// The generation that serves this request from its first attempt to its last.
    pub(crate) service: Arc<UpstreamRuntime>,
    /// Where a candidate serves: the generation that decides where it fails, and its endpoint.
    pub(crate) stand_in: Option<(Arc<UpstreamRuntime>, usize)>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) endpoint: usize,
    pub(crate) effect: Effect,
    pub(crate) priority: Priority,
    pub(crate) method: Method,
    pub(crate) path_and_query: String,
    /// How the caller came: where redirects must lead.
    pub(crate) origin: Origin,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
    /// That it is under way, and what its body takes; with the answer's body once there is one.
    pub(crate) held: Option<MemoryReservation>,
    /// That it counts against its connection and its peer until its work ends; none for the host's own verifications.
    pub(crate) under_way: Option<UnderWay>,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) key: Option<Keyed>,
    /// Known where it has a key, or where callers may read their records.
    pub(crate) tenant: Option<Tenant>,
    /// What tells it apart from requests of other callers, where it has no key and orphans are kept: the tenant's headers among
    /// them are hashed only if it becomes an orphan.
    pub(crate) telling_apart: Vec<(HeaderName, HeaderValue)>,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// The upstream's own idempotency key that each send carries, among the headers.
    pub(crate) upstream_key: Option<UpstreamKey>,
    /// The requests that it must not be under way with; none: it takes no turn.
    pub(crate) equal: Option<EqualRequests>,
    /// What equal requests are found by, where it has no key and orphans are kept.
    pub(crate) digest: Option<RequestDigest>,
    /// Tells whether its answer has reached the kernel; none where the caller takes the answer from memory.
    pub(crate) handover: Option<Handover>,
    /// Told to a request that runs detached; none for one that is dropped with its caller.
    pub(crate) caller_gone: Option<CallerGone>,
    /// Where a write is verified without its caller; none for a request.
    pub(crate) verifies: Option<Verifying>,
}

impl RequestContext {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.service.endpoints[self.endpoint]
    }

    /// Its upstream's limit, unless that is switched off, or the endpoint has a limit of its own that an operator or the policy
    /// knows it to bear.
    pub(crate) fn overload(&self) -> Option<&Arc<Overload>> {
        let applies = self.service.settings.sheds_overload && self.endpoint().settings.concurrency.is_none();
        applies.then(|| &self.shared.rollout.upstreams[self.upstream].overload)
    }

    pub(crate) fn asking(&self) -> AdmissionRequest<'_> {
        let endpoint = self.endpoint();
        let (endpoint, attempt_timeout) = (&*endpoint.described.name, endpoint.settings.attempt_timeout);
        AdmissionRequest { priority: self.priority, endpoint, attempt_timeout }
    }

    /// The request in traces. At the level of debugging: a span that nobody reads would cost more than a decision.
    pub(crate) fn span(&self, account: &RequestRecorder) -> tracing::Span {
        let trace = account.trace.map(tracing::field::display);
        let (upstream, endpoint) = (&*self.service.settings.name, &*self.endpoint().described.name);
        tracing::debug_span!("request", request = %account.id, upstream, endpoint, trace)
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether a detached request's caller has hung up.
    pub(crate) fn caller_has_gone(&self) -> bool {
        self.caller_gone.as_ref().is_some_and(CallerGone::is_cancelled)
    }

    /// Ends when the caller hangs up, if ever.
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

    /// Lets the URLs of an answer that lead to the upstream itself lead to this host, by the address that this caller used.
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

    /// The request as it is sent.
    pub(crate) fn outbound(&mut self, account: &RequestRecorder, attempt: u32) -> Outbound {
        let body = match &mut self.body {
            RequestBody::Buffered(bytes) => OutboundBody::Bytes(bytes.clone()),
            RequestBody::Stream(stream) => match stream.take() {
                Some(stream) => OutboundBody::Stream(stream),
                None => OutboundBody::Bytes(Bytes::new()),
            },
        };
        let mut headers = self.headers.clone();
        if let Some(trace) = account.trace {
            headers.insert(trace_context::TRACEPARENT, trace.header(account.id.span(attempt)));
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

/// An answer, its body as far as it was read.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What was read of the body.
    pub(crate) read: Bytes,
    /// What was not; none where `read` is all.
    pub(crate) rest: Option<Body>,
}

/// What an attempt brought.
#[derive(Debug)]
pub(crate) enum AttemptResult {
    Answer(UpstreamResponse),
    Failure(Failure),
}

/// What a request has to do with an equal one whose caller has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphan {
    None,
    /// One was found right before the first send.
    Found,
    /// It has taken over what that did.
    Adopted,
}

/// Why a match is not adopted after a loss of shared data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Nothing but the loss, or the caller's word, says that the request was ever sent: an equal request may have made the match.
    NotKnownSent,
    /// It was sent, and several matches have no claim: one is its own, the others are those of equal requests.
    SeveralUnclaimed,
}

/// What a request has come to so far.
// Each is a fact of its own: no two of them make one state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
    pub(crate) probes: u32,
    /// An attempt's effect was unknown at some time: what is there may be our own doing.
    pub(crate) ever_unknown: bool,
    /// Nothing but a loss of shared state, or its caller's word, says that it was sent before.
    pub(crate) doubtful: bool,
    /// Why what a verification has found was not adopted.
    pub(crate) doubt: Option<Doubt>,
    /// An attempt's effect is unknown now.
    pub(crate) unsettled: bool,
    /// When the last byte of the request may have been sent.
    pub(crate) last_sent: Option<Instant>,
    /// What is known of the sends under the upstream's own key.
    pub(crate) key_sends: KeySends,
    /// When the last verification was sent: what it shows is as old as that.
    pub(crate) verification_sent_at: Option<Instant>,
    pub(crate) previous_delay: Duration,
    pub(crate) taken: Vec<String>,
    /// The report of an attempt whose write is being verified.
    pub(crate) pending: Option<PendingReport>,
    /// The last thing that the upstream said to the request itself.
    pub(crate) last: Option<AttemptResult>,
    pub(crate) class: Class,
    /// The policy's words on the last outcome.
    pub(crate) reason: String,
    pub(crate) limit: Option<crate::retry::ClampReason>,
    pub(crate) faults: u32,
    pub(crate) owner: ClaimOwner,
    /// Its turn among equal requests.
    pub(crate) turn: Option<FingerprintLock>,
    /// The record of its condition, if it has one: what it leaves unknown, the next request with the condition finds out.
    pub(crate) condition: MaybeGuard,
    /// Its place, where equal requests with living owners were there when it came: one of them may be an orphan by the first send.
    pub(crate) twins: Option<Arc<Entry>>,
    /// What it has to do with an orphan.
    pub(crate) orphan: Orphan,
    /// What is noted of the request.
    pub(crate) account: RequestRecorder,
}

impl Progress {
    /// The time between the last byte of the request and the moment of which an outcome tells: of a verification, when it was sent.
    pub(crate) fn sent_ago(&self, purpose: Purpose, now: Instant) -> Option<Duration> {
        let of = self.verification_sent_at.filter(|_| purpose == Purpose::Probe).unwrap_or(now);
        self.last_sent.map(|sent| of.saturating_duration_since(sent))
    }

    pub(crate) fn new(owner: ClaimOwner, account: RequestRecorder) -> Self {
        Self {
            attempts: 0,
            probes: 0,
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
            turn: None,
            condition: None,
            twins: None,
            orphan: Orphan::None,
            account,
        }
    }
}

/// The record that a request holds, if it has a key.
pub(crate) type MaybeGuard = Option<RecordGuard>;
