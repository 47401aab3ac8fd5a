//! The response to the caller: the upstream's or a replacement, with the host's headers.

use super::{
    RequestContext,
    delivery::Head,
    request_context::{AttemptResult, Orphan, Progress, UpstreamResponse},
};
use crate::{
    error::{Problem, SENT, VERDICT},
    idempotency::{self, Stored},
    overload::MemoryReservation,
    policy::contract::{Failure, FailureKind, FailureReason, Replacement},
    telemetry::WaitedFor,
    upstream::{self, Body, headers},
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, LOCATION, SET_COOKIE},
};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::time::timeout_at;

/// The number of attempts.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("triage-attempts");
/// The policy's name and digest.
pub const POLICY: HeaderName = HeaderName::from_static("triage-policy");
/// Why the host did not follow the policy's verdict.
pub const CLAMPED: HeaderName = HeaderName::from_static("triage-clamped");
/// Marks a replayed response.
pub const REPLAY: HeaderName = HeaderName::from_static("triage-replay");

/// Marks a response that adopts the effect of an equal request without a key, whose caller has gone.
pub const ADOPTED: HeaderName = HeaderName::from_static("triage-adopted");

/// Sent with `effect-unknown`: how the caller may repeat its request.
pub const RETRY_AFTER_UNKNOWN: HeaderName = HeaderName::from_static("triage-retry-after-unknown");

/// The longest `Retry-After` for a write that is verified meanwhile: it may be settled long before `commit-within` is over.
const MAX_VERIFIED_RETRY_AFTER: Duration = Duration::from_secs(30);
/// The `Retry-After` for a write that no verification settles: an operator may settle it.
const UNVERIFIED_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The response for an unknown effect. `retry_after`: when the caller may repeat the request with its key; none without a key, since a
/// repetition would be another request.
pub(super) fn effect_unknown(
    problem: Problem,
    retry_after: Option<Duration>,
    location: Option<HeaderValue>,
    reason: Option<FailureReason>,
) -> Response<Body> {
    let how = if retry_after.is_some() { "same-key" } else { "no" };
    let mut response = problem.response(reason, retry_after);
    response.headers_mut().insert(RETRY_AFTER_UNKNOWN, HeaderValue::from_static(how));
    if let Some(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// When a caller should repeat a write whose effect is unknown at its deadline.
fn retry_after_unknown(context: &RequestContext, progress: &Progress) -> Duration {
    const MIN_RESPONSE_RESERVE: Duration = Duration::from_secs(1);
    if context.key_holds(progress) {
        return context.endpoint().settings.retry.min_wait.max(MIN_RESPONSE_RESERVE);
    }
    let sent_ago = progress.last_sent.map_or(Duration::ZERO, |sent| sent.elapsed());
    match context.endpoint().described.commit_within.filter(|_| context.endpoint().granted) {
        Some(within) => within.saturating_sub(sent_ago).clamp(MIN_RESPONSE_RESERVE, MAX_VERIFIED_RETRY_AFTER),
        None => UNVERIFIED_RETRY_AFTER,
    }
}

/// Keeps the memory reservation until the body is dropped.
pub(super) fn holding(body: Body, held: MemoryReservation) -> Body {
    if http_body::Body::is_end_stream(&body) {
        return body;
    }
    let pass_on = move |error| {
        let _ = &held;
        error
    };
    body.map_err(pass_on).boxed()
}

/// A response without the host's headers.
#[derive(Debug)]
pub(super) struct CallerResponse {
    status: StatusCode,
    headers: HeaderMap,
    read: Bytes,
    rest: Option<Body>,
}

impl From<UpstreamResponse> for CallerResponse {
    fn from(answer: UpstreamResponse) -> Self {
        let UpstreamResponse { status, mut headers, read, rest } = answer;
        headers::to_caller(&mut headers);
        Self { status, headers, read, rest }
    }
}

impl From<Replacement> for CallerResponse {
    fn from(answer: Replacement) -> Self {
        Self { status: answer.status, headers: answer.headers, read: answer.body, rest: None }
    }
}

impl CallerResponse {
    pub(super) fn into_response(self, context: &RequestContext, progress: &Progress) -> Response<Body> {
        let body = match self.rest {
            None => upstream::full(self.read),
            Some(rest) => upstream::prefixed(self.read, rest),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        // The record keeps the original URLs: another caller may use another address of this host.
        context.rewrite_redirects(response.headers_mut());
        insert_verdict_headers(response.headers_mut(), context, progress);
        response
    }

    /// The headers that a replay may repeat. A session cookie belongs to the caller that it was made for.
    fn kept_headers(&self, context: &RequestContext) -> HeaderMap {
        let mut headers = self.headers.clone();
        if !context.service.settings.idempotency.replay_set_cookie {
            headers.remove(SET_COOKIE);
        }
        headers
    }

    /// The part of the response that a record keeps beside the body.
    pub(super) fn head(&self, context: &RequestContext, progress: &Progress) -> Head {
        Head {
            status: self.status,
            headers: self.kept_headers(context),
            class: progress.class.name(),
            policy: context.service.policy.label().clone(),
        }
    }

    /// Reads the whole response for the record, up to the cap. A larger response still streams, but the record keeps only its status.
    pub(super) async fn store(
        mut self,
        context: &RequestContext,
        progress: &mut Progress,
        most: usize,
    ) -> (Response<Body>, Stored) {
        if let Some(mut rest) = self.rest.take() {
            let mut read = BytesMut::from(self.read.as_ref());
            loop {
                match timeout_at(context.deadline, rest.frame()).await {
                    Ok(Some(Ok(frame))) => {
                        let mut scarce = false;
                        if let Ok(data) = frame.into_data() {
                            scarce = context.held.as_ref().is_some_and(|held| held.more(data.len()).is_err());
                            read.extend_from_slice(&data);
                        }
                        // If memory is scarce, the response still streams, and the record keeps only its status.
                        if read.len() > most || scarce {
                            self.rest = Some(rest);
                            break;
                        }
                    }
                    Ok(None) => break,
                    // The effect is known, only the response broke off. None of it was sent to the caller, so the status can still be an
                    // error.
                    Ok(Some(Err(_))) | Err(_) => {
                        progress.recorder.waited(WaitedFor::ResponseBody);
                        let failure = Failure::new(FailureKind::Body, true);
                        let problem = Problem::UpstreamFailed { failure, kind: failure.kind.name() };
                        let mut response = refused(problem, context, progress);
                        response.headers_mut().insert(VERDICT, HeaderValue::from_static(progress.class.name()));
                        return (response, Stored::TooLarge { status: self.status });
                    }
                }
            }
            progress.recorder.waited(WaitedFor::ResponseBody);
            self.read = read.freeze();
        }
        let whole = self.rest.is_none();
        let stored = if whole {
            let answer = idempotency::StoredBody {
                status: self.status,
                headers: self.kept_headers(context),
                body: self.read.clone(),
                class: progress.class.name(),
                policy: context.service.policy.label().to_str().unwrap_or_default().into(),
            };
            Stored::capped(answer, most)
        } else {
            Stored::TooLarge { status: self.status }
        };
        (self.into_response(context, progress), stored)
    }
}

/// The response to a request that was refused at its attempts, or ended unknown.
pub(super) fn refused(problem: Problem, context: &RequestContext, progress: &mut Progress) -> Response<Body> {
    progress.recorder.refused(&problem);
    let reason = match &progress.last {
        Some(AttemptResult::Failure(failure)) => failure.reason,
        _ => None,
    };
    let mut response = match problem {
        Problem::EffectUnknown | Problem::UnsentSinceLoss => {
            let retry_after = context.key.is_some().then(|| retry_after_unknown(context, progress));
            effect_unknown(problem, retry_after, context.location_of_unknown(progress.owner), reason)
        }
        problem => problem.response(reason, None),
    };
    insert_attempt_headers(response.headers_mut(), context, progress);
    response
}

fn insert_verdict_headers(headers: &mut HeaderMap, context: &RequestContext, progress: &Progress) {
    headers.insert(VERDICT, HeaderValue::from_static(progress.class.name()));
    insert_attempt_headers(headers, context, progress);
}

fn insert_attempt_headers(headers: &mut HeaderMap, context: &RequestContext, progress: &Progress) {
    headers.insert(ATTEMPTS, HeaderValue::from(progress.attempts));
    headers.insert(POLICY, context.service.policy.label().clone());
    if progress.orphan == Orphan::Adopted {
        headers.insert(ADOPTED, HeaderValue::from_static("true"));
    }
    if let Some(limit) = progress.limit {
        headers.insert(CLAMPED, HeaderValue::from_static(limit.name()));
    }
}

/// The response to `OPTIONS *`: the methods of the host itself, for any resource.
pub(super) fn of_the_host() -> Response<Body> {
    let mut response = Response::new(upstream::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    headers.insert(SENT, HeaderValue::from_static("no"));
    response
}

/// The response of a record, for a replay.
pub(super) fn replayed(answer: &idempotency::StoredBody, context: &RequestContext) -> Response<Body> {
    let mut response = kept(answer);
    context.rewrite_redirects(response.headers_mut());
    response
}

/// The response of a record, with redirects as the upstream gave them.
pub(super) fn kept(answer: &idempotency::StoredBody) -> Response<Body> {
    let mut response = Response::new(upstream::full(answer.body.clone()));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    *headers = answer.headers.clone();
    headers.remove(CONTENT_LENGTH);
    headers.insert(REPLAY, HeaderValue::from_static("true"));
    headers.insert(ATTEMPTS, HeaderValue::from(0));
    headers.insert(VERDICT, HeaderValue::from_static(answer.class));
    if let Ok(policy) = HeaderValue::from_str(&answer.policy) {
        headers.insert(POLICY, policy);
    }
    response
}
