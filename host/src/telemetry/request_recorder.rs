//! What is noted of a request while it runs. It is closed when dropped, so that a request whose caller leaves is told of too.

use super::{
    EndpointCounters, EndpointMeters, Names, RequestId, RequestTimeline, TimedEvent, TimelineEvent, TraceContext,
    WorkerTelemetry,
    endpoint_counters::{KeyResult, OrphanResult, status},
    request_timeline::STEPS,
    task_spans,
};
use crate::{
    error::{EFFECT_UNKNOWN, Problem},
    policy::contract::{BreakerSignal, Class, Failure, Next, Verdict},
    retry::ClampReason,
};
use http::{HeaderValue, Method};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Room for the steps of an ordinary request: permit, sent, answered, settled or verdict.
const USUAL: usize = 6;

/// One request's account.
#[derive(Debug)]
pub struct RequestRecorder {
    desk: Arc<WorkerTelemetry>,
    /// The request's id.
    pub id: RequestId,
    meter: Arc<EndpointCounters>,
    began: Instant,
    status: Option<u16>,
    is_rough: bool,
    found: bool,
    /// Whether it is of the host's own doing: no caller waits, so it is no request.
    is_background: bool,
    method: &'static str,
    policy: Option<HeaderValue>,
    generation: u64,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
    steps: Vec<TimedEvent>,
    omitted: u32,
}

impl RequestRecorder {
    /// A request came in.
    pub fn open(desk: &Arc<WorkerTelemetry>) -> Self {
        Self {
            id: desk.id(),
            meter: Arc::clone(desk.unmatched()),
            began: Instant::now(),
            status: None,
            is_rough: false,
            found: false,
            is_background: false,
            method: "",
            policy: None,
            generation: 0,
            trace: None,
            steps: Vec::new(),
            omitted: 0,
            desk: Arc::clone(desk),
        }
    }

    /// Work of the host's own: attempts and verdicts count, and no request does.
    pub fn background(desk: &Arc<WorkerTelemetry>) -> Self {
        let mut account = Self::open(desk);
        account.is_background = true;
        account
    }

    /// Attempts and verdicts count at this endpoint from now on.
    pub fn counting_for(&mut self, meters: &EndpointMeters) {
        self.meter = Arc::clone(meters.of(self.desk.index));
    }

    /// It found its endpoint: from now on it counts there.
    pub fn found(&mut self, meters: &EndpointMeters, method: &Method, policy: &HeaderValue, generation: u64) {
        self.meter = Arc::clone(meters.of(self.desk.index));
        self.meter.begun.add();
        self.found = true;
        if self.desk.explains() {
            self.method = standard(method);
            self.policy = Some(policy.clone());
            self.generation = generation;
        }
    }

    /// The trace that it belongs to: its caller's, or one of its own where traces are exported.
    pub fn traced(&mut self, callers: Option<TraceContext>) {
        self.trace = callers.or_else(|| self.desk.begin_trace(self.id));
    }

    /// The counters it counts on.
    pub fn meter(&self) -> &EndpointCounters {
        &self.meter
    }

    /// Since when it is open: the request's beginning.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Notes a step that is taken now.
    pub fn note(&mut self, step: impl FnOnce() -> TimelineEvent) {
        if self.desk.explains() {
            self.note_at(Instant::now(), step);
        }
    }

    /// Notes a step whose moment is known: reading the clock costs more than the note.
    pub fn note_at(&mut self, at: Instant, step: impl FnOnce() -> TimelineEvent) {
        if !self.desk.explains() {
            return;
        }
        if self.steps.len() >= STEPS {
            self.omitted += 1;
            return;
        }
        if self.steps.capacity() == 0 {
            self.steps.reserve_exact(USUAL);
        }
        self.steps.push(TimedEvent { at: at.saturating_duration_since(self.began), step: step() });
    }

    /// What the key brought.
    pub fn keyed(&mut self, result: KeyResult) {
        self.meter.keyed.add(result as usize);
        self.note(|| TimelineEvent::Key { result: result.name() });
    }

    /// What an equal request without a key has left to this one, or why it has no place among them.
    pub fn orphan(&mut self, result: OrphanResult) {
        self.meter.orphans.add(result as usize);
        self.is_rough = true;
        self.note(|| TimelineEvent::Orphan { result: result.name() });
    }

    /// The counters, for what comes after the answer.
    pub fn shared_meter(&self) -> Arc<EndpointCounters> {
        Arc::clone(&self.meter)
    }

    /// An attempt may be made.
    pub fn permitted(&mut self, is_probe: bool, wait: Duration) {
        self.meter.wait_time.observe(wait);
        self.is_rough |= is_probe;
        self.note(|| TimelineEvent::Permit { is_probe, wait });
    }

    /// An attempt was not made.
    pub fn denied(&mut self, problem: &Problem) {
        self.is_rough = true;
        self.note(|| TimelineEvent::Denied { reason: problem.reason() });
    }

    /// An attempt's answer, `took` after its send; with `is_usual` others will take as long.
    pub fn answered(&mut self, code: u16, sent: Instant, took: Duration, is_usual: bool) {
        self.meter.answered.add(status(code));
        self.meter.attempt_time.observe(took);
        // Refusals are quick and say nothing of what an answer takes.
        if is_usual && !matches!(code, 429 | 503) {
            self.meter.usually_takes.learn(took);
        }
        self.note_at(sent + took, || TimelineEvent::Answered { status: code, took });
    }

    /// An attempt without an answer.
    pub fn failed(&mut self, failure: Failure, took: Duration) {
        let Failure { kind, sent, reason } = failure;
        self.meter.failed.add(kind as usize);
        self.meter.attempt_time.observe(took);
        self.is_rough = true;
        // A failure with a reason lasts until an operator acts; the others come and go, and the metrics count them.
        if let Some(reason) = reason {
            let Names { upstream, endpoint } = &*self.meter.names;
            let (failure, text) = (kind.name(), reason.text());
            tracing::warn!(request = %self.id, %upstream, %endpoint, failure, reason = reason.name(), "an attempt failed: {text}");
        }
        self.note(|| TimelineEvent::Failed { kind: kind.name(), reason, sent, took });
    }

    /// A settled status: no policy was asked, and no time passed since the answer.
    pub fn settled(&mut self) {
        self.meter.verdicts.add(Class::Applied as usize);
        let at = self.began + self.steps.last().map(|last| last.at).unwrap_or_default();
        self.note_at(at, || TimelineEvent::Settled);
    }

    /// What the policy said, and how long that took.
    pub fn judged(&mut self, verdict: &Verdict, took: Duration) {
        self.meter.verdicts.add(verdict.class as usize);
        self.meter.decision_time.observe(took);
        let next = match verdict.next {
            Next::Deliver => "deliver",
            Next::Retry(_) => "retry",
            Next::Verify(_) => "verify",
            Next::Replace(_) => "replace",
        };
        let breaker = match verdict.breaker {
            BreakerSignal::Success => "success",
            BreakerSignal::Failure => "failure",
            BreakerSignal::Ignore => "ignore",
        };
        self.is_rough |= next != "deliver" || breaker != "success";
        let class = verdict.class.name();
        self.note(|| TimelineEvent::Verdict {
            class,
            next,
            breaker,
            took,
            reason: TimelineEvent::words(&verdict.reason),
        });
    }

    /// The policy failed.
    pub fn fault(&mut self, fault: &'static str) {
        let known = super::endpoint_counters::FAULTS.iter().position(|own| *own == fault);
        self.meter.faults.add(known.unwrap_or(usize::MAX));
        self.is_rough = true;
        self.note(|| TimelineEvent::Fault { fault });
    }

    /// The verdict was not followed as given.
    pub fn clamped(&mut self, limit: ClampReason) {
        self.meter.clamps.add(limit as usize);
        self.is_rough = true;
        self.note(|| TimelineEvent::Clamped { limit });
    }

    /// It is sent again after a wait.
    pub fn retries(&mut self, class: Class, wait: Duration) {
        self.meter.retries.add(class as usize);
        self.note(|| TimelineEvent::Waits { wait });
    }

    /// The host answers itself.
    pub fn refused(&mut self, problem: &Problem) {
        let reason = problem.reason();
        if problem.reason() == EFFECT_UNKNOWN {
            let Names { upstream, endpoint } = &*self.meter.names;
            tracing::warn!(request = %self.id, %upstream, %endpoint, "the effect of a write is unknown");
        }
        self.meter.refusals.add(crate::error::REASONS.iter().position(|own| *own == reason).unwrap_or(usize::MAX));
        self.is_rough = true;
        self.note(|| TimelineEvent::Refused { reason });
    }

    /// Puts what was waited for where it belongs among the steps.
    fn gather(&mut self) {
        let waited = task_spans::taken();
        if waited.is_empty() {
            return;
        }
        let noted =
            |(at, step): (Instant, TimelineEvent)| TimedEvent { at: at.saturating_duration_since(self.began), step };
        self.steps.extend(waited.into_iter().map(noted));
        self.steps.sort_by_key(|noted| noted.at);
        let most = self.steps.len().min(STEPS);
        self.omitted += u32::try_from(self.steps.drain(most..).count()).unwrap_or(u32::MAX);
    }

    /// The answer goes out.
    pub fn close(mut self, code: u16) {
        self.status = Some(code);
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
        match self.status {
            Some(code) => {
                meter.requests.add(status(code));
                meter.request_time.observe(took);
                self.is_rough |= code >= 500 || code == 429;
            }
            None => {
                meter.abandoned.add();
                self.is_rough = true;
            }
        }
        if !self.desk.explains() {
            return;
        }
        if self.status.is_none() {
            self.note(|| TimelineEvent::Abandoned);
        }
        self.gather();
        let story = RequestTimeline {
            id: self.id,
            names: Arc::clone(&self.meter.names),
            method: self.method,
            policy: self.policy.take().unwrap_or(HeaderValue::from_static("")),
            generation: self.generation,
            trace: self.trace,
            began: self.began,
            took,
            status: self.status,
            steps: std::mem::take(&mut self.steps),
            omitted: self.omitted,
        };
        self.desk.keep(story, self.is_rough);
    }
}

/// A method's name where it is a standard one: others are the caller's words.
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
