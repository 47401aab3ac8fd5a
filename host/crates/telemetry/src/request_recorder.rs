//! Records the timeline and the counters of a running request. Its drop finishes both, so that abandoned requests are recorded too.

use super::{
    EndpointCounters, EndpointMeters, Names, RequestId, RequestTimeline, TimedEvent, TimelineEvent, TraceContext,
    WaitedFor, WorkerTelemetry,
    endpoint_counters::{KeyResult, OrphanResult, status},
    request_timeline::{MAX_EVENTS, MIN_SHOWN_WAIT},
    task_spans,
    worker_telemetry::Ring,
};
use crate::{
    contract::{Class, Failure, Next, Verdict},
    error::{EFFECT_UNKNOWN, Problem},
    retry::ClampReason,
};
use http::{HeaderValue, Method};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Initial capacity: the events of an ordinary request (permit, sent, answered, settled or verdict).
const USUAL_EVENTS: usize = 6;

/// Whether the request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sends {
    /// Not yet, or never: an answer of the store needs no attempt.
    NotYet,
    /// Never: the host refuses it.
    Refused,
    /// In one attempt or more.
    Sent,
}

/// How a request ended for its caller.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The caller left before the response, and the request was given up.
    Abandoned,
    /// The caller left before the response, which had this status.
    Unread(u16),
    Answered(u16),
}

/// Recorder of one request.
#[derive(Debug)]
pub struct RequestRecorder {
    worker: Arc<WorkerTelemetry>,
    /// Id of the request.
    pub id: RequestId,
    meter: Arc<EndpointCounters>,
    began: Instant,
    ending: Ending,
    is_troubled: bool,
    sends: Sends,
    found: bool,
    /// Whether this is background work of the host, such as a verification, and no request.
    is_background: bool,
    method: &'static str,
    policy: Option<HeaderValue>,
    generation: u64,
    /// The trace that the request belongs to.
    pub trace: Option<TraceContext>,
    steps: Vec<TimedEvent>,
    omitted: u32,
}

impl RequestRecorder {
    /// Starts a recorder for a request that arrived now.
    pub fn open(worker: &Arc<WorkerTelemetry>) -> Self {
        Self {
            id: worker.id(),
            meter: Arc::clone(worker.unmatched()),
            began: Instant::now(),
            ending: Ending::Abandoned,
            is_troubled: false,
            sends: Sends::NotYet,
            found: false,
            is_background: false,
            method: "",
            policy: None,
            generation: 0,
            trace: None,
            steps: Vec::new(),
            omitted: 0,
            worker: Arc::clone(worker),
        }
    }

    /// Starts a recorder for background work: it counts attempts and verdicts, but no request.
    pub fn background(worker: &Arc<WorkerTelemetry>) -> Self {
        let mut recorder = Self::open(worker);
        recorder.is_background = true;
        recorder
    }

    /// Sets the endpoint whose counters count attempts and verdicts.
    pub fn counting_for(&mut self, meters: &EndpointMeters) {
        self.meter = Arc::clone(meters.of(self.worker.index));
    }

    /// Sets the endpoint that the request matched.
    pub fn found(&mut self, meters: &EndpointMeters, method: &Method, policy: &HeaderValue, generation: u64) {
        self.meter = Arc::clone(meters.of(self.worker.index));
        self.meter.begun.add();
        self.found = true;
        if self.worker.explains() {
            self.method = standard(method);
            self.policy = Some(policy.clone());
            self.generation = generation;
        }
    }

    /// Sets the trace: the caller's, or a new one if traces are exported.
    pub fn traced(&mut self, callers: Option<TraceContext>) {
        self.trace = callers.or_else(|| self.worker.begin_trace(self.id));
    }

    /// The counters of the endpoint.
    pub fn meter(&self) -> &EndpointCounters {
        &self.meter
    }

    /// Start of the request.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Records an event that happens now.
    pub fn note(&mut self, step: impl FnOnce() -> TimelineEvent) {
        if self.worker.explains() {
            self.note_at(Instant::now(), step);
        }
    }

    /// Records an event whose time is known. Saves a read of the clock, which costs more than the rest.
    pub fn note_at(&mut self, at: Instant, step: impl FnOnce() -> TimelineEvent) {
        if !self.worker.explains() {
            return;
        }
        if self.steps.len() >= MAX_EVENTS {
            self.omitted += 1;
            return;
        }
        if self.steps.capacity() == 0 {
            self.steps.reserve_exact(USUAL_EVENTS);
        }
        self.steps.push(TimedEvent { at: at.saturating_duration_since(self.began), step: step() });
    }

    /// Records the result of the idempotency key.
    pub fn keyed(&mut self, result: KeyResult) {
        self.meter.keyed.add(result as usize);
        self.note(|| TimelineEvent::Key { result: result.name() });
    }

    /// Records an orphan that this request adopted or met, or that this request was not listed.
    pub fn orphan(&mut self, result: OrphanResult) {
        self.meter.orphans.add(result as usize);
        self.is_troubled = true;
        self.note(|| TimelineEvent::Orphan { result: result.name() });
    }

    /// The counters, for work after the response.
    pub fn shared_meter(&self) -> Arc<EndpointCounters> {
        Arc::clone(&self.meter)
    }

    /// Counts the wait of an attempt for its breaker, budget and limits.
    pub fn permit_waited(&mut self, is_probe: bool, wait: Duration) {
        self.meter.wait_time.observe(wait);
        self.is_troubled |= is_probe;
    }

    /// Time since the last event, without the calls of shared state, which become events of their own.
    fn since_last(&self) -> Duration {
        let last = self.began + self.steps.last().map(|last| last.at).unwrap_or_default();
        last.elapsed().saturating_sub(task_spans::time_since(last))
    }

    /// Records that an attempt was refused.
    pub fn denied(&mut self, problem: &Problem) {
        self.is_troubled = true;
        if self.worker.explains() {
            let wait = self.since_last();
            self.note(|| TimelineEvent::Denied { reason: problem.reason(), wait });
        }
    }

    /// Names the time since the last event, unless it is too short to be a gap.
    pub fn waited(&mut self, what: WaitedFor) {
        if self.worker.explains() {
            let wait = self.since_last();
            if wait >= MIN_SHOWN_WAIT {
                self.note(|| TimelineEvent::Waited { what, wait });
            }
        }
    }

    /// Records the response of an attempt, `took` after its send. `is_usual`: its duration is typical and enters the average.
    pub fn answered(&mut self, code: u16, sent: Instant, took: Duration, is_usual: bool) {
        self.sends = Sends::Sent;
        self.meter.answered.add(status(code));
        self.meter.attempt_time.observe(took);
        // 429 and 503 come quickly and would lower the average of real responses.
        if is_usual && !matches!(code, 429 | 503) {
            self.meter.usually_takes.learn(took);
        }
        self.note_at(sent + took, || TimelineEvent::Answered { status: code, took });
    }

    /// Records the failure of an attempt.
    pub fn failed(&mut self, failure: Failure, took: Duration) {
        let Failure { kind, reason, certificate, .. } = failure;
        self.sends = Sends::Sent;
        self.meter.failed.add(kind as usize);
        self.meter.attempt_time.observe(took);
        self.is_troubled = true;
        // Only a failure with a reason is logged, because it lasts until an operator acts. Metrics count the others.
        if let Some(reason) = reason {
            let Names { upstream, endpoint } = &*self.meter.names;
            let (kind, text) = (kind.name(), reason.text());
            let certificate = certificate.map_or(String::new(), |fact| format!(" ({fact})"));
            tracing::warn!(request = %self.id, %upstream, %endpoint, failure = kind, reason = reason.name(), "an attempt failed: {text}{certificate}");
        }
        self.note(|| TimelineEvent::failed(failure, took));
    }

    /// Records that the status settled the outcome. The policy was not called, so the time is that of the response.
    pub fn settled(&mut self) {
        self.meter.verdicts.add(Class::Applied as usize);
        let at = self.began + self.steps.last().map(|last| last.at).unwrap_or_default();
        self.note_at(at, || TimelineEvent::Settled);
    }

    /// Records the policy's verdict, and the duration of the call.
    pub fn judged(&mut self, verdict: &Verdict, took: Duration) {
        self.meter.verdicts.add(verdict.class as usize);
        self.meter.decision_time.observe(took);
        let next = match verdict.next {
            Next::Deliver => "deliver",
            Next::Retry(_) => "retry",
            Next::Verify(_) => "verify",
            Next::Replace(_) => "replace",
        };
        let breaker = verdict.breaker.name();
        self.is_troubled |= next != "deliver" || breaker != "success";
        let class = verdict.class.name();
        self.note(|| TimelineEvent::Verdict {
            class,
            next,
            breaker,
            took,
            reason: TimelineEvent::words(&verdict.reason),
        });
    }

    /// Records a fault of the policy.
    pub fn fault(&mut self, fault: &'static str) {
        let known = super::endpoint_counters::FAULTS.iter().position(|own| *own == fault);
        self.meter.faults.add(known.unwrap_or(usize::MAX));
        self.is_troubled = true;
        self.note(|| TimelineEvent::Fault { fault });
    }

    /// Records that the host clamped the verdict.
    pub fn clamped(&mut self, limit: ClampReason) {
        self.meter.clamps.add(limit as usize);
        self.is_troubled = true;
        self.note(|| TimelineEvent::Clamped { limit });
    }

    /// Records a retry after a wait.
    pub fn retries(&mut self, class: Class, wait: Duration) {
        self.meter.retries.add(class as usize);
        self.note(|| TimelineEvent::Waits { wait });
    }

    /// Records that the host responds itself.
    pub fn refused(&mut self, problem: &Problem) {
        let reason = problem.reason();
        if self.sends == Sends::NotYet {
            self.sends = Sends::Refused;
        }
        if problem.reason() == EFFECT_UNKNOWN {
            let Names { upstream, endpoint } = &*self.meter.names;
            tracing::warn!(request = %self.id, %upstream, %endpoint, "the effect of a write is unknown");
        }
        self.meter.refusals.add(crate::error::REASONS.iter().position(|own| *own == reason).unwrap_or(usize::MAX));
        self.is_troubled = true;
        // One line says both that the attempt got no permit and that the host answers for that reason.
        let denial =
            self.steps.pop_if(|last| matches!(last.step, TimelineEvent::Denied { reason: own, .. } if own == reason));
        let denied_after = denial.and_then(|denial| match denial.step {
            TimelineEvent::Denied { wait, .. } => Some(wait),
            _ => None,
        });
        self.note(|| TimelineEvent::Refused { reason, denied_after });
    }

    /// Merges the calls of shared state that the request waited for into the events.
    fn gather(&mut self) {
        let waited = task_spans::taken();
        if waited.is_empty() {
            return;
        }
        let noted =
            |(at, step): (Instant, TimelineEvent)| TimedEvent { at: at.saturating_duration_since(self.began), step };
        self.steps.extend(waited.into_iter().map(noted));
        self.steps.sort_by_key(|noted| noted.at);
        let most = self.steps.len().min(MAX_EVENTS);
        self.omitted += u32::try_from(self.steps.drain(most..).count()).unwrap_or(u32::MAX);
    }

    /// Ends the recording of a request that was given up because its caller left.
    pub fn abandon(self) {}

    /// Ends the recording of a request that went on without its caller. Its status counts: the upstream gave it.
    pub fn close_abandoned(mut self, code: u16) {
        self.ending = Ending::Unread(code);
    }

    /// Ends the recording with the status of the response.
    pub fn close(mut self, code: u16) {
        self.ending = Ending::Answered(code);
    }
}

impl Drop for RequestRecorder {
    fn drop(&mut self) {
        if self.is_background {
            return;
        }
        let took = self.began.elapsed();
        let meter = &self.meter;
        if self.found {
            meter.ended.add();
        }
        if let Ending::Unread(code) | Ending::Answered(code) = self.ending {
            meter.requests.add(status(code));
            meter.request_time.observe(took);
            if self.sends == Sends::Refused {
                meter.refused_time.observe(took);
            }
            self.is_troubled |= code >= 500 || code == 429;
        }
        let delivered = if let Ending::Answered(code) = self.ending { Some(code) } else { None };
        if delivered.is_none() {
            meter.abandoned.add();
            self.is_troubled = true;
        }
        if !self.worker.explains() {
            return;
        }
        if delivered.is_none() {
            self.note(|| TimelineEvent::Abandoned);
        }
        self.gather();
        let timeline = RequestTimeline {
            id: self.id,
            names: Arc::clone(&self.meter.names),
            method: self.method,
            policy: self.policy.take().unwrap_or(HeaderValue::from_static("")),
            generation: self.generation,
            trace: self.trace,
            began: self.began,
            took,
            status: delivered,
            steps: std::mem::take(&mut self.steps),
            omitted: self.omitted,
        };
        let ring = match (self.is_troubled, self.sends) {
            (false, _) => Ring::Ordinary,
            (true, Sends::Refused) => Ring::Refused,
            (true, Sends::NotYet | Sends::Sent) => Ring::Troubled,
        };
        self.worker.keep(timeline, ring);
    }
}

/// The name of a standard method; others could hold any text of the caller.
fn standard(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "QUERY" => "QUERY",
        _ => "other",
    }
}
