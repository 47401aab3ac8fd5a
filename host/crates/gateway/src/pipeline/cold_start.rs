//! Wakes an upstream that may sleep, and checks its health before a half-open breaker risks a request.

use super::RequestContext;
use crate::{
    error::Problem,
    policy::contract::{Failure, FailureKind, HealthCall},
    telemetry::{RequestRecorder, TimelineEvent, WaitedFor},
    upstream::{Outbound, OutboundBody},
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often a waking upstream is checked.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The result of a health call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    /// The upstream responds, but not with success, or not in time.
    Ill,
    /// Nothing listens at the address.
    Absent,
}

/// A health call that has ended.
struct EndedCall {
    began: Instant,
    health: Health,
    /// The answer or the failure.
    event: TimelineEvent,
    took: Duration,
}

impl EndedCall {
    /// Records the call and its result.
    fn note(self, call: u32, recorder: &mut RequestRecorder) {
        let Self { began, event, took, .. } = self;
        recorder.note_at(began, || TimelineEvent::HealthCall { call });
        recorder.note_at(began + took, || event);
    }
}

impl RequestContext {
    /// Waits until a sleeping upstream has answered a health call. One caller wakes it for all.
    ///
    /// If nothing listens, the upstream is not asleep: the attempt itself fails, with nothing sent.
    pub(crate) async fn wake(&self, recorder: &mut RequestRecorder) -> Result<(), Problem> {
        let wakefulness = &self.service.wakefulness;
        if wakefulness.asleep(self.shared.clock.now()).is_none() {
            return Ok(());
        }
        let waking = async {
            let _one = wakefulness.waking.lock().await;
            recorder.waited(WaitedFor::Waking);
            let mut calls = 0;
            while let Some(call) = wakefulness.asleep(self.shared.clock.now()) {
                let ended = self.health(call, call.wake_within).await;
                calls += 1;
                let health = ended.health;
                // An upstream takes a minute to wake: of the calls that fail, the first one says enough.
                if calls == 1 || health != Health::Ill {
                    ended.note(calls, recorder);
                }
                match health {
                    Health::Well => self.service.record_response(&self.shared.clock),
                    Health::Ill => {
                        if calls == 1 {
                            recorder.note(|| TimelineEvent::Waking { interval: HEALTH_CHECK_INTERVAL });
                        }
                        sleep(HEALTH_CHECK_INTERVAL).await;
                    }
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
    pub(crate) async fn is_well(&self, recorder: &mut RequestRecorder) -> bool {
        let Some(call) = self.service.wakefulness.call() else { return true };
        let ended = self.health(call, call.timeout).await;
        let health = ended.health;
        ended.note(1, recorder);
        health == Health::Well
    }

    async fn health(&self, call: &HealthCall, longest: Duration) -> EndedCall {
        let request = Outbound {
            method: Method::GET,
            path_and_query: call.path_and_query.clone(),
            headers: HeaderMap::new(),
            body: OutboundBody::Bytes(Bytes::new()),
            guarded: false,
        };
        let began = Instant::now();
        let answer = timeout(longest.min(self.remaining()), self.transport.send(request)).await;
        let took = began.elapsed();
        let failed = |failure| TimelineEvent::failed(failure, took);
        let (health, event) = match answer {
            Ok(Ok(answer)) => {
                let health = if answer.status.is_success() { Health::Well } else { Health::Ill };
                (health, TimelineEvent::Answered { status: answer.status.as_u16(), took })
            }
            Ok(Err(failure)) if !failure.sent && failure.kind != FailureKind::ConnectTimeout => {
                (Health::Absent, failed(failure))
            }
            Ok(Err(failure)) => (Health::Ill, failed(failure)),
            Err(_) => (Health::Ill, failed(Failure::new(FailureKind::Timeout, true))),
        };
        EndedCall { began, health, event, took }
    }
}
