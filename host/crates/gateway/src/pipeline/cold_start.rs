//! Wakes an upstream that may sleep, and checks its health before a half-open breaker risks a request.

use super::RequestContext;
use crate::{
    error::Problem,
    policy::contract::{FailureKind, HealthCall},
    upstream::{Outbound, OutboundBody},
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How often a waking upstream is checked.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The result of a health call.
enum Health {
    Well,
    /// The upstream responds, but not with success, or not in time.
    Ill,
    /// Nothing listens at the address.
    Absent,
}

impl RequestContext {
    /// Waits until a sleeping upstream has answered a health call. One caller wakes it for all.
    ///
    /// If nothing listens, the upstream is not asleep: the attempt itself fails, with nothing sent.
    pub(crate) async fn wake(&self) -> Result<(), Problem> {
        let wakefulness = &self.service.wakefulness;
        if wakefulness.asleep(self.shared.clock.now()).is_none() {
            return Ok(());
        }
        let waking = async {
            let _one = wakefulness.waking.lock().await;
            while let Some(call) = wakefulness.asleep(self.shared.clock.now()) {
                match self.health(call, call.wake_within).await {
                    Health::Well => self.service.record_response(&self.shared.clock),
                    Health::Ill => sleep(HEALTH_CHECK_INTERVAL).await,
                    Health::Absent => break,
                }
            }
        };
        let longest = wakefulness.call().map_or(Duration::ZERO, |call| call.wake_within);
        tokio::select! {
            woken = timeout(longest.min(self.remaining()), waking) => woken.map_err(|_| Problem::Asleep),
            // Nothing was sent yet: stop when the caller leaves.
            () = self.caller_leaves() => Err(Problem::DeadlineBeforeSend),
        }
    }

    /// Whether the upstream's health call succeeds; true if it has none.
    pub(crate) async fn is_well(&self) -> bool {
        match self.service.wakefulness.call() {
            Some(call) => matches!(self.health(call, call.timeout).await, Health::Well),
            None => true,
        }
    }

    async fn health(&self, call: &HealthCall, longest: Duration) -> Health {
        let request = Outbound {
            method: Method::GET,
            path_and_query: call.path_and_query.clone(),
            headers: HeaderMap::new(),
            body: OutboundBody::Bytes(Bytes::new()),
            guarded: false,
        };
        match timeout(longest.min(self.remaining()), self.transport.send(request)).await {
            Ok(Ok(answer)) if answer.status.is_success() => Health::Well,
            Ok(Err(failure)) if !failure.sent && failure.kind != FailureKind::ConnectTimeout => Health::Absent,
            Ok(_) | Err(_) => Health::Ill,
        }
    }
}
