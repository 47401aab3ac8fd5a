//! One host's knowledge of the fleet's state, and its next action. Pure.

use super::{
    FleetState, FleetStatus, HostStatus, Message, MessageOutcome, PolicyRef, Proposed, Why, notices::Notice,
    staging::Unstaged,
};
use crate::{
    clock::Timestamp,
    policy::Digest,
    state::rollout::{MessageReply, protocol::STAGING_TIME},
};
use std::{collections::BTreeMap, time::Duration};

/// The first and the longest wait between two attempts to stage an unavailable component.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_mins(1);
/// Components remembered as not staged: the target, the proposal, and earlier ones.
const MAX_FAILED: usize = 4;
/// A status older than three heartbeats is not used any more.
const MAX_STATUS_AGE: Duration = Duration::from_secs(3);
/// Components pulled and compiled at once: a slow one must not delay the others.
const MAX_CONCURRENT_STAGINGS: usize = 2;
/// The most hosts listed in an announcement.
const MAX_LISTED_HOSTS: usize = 100;

/// The planner of one host.
#[derive(Debug)]
pub(super) struct Planner {
    pub(super) host: String,
    /// The component in this host's configuration.
    configured: Digest,
    known: FleetState,
    view: Option<(FleetStatus, Timestamp)>,
    /// When each other host last sent a message.
    others: BTreeMap<String, Timestamp>,
    /// The generation that serves here, or served last.
    at: Position,
    /// Whether the fleet's generation may be a component that was rolled back here.
    pardoned: bool,
    /// The generation that failed here, until the fleet knows.
    fault: Option<(u64, PolicyRef)>,
    /// The refusal of a proposal, until the fleet knows.
    refusal: Option<Message>,
    /// The proposal that this host refused.
    refused: Option<u64>,
    /// Components that are being pulled and compiled.
    under_way: Vec<Digest>,
    /// The latest components that were not staged, with their digests.
    failed: Vec<Failed>,
    /// The last aborted proposal that was reported.
    aborted: Option<u64>,
    /// Whether the last reply found invalid data in shared state.
    flawed: bool,
}

/// A generation: its line, its number and its policy, since invalid data may hold another policy under the same number.
type Position = (u64, u64, PolicyRef);

fn position(state: &FleetState) -> Position {
    (state.line, state.generation, state.chosen)
}

/// A component that was not staged.
#[derive(Debug)]
struct Failed {
    digest: Digest,
    times: u32,
    again: Timestamp,
    why: Unstaged,
}

/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing to do.
    Rest,
    /// Install a cached policy.
    Install { digest: Digest, promoted: bool },
    /// Pull, with this time limit if there is one, and compile.
    Stage { digest: Digest, promoted: bool, within: Option<Duration> },
}

impl Planner {
    /// `known`: the fleet's state when this host last ran.
    pub(super) fn new(host: String, configured: Digest, known: FleetState) -> Self {
        Self {
            host,
            configured,
            known,
            view: None,
            others: BTreeMap::new(),
            at: position(&FleetState::default()),
            pardoned: false,
            fault: None,
            refusal: None,
            refused: None,
            under_way: Vec::new(),
            failed: Vec::new(),
            aborted: None,
            flawed: false,
        }
    }

    fn resolved(&self, chosen: PolicyRef) -> Digest {
        match chosen {
            PolicyRef::Configured => self.configured,
            PolicyRef::Artifact(digest) => digest,
        }
    }

    /// The component that should serve here.
    pub(super) fn target(&self) -> Digest {
        self.resolved(self.known.chosen)
    }

    /// The component that should serve, if it is not the one in the configuration.
    pub(super) fn elsewhere(&self) -> Option<Digest> {
        Some(self.target()).filter(|target| *target != self.configured)
    }

    /// Components to keep in the cache: the target, the rollback target and the proposal.
    pub(super) fn kept(&self) -> [Option<Digest>; 3] {
        let proposed = self.proposed().map(|own| own.digest);
        [Some(self.target()), self.known.before.map(|before| self.resolved(before)), proposed]
    }

    pub(super) fn known(&self) -> &FleetState {
        &self.known
    }

    pub(super) fn proposed(&self) -> Option<&Proposed> {
        self.view.as_ref()?.0.proposed.as_ref()
    }

    /// The proposal that this host could install at once.
    fn staged(&self, cached: &[Digest]) -> Option<u64> {
        let own = self.proposed().filter(|own| cached.contains(&own.digest))?;
        (self.refused != Some(own.id)).then_some(own.id)
    }

    /// This host's status, sent with each message.
    pub(super) fn host_status(&self, serving: Option<Digest>, cached: &[Digest]) -> HostStatus {
        // A host that has fallen back by itself does not serve the fleet's generation, nor does one whose generation only has the same
        // number.
        let (at, known) = (self.at.1, position(&self.known));
        let is_there = self.at == known && !self.behind(serving);
        let generation = if at == known.1 && !is_there { at.saturating_sub(1) } else { at };
        HostStatus { host: self.host.clone(), generation, staged: self.staged(cached) }
    }

    /// The next message.
    pub(super) fn next_message(&self) -> Message {
        if let Some((generation, chosen)) = self.fault {
            return Message::RollBack { generation, chosen, why: Why::Fault };
        }
        self.refusal.clone().unwrap_or(Message::Heartbeat)
    }

    /// Processes the reply to a message.
    pub(super) fn process_reply(&mut self, message: &Message, reply: &MessageReply, now: Timestamp) -> Vec<Notice> {
        let MessageReply { outcome, flawed, view } = reply;
        // Replies may overtake each other. An older generation of the same line is an old reply, because the script restores what hosts
        // know.
        let is_lines = view.state.line == self.known.line || view.state.generation == 0;
        if is_lines && view.state.generation < self.known.generation {
            return Vec::new();
        }
        let mut notices = Vec::new();
        if *flawed {
            notices.extend(self.flawed());
        }
        self.flawed = *flawed;
        match message {
            Message::RollBack { generation, chosen, why: Why::Fault } if self.fault == Some((*generation, *chosen)) => {
                self.fault = None;
                if *outcome == MessageOutcome::NoOther {
                    notices.push(Notice::NotRolledBack { generation: *generation });
                }
            }
            Message::Refuse { .. } if self.refusal.as_ref() == Some(message) => self.refusal = None,
            _ => {}
        }
        if let Some(proposed) = &view.proposed
            && self.proposed().is_none_or(|own| own.id != proposed.id)
        {
            notices.push(Notice::Proposed(proposed.clone()));
        }
        let aborted = view.aborted.as_ref().map(|aborted| aborted.id);
        // An abort from before this host's start is no news.
        if let Some(news) = view.aborted.as_ref().filter(|_| self.view.is_some() && aborted != self.aborted) {
            notices.push(Notice::Aborted(news.clone()));
        }
        self.aborted = aborted;
        for host in view.hosts.iter().filter(|host| host.name != self.host) {
            self.others.insert(host.name.clone(), now.before(host.silent));
        }
        self.others.retain(|_, at| now.since(*at) <= MAX_STATUS_AGE);
        if position(&view.state) != position(&self.known) {
            self.pardoned = view.state.why == Why::Promoted;
            self.fault = None;
            self.failed.clear();
        }
        self.known = view.state.clone();
        self.view = Some((view.clone(), now));
        notices
    }

    /// Invalid data was found in shared state. Reported once, not with each heartbeat.
    pub(super) fn flawed(&mut self) -> Option<Notice> {
        let is_news = !std::mem::replace(&mut self.flawed, true);
        is_news.then_some(Notice::Flawed)
    }

    /// The next action, if `serving` serves and the cache holds `cached`.
    pub(super) fn next(&self, serving: Option<Digest>, cached: &[Digest], now: Timestamp) -> Next {
        let waits = |digest| self.failed.iter().any(|own| own.digest == digest && now < own.again);
        let may_begin = |digest: Digest| {
            let is_free = self.under_way.len() < MAX_CONCURRENT_STAGINGS && !self.under_way.contains(&digest);
            is_free && !cached.contains(&digest) && !waits(digest)
        };
        let target = self.target();
        if self.behind(serving) {
            if cached.contains(&target) && !waits(target) {
                return Next::Install { digest: target, promoted: self.pardoned };
            }
            if may_begin(target) {
                return Next::Stage { digest: target, promoted: self.pardoned, within: None };
            }
        }
        // The other hosts wait no longer than this.
        let within = Some(STAGING_TIME);
        if let Some(Proposed { id, digest, promoted, .. }) = self.proposed()
            && self.refused != Some(*id)
            && may_begin(*digest)
        {
            return Next::Stage { digest: *digest, promoted: *promoted, within };
        }
        // Stage the rollback target ahead of time: the registry may be unavailable when it is needed.
        let is_refused =
            |digest| self.failed.iter().any(|own| own.digest == digest && matches!(own.why, Unstaged::Refused(..)));
        match self.known.before.map(|before| self.resolved(before)) {
            Some(digest)
                if !self.behind(serving) && self.under_way.is_empty() && may_begin(digest) && !is_refused(digest) =>
            {
                Next::Stage { digest, promoted: false, within }
            }
            _ => Next::Rest,
        }
    }

    pub(super) fn begin(&mut self, digest: Digest) {
        self.under_way.push(digest);
    }

    pub(super) fn end(&mut self, digest: Digest) {
        self.under_way.retain(|own| *own != digest);
    }

    /// Hosts that shared state must still know if it has lost no data: a host is forgotten only after five heartbeats.
    pub(super) fn others(&self, now: Timestamp) -> Vec<String> {
        let own = self.others.iter().filter(|(_, at)| now.since(**at) <= MAX_STATUS_AGE);
        own.map(|(name, _)| name.clone()).take(MAX_LISTED_HOSTS).collect()
    }

    /// The component in this host's configuration.
    pub(super) fn configured(&self) -> Digest {
        self.configured
    }

    /// The proposed component that this host reports as staged, unless an operator promotes it.
    pub(super) fn claimed(&self, cached: &[Digest]) -> Option<Digest> {
        self.staged(cached).and(self.proposed()).filter(|own| !own.promoted).map(|own| own.digest)
    }

    /// Allows the target again, by an operator's command.
    pub(super) fn unquarantine(&mut self) {
        let target = self.target();
        self.pardoned = true;
        self.failed.retain(|own| own.digest != target);
    }

    /// Whether the fleet has rolled back the live component, and this host refuses its replacement.
    pub(super) fn is_stranded(&self, serving: Option<Digest>) -> bool {
        let is_refused = |own: &Failed| own.digest == self.target() && matches!(own.why, Unstaged::Refused(..));
        self.behind(serving)
            && serving.is_some_and(|serving| self.known.quarantined.contains(&serving))
            && self.failed.iter().any(is_refused)
    }

    /// Records that a component was not staged or not installed.
    pub(super) fn failed(&mut self, digest: Digest, why: Unstaged, now: Timestamp) -> Option<Notice> {
        let before = self.failed.iter().position(|own| own.digest == digest).map(|index| self.failed.remove(index));
        let times = before.as_ref().map_or(0, |own| own.times);
        let is_news = before.is_none_or(|own| own.why != why);
        let wait = FIRST_WAIT.saturating_mul(1 << times.min(10)).min(MAX_WAIT);
        if self.failed.len() == MAX_FAILED {
            self.failed.remove(0);
        }
        self.failed.push(Failed { digest, times: times + 1, again: now.after(wait), why: why.clone() });
        let is_target = digest == self.target();
        let is_before = self.known.before.map(|before| self.resolved(before)) == Some(digest);
        let proposal = self.proposed().filter(|own| own.digest == digest).map(|own| own.id);
        if let (Unstaged::Refused(step, reason), Some(id)) = (&why, proposal) {
            self.refused = Some(id);
            self.refusal = Some(Message::Refuse { id, step: step.name(), reason: reason.clone() });
        }
        if !is_news {
            return None;
        }
        let generation = self.known.generation;
        Some(match (is_target, proposal) {
            (true, None) => Notice::Behind { generation, digest, why },
            (false, None) if is_before => Notice::NotKept { digest, why },
            (_, _) => Notice::NotStaged { digest, why },
        })
    }

    /// Checks whether the fleet's generation now serves here.
    pub(super) fn settle(&mut self, serving: Option<Digest>) -> Option<Notice> {
        let FleetState { generation, chosen, why, by, .. } = &self.known;
        if serving != Some(self.target()) || self.at == position(&self.known) {
            return None;
        }
        self.at = position(&self.known);
        self.failed.retain(|own| Some(own.digest) != serving);
        Some(Notice::Serves { generation: *generation, chosen: *chosen, why: *why, by: by.clone() })
    }

    /// The permission is used up: if the component fails again, it is quarantined again.
    pub(super) fn installed(&mut self) {
        self.pardoned = false;
    }

    /// Records that the live component failed too often here. Returns whether to report it to the fleet.
    pub(super) fn fault(&mut self, artifact: Option<Digest>) -> bool {
        let is_fleets = self.known.generation > 0 && artifact == Some(self.target());
        if is_fleets {
            self.fault = Some((self.known.generation, self.known.chosen));
        }
        is_fleets
    }

    /// The last status that was read, and whether it is still current.
    pub(super) fn view(&self, now: Timestamp) -> (FleetStatus, bool) {
        match &self.view {
            Some((view, at)) => (view.clone(), now.since(*at) <= MAX_STATUS_AGE),
            None => (FleetStatus::default(), false),
        }
    }

    /// Whether another policy serves than should.
    pub(super) fn behind(&self, serving: Option<Digest>) -> bool {
        serving != Some(self.target())
    }

    /// Why the target does not serve.
    pub(super) fn why_behind(&self) -> Option<String> {
        let failed = self.failed.iter().find(|own| own.digest == self.target())?;
        let (step, reason) = failed.why.parts();
        Some(format!("{}: {reason}", step.name()))
    }
}

#[cfg(test)]
mod tests;
