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
/// Where generations end, and stay: far above what a fleet counts to, and exact in Lua.
pub const GENERATIONS: u64 = 1_000_000_000_000;

/// Which policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// The one that each host's configuration names.
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
pub struct Standing {
    /// Counts up with each switch, and never down; 0 while the fleet has said nothing.
    pub generation: u64,
    /// Which policy.
    pub chosen: Chosen,
    /// The one to go back to.
    pub before: Option<Chosen>,
    /// Why.
    pub why: Why,
    /// The host that brought it about; empty for none.
    pub by: String,
    /// What was rolled back, the oldest first.
    pub quarantined: Vec<Digest>,
}

impl Default for Standing {
    fn default() -> Self {
        let (by, quarantined) = (String::new(), Vec::new());
        Self { generation: 0, chosen: Chosen::Configured, before: None, why: Why::Nothing, by, quarantined }
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
pub struct Speaker {
    /// The host.
    pub host: String,
    /// The generation that serves there.
    pub generation: u64,
    /// The proposal that it could serve at once.
    pub staged: Option<u64>,
}

/// What a host says beside that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
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
    /// Back to the one before.
    RollBack {
        /// The generation that is meant: a later one stays.
        generation: u64,
        /// [`Why::Operator`] or [`Why::Fault`].
        why: Why,
    },
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It serves already.
    Serving,
    /// It was rolled back before.
    Quarantined,
    /// Another one is proposed.
    Busy,
    /// There is none before it.
    NoOther,
    /// Another generation serves by now, or another proposal stands.
    Stale,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// What serves.
    pub standing: Standing,
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
    pub fn hear(&mut self, speaker: &Speaker, known: &Standing, word: &Word, now: Timestamp) -> (Outcome, bool) {
        let mut told = false;
        if known.generation > self.standing.generation {
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
        let Speaker { host, generation, staged } = speaker;
        self.members.insert(host.clone(), Member { heard: now, generation: *generation, staged: *staged });
        let outcome = self.follow(host, word, now);
        told |= outcome == Outcome::Done && *word != Word::Beat;
        told |= self.settle(now);
        (outcome, told)
    }

    fn follow(&mut self, host: &str, word: &Word, now: Timestamp) -> Outcome {
        match word {
            Word::Beat => Outcome::Done,
            Word::Announce { id, digest, promoted } => self.announce(host, *id, *digest, *promoted, now),
            Word::Refuse { id, step, reason } => match self.proposal.take_if(|proposal| proposal.id == *id) {
                Some(refused) => {
                    self.abort(&refused, host, step, reason);
                    Outcome::Done
                }
                None => Outcome::Stale,
            },
            Word::RollBack { generation, why } => self.roll_back(host, *generation, *why),
        }
    }

    fn announce(&mut self, host: &str, id: u64, digest: Digest, promoted: bool, now: Timestamp) -> Outcome {
        if self.standing.chosen == Chosen::Artifact(digest) {
            return Outcome::Serving;
        }
        if !promoted && self.standing.quarantined.contains(&digest) {
            return Outcome::Quarantined;
        }
        if self.proposal.is_some() {
            return Outcome::Busy;
        }
        self.proposal = Some(Proposal { id, digest, by: host.to_owned(), promoted, until: now.after(STAGING) });
        if let Some(own) = self.members.get_mut(host) {
            own.staged = Some(id);
        }
        Outcome::Done
    }

    fn roll_back(&mut self, host: &str, generation: u64, why: Why) -> Outcome {
        if generation != self.standing.generation {
            return Outcome::Stale;
        }
        let Some(before) = self.standing.before.take() else { return Outcome::NoOther };
        if let Chosen::Artifact(bad) = self.standing.chosen {
            self.standing.quarantined.retain(|own| *own != bad);
            self.standing.quarantined.push(bad);
            let over = self.standing.quarantined.len().saturating_sub(QUARANTINED);
            self.standing.quarantined.drain(..over);
        }
        self.standing.chosen = before;
        self.next(why, host);
        Outcome::Done
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
        self.standing.before = Some(self.standing.chosen);
        self.standing.chosen = Chosen::Artifact(proposal.digest);
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
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn speaker(host: &str, staged: Option<u64>) -> Speaker {
        Speaker { host: host.to_owned(), generation: 0, staged }
    }

    fn digest(of: u8) -> Digest {
        Digest::of(&[of])
    }

    fn say(agreement: &mut Agreement, host: &str, staged: Option<u64>, word: &Word, at: Timestamp) -> Outcome {
        agreement.hear(&speaker(host, staged), &Standing::default(), word, at).0
    }

    fn announce(id: u64, of: u8) -> Word {
        Word::Announce { id, digest: digest(of), promoted: false }
    }

    /// Three hosts of which one announced the component 1 as proposal 7.
    fn proposed() -> Agreement {
        let mut all = Agreement::default();
        for host in ["b", "c"] {
            say(&mut all, host, None, &Word::Beat, NOW);
        }
        assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), Outcome::Done);
        all
    }

    #[test]
    fn all_hosts_have_it_before_any_switches() {
        let mut all = proposed();
        assert_eq!((all.standing.generation, all.members["a"].staged), (0, Some(7)));
        say(&mut all, "b", Some(7), &Word::Beat, NOW);
        assert_eq!(all.standing.generation, 0);
        say(&mut all, "c", Some(7), &Word::Beat, NOW);
        assert_eq!((all.standing.generation, all.standing.chosen), (1, Chosen::Artifact(digest(1))));
        assert_eq!((all.standing.before, all.proposal), (Some(Chosen::Configured), None));
    }

    #[test]
    fn a_host_that_cannot_get_it_is_waited_for_and_left_behind() {
        let mut all = proposed();
        let mut at = NOW;
        while at < NOW.after(STAGING) {
            assert_eq!(all.standing.generation, 0, "{at:?}");
            at = at.after(Duration::from_secs(1));
            say(&mut all, "a", Some(7), &Word::Beat, at);
            say(&mut all, "c", None, &Word::Beat, at);
        }
        assert_eq!((all.standing.generation, all.members.len()), (1, 2), "b died");
    }

    #[test]
    fn one_refusal_ends_it_for_all() {
        let mut all = proposed();
        let refuse = Word::Refuse { id: 7, step: "signature", reason: "no".to_owned() };
        assert_eq!(say(&mut all, "c", None, &refuse, NOW), Outcome::Done);
        assert_eq!((all.standing.generation, all.proposal.as_ref()), (0, None));
        assert_eq!(
            all.aborted.as_ref().map(|aborted| (aborted.by.as_str(), aborted.step.as_str())),
            Some(("c", "signature"))
        );
        assert_eq!(say(&mut all, "c", None, &refuse, NOW), Outcome::Stale);
    }

    #[test]
    fn what_was_rolled_back_comes_again_only_if_it_is_promoted() {
        let mut one = Agreement::default();
        assert_eq!(say(&mut one, "a", None, &announce(7, 1), NOW), Outcome::Done);
        assert_eq!(one.standing.generation, 1, "alone it waits for nobody");
        assert_eq!(say(&mut one, "a", None, &announce(8, 1), NOW), Outcome::Serving);
        let back = |generation| Word::RollBack { generation, why: Why::Fault };
        assert_eq!(say(&mut one, "a", None, &back(0), NOW), Outcome::Stale);
        assert_eq!(say(&mut one, "a", None, &back(1), NOW), Outcome::Done);
        assert_eq!((one.standing.generation, one.standing.chosen), (2, Chosen::Configured));
        assert_eq!(say(&mut one, "a", None, &back(2), NOW), Outcome::NoOther);
        assert_eq!(say(&mut one, "a", None, &announce(9, 1), NOW), Outcome::Quarantined);
        let promote = Word::Announce { id: 10, digest: digest(1), promoted: true };
        assert_eq!(say(&mut one, "a", None, &promote, NOW), Outcome::Done);
        assert_eq!((one.standing.why, one.standing.quarantined.len()), (Why::Promoted, 0));
    }

    #[test]
    fn the_highest_generation_that_a_live_host_knows_is_written_back() {
        let mut lost = Agreement::default();
        let known = |generation| Standing { generation, chosen: Chosen::Artifact(digest(1)), ..Standing::default() };
        for (own, expected) in [(4, 4), (5, 5), (3, 5)] {
            lost.hear(&speaker("a", None), &known(own), &Word::Beat, NOW);
            assert_eq!(lost.standing.generation, expected);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_waiting() {
        let mut all = proposed();
        let back = Timestamp(NOW.0 / 2);
        say(&mut all, "a", Some(7), &Word::Beat, back);
        let later = back.after(STAGING);
        say(&mut all, "a", Some(7), &Word::Beat, later);
        assert_eq!((all.standing.generation, all.members.len()), (1, 1));
    }
}
