//! What one host knows of the agreement, and what it does next. Pure.

use super::{
    FleetState, FleetStatus, HostStatus, Message, MessageOutcome, PolicyRef, Proposed, Why, notices::Notice,
    staging::Unstaged,
};
use crate::{
    clock::Timestamp,
    policy::Digest,
    state::rollout::{MessageReply, protocol::STAGING},
};
use std::{collections::BTreeMap, time::Duration};

/// Between two attempts at a component that cannot be had: the first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Components that are remembered as not staged: the one that should serve, the one that is proposed, and those before.
const FAILED: usize = 4;
/// What was read longer ago says nothing of now: three beats.
const STALE: Duration = Duration::from_secs(3);
/// Components that are pulled and compiled at once: one that is slow holds no other up.
const AT_ONCE: usize = 2;
/// Hosts that are named with an announcement.
const OTHERS: usize = 100;

/// One host's.
#[derive(Debug)]
pub(super) struct Planner {
    pub(super) host: String,
    /// What the configuration names.
    configured: Digest,
    known: FleetState,
    view: Option<(FleetStatus, Timestamp)>,
    /// When each other host was last heard of.
    others: BTreeMap<String, Timestamp>,
    /// The generation that serves here, or did last.
    at: Position,
    /// Whether the fleet's generation may be one that was rolled back here.
    pardoned: bool,
    /// The generation that failed here, until the fleet has heard of it.
    fault: Option<(u64, PolicyRef)>,
    /// What is to be told of a proposal.
    refusal: Option<Message>,
    /// The proposal that was refused here.
    refused: Option<u64>,
    /// What is being pulled and compiled.
    under_way: Vec<Digest>,
    /// The latest of what was not staged, by digest.
    failed: Vec<Failed>,
    /// The last abort that was told.
    aborted: Option<u64>,
    /// Whether something else than ours was found the last time.
    flawed: bool,
}

/// A generation: its line and its number, and what it is, since a stranger may have written one of the same number.
type Position = (u64, u64, PolicyRef);

fn place(standing: &FleetState) -> Position {
    (standing.line, standing.generation, standing.chosen)
}

/// A component that was not staged.
#[derive(Debug)]
struct Failed {
    digest: Digest,
    times: u32,
    again: Timestamp,
    why: Unstaged,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Rest,
    /// Put what is on the shelf into service.
    Install { digest: Digest, promoted: bool },
    /// Pull, within this time if it is hurried, and compile.
    Stage { digest: Digest, promoted: bool, within: Option<Duration> },
}

impl Planner {
    /// `known`: how the fleet stood when this host last ran.
    pub(super) fn new(host: String, configured: Digest, known: FleetState) -> Self {
        Self {
            host,
            configured,
            known,
            view: None,
            others: BTreeMap::new(),
            at: place(&FleetState::default()),
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

    /// The same, where it is another one than the configuration names.
    pub(super) fn elsewhere(&self) -> Option<Digest> {
        Some(self.target()).filter(|target| *target != self.configured)
    }

    /// What must be at hand: the one that should serve, and the one to go back to.
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

    /// The proposal that could serve at once.
    fn staged(&self, shelf: &[Digest]) -> Option<u64> {
        let own = self.proposed().filter(|own| shelf.contains(&own.digest))?;
        (self.refused != Some(own.id)).then_some(own.id)
    }

    /// Who speaks.
    pub(super) fn speaker(&self, serving: Option<Digest>, shelf: &[Digest]) -> HostStatus {
        // One that has fallen back by itself is not where it was, nor is one whose generation only has the same number.
        let (at, known) = (self.at.1, place(&self.known));
        let is_there = self.at == known && !self.behind(serving);
        let generation = if at == known.1 && !is_there { at.saturating_sub(1) } else { at };
        HostStatus { host: self.host.clone(), generation, staged: self.staged(shelf) }
    }

    /// What is to be said next.
    pub(super) fn word(&self) -> Message {
        if let Some((generation, chosen)) = self.fault {
            return Message::RollBack { generation, chosen, why: Why::Fault };
        }
        self.refusal.clone().unwrap_or(Message::Beat)
    }

    /// A word was answered.
    pub(super) fn heard(&mut self, word: &Message, heard: &MessageReply, now: Timestamp) -> Vec<Notice> {
        let MessageReply { outcome, flawed, view } = heard;
        // The script writes back what this host knows: an older answer was overtaken by another one.
        let is_lines = view.standing.line == self.known.line || view.standing.generation == 0;
        if is_lines && view.standing.generation < self.known.generation {
            return Vec::new();
        }
        let mut told = Vec::new();
        if *flawed {
            told.extend(self.flawed());
        }
        self.flawed = *flawed;
        match word {
            Message::RollBack { generation, chosen, why: Why::Fault } if self.fault == Some((*generation, *chosen)) => {
                self.fault = None;
                if *outcome == MessageOutcome::NoOther {
                    told.push(Notice::NotRolledBack { generation: *generation });
                }
            }
            Message::Refuse { .. } if self.refusal.as_ref() == Some(word) => self.refusal = None,
            _ => {}
        }
        if let Some(proposed) = &view.proposed
            && self.proposed().is_none_or(|own| own.id != proposed.id)
        {
            told.push(Notice::Proposed(proposed.clone()));
        }
        let aborted = view.aborted.as_ref().map(|aborted| aborted.id);
        // What a host finds when it starts is nothing that happened.
        if let Some(news) = view.aborted.as_ref().filter(|_| self.view.is_some() && aborted != self.aborted) {
            told.push(Notice::Aborted(news.clone()));
        }
        self.aborted = aborted;
        for host in view.hosts.iter().filter(|host| host.name != self.host) {
            self.others.insert(host.name.clone(), now.before(host.silent));
        }
        self.others.retain(|_, heard| now.since(*heard) <= STALE);
        if place(&view.standing) != place(&self.known) {
            self.pardoned = view.standing.why == Why::Promoted;
            self.fault = None;
            self.failed.clear();
        }
        self.known = view.standing.clone();
        self.view = Some((view.clone(), now));
        told
    }

    /// Something else than ours was found. Told once, not with each beat.
    pub(super) fn flawed(&mut self) -> Option<Notice> {
        let is_news = !std::mem::replace(&mut self.flawed, true);
        is_news.then_some(Notice::Flawed)
    }

    /// What to do, where `serving` serves and `shelf` is at hand.
    pub(super) fn next(&self, serving: Option<Digest>, shelf: &[Digest], now: Timestamp) -> Next {
        let waits = |digest| self.failed.iter().any(|own| own.digest == digest && now < own.again);
        let may_begin = |digest: Digest| {
            let is_free = self.under_way.len() < AT_ONCE && !self.under_way.contains(&digest);
            is_free && !shelf.contains(&digest) && !waits(digest)
        };
        let target = self.target();
        if self.behind(serving) {
            if shelf.contains(&target) && !waits(target) {
                return Next::Install { digest: target, promoted: self.pardoned };
            }
            if may_begin(target) {
                return Next::Stage { digest: target, promoted: self.pardoned, within: None };
            }
        }
        // Longer than that nobody waits for it.
        let within = Some(STAGING);
        if let Some(Proposed { id, digest, promoted, .. }) = self.proposed()
            && self.refused != Some(*id)
            && may_begin(*digest)
        {
            return Next::Stage { digest: *digest, promoted: *promoted, within };
        }
        // At hand before it is needed, also where the registry is away by then.
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

    /// Hosts that must be there where shared state has lost nothing: a host is forgotten only after five beats.
    pub(super) fn others(&self, now: Timestamp) -> Vec<String> {
        let own = self.others.iter().filter(|(_, heard)| now.since(**heard) <= STALE);
        own.map(|(name, _)| name.clone()).take(OTHERS).collect()
    }

    /// What the configuration names.
    pub(super) fn configured(&self) -> Digest {
        self.configured
    }

    /// What is proposed and counts as staged, unless it was rolled back here.
    pub(super) fn claimed(&self, shelf: &[Digest]) -> Option<Digest> {
        self.staged(shelf).and(self.proposed()).filter(|own| !own.promoted).map(|own| own.digest)
    }

    /// Takes what should serve here once more, on an operator's word.
    pub(super) fn unquarantine(&mut self) {
        let target = self.target();
        self.pardoned = true;
        self.failed.retain(|own| own.digest != target);
    }

    /// Whether what serves here is what the fleet has rolled back, and what should serve instead is refused here.
    pub(super) fn is_stranded(&self, serving: Option<Digest>) -> bool {
        let is_refused = |own: &Failed| own.digest == self.target() && matches!(own.why, Unstaged::Refused(..));
        self.behind(serving)
            && serving.is_some_and(|serving| self.known.quarantined.contains(&serving))
            && self.failed.iter().any(is_refused)
    }

    /// A component was not staged, or could not be put into service.
    pub(super) fn failed(&mut self, digest: Digest, why: Unstaged, now: Timestamp) -> Option<Notice> {
        let before = self.failed.iter().position(|own| own.digest == digest).map(|index| self.failed.remove(index));
        let times = before.as_ref().map_or(0, |own| own.times);
        let is_news = before.is_none_or(|own| own.why != why);
        let wait = FIRST_WAIT.saturating_mul(1 << times.min(10)).min(LONGEST_WAIT);
        if self.failed.len() == FAILED {
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

    /// What serves now was looked at: whether the fleet's generation has come into force.
    pub(super) fn settle(&mut self, serving: Option<Digest>) -> Option<Notice> {
        let FleetState { generation, chosen, why, by, .. } = &self.known;
        if serving != Some(self.target()) || self.at == place(&self.known) {
            return None;
        }
        self.at = place(&self.known);
        self.failed.retain(|own| Some(own.digest) != serving);
        Some(Notice::Serves { generation: *generation, chosen: *chosen, why: *why, by: by.clone() })
    }

    /// The pardon is used up: if it fails again it is quarantined again.
    pub(super) fn installed(&mut self) {
        self.pardoned = false;
    }

    /// What serves failed too often here. Whether the fleet is to hear of it.
    pub(super) fn fault(&mut self, artifact: Option<Digest>) -> bool {
        let is_fleets = self.known.generation > 0 && artifact == Some(self.target());
        if is_fleets {
            self.fault = Some((self.known.generation, self.known.chosen));
        }
        is_fleets
    }

    /// How things stood when they were last read, and whether that was just now.
    pub(super) fn view(&self, now: Timestamp) -> (FleetStatus, bool) {
        match &self.view {
            Some((view, at)) => (view.clone(), now.since(*at) <= STALE),
            None => (FleetStatus::default(), false),
        }
    }

    /// Whether another policy serves than should.
    pub(super) fn behind(&self, serving: Option<Digest>) -> bool {
        serving != Some(self.target())
    }

    /// Why the component that should serve does not.
    pub(super) fn why_behind(&self) -> Option<String> {
        let failed = self.failed.iter().find(|own| own.digest == self.target())?;
        let (step, reason) = failed.why.parts();
        Some(format!("{}: {reason}", step.name()))
    }
}

#[cfg(test)]
mod tests;
