//! One upstream and the policy generation that serves it now.

mod trial;

use super::{Candidate, Event, fleet::Follower};
use crate::{
    admission::Groups,
    clock::{Clock, Timestamp},
    config::settings,
    decision_log::Recorder,
    overload::Overload,
    policy::{Digest, Fault},
    telemetry::{AllEndpointCounters, Events},
    upstream_runtime::{DecisionResult, Judgement, ServiceError, UpstreamRuntime},
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Events kept for operators.
const MAX_EVENTS: usize = 64;
/// The most quarantined digests.
const MAX_QUARANTINED: usize = 1024;

/// One of an upstream's two policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRole {
    /// The live policy.
    Live,
    /// The candidate.
    Candidate,
}

/// An upstream and its policies.
#[derive(Debug)]
pub struct UpstreamPolicy {
    /// The settings at the start, before a policy's proposals. Name, address and policy never change.
    pub settings: settings::Upstream,
    /// The settings after the latest reload.
    configured: ArcSwap<settings::Upstream>,
    /// The candidate beside the live policy, if one is configured.
    pub candidate: Option<Candidate>,
    /// The adaptive limit on attempts under way.
    pub overload: Arc<Overload>,
    /// Records decisions while an operator wants that.
    pub recorder: Recorder,
    /// The follower of the fleet's policy; none if this host decides alone.
    pub following: Option<Arc<Follower>>,
    /// The host's clock.
    pub clock: Clock,
    current: ArcSwap<UpstreamRuntime>,
    history: Mutex<History>,
    events: Arc<Events>,
    meters: Arc<AllEndpointCounters>,
}

/// An upstream's generations with new settings, not yet in force.
#[derive(Debug)]
pub struct Reconfigured {
    settings: Arc<settings::Upstream>,
    services: Vec<Arc<UpstreamRuntime>>,
    candidate: Option<Arc<UpstreamRuntime>>,
}

/// The status of an upstream's policy.
#[derive(Debug)]
pub struct PolicyStatus {
    /// The generation that serves.
    pub current: Arc<UpstreamRuntime>,
    /// The number of the latest generation, even if it no longer serves.
    pub latest: u64,
    /// The rollback target; none: there is no other good generation.
    pub fallback: Option<Arc<UpstreamRuntime>>,
    /// Quarantined components, which are not loaded again.
    pub quarantined: Vec<Digest>,
}

/// Why an operator's command was not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// There is no rollback target.
    #[error("no other generation has passed its probation; copy a better component into the folder")]
    NoOther,
    /// The generation is suspended.
    #[error("the generation failed too often and no longer serves; copy a fixed component into the folder")]
    Suspended,
    /// The generation is good already.
    #[error("the present generation has already passed its probation; there is nothing to promote")]
    GoodAlready,
}

#[derive(Debug, Default)]
struct History {
    /// The number of the latest generation, even if it no longer serves.
    latest: u64,
    last_good: Option<Arc<UpstreamRuntime>>,
    /// The good generation before `last_good`.
    good_before: Option<Arc<UpstreamRuntime>>,
    quarantined: HashSet<Digest>,
    events: VecDeque<Event>,
}

impl History {
    fn note(&mut self, upstream: &str, event: Event, events: &Events) {
        match &event {
            Event::Installed { .. }
            | Event::Tried { .. }
            | Event::Differed { .. }
            | Event::Completed { .. }
            | Event::Good { .. } => {
                tracing::info!(upstream, "policy: {event}");
            }
            Event::Refused { .. } | Event::GivenUp { .. } | Event::RolledBack { .. } | Event::Withdrawn { .. } => {
                tracing::warn!(upstream, "policy: {event}");
            }
        }
        events.note(event.kind(), upstream, event.to_string());
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl History {
    fn quarantine_withdrawn(&mut self, current: &Arc<UpstreamRuntime>, withdrawn: &[Digest], next: Option<Digest>) {
        let is_withdrawn =
            |own: &&Arc<UpstreamRuntime>| own.artifact.is_some_and(|artifact| withdrawn.contains(&artifact));
        let all = [Some(current), self.last_good.as_ref(), self.good_before.as_ref()];
        let bad = all.into_iter().flatten().filter(is_withdrawn).filter_map(|own| own.policy.digest());
        let bad: Vec<Digest> = bad.filter(|own| Some(*own) != next).collect();
        for digest in bad {
            if self.quarantined.len() < MAX_QUARANTINED {
                self.quarantined.insert(digest);
            }
        }
        let mut good = [self.last_good.take(), self.good_before.take()].into_iter().flatten();
        let mut good = std::iter::from_fn(|| good.find(|own| !is_withdrawn(&own)));
        (self.last_good, self.good_before) = (good.next(), good.next());
    }

    fn fallback(&self, current: &Arc<UpstreamRuntime>) -> Option<Arc<UpstreamRuntime>> {
        [&self.last_good, &self.good_before].into_iter().flatten().find(|good| !good.is_same(current)).cloned()
    }
}

impl UpstreamPolicy {
    /// Serves the first generation, which counts as good.
    pub fn new(
        settings: settings::Upstream,
        mut service: UpstreamRuntime,
        events: Arc<Events>,
        meters: Arc<AllEndpointCounters>,
        clock: Clock,
    ) -> Self {
        service.counting(&meters);
        let first = Arc::new(service);
        let mut history =
            History { latest: first.generation, last_good: Some(Arc::clone(&first)), ..History::default() };
        // The first generation is reported only if the operator still has keys to set.
        match installed(&first) {
            Event::Installed { ungranted, .. } if ungranted.is_empty() => {}
            event => history.note(&settings.name, event, &events),
        }
        let candidate = settings.candidate.clone().map(Candidate::new);
        let configured = ArcSwap::from_pointee(settings.clone());
        let overload = overload(&settings, &events, clock);
        Self {
            settings,
            configured,
            candidate,
            overload,
            recorder: Recorder::default(),
            following: None,
            current: ArcSwap::new(first),
            history: Mutex::new(history),
            events,
            meters,
            clock,
        }
    }

    /// Follows a fleet's policy.
    #[must_use]
    pub fn following(self, following: Option<Arc<Follower>>) -> Self {
        Self { following, ..self }
    }

    /// The generation that serves now.
    pub fn current(&self) -> Arc<UpstreamRuntime> {
        self.current.load_full()
    }

    /// The settings after the latest reload.
    pub fn configured(&self) -> Arc<settings::Upstream> {
        self.configured.load_full()
    }

    /// Applies new settings to copies of every generation that serves or may serve again. Changes nothing yet.
    ///
    /// # Errors
    /// [`ServiceError`] if the settings do not fit a policy.
    pub fn reconfigured(&self, settings: &settings::Upstream, gates: &Groups) -> Result<Reconfigured, ServiceError> {
        let history = self.history.lock();
        let remade = |service: &Arc<UpstreamRuntime>| {
            let mut made = service.with_settings(settings, |name, endpoint| gates.group(name, endpoint))?;
            made.counting(&self.meters);
            Ok::<_, ServiceError>(Arc::new(made))
        };
        let all = [Some(self.current()), history.last_good.clone(), history.good_before.clone()];
        let mut services: Vec<Arc<UpstreamRuntime>> = Vec::new();
        for service in all.iter().flatten() {
            if !services.iter().any(|made| made.is_same(service)) {
                services.push(remade(service)?);
            }
        }
        let candidate = self.candidate.as_ref().and_then(Candidate::current).map(|own| remade(&own)).transpose()?;
        Ok(Reconfigured { settings: Arc::new(settings.clone()), services, candidate })
    }

    /// Puts new settings into force, between two requests. A policy installed meanwhile keeps the old ones until the next reload.
    pub fn reconfigure(&self, Reconfigured { settings, services, candidate }: Reconfigured) {
        let mut held = self.history.lock();
        let history = &mut *held;
        let made = |old: &Arc<UpstreamRuntime>| services.iter().find(|made| made.is_same(old)).cloned();
        for good in [&mut history.last_good, &mut history.good_before].into_iter().flatten() {
            if let Some(made) = made(good) {
                *good = made;
            }
        }
        if let Some(next) = made(&self.current.load()) {
            next.adopt();
            next.wakefulness.remember(&self.current.load().wakefulness);
            self.current.store(next);
        }
        if let (Some(candidate), Some(next)) = (&self.candidate, candidate)
            && candidate.is(&next)
        {
            candidate.replace(next);
        }
        self.configured.store(settings);
    }

    /// Installs a generation: one swap, between two requests.
    pub fn install(&self, next: UpstreamRuntime) {
        let mut history = self.history.lock();
        history.latest += 1;
        let mut next = next.succeeding(&self.current.load(), history.latest);
        next.counting(&self.meters);
        let next = Arc::new(next);
        next.adopt();
        self.current.store(Arc::clone(&next));
        history.note(&self.settings.name, installed(&next), &self.events);
    }

    /// The digest of the policy in a role.
    pub fn digest_in(&self, slot: PolicyRole) -> Option<Digest> {
        match slot {
            PolicyRole::Live => self.current.load().policy.digest(),
            PolicyRole::Candidate => self.candidate.as_ref()?.current()?.policy.digest(),
        }
    }

    /// Installs a staged policy in its role.
    pub fn put(&self, slot: PolicyRole, next: UpstreamRuntime) {
        match slot {
            PolicyRole::Live => self.install(next),
            PolicyRole::Candidate => self.try_out(next),
        }
    }

    /// Records that a component was refused.
    pub fn refused(&self, event: Event) {
        self.history.lock().note(&self.settings.name, event, &self.events);
    }

    /// Whether a component was rolled back here.
    pub fn is_quarantined(&self, digest: &Digest) -> bool {
        self.history.lock().quarantined.contains(digest)
    }

    /// Allows a component again that was rolled back here.
    pub(super) fn unquarantine(&self, digest: &Digest) {
        self.history.lock().quarantined.remove(digest);
    }

    /// The last 64 events, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.history.lock().events.iter().cloned().collect()
    }

    /// Counts a generation's decision, and rolls the generation back if it fails too often.
    pub fn decided(&self, service: &Arc<UpstreamRuntime>, fault: Option<&Fault>, now: Timestamp) {
        let result = match fault {
            None => DecisionResult::Decided,
            Some(Fault::Overran { .. } | Fault::Costly { .. }) => DecisionResult::Overran,
            Some(_) => DecisionResult::Failed,
        };
        self.decided_by_canary(service, fault.is_some(), now);
        match service.probation.decided(result, now) {
            Judgement::Watched => {}
            Judgement::Good => {
                let mut history = self.history.lock();
                // A late request may have finished the probation of a generation that was replaced meanwhile.
                if service.is_same(&self.current.load()) {
                    self.proven(&mut history, service);
                }
            }
            Judgement::Bad { faults, decisions } => {
                let last = fault.map(Fault::with_cause).unwrap_or_default();
                self.roll_back(service, faults, decisions, last);
            }
        }
    }

    fn roll_back(&self, service: &Arc<UpstreamRuntime>, faults: u32, decisions: u32, last: String) {
        let mut history = self.history.lock();
        let digest = service.policy.digest();
        if let Some(digest) = digest
            && history.quarantined.len() < MAX_QUARANTINED
        {
            history.quarantined.insert(digest);
        }
        // For requests still under way in this generation, the built-in policy decides from now on.
        service.probation.suspend();
        if let Some(candidate) = self.candidate.as_ref().filter(|candidate| candidate.is(service)) {
            candidate.give_up();
            history.note(&self.settings.name, Event::GivenUp { digest, faults, decisions, last }, &self.events);
            return;
        }
        if !service.is_same(&self.current.load()) {
            return;
        }
        let good = history.fallback(service);
        if history.last_good.as_ref().is_some_and(|good| good.is_same(service)) {
            // This generation is no longer a rollback target.
            history.last_good.clone_from(&good);
            history.good_before = None;
        }
        if let Some(good) = &good {
            good.adopt();
            good.wakefulness.remember(&service.wakefulness);
            self.current.store(Arc::clone(good));
        }
        let to = good.map(|good| good.generation);
        let event = Event::RolledBack { generation: service.generation, digest, to, faults, decisions, last };
        history.note(&self.settings.name, event, &self.events);
        drop(history);
        if let Some(following) = &self.following {
            following.failed_here(service.artifact);
        }
    }

    fn proven(&self, history: &mut History, service: &Arc<UpstreamRuntime>) {
        history.good_before = history.last_good.replace(Arc::clone(service));
        history.note(&self.settings.name, Event::Good { generation: service.generation }, &self.events);
    }

    /// Ends the live generation's probation, by an operator's command.
    ///
    /// # Errors
    /// [`NotDone`]
    pub fn promote(&self) -> Result<(), NotDone> {
        let mut history = self.history.lock();
        let current = self.current();
        if current.probation.is_suspended() {
            return Err(NotDone::Suspended);
        }
        if history.last_good.as_ref().is_some_and(|good| good.is_same(&current)) {
            return Err(NotDone::GoodAlready);
        }
        current.probation.promote();
        self.proven(&mut history, &current);
        Ok(())
    }

    /// Rolls back to the last good generation before the live one, by an operator's command, and quarantines the live component. Requests
    /// under way end in their generation.
    ///
    /// # Errors
    /// [`NotDone::NoOther`]
    pub fn withdraw(&self) -> Result<(), NotDone> {
        let mut history = self.history.lock();
        let current = self.current();
        let good = history.fallback(&current).ok_or(NotDone::NoOther)?;
        let digest = current.policy.digest();
        if let Some(digest) = digest
            && history.quarantined.len() < MAX_QUARANTINED
        {
            history.quarantined.insert(digest);
        }
        good.adopt();
        good.wakefulness.remember(&current.wakefulness);
        self.current.store(Arc::clone(&good));
        let (to, by) = (Some(good.generation), "an operator");
        let event = Event::Withdrawn { generation: current.generation, digest, to, by };
        history.last_good = Some(good);
        history.good_before = None;
        history.note(&self.settings.name, event, &self.events);
        Ok(())
    }

    /// Quarantines components that the fleet has rolled back, given by their manifests' digests. They are not loaded again under any
    /// manifest. The exception is `next`, which serves from now on.
    pub(super) fn quarantine(&self, withdrawn: &[Digest], next: Option<Digest>) {
        self.history.lock().quarantine_withdrawn(&self.current(), withdrawn, next);
    }

    /// Leaves a generation that the fleet has rolled back, if this host refuses its replacement: serves the last good generation here, or
    /// else the built-in policy.
    pub(super) fn fall_back(&self, withdrawn: &[Digest]) {
        let mut history = self.history.lock();
        let current = self.current();
        if current.probation.is_suspended() {
            return;
        }
        history.quarantine_withdrawn(&current, withdrawn, None);
        let good = history.fallback(&current);
        match &good {
            Some(good) => {
                good.adopt();
                good.wakefulness.remember(&current.wakefulness);
                self.current.store(Arc::clone(good));
            }
            None => current.probation.suspend(),
        }
        let (digest, to) = (current.policy.digest(), good.as_ref().map(|good| good.generation));
        let event = Event::Withdrawn { generation: current.generation, digest, to, by: "its fleet" };
        history.last_good = good;
        history.good_before = None;
        history.note(&self.settings.name, event, &self.events);
    }

    /// The present status.
    pub fn view(&self) -> PolicyStatus {
        let history = self.history.lock();
        let current = self.current();
        PolicyStatus {
            latest: history.latest,
            fallback: history.fallback(&current),
            quarantined: history.quarantined.iter().copied().collect(),
            current,
        }
    }
}

fn overload(settings: &settings::Upstream, events: &Arc<Events>, clock: Clock) -> Arc<Overload> {
    Overload::new(settings.name.clone(), clock, Arc::clone(events))
}

/// The event for an installed generation.
fn installed(service: &UpstreamRuntime) -> Event {
    let ungranted =
        service.endpoints.iter().filter(|endpoint| endpoint.described.commit_within.is_some() && !endpoint.granted);
    let key = |name: &str| format!("upstreams.{}.endpoints.{name}.settle", service.settings.name);
    Event::Installed {
        generation: service.generation,
        digest: service.policy.digest(),
        ungranted: ungranted.map(|endpoint| key(&endpoint.described.name)).collect(),
    }
}
