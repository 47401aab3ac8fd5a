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
pub enum Chosen {
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
pub struct Standing {
    /// Which line of generations: drawn by chance with the first one, so that what a host remembers of one fleet is never
    /// taken for what a younger one came to after a loss. 0 while the fleet has said nothing.
    pub line: u64,
    /// Counts up with each switch, and in one line never down; 0 while the fleet has said nothing.
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
        Self { line: 0, generation: 0, chosen: Chosen::Configured, before: None, why: Why::Nothing, by, quarantined }
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
        chosen: Chosen,
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
        let Speaker { host, generation, staged } = speaker;
        self.members.insert(host.clone(), Member { heard: now, generation: *generation, staged: *staged });
        let outcome = self.follow(host, word, now);
        told |= matches!(outcome, Outcome::Done | Outcome::Aborted) && *word != Word::Beat;
        told |= self.settle(now);
        (outcome, told)
    }

    fn follow(&mut self, host: &str, word: &Word, now: Timestamp) -> Outcome {
        match word {
            Word::Beat => Outcome::Done,
            Word::Announce { id, digest, promoted, from, others } => {
                let (by, until) = (host.to_owned(), now.after(STAGING));
                let proposal = Proposal { id: *id, digest: *digest, by, promoted: *promoted, from: *from, until };
                self.announce(proposal, others)
            }
            Word::Refuse { id, step, reason } => match self.proposal.take_if(|proposal| proposal.id == *id) {
                Some(refused) => {
                    self.abort(&refused, host, step, reason);
                    Outcome::Done
                }
                None => Outcome::Stale,
            },
            Word::RollBack { generation, chosen, why } => self.roll_back(host, (*generation, *chosen), *why),
        }
    }

    fn announce(&mut self, proposal: Proposal, others: &[String]) -> Outcome {
        if self.standing.chosen == Chosen::Artifact(proposal.digest) {
            return Outcome::Serving;
        }
        if !proposal.promoted && self.standing.quarantined.contains(&proposal.digest) {
            return Outcome::Quarantined;
        }
        if self.proposal.is_some() {
            return Outcome::Busy;
        }
        if others.iter().any(|other| !self.members.contains_key(other)) {
            return Outcome::Gathering;
        }
        if let Some(own) = self.members.get_mut(&proposal.by) {
            own.staged = Some(proposal.id);
        }
        self.proposal = Some(proposal);
        Outcome::Done
    }

    fn roll_back(&mut self, host: &str, meant: (u64, Chosen), why: Why) -> Outcome {
        if meant != (self.standing.generation, self.standing.chosen) {
            return Outcome::Stale;
        }
        // What serves is good as far as anybody knows: the operator means the one that is about to.
        if why == Why::Operator
            && let Some(proposal) = self.proposal.take()
        {
            self.abort(&proposal, host, "operator", "an operator took it back before it served");
            return Outcome::Aborted;
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
        // By its digest: what configurations name may be another one by the time that the fleet goes back.
        let before = match self.standing.chosen {
            Chosen::Configured => proposal.from,
            Chosen::Artifact(digest) => digest,
        };
        self.standing.before = Some(before).filter(|own| *own != proposal.digest).map(Chosen::Artifact);
        if self.standing.generation == 0 {
            self.standing.line = proposal.id;
        }
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

    fn artifact(of: u8) -> Chosen {
        Chosen::Artifact(digest(of))
    }

    fn say(agreement: &mut Agreement, host: &str, staged: Option<u64>, word: &Word, at: Timestamp) -> Outcome {
        agreement.hear(&speaker(host, staged), &Standing::default(), word, at).0
    }

    fn announce(id: u64, of: u8) -> Word {
        Word::Announce { id, digest: digest(of), promoted: false, from: digest(0), others: Vec::new() }
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
        assert_eq!((all.standing.before, all.proposal), (Some(Chosen::Artifact(digest(0))), None));
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
        let back = |generation, of| Word::RollBack { generation, chosen: artifact(of), why: Why::Fault };
        assert_eq!(say(&mut one, "a", None, &back(0, 1), NOW), Outcome::Stale);
        assert_eq!(say(&mut one, "a", None, &back(1, 2), NOW), Outcome::Stale);
        assert_eq!(say(&mut one, "a", None, &back(1, 1), NOW), Outcome::Done);
        assert_eq!((one.standing.generation, one.standing.chosen), (2, artifact(0)));
        assert_eq!(say(&mut one, "a", None, &back(2, 0), NOW), Outcome::NoOther);
        assert_eq!(say(&mut one, "a", None, &announce(9, 1), NOW), Outcome::Quarantined);
        let promote = Word::Announce { id: 10, digest: digest(1), promoted: true, from: digest(0), others: Vec::new() };
        assert_eq!(say(&mut one, "a", None, &promote, NOW), Outcome::Done);
        assert_eq!((one.standing.why, one.standing.quarantined.len()), (Why::Promoted, 0));
    }

    #[test]
    fn an_operator_takes_back_what_is_proposed_and_not_what_serves() {
        let mut all = Agreement::default();
        assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), Outcome::Done);
        say(&mut all, "b", None, &Word::Beat, NOW);
        assert_eq!(say(&mut all, "a", None, &announce(8, 2), NOW), Outcome::Done);
        let before = all.standing.clone();
        let back = Word::RollBack { generation: 1, chosen: artifact(1), why: Why::Operator };
        assert_eq!(say(&mut all, "b", None, &back, NOW), Outcome::Aborted);
        assert_eq!((&all.standing, &all.proposal), (&before, &None));
        assert_eq!(all.aborted.as_ref().map(|own| (own.id, own.step.as_str())), Some((8, "operator")));
        assert_eq!(say(&mut all, "b", None, &back, NOW), Outcome::Done, "now it is what serves that is meant");
        assert_eq!((all.standing.chosen, &all.standing.quarantined[..]), (artifact(0), &[digest(1)][..]));
    }

    /// What the configuration names is no place to go back to where that is what is announced.
    #[test]
    fn nobody_goes_back_to_what_is_rolled_back() {
        let mut all = Agreement::default();
        assert_eq!(say(&mut all, "a", None, &announce(7, 0), NOW), Outcome::Done);
        assert_eq!((all.standing.generation, all.standing.before), (1, None));
        let back = Word::RollBack { generation: 1, chosen: artifact(0), why: Why::Operator };
        assert_eq!(say(&mut all, "a", None, &back, NOW), Outcome::NoOther);
        assert!(all.standing.quarantined.is_empty());
    }

    #[test]
    fn who_lives_is_known_before_anything_is_announced() {
        let mut lost = Agreement::default();
        let others = vec!["b".to_owned()];
        let announce = Word::Announce { id: 7, digest: digest(1), promoted: false, from: digest(0), others };
        assert_eq!(say(&mut lost, "a", None, &announce, NOW), Outcome::Gathering);
        assert_eq!(lost.proposal, None);
        say(&mut lost, "b", None, &Word::Beat, NOW);
        assert_eq!(say(&mut lost, "a", None, &announce, NOW), Outcome::Done);
        assert_eq!(lost.standing.generation, 0, "b is waited for");
    }

    /// A disk that has slept overrules no fleet that began anew meanwhile.
    #[test]
    fn another_lines_generation_is_written_back_only_where_there_is_none() {
        let mut all = Agreement::default();
        assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), Outcome::Done);
        assert_eq!(all.standing.line, 7);
        let young = all.standing.clone();
        let old = Standing { line: 3, generation: 9, chosen: artifact(5), ..Standing::default() };
        all.hear(&speaker("old", None), &old, &Word::Beat, NOW);
        assert_eq!(all.standing, young);
        all.hear(&speaker("old", None), &Standing { line: 7, ..old.clone() }, &Word::Beat, NOW);
        assert_eq!((all.standing.generation, all.standing.chosen), (9, artifact(5)), "the same line");
        let mut lost = Agreement::default();
        lost.hear(&speaker("old", None), &old, &Word::Beat, NOW);
        assert_eq!(lost.standing, old);
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
