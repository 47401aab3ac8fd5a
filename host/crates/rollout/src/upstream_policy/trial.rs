//! The trial of an upstream's candidate: its start, its decisions, and what an operator hears of them.

use super::{Event, UpstreamPolicy};
use crate::{
    candidate::{Comparison, Difference, Milestone},
    clock::Timestamp,
    config::settings::Mode,
    upstream_runtime::UpstreamRuntime,
};
use std::sync::Arc;

impl UpstreamPolicy {
    /// Starts the trial of a candidate. It shares the live policy's limits and breakers, and does not change them.
    pub(super) fn try_out(&self, next: UpstreamRuntime) {
        let Some(candidate) = &self.candidate else { return };
        let mut history = self.history.lock();
        let current = self.current.load();
        let next = Arc::new(next.succeeding(&current, current.generation));
        let digest = next.policy.digest();
        candidate.begin(next, self.clock.now());
        let share = candidate.settings.share_percent;
        let share_percent = (candidate.settings.mode == Mode::Canary).then_some(share);
        history.note(&self.settings.name, Event::Tried { digest, share_percent }, &self.events);
    }

    /// Counts a decision of the shadow candidate, which was compared with the live policy's.
    pub(crate) fn compared(
        &self,
        service: &Arc<UpstreamRuntime>,
        difference: Option<Difference>,
        is_fault: bool,
        now: Timestamp,
    ) {
        self.count(service, difference.map_or(Comparison::Equal, Comparison::Different), is_fault, now);
    }

    /// Counts a decision, if it is the canary's.
    pub(super) fn decided_by_canary(&self, service: &Arc<UpstreamRuntime>, is_fault: bool, now: Timestamp) {
        let is_canary = |own: &crate::Candidate| own.settings.mode == Mode::Canary && own.is(service);
        if self.candidate.as_ref().is_some_and(is_canary) {
            self.count(service, Comparison::Alone, is_fault, now);
        }
    }

    fn count(&self, service: &Arc<UpstreamRuntime>, comparison: Comparison, is_fault: bool, now: Timestamp) {
        let Some(candidate) = &self.candidate else { return };
        let digest = service.policy.digest();
        let event = match candidate.decided(service, comparison, is_fault, now) {
            None => return,
            Some(Milestone::Differed { difference, counts }) if counts.differed > 1 => {
                let upstream = self.settings.name.as_str();
                tracing::info!(upstream, differed = counts.differed, of = counts.compared, "candidate: {difference}");
                return;
            }
            Some(Milestone::Differed { difference, .. }) => Event::Differed { digest, difference },
            Some(Milestone::Completed { counts }) => Event::Completed { digest, counts },
        };
        self.history.lock().note(&self.settings.name, event, &self.events);
    }
}
