//! What one host knows of the agreement, and what it does next. Pure.

use super::{Aborted, Chosen, Outcome, Proposed, Speaker, Standing, View, Why, Word, staging::Unstaged};
use crate::{clock::Timestamp, policy::Digest, store::redis::agreement::Heard};
use std::{fmt, time::Duration};

/// Between two attempts at a component that cannot be had: the first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Components that are remembered as not staged: the one that should serve, the one that is proposed, and those before.
const FAILED: usize = 4;
/// What was read longer ago says nothing of now: three beats.
const STALE: Duration = Duration::from_secs(3);

/// One host's.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) host: String,
    /// What the configuration names.
    configured: Digest,
    known: Standing,
    view: Option<(View, Timestamp)>,
    /// The generation that serves here.
    at: u64,
    /// Whether the fleet's generation may be one that was rolled back here.
    pardoned: bool,
    /// The generation that failed here, until the fleet has heard of it.
    fault: Option<u64>,
    /// What is to be told of a proposal.
    refusal: Option<Word>,
    /// The proposal that was refused here.
    refused: Option<u64>,
    /// What is being pulled and compiled.
    under_way: Option<Digest>,
    /// The latest of what was not staged, by digest.
    failed: Vec<Failed>,
    /// The last abort that was told.
    aborted: Option<u64>,
    /// Whether something else than ours was found the last time.
    flawed: bool,
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
    /// Pull and compile.
    Stage { digest: Digest, promoted: bool },
}

/// What operators are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Unheard,
    Flawed,
    Proposed(Proposed),
    Aborted(Aborted),
    Serves { generation: u64, chosen: Chosen, why: Why, by: String },
    Behind { generation: u64, digest: Digest, why: Unstaged },
    NotStaged { digest: Digest, why: Unstaged },
    NotRolledBack { generation: u64 },
}

impl Course {
    /// `known`: how the fleet stood when this host last ran.
    pub(super) fn new(host: String, configured: Digest, known: Standing) -> Self {
        Self {
            host,
            configured,
            known,
            view: None,
            at: 0,
            pardoned: false,
            fault: None,
            refusal: None,
            refused: None,
            under_way: None,
            failed: Vec::new(),
            aborted: None,
            flawed: false,
        }
    }

    fn resolved(&self, chosen: Chosen) -> Digest {
        match chosen {
            Chosen::Configured => self.configured,
            Chosen::Artifact(digest) => digest,
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

    pub(super) fn known(&self) -> &Standing {
        &self.known
    }

    fn proposed(&self) -> Option<&Proposed> {
        self.view.as_ref()?.0.proposed.as_ref()
    }

    /// The proposal that could serve at once.
    fn staged(&self, shelf: &[Digest]) -> Option<u64> {
        let own = self.proposed().filter(|own| shelf.contains(&own.digest))?;
        (self.refused != Some(own.id)).then_some(own.id)
    }

    /// Who speaks.
    pub(super) fn speaker(&self, serving: Option<Digest>, shelf: &[Digest]) -> Speaker {
        // One that has fallen back by itself is not where it was.
        let fell_back = self.at == self.known.generation && self.behind(serving);
        let generation = if fell_back { self.at.saturating_sub(1) } else { self.at };
        Speaker { host: self.host.clone(), generation, staged: self.staged(shelf) }
    }

    /// What is to be said next.
    pub(super) fn word(&self) -> Word {
        if let Some(generation) = self.fault {
            return Word::RollBack { generation, why: Why::Fault };
        }
        self.refusal.clone().unwrap_or(Word::Beat)
    }

    /// A word was answered.
    pub(super) fn heard(&mut self, word: &Word, heard: &Heard, now: Timestamp) -> Vec<Told> {
        let Heard { outcome, flawed, view } = heard;
        // The script writes back what this host knows: an older answer was overtaken by another one.
        if view.standing.generation < self.known.generation {
            return Vec::new();
        }
        let mut told = Vec::new();
        if *flawed {
            told.extend(self.flawed());
        }
        self.flawed = *flawed;
        match word {
            Word::RollBack { generation, why: Why::Fault } if self.fault == Some(*generation) => {
                self.fault = None;
                if *outcome == Outcome::NoOther {
                    told.push(Told::NotRolledBack { generation: *generation });
                }
            }
            Word::Refuse { .. } if self.refusal.as_ref() == Some(word) => self.refusal = None,
            _ => {}
        }
        if let Some(proposed) = &view.proposed
            && self.proposed().is_none_or(|own| own.id != proposed.id)
        {
            told.push(Told::Proposed(proposed.clone()));
        }
        let aborted = view.aborted.as_ref().map(|aborted| aborted.id);
        // What a host finds when it starts is nothing that happened.
        if let Some(news) = view.aborted.as_ref().filter(|_| self.view.is_some() && aborted != self.aborted) {
            told.push(Told::Aborted(news.clone()));
        }
        self.aborted = aborted;
        let is_new = (view.standing.generation, view.standing.chosen) != (self.known.generation, self.known.chosen);
        if is_new {
            self.pardoned = view.standing.why == Why::Promoted;
            self.fault = None;
            self.failed.clear();
        }
        self.known = view.standing.clone();
        self.view = Some((view.clone(), now));
        told
    }

    /// Something else than ours was found. Told once, not with each beat.
    pub(super) fn flawed(&mut self) -> Option<Told> {
        let is_news = !std::mem::replace(&mut self.flawed, true);
        is_news.then_some(Told::Flawed)
    }

    /// What to do, where `serving` serves and `shelf` is at hand.
    pub(super) fn next(&self, serving: Option<Digest>, shelf: &[Digest], now: Timestamp) -> Next {
        let waits = |digest| self.failed.iter().any(|own| own.digest == digest && now < own.again);
        let target = self.target();
        if serving != Some(target) && !waits(target) {
            if shelf.contains(&target) {
                return Next::Install { digest: target, promoted: self.pardoned };
            }
            if self.under_way.is_none() {
                return Next::Stage { digest: target, promoted: self.pardoned };
            }
        }
        match self.proposed() {
            Some(Proposed { id, digest, promoted, .. })
                if self.refused != Some(*id)
                    && self.under_way.is_none()
                    && !shelf.contains(digest)
                    && !waits(*digest) =>
            {
                Next::Stage { digest: *digest, promoted: *promoted }
            }
            _ => Next::Rest,
        }
    }

    pub(super) fn begin(&mut self, digest: Digest) {
        self.under_way = Some(digest);
    }

    pub(super) fn end(&mut self) {
        self.under_way = None;
    }

    /// A component was not staged, or could not be put into service.
    pub(super) fn failed(&mut self, digest: Digest, why: Unstaged, now: Timestamp) -> Option<Told> {
        let before = self.failed.iter().position(|own| own.digest == digest).map(|index| self.failed.remove(index));
        let times = before.as_ref().map_or(0, |own| own.times);
        let is_news = before.is_none_or(|own| own.why != why);
        let wait = FIRST_WAIT.saturating_mul(1 << times.min(10)).min(LONGEST_WAIT);
        if self.failed.len() == FAILED {
            self.failed.remove(0);
        }
        self.failed.push(Failed { digest, times: times + 1, again: now.after(wait), why: why.clone() });
        let is_target = digest == self.target();
        let proposal = self.proposed().filter(|own| own.digest == digest).map(|own| own.id);
        if let (Unstaged::Refused(step, reason), Some(id), false) = (&why, proposal, is_target) {
            self.refused = Some(id);
            self.refusal = Some(Word::Refuse { id, step: step.name(), reason: reason.clone() });
        }
        if !is_news {
            return None;
        }
        let generation = self.known.generation;
        Some(if is_target { Told::Behind { generation, digest, why } } else { Told::NotStaged { digest, why } })
    }

    /// What serves now was looked at: whether the fleet's generation has come into force.
    pub(super) fn settle(&mut self, serving: Option<Digest>) -> Option<Told> {
        let Standing { generation, chosen, why, by, .. } = &self.known;
        if serving != Some(self.target()) || self.at == *generation {
            return None;
        }
        self.at = *generation;
        self.failed.retain(|own| Some(own.digest) != serving);
        Some(Told::Serves { generation: *generation, chosen: *chosen, why: *why, by: by.clone() })
    }

    /// The pardon is used up: if it fails again it is quarantined again.
    pub(super) fn installed(&mut self) {
        self.pardoned = false;
    }

    /// What serves failed too often here. Whether the fleet is to hear of it.
    pub(super) fn fault(&mut self, artifact: Option<Digest>) -> bool {
        let is_fleets = self.known.generation > 0 && artifact == Some(self.target());
        if is_fleets {
            self.fault = Some(self.known.generation);
        }
        is_fleets
    }

    /// How things stood when they were last read, and whether that was just now.
    pub(super) fn view(&self, now: Timestamp) -> (View, bool) {
        match &self.view {
            Some((view, at)) => (view.clone(), now.since(*at) <= STALE),
            None => (View::default(), false),
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

impl Told {
    /// Its kind among a host's events.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Flawed => "policy-flawed",
            Self::Proposed(_) => "policy-announced",
            Self::Aborted(_) => "policy-aborted",
            Self::Serves { .. } => "policy-switched",
            Self::Unheard | Self::Behind { .. } | Self::NotStaged { .. } | Self::NotRolledBack { .. } => {
                "policy-behind"
            }
        }
    }

    /// Whether all goes well.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Proposed(_) | Self::Serves { why: Why::Nothing | Why::Announced | Why::Promoted, .. })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unheard => f.write_str(
                "this host starts without having heard what serves its fleet: with what it remembers of it, else with \
                 what its configuration names; it catches up once shared state answers",
            ),
            Self::Flawed => f.write_str(
                "shared state held something else than the fleet's agreement; it was thrown away, and what the hosts \
                 know is there again: find out who else writes below state.prefix",
            ),
            Self::Proposed(Proposed { digest, by, .. }) => {
                write!(f, "{} is announced to the fleet by {by}; it serves once every host has it", digest.short())
            }
            Self::Aborted(Aborted { digest, by, step, reason, .. }) => write!(
                f,
                "{} does not serve: host {by} refused it at step {step}: {reason}; the fleet stays as it is",
                digest.short()
            ),
            Self::Serves { generation, chosen, why, by } => {
                write!(f, "the fleet's generation {generation} serves here, ")?;
                match chosen {
                    Chosen::Configured => f.write_str("as each host's configuration has it")?,
                    Chosen::Artifact(digest) => f.write_str(&digest.short())?,
                }
                match why {
                    Why::Nothing => Ok(()),
                    Why::Announced => write!(f, "; {by} announced it"),
                    Why::Promoted => write!(f, "; {by} announced it although it was rolled back before"),
                    Why::Operator => write!(f, "; an operator went back to it at {by}"),
                    Why::Fault => write!(f, "; the one before it failed at {by} and is quarantined"),
                }
            }
            Self::Behind { generation, digest, why } => {
                let (step, reason) = why.parts();
                write!(
                    f,
                    "this host is behind: the fleet's generation {generation} ({}) does not serve here, step {}: {reason}; \
                     it is tried again",
                    digest.short(),
                    step.name()
                )
            }
            Self::NotStaged { digest, why } => {
                let (step, reason) = why.parts();
                write!(f, "{} is announced, but not to be had here, step {}: {reason}", digest.short(), step.name())
            }
            Self::NotRolledBack { generation } => write!(
                f,
                "generation {generation} failed here, and the fleet has none before it: each host decides for itself; \
                 announce a component that serves better"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
