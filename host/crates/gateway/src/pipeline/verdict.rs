//! Which policy decides about an outcome: the one that serves the request, or a fallback if it fails. Shadow candidates decide beside it.

use super::{
    RequestContext,
    request_context::{AttemptResult, Progress},
};
use crate::{
    decision_log::{DecisionInput, Judged},
    policy::{
        self, Fault,
        contract::{Attempt, Outcome, Purpose, Verdict},
    },
    rollout::{Candidate, Case, Shadow, VerdictSummary},
    upstream_runtime::UpstreamRuntime,
};
use std::sync::Arc;
use tokio::time::Instant;

impl RequestContext {
    /// The verdict of the policy, or of the built-in one if the policy fails. True: the policy failed.
    pub(super) fn verdict(
        &self,
        purpose: Purpose,
        arrival: &AttemptResult,
        progress: &mut Progress,
        now: Instant,
    ) -> (Verdict, bool) {
        let mut faults = Vec::new();
        let judged = self.judged_by(&self.attempted(purpose, progress, now), &arrived(arrival), &mut faults);
        for fault in faults {
            progress.faults += 1;
            progress.recorder.fault(fault.name());
            tracing::warn!(
                request = %progress.recorder.id,
                endpoint = %self.endpoint().described.name,
                fault = fault.name(),
                error = %fault,
                "the policy failed; the built-in policy decides"
            );
        }
        judged
    }

    fn judged_by(&self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, faults: &mut Vec<Fault>) -> (Verdict, bool) {
        if self.endpoint().policy_index.is_none() {
            return (policy::builtin_judge(attempt, outcome), false);
        }
        if let Some(verdict) = self.asked(&self.service, attempt, outcome, faults) {
            self.record(attempt, outcome, Judged::Verdict(&verdict));
            self.show(VerdictSummary::of(&verdict), attempt, outcome);
            return (verdict, false);
        }
        if let Some(fault) = faults.last() {
            self.record(attempt, outcome, Judged::Fault(fault.name()));
        }
        // If a canary fails, the live policy decides. A verification's outcome, however, only makes sense to the policy that asked for it.
        if let (Purpose::Request, Some((live, index))) = (attempt.purpose, &self.stand_in)
            && let Some(index) = live.endpoints[*index].policy_index
            && let Some(verdict) = self.asked(live, &Attempt { endpoint: index, ..*attempt }, outcome, faults)
        {
            return (verdict, false);
        }
        let verdict = policy::builtin_judge(attempt, outcome);
        self.show(VerdictSummary::of(&verdict), attempt, outcome);
        (verdict, true)
    }

    /// A policy's verdict; none if the policy fails or is suspended.
    fn asked(
        &self,
        service: &Arc<UpstreamRuntime>,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        faults: &mut Vec<Fault>,
    ) -> Option<Verdict> {
        if service.probation.is_suspended() {
            return None;
        }
        let decided = service.policy.decide(attempt, outcome);
        let serving = &self.shared.rollout.upstreams[self.upstream];
        serving.decided(service, decided.as_ref().err(), self.shared.clock.now());
        decided.map_err(|fault| faults.push(fault)).ok()
    }

    /// Adds a decision to the decision log while an operator records: decisions of the live policy, not of a canary.
    fn record(&self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, judged: Judged<'_>) {
        let recorder = &self.shared.rollout.upstreams[self.upstream].recorder;
        let Some(recording) = recorder.recording().filter(|_| self.stand_in.is_none()) else { return };
        let shown = DecisionInput { service: &self.service, method: &self.method, attempt, outcome, judged };
        recorder.note(recording, &shown, self.shared.clock.now());
    }

    /// Passes a decision of the live policy to the shadow candidate. Only outcomes of the request itself: a verification belongs to the
    /// policy that asked for it.
    fn show(&self, live: VerdictSummary, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        let Some((shadow, candidate, endpoint)) = self.in_shadow() else { return };
        if attempt.purpose != Purpose::Request || !attempt.taken.is_empty() {
            return;
        }
        let serving = &self.shared.rollout.upstreams[self.upstream];
        let judged = (self.endpoint().described.name.as_str(), live, self.shared.clock.now());
        if let Some(case) = Case::of(serving, candidate, endpoint, judged, attempt, outcome) {
            shadow.show(case);
        }
    }

    /// Logs and passes on a response that was settled by its status, without a policy call, unless it is settled for the candidate too.
    pub(super) fn show_settled(&self, arrival: &AttemptResult, progress: &Progress) {
        if self.shared.rollout.upstreams[self.upstream].recorder.recording().is_some()
            && self.endpoint().policy_index.is_some()
        {
            let attempt = self.attempted(Purpose::Request, progress, Instant::now());
            self.record(&attempt, &arrived(arrival), Judged::Settled);
        }
        let (Some((_, candidate, endpoint)), AttemptResult::Answer(answer)) = (self.in_shadow(), arrival) else {
            return;
        };
        if candidate.endpoints[endpoint].is_settled(answer.status.as_u16(), self.effect) {
            return;
        }
        self.show(
            VerdictSummary::SETTLED,
            &self.attempted(Purpose::Request, progress, Instant::now()),
            &arrived(arrival),
        );
    }

    fn in_shadow(&self) -> Option<(&Shadow, Arc<UpstreamRuntime>, usize)> {
        let shadow = self.shared.shadow.as_ref()?;
        let candidate =
            self.shared.rollout.upstreams[self.upstream].candidate.as_ref().and_then(Candidate::in_shadow)?;
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        let endpoint = candidate.find(&self.method, path)?;
        Some((shadow, candidate, endpoint))
    }

    /// The policy's input about an attempt.
    fn attempted<'a>(&'a self, purpose: Purpose, progress: &'a Progress, now: Instant) -> Attempt<'a> {
        Attempt {
            endpoint: self.endpoint().policy_index.unwrap_or(usize::MAX),
            method: &self.method,
            effect: self.effect,
            purpose,
            number: if purpose == Purpose::Probe { progress.verifications } else { progress.attempts.max(1) },
            prior_unknown: progress.ever_unknown,
            sent_ago: progress.sent_ago(purpose, now),
            elapsed: now.saturating_duration_since(self.started),
            remaining: self.deadline.saturating_duration_since(now),
            previous_delay: progress.previous_delay,
            random: self.shared.entropy.next(),
            now_unix_ms: self.shared.clock.unix_ms(),
            keyed: self.verifies.map_or(self.key.is_some(), |own| own.keyed),
            path: &self.path_and_query,
            request_headers: &self.headers,
            request_body: self.buffered(),
            taken: &progress.taken,
        }
    }
}

fn arrived(arrival: &AttemptResult) -> Outcome<'_> {
    match arrival {
        AttemptResult::Answer(answer) => Outcome::Response {
            status: answer.status,
            headers: &answer.headers,
            body: &answer.read,
            complete: answer.rest.is_none(),
        },
        AttemptResult::Failure(failure) => Outcome::Failure(*failure),
    }
}
