//! What the hosts of a fleet agree on for one upstream: which policy serves, and which one is proposed. Pure; shared state
//! does the same in `store/redis/agreement/agreement.lua`, and a test plays the same histories on both.
//!
//! ```text
//! announced --every live host has it, or the time is over and some do--> switched: the next generation
//!     |                                                                      |
//!     +--one host refuses it--> aborted          an operator, or a fault--> back: the one before, as the next
//! ```
//!
//! A proposal and a generation name a component by its digest and by nothing else: where it comes from is each host's
//! own configuration.
//!
//! Hosts are counted here, by their beats, and not by those of a breaker's group or by the census of the server: waited
//! for is who follows this upstream. Any one host's fault takes all back, without the quorum that a breaker has: what a
//! breaker sees may be one host's network, what fails in a policy is its code, and a generation too few costs little.

use crate::{clock::Timestamp, policy::Digest};
use std::{collections::BTreeMap, time::Duration};

/// A host that has said nothing for so long is not waited for: five beats.
pub const LIVE: Duration = Duration::from_secs(5);
/// How long hosts may take to pull and compile what is proposed: an 18 MB Python policy takes 9 s to compile.
pub const STAGING: Duration = Duration::from_secs(30);
/// Digests that are remembered as bad; the oldest goes first.
pub const QUARANTINED: usize = 32;
/// Where generations end, and stay: far above what a fleet counts to, and exact in Lua. Only a stranger writes one so high;
/// generations are told apart by what was chosen as well, so that it is no dead end.
pub const GENERATIONS: u64 = 1_000_000_000_000;

/// Which policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRef {
    /// The one that each host's configuration names: only as long as the fleet has said nothing.
    Configured,
    /// A component by the digest of its manifest, in the repository that each host's configuration names.
    Artifact(Digest),
}

/// How a generation came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The fleet has said nothing yet.
    Nothing,
    /// Somebody announced it.
    Announced,
    /// Somebody announced it although it had been rolled back.
    Promoted,
    /// An operator went back to it.
    Operator,
    /// The one after it failed at a host.
    Fault,
}

/// Which policy serves the fleet. A host that knows it writes it back where shared state has lost it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetState {
    /// Which line of generations: drawn by chance with the first one, so that what a host remembers of one fleet is never
    /// taken for what a younger one came to after a loss. 0 while the fleet has said nothing.
    pub line: u64,
    /// Counts up with each switch, and in one line never down; 0 while the fleet has said nothing.
    pub generation: u64,
    /// Which policy.
    pub chosen: PolicyRef,
    /// The one to go back to.
    pub before: Option<PolicyRef>,
    /// Why.
    pub why: Why,
    /// The host that brought it about; empty for none.
    pub by: String,
    /// What was rolled back, the oldest first.
    pub quarantined: Vec<Digest>,
}

impl Default for FleetState {
    fn default() -> Self {
        let (by, quarantined) = (String::new(), Vec::new());
        Self { line: 0, generation: 0, chosen: PolicyRef::Configured, before: None, why: Why::Nothing, by, quarantined }
    }
}

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Drawn by chance, so that none is taken for another after shared state has lost its data.
    pub id: u64,
    /// The component.
    pub digest: Digest,
    /// The host that announced it.
    pub by: String,
    /// Whether it may be one that was rolled back.
    pub promoted: bool,
    /// What the configuration of the host that announced it names: gone back to where the fleet has said nothing yet.
    pub from: Digest,
    /// When hosts are waited for no longer.
    pub until: Timestamp,
}

/// Why a proposal came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// The proposal.
    pub id: u64,
    /// The component.
    pub digest: Digest,
    /// The host that refused it.
    pub by: String,
    /// At which step.
    pub step: String,
    /// Why.
    pub reason: String,
}

/// A host that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// When it last said something.
    pub heard: Timestamp,
    /// The generation that serves there.
    pub generation: u64,
    /// The proposal that it could serve at once.
    pub staged: Option<u64>,
}

/// Who speaks, and how it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// The host.
    pub host: String,
    /// The generation that serves there.
    pub generation: u64,
    /// The proposal that it could serve at once.
    pub staged: Option<u64>,
}

/// What a host says beside that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Nothing else.
    Beat,
    /// A component is proposed; the host has it.
    Announce {
        /// The proposal.
        id: u64,
        /// The component.
        digest: Digest,
        /// Whether it may be one that was rolled back.
        promoted: bool,
        /// What this host's configuration names.
        from: Digest,
        /// Hosts that were heard of just now: where one is missing, shared state has lost who lives.
        others: Vec<String>,
    },
    /// What is proposed is no policy for this fleet.
    Refuse {
        /// The proposal.
        id: u64,
        /// At which step.
        step: &'static str,
        /// Why.
        reason: String,
    },
    /// Back to the one before. From an operator, while something is proposed: that is not to serve.
    RollBack {
        /// The generation that is meant: a later one stays.
        generation: u64,
        /// What it is.
        chosen: PolicyRef,
        /// [`Why::Operator`] or [`Why::Fault`].
        why: Why,
    },
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOutcome {
    /// It is done.
    Done,
    /// It serves already.
    Serving,
    /// It was rolled back before.
    Quarantined,
    /// Another one is proposed.
    Busy,
    /// Shared state has lost which hosts live: they say so with their next beats.
    Gathering,
    /// What was proposed is not any more; what serves stays.
    Aborted,
    /// There is none before it.
    NoOther,
    /// Another generation serves by now, or another proposal stands.
    Stale,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// What serves.
    pub standing: FleetState,
    /// What is proposed.
    pub proposal: Option<Proposal>,
    /// The last proposal that came to nothing.
    pub aborted: Option<Aborted>,
    /// Hosts that live, by name.
    pub members: BTreeMap<String, Member>,
}

impl Agreement {
    /// A host says something. `known` is how the fleet stands as far as it knows. Also says whether the others are to
    /// hear of it.
    pub fn hear(
        &mut self,
        speaker: &HostStatus,
        known: &FleetState,
        word: &Message,
        now: Timestamp,
    ) -> (MessageOutcome, bool) {
        let mut told = false;
        let is_lost = self.standing.generation == 0;
        if known.generation > self.standing.generation && (is_lost || known.line == self.standing.line) {
            self.standing = known.clone();
            told = true;
        }
        // A clock that was set back keeps nobody waiting, and nobody alive.
        for member in self.members.values_mut() {
            member.heard = member.heard.min(now);
        }
        if let Some(proposal) = &mut self.proposal {
            proposal.until = proposal.until.min(now.after(STAGING));
        }
        self.members.retain(|_, member| now.since(member.heard) <= LIVE);
        let HostStatus { host, generation, staged } = speaker;
        self.members.insert(host.clone(), Member { heard: now, generation: *generation, staged: *staged });
        let outcome = self.follow(host, word, now);
        told |= matches!(outcome, MessageOutcome::Done | MessageOutcome::Aborted) && *word != Message::Beat;
        told |= self.settle(now);
        (outcome, told)
    }

    fn follow(&mut self, host: &str, word: &Message, now: Timestamp) -> MessageOutcome {
        match word {
            Message::Beat => MessageOutcome::Done,
            Message::Announce { id, digest, promoted, from, others } => {
                let (by, until) = (host.to_owned(), now.after(STAGING));
                let proposal = Proposal { id: *id, digest: *digest, by, promoted: *promoted, from: *from, until };
                self.announce(proposal, others)
            }
            Message::Refuse { id, step, reason } => match self.proposal.take_if(|proposal| proposal.id == *id) {
                Some(refused) => {
                    self.abort(&refused, host, step, reason);
                    MessageOutcome::Done
                }
                None => MessageOutcome::Stale,
            },
            Message::RollBack { generation, chosen, why } => self.roll_back(host, (*generation, *chosen), *why),
        }
    }

    fn announce(&mut self, proposal: Proposal, others: &[String]) -> MessageOutcome {
        if self.standing.chosen == PolicyRef::Artifact(proposal.digest) {
            return MessageOutcome::Serving;
        }
        if !proposal.promoted && self.standing.quarantined.contains(&proposal.digest) {
            return MessageOutcome::Quarantined;
        }
        if self.proposal.is_some() {
            return MessageOutcome::Busy;
        }
        if others.iter().any(|other| !self.members.contains_key(other)) {
            return MessageOutcome::Gathering;
        }
        if let Some(own) = self.members.get_mut(&proposal.by) {
            own.staged = Some(proposal.id);
        }
        self.proposal = Some(proposal);
        MessageOutcome::Done
    }

    fn roll_back(&mut self, host: &str, meant: (u64, PolicyRef), why: Why) -> MessageOutcome {
        if meant != (self.standing.generation, self.standing.chosen) {
            return MessageOutcome::Stale;
        }
        // What serves is good as far as anybody knows: the operator means the one that is about to.
        if why == Why::Operator
            && let Some(proposal) = self.proposal.take()
        {
            self.abort(&proposal, host, "operator", "an operator took it back before it served");
            return MessageOutcome::Aborted;
        }
        let Some(before) = self.standing.before.take() else { return MessageOutcome::NoOther };
        if let PolicyRef::Artifact(bad) = self.standing.chosen {
            self.standing.quarantined.retain(|own| *own != bad);
            self.standing.quarantined.push(bad);
            let over = self.standing.quarantined.len().saturating_sub(QUARANTINED);
            self.standing.quarantined.drain(..over);
        }
        self.standing.chosen = before;
        self.next(why, host);
        MessageOutcome::Done
    }

    /// Switches where nobody is waited for any more. Whether something changed.
    fn settle(&mut self, now: Timestamp) -> bool {
        let Some(proposal) = &self.proposal else { return false };
        let id = Some(proposal.id);
        let (some, all) = (
            self.members.values().any(|member| member.staged == id),
            self.members.values().all(|member| member.staged == id),
        );
        let over = now >= proposal.until;
        if !all && !over {
            return false;
        }
        let Some(proposal) = self.proposal.take() else { return false };
        if !some {
            self.abort(&proposal, &proposal.by, "staging", "no host that lives has it");
            return true;
        }
        // By its digest: what configurations name may be another one by the time that the fleet goes back.
        let before = match self.standing.chosen {
            PolicyRef::Configured => proposal.from,
            PolicyRef::Artifact(digest) => digest,
        };
        self.standing.before = Some(before).filter(|own| *own != proposal.digest).map(PolicyRef::Artifact);
        if self.standing.generation == 0 {
            self.standing.line = proposal.id;
        }
        self.standing.chosen = PolicyRef::Artifact(proposal.digest);
        self.standing.quarantined.retain(|own| *own != proposal.digest);
        self.next(if proposal.promoted { Why::Promoted } else { Why::Announced }, &proposal.by);
        true
    }

    fn next(&mut self, why: Why, by: &str) {
        self.standing.generation = (self.standing.generation + 1).min(GENERATIONS);
        self.standing.why = why;
        by.clone_into(&mut self.standing.by);
    }

    fn abort(&mut self, proposal: &Proposal, by: &str, step: &str, reason: &str) {
        self.aborted = Some(Aborted {
            id: proposal.id,
            digest: proposal.digest,
            by: by.to_owned(),
            step: step.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests;
