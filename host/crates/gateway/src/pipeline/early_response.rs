//! A response before the caller's own timeout: `Prefer: wait=N`.
//!
//! A caller that disconnects at its own timeout gets no response, and most clients then repeat the request. A caller that states how long
//! it waits gets 504 `effect-unknown` before its timeout. The response says how to repeat the request safely. The host continues the
//! request.
//!
//! A caller without a key cannot repeat its request safely, but can check by itself whether the write was applied. So the entry among equal
//! requests ends once the caller has this response, and its next request is a new one. If the caller disconnects before, the entry becomes
//! an orphan.

use super::{
    RequestContext,
    caller_gone::CallerGone,
    delivery::{Pending, Received},
    prefer, response,
};
use crate::{
    error::{Problem, SENT},
    flush_notice::Handover,
    policy::contract::Effect,
    telemetry::EndpointCounters,
    upstream::Body,
};
use http::{HeaderName, HeaderValue, Method, Response};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

/// The header that names the honoured preference (RFC 7240 section 3).
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How long to wait for a request without a key to confirm that it was given up before the send.
const GIVE_UP_TIMEOUT: Duration = Duration::from_millis(50);

/// The wait of a caller that sent `Prefer: wait=N`.
pub(super) struct CallerWait {
    applied: HeaderValue,
    until: Instant,
    started: Instant,
    deadline: Instant,
    is_keyed: bool,
    /// The URL of the keyed request's record. A record without a key is removed once the effect is known, so it has none here.
    location: Option<HeaderValue>,
    /// The caller's cancellation and its entry among equal requests.
    gone: Option<CallerGone>,
    method: Method,
    handover: Option<Handover>,
    detached: TaskTracker,
    meter: Arc<EndpointCounters>,
}

impl RequestContext {
    /// The caller's wait; none for a safe request or without the preference.
    pub(super) fn caller_wait(&self, meter: &Arc<EndpointCounters>) -> Option<CallerWait> {
        let wait = prefer::wait(&self.headers).filter(|_| self.effect != Effect::Safe)?;
        Some(CallerWait {
            applied: HeaderValue::try_from(format!("wait={}", wait.as_secs())).ok()?,
            until: self.started + wait,
            started: self.started,
            deadline: self.deadline,
            is_keyed: self.key.is_some(),
            location: self.record_location(),
            gone: self.caller_gone.clone(),
            method: self.method.clone(),
            handover: self.handover.clone(),
            detached: self.shared.detached.clone(),
            meter: Arc::clone(meter),
        })
    }
}

/// How a caller leaves after its early response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// The caller cannot repeat this request safely.
    ForGood,
    /// The caller can repeat the request with its key. Until then the request runs without a caller.
    WithKey,
}

impl CallerWait {
    /// Waits for the response as long as the caller does. Calls `leave` if the request outlasts that wait.
    ///
    /// A request with a key continues, because its caller can repeat it for the response. A request without a key ends if nothing was sent
    /// yet.
    pub(super) async fn bound(
        &self,
        finished: &mut JoinHandle<Response<Body>>,
        leave: impl FnOnce(Leaves),
    ) -> Result<Response<Body>, JoinError> {
        if let Ok(answer) = timeout_at(self.until, &mut *finished).await {
            return answer.map(|answer| self.dressed(answer));
        }
        if self.is_keyed {
            leave(Leaves::WithKey);
        } else {
            leave(Leaves::ForGood);
            // Pass on a refusal only. The caller has been reported as gone, so any other response may already belong to an equal request.
            if let Ok(Ok(answer)) = timeout(GIVE_UP_TIMEOUT, &mut *finished).await
                && answer.headers().get(SENT).is_some_and(|sent| sent == "no")
            {
                return Ok(self.dressed(answer));
            }
        }
        let now = Instant::now();
        // Suggest a wait as long as the request has taken so far, as for a request in flight, but not beyond its deadline.
        let left = self.deadline.saturating_duration_since(now);
        let again = now.saturating_duration_since(self.started).min(left).max(Duration::from_secs(1));
        let (again, location) = (self.is_keyed.then_some(again), self.location.clone());
        let response = self.dressed(response::effect_unknown(Problem::EffectUnknown, again, location, None));
        let Some(entry) = self.gone.as_ref().and_then(CallerGone::entry) else { return Ok(response) };
        let pending = Pending::entry(entry, Received::Early, self.detached.clone(), Arc::clone(&self.meter));
        Ok(pending.behind(response, &self.method, self.handover.clone()))
    }

    fn dressed(&self, mut response: Response<Body>) -> Response<Body> {
        response.headers_mut().append(PREFERENCE_APPLIED, self.applied.clone());
        response
    }
}
