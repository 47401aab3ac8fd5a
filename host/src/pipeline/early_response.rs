//! An answer before the caller's own timeout: `Prefer: wait=N`.
//!
//! A caller that goes at its timeout knows nothing, and most clients repeat the request then. A caller that says how long it waits
//! is told in time that the effect is unknown, and how it may come back. The request goes on meanwhile.
//!
//! Without a key it cannot come back. It may look whether the request took effect, and count that: so its place among equal requests
//! ends once it has this answer, and its next request is another one. If the answer does not arrive, the place is an orphan's.

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

/// The header that says which preference was honoured (RFC 7240 section 3).
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The time in which a request without a key says that it was given up before anything was sent.
const GIVE_UP_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a caller waits.
pub(super) struct CallerWait {
    applied: HeaderValue,
    until: Instant,
    started: Instant,
    deadline: Instant,
    is_keyed: bool,
    /// Where the record of a request with a key is. One without a key goes once its effect is known.
    location: Option<HeaderValue>,
    /// The place of a request without a key, and what its end takes.
    gone: Option<CallerGone>,
    method: Method,
    handover: Option<Handover>,
    detached: TaskTracker,
    meter: Arc<EndpointCounters>,
}

impl RequestContext {
    /// How long the caller of a request that runs detached waits, if it says so.
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

/// How a caller leaves that has its early answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// It does not come back for this request.
    ForGood,
    /// It can come back with its key. Until then the request runs without a caller.
    WithKey,
}

impl CallerWait {
    /// Waits for the answer as long as the caller does. `leave` is told when that is over and the request goes on.
    ///
    /// A request with a key goes on as it is: its caller can come back for the answer. One without a key is given up if nothing was
    /// sent yet.
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
            // Only a refusal is passed on now. With an answer its caller may have gone already, as far as its place goes.
            if let Ok(Ok(answer)) = timeout(GIVE_UP_TIMEOUT, &mut *finished).await
                && answer.headers().get(SENT).is_some_and(|sent| sent == "no")
            {
                return Ok(self.dressed(answer));
            }
        }
        let now = Instant::now();
        // As long again as it has taken, as for a request that is in flight; it is over by its deadline.
        let left = self.deadline.saturating_duration_since(now);
        let again = now.saturating_duration_since(self.started).min(left).max(Duration::from_secs(1));
        let (again, location) = (self.is_keyed.then_some(again), self.location.clone());
        let told = self.dressed(response::effect_unknown(Problem::EffectUnknown, again, location, None));
        let Some(entry) = self.gone.as_ref().and_then(CallerGone::entry) else { return Ok(told) };
        let pending = Pending::entry(entry, Received::Early, self.detached.clone(), Arc::clone(&self.meter));
        Ok(pending.behind(told, &self.method, self.handover.clone()))
    }

    fn dressed(&self, mut response: Response<Body>) -> Response<Body> {
        response.headers_mut().append(PREFERENCE_APPLIED, self.applied.clone());
        response
    }
}
