//! The protocol by which a fleet agrees on the policy of one upstream: which policy serves, and which one is proposed. Pure. In
//! shared state `store/redis/agreement/agreement.lua` implements it; a test plays the same histories on both.
//!
//! ```text
//! announced --every live host has staged it, or the time is over and some have--> switched: the next generation
//!     |                                                                              |
//!     +--one host refuses it--> aborted          an operator rolls back, or a fault--> the one before, as the next generation
//! ```
//!
//! Proposals and generations name a component by its digest only. Each host's own configuration names the repository.
//!
//! The agreement counts hosts by its own heartbeats: it waits for the hosts that follow this upstream, which may be others than those
//! of a breaker's group. A fault at one host rolls the fleet back, without a breaker's quorum: a failure that a breaker sees may be due
//! to one host's network, but a policy fails by its code, and an unneeded rollback costs little.

use crate::{clock::Timestamp, digest::Digest};
use std::{collections::BTreeMap, time::Duration};

/// A host without a message for this long is not waited for: five heartbeats.
pub const HOST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for hosts to pull and compile a proposal: an 18 MB Python policy takes 9 s to compile.
pub const STAGING_TIME: Duration = Duration::from_secs(30);
/// Maximum of quarantined digests; the oldest is dropped first.
pub const MAX_QUARANTINED: usize = 32;
/// Highest generation: far above what a fleet reaches, and exact in Lua. Only a foreign program writes one so high. The number stays
/// there, and switches still work, because a generation is identified by its digest too.
pub const MAX_GENERATION: u64 = 1_000_000_000_000;

/// A reference to a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRef {
    /// The policy that each host's configuration names: until the fleet's first switch.
    Configured,
    /// A component, by the digest of its manifest, in the repository that each host's configuration names.
    Artifact(Digest),
}

/// The cause of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
pub enum Why {
    /// No switch yet.
    #[strum(serialize = "")]
    Nothing,
    /// It was announced.
    #[strum(serialize = "a")]
    Announced,
    /// It was announced although it was quarantined.
    #[strum(serialize = "p")]
    Promoted,
    /// An operator rolled back to it.
    #[strum(serialize = "o")]
    Operator,
    /// A fault at a host rolled back to it.
    #[strum(serialize = "f")]
    Fault,
}

/// The policy that the fleet serves. Each host keeps a copy, and writes it back if shared state has lost it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetState {
    /// Random id of this line of generations: the id of its first proposal. After a loss of shared state a new line may begin, and a
    /// host's copy of the old line must not overrule it. 0 before the first switch.
    pub line: u64,
    /// Increases with each switch, and never decreases in one line. 0 before the first switch.
    pub generation: u64,
    /// The policy that serves.
    pub chosen: PolicyRef,
    /// The policy for a rollback; `None` after one.
    pub before: Option<PolicyRef>,
    /// The cause of this generation.
    pub why: Why,
    /// Name of the host that caused it; empty before the first switch.
    pub by: String,
    /// Digests that were rolled back, the oldest first.
    pub quarantined: Vec<Digest>,
}

impl Default for FleetState {
    fn default() -> Self {
        let (by, quarantined) = (String::new(), Vec::new());
        Self { line: 0, generation: 0, chosen: PolicyRef::Configured, before: None, why: Why::Nothing, by, quarantined }
    }
}

/// An open proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Random, so that proposals stay distinct after shared state has lost its data.
    pub id: u64,
    /// Digest of the component's manifest.
    pub digest: Digest,
    /// Name of the host that announced it.
    pub by: String,
    /// Whether a quarantined component is allowed.
    pub promoted: bool,
    /// The digest in the configuration of the announcing host: the target of a rollback if this is the fleet's first switch.
    pub from: Digest,
    /// End of the time for staging.
    pub until: Timestamp,
}

/// An aborted proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// Id of the proposal.
    pub id: u64,
    /// Digest of the component's manifest.
    pub digest: Digest,
    /// Name of the host that aborted it; that of the announcing host if no host had staged it.
    pub by: String,
    /// The step that failed, such as `staging` or `operator`.
    pub step: String,
    /// The error, in words.
    pub reason: String,
}

/// A live host that follows the agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Time of its last message.
    pub last_message_at: Timestamp,
    /// The generation that the host serves.
    pub generation: u64,
    /// The proposal that the host has loaded and could serve at once.
    pub staged: Option<u64>,
}

/// The sender of a message, and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Name of the host.
    pub host: String,
    /// The generation that the host serves.
    pub generation: u64,
    /// The proposal that the host has loaded and could serve at once.
    pub staged: Option<u64>,
}

/// A message of a host. Each one is also a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Only a heartbeat.
    Heartbeat,
    /// Proposes a component, which this host has staged.
    Announce {
        /// Id of the proposal.
        id: u64,
        /// Digest of the component's manifest.
        digest: Digest,
        /// Whether a quarantined component is allowed.
        promoted: bool,
        /// The digest in this host's configuration.
        from: Digest,
        /// Hosts that were live a moment ago. If one is missing, shared state has lost the list of hosts.
        others: Vec<String>,
    },
    /// Refuses a proposal, for the whole fleet.
    Refuse {
        /// Id of the proposal.
        id: u64,
        /// The step that failed.
        step: &'static str,
        /// The error, in words.
        reason: String,
    },
    /// Rolls back to the policy before. From an operator during a proposal: aborts the proposal instead.
    RollBack {
        /// The generation to roll back: a later one stays.
        generation: u64,
        /// The policy of that generation.
        chosen: PolicyRef,
        /// [`Why::Operator`] or [`Why::Fault`].
        why: Why,
    },
}

/// The outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOutcome {
    /// Applied.
    Done,
    /// The announced component serves already.
    Serving,
    /// The announced component was rolled back before.
    Quarantined,
    /// Another proposal is open.
    Busy,
    /// Shared state has lost the list of hosts; it is complete again after their next heartbeats.
    Gathering,
    /// The open proposal was aborted; the serving policy stays.
    Aborted,
    /// There is no policy to roll back to.
    NoOther,
    /// The message is about an earlier generation or proposal.
    Stale,
}

/// The agreement of a fleet on the policy of one upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// The policy that serves.
    pub state: FleetState,
    /// The open proposal, if any.
    pub proposal: Option<Proposal>,
    /// The last aborted proposal.
    pub aborted: Option<Aborted>,
    /// Live hosts, by name.
    pub members: BTreeMap<String, Member>,
}

impl Agreement {
    /// Applies a message. `known`: the sender's copy of the state. Returns the outcome, and whether to notify the other hosts.
    pub fn apply(
        &mut self,
        host_status: &HostStatus,
        known: &FleetState,
        message: &Message,
        now: Timestamp,
    ) -> (MessageOutcome, bool) {
        let mut changed = false;
        let is_lost = self.state.generation == 0;
        if known.generation > self.state.generation && (is_lost || known.line == self.state.line) {
            self.state = known.clone();
            changed = true;
        }
        // If the clock was set back, times in the future would keep a host live or a proposal open for too long.
        for member in self.members.values_mut() {
            member.last_message_at = member.last_message_at.min(now);
        }
        if let Some(proposal) = &mut self.proposal {
            proposal.until = proposal.until.min(now.after(STAGING_TIME));
        }
        self.members.retain(|_, member| now.since(member.last_message_at) <= HOST_TIMEOUT);
        let HostStatus { host, generation, staged } = host_status;
        self.members.insert(host.clone(), Member { last_message_at: now, generation: *generation, staged: *staged });
        let outcome = self.follow(host, message, now);
        changed |= matches!(outcome, MessageOutcome::Done | MessageOutcome::Aborted) && *message != Message::Heartbeat;
        changed |= self.settle(now);
        (outcome, changed)
    }

    fn follow(&mut self, host: &str, message: &Message, now: Timestamp) -> MessageOutcome {
        match message {
            Message::Heartbeat => MessageOutcome::Done,
            Message::Announce { id, digest, promoted, from, others } => {
                let (by, until) = (host.to_owned(), now.after(STAGING_TIME));
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
        if self.state.chosen == PolicyRef::Artifact(proposal.digest) {
            return MessageOutcome::Serving;
        }
        if !proposal.promoted && self.state.quarantined.contains(&proposal.digest) {
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
        if meant != (self.state.generation, self.state.chosen) {
            return MessageOutcome::Stale;
        }
        // The operator means the proposal, which is about to serve, and not the policy that serves now.
        if why == Why::Operator
            && let Some(proposal) = self.proposal.take()
        {
            self.abort(&proposal, host, "operator", "an operator withdrew it before it served");
            return MessageOutcome::Aborted;
        }
        let Some(before) = self.state.before.take() else { return MessageOutcome::NoOther };
        if let PolicyRef::Artifact(bad) = self.state.chosen {
            self.state.quarantined.retain(|own| *own != bad);
            self.state.quarantined.push(bad);
            let over = self.state.quarantined.len().saturating_sub(MAX_QUARANTINED);
            self.state.quarantined.drain(..over);
        }
        self.state.chosen = before;
        self.next(why, host);
        MessageOutcome::Done
    }

    /// Switches or aborts when all hosts have staged the proposal, or its time is over. True: something changed.
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
            self.abort(&proposal, &proposal.by, "staging", "no live host has staged it");
            return true;
        }
        // By digest, because the configurations may name another policy by the time of a rollback.
        let before = match self.state.chosen {
            PolicyRef::Configured => proposal.from,
            PolicyRef::Artifact(digest) => digest,
        };
        self.state.before = Some(before).filter(|own| *own != proposal.digest).map(PolicyRef::Artifact);
        if self.state.generation == 0 {
            self.state.line = proposal.id;
        }
        self.state.chosen = PolicyRef::Artifact(proposal.digest);
        self.state.quarantined.retain(|own| *own != proposal.digest);
        self.next(if proposal.promoted { Why::Promoted } else { Why::Announced }, &proposal.by);
        true
    }

    fn next(&mut self, why: Why, by: &str) {
        self.state.generation = (self.state.generation + 1).min(MAX_GENERATION);
        self.state.why = why;
        by.clone_into(&mut self.state.by);
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
