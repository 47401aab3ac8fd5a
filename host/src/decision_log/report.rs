//! What a replay found, in numbers and words.

use super::format::{Head, Next, RecordedVerdict};
use crate::policy::contract::BreakerSignal;
use std::{collections::BTreeMap, fmt, time::Duration};

/// Groups of differences that are told apart; what comes beyond is only counted.
const GROUPS: usize = 1000;
/// Groups that are told.
const TOLD: usize = 50;

/// Why a decision could not be replayed faithfully: the candidate would have been shown what is not in the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missing {
    /// The path, which also says which endpoint takes the request.
    Path,
    /// Header values.
    Headers,
    /// Bodies.
    Bodies,
    /// Claims of other requests.
    Claims,
    /// What the recorded policy did not read.
    Unread,
}

impl Missing {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Path => "the path was left out",
            Self::Headers => "header values were left out",
            Self::Bodies => "bodies were left out",
            Self::Claims => "claims were left out",
            Self::Unread => "the recorded policy did not read it",
        }
    }

    /// Whether a trace with contents would have it.
    fn is_content(self) -> bool {
        self != Self::Unread
    }
}

/// Decisions that differ in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difference {
    /// The endpoint, as the recorded policy names it.
    pub endpoint: String,
    /// The status, or the failure's name.
    pub outcome: String,
    /// What was said then.
    pub then: String,
    /// What the candidate says.
    pub now: String,
}

/// What a replay found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The recorded generations: policy and digest.
    pub recorded: Vec<String>,
    /// The candidate.
    pub candidate: String,
    /// Decisions in the trace.
    pub decisions: u64,
    /// Decisions that were dropped while it was recorded.
    pub dropped: u64,
    /// Of the decisions: not replayed, as something is missing.
    pub not_replayed: BTreeMap<Missing, u64>,
    /// Of those replayed: judged otherwise.
    pub differing: u64,
    /// These in groups: how many, and the line of the first one.
    pub differences: BTreeMap<Difference, (u64, u64)>,
    /// Differing decisions beyond the groups.
    pub ungrouped: u64,
    /// Whether the candidate was configured otherwise than the recorded policy.
    pub other_settings: bool,
    /// Whether the last line breaks off.
    pub cut_off: bool,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Decisions that were replayed as they were.
    pub fn replayed(&self) -> u64 {
        self.decisions - self.not_replayed.values().sum::<u64>()
    }

    /// Whether the candidate decides as the recorded policy did, as far as the trace tells: something was compared, and
    /// nothing differs.
    pub fn agrees(&self) -> bool {
        self.differing == 0 && self.replayed() > 0
    }

    /// Notes a difference in a line.
    pub(super) fn differs(&mut self, difference: impl FnOnce() -> Difference, line: u64) {
        self.differing += 1;
        self.group(difference(), 1, line);
    }

    fn group(&mut self, difference: Difference, count: u64, line: u64) {
        if let Some((counted, first)) = self.differences.get_mut(&difference) {
            *counted += count;
            *first = line.min(*first);
        } else if self.differences.len() < GROUPS {
            self.differences.insert(difference, (count, line));
        } else {
            self.ungrouped += count;
        }
    }

    /// Takes another part of the same replay in.
    pub(super) fn add(&mut self, part: Self) {
        self.decisions += part.decisions;
        self.differing += part.differing;
        self.ungrouped += part.ungrouped;
        for (missing, count) in part.not_replayed {
            *self.not_replayed.entry(missing).or_default() += count;
        }
        for (difference, (count, line)) in part.differences {
            self.group(difference, count, line);
        }
    }

    pub(super) fn recorded_by(&mut self, head: &Head) {
        const NAMED: usize = 16;
        let digest = head.digest.as_deref().map_or_else(|| "native".to_owned(), |digest| plain(digest, 12));
        let name = format!("{} {} ({digest})", plain(&head.policy, 64), plain(&head.version, 64));
        if !self.recorded.contains(&name) && self.recorded.len() < NAMED {
            self.recorded.push(name);
        }
    }
}

/// Text of a trace on a terminal: no control characters, and no more than a line.
pub(super) fn plain(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let replayed = self.replayed();
        let a_second = replayed as f64 / self.took.as_secs_f64().max(1e-9);
        writeln!(f, "recorded: {}", self.recorded.join(", "))?;
        writeln!(f, "candidate: {}", self.candidate)?;
        if self.other_settings {
            writeln!(f, "the recorded policy had other settings; give the candidate's with --settings")?;
        }
        writeln!(
            f,
            "{replayed} of {} decisions replayed in {:.2?}: {a_second:.0} a second",
            self.decisions, self.took
        )?;
        for (missing, count) in &self.not_replayed {
            writeln!(f, "  {count} could not be replayed faithfully: {}", missing.name())?;
        }
        if self.not_replayed.keys().any(|missing| missing.is_content()) {
            writeln!(f, "  record with --contents to have what was left out; the trace is confidential then")?;
        }
        if self.dropped > 0 {
            writeln!(f, "  {} were dropped while the trace was recorded: they came too fast", self.dropped)?;
        }
        if self.cut_off {
            writeln!(f, "  the last line breaks off and was left out")?;
        }
        if self.differing == 0 {
            return writeln!(f, "no verdict differs");
        }
        writeln!(f, "{} verdicts differ:", self.differing)?;
        let mut groups: Vec<_> = self.differences.iter().collect();
        groups.sort_by_key(|(_, (count, line))| (std::cmp::Reverse(*count), *line));
        for (Difference { endpoint, outcome, then, now }, (count, line)) in groups.iter().take(TOLD) {
            writeln!(f, "{count:>10}  {endpoint} {outcome}: {then} -> {now}  (line {line})")?;
        }
        let untold: u64 = groups.iter().skip(TOLD).map(|(_, (count, _))| count).sum::<u64>() + self.ungrouped;
        if untold > 0 { writeln!(f, "{untold:>10}  in other ways") } else { Ok(()) }
    }
}

impl RecordedVerdict {
    /// In words, without numbers and contents: what groups differences.
    pub(super) fn gist(&self) -> String {
        let breaker = match self.breaker {
            BreakerSignal::Success => "success",
            BreakerSignal::Failure => "failure",
            BreakerSignal::Ignore => "ignore",
        };
        let next = match self.next {
            Next::Deliver => "deliver".to_owned(),
            Next::Retry => "retry".to_owned(),
            Next::Verify => "verify".to_owned(),
            Next::Replace => format!("replace by {}", self.status.unwrap_or_default()),
        };
        format!("{}, {breaker}, {next}", self.class.name())
    }

    /// Whether two verdicts say the same. Contents are compared where both have them, words for logs never.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.other_than(other).is_empty() && self.gist_eq(other)
    }

    fn gist_eq(&self, other: &Self) -> bool {
        (self.class, self.breaker, self.next, self.status) == (other.class, other.breaker, other.next, other.status)
    }

    /// What this one has otherwise than `other`, of what the gist does not tell.
    pub(super) fn other_than(&self, other: &Self) -> Vec<&'static str> {
        let contents = self.contents.as_ref().zip(other.contents.as_ref());
        let content = |differ: fn(&super::format::Contents, &super::format::Contents) -> bool| {
            contents.is_some_and(|(own, other)| differ(own, other))
        };
        let all = [
            ("wait", self.delay_ms != other.delay_ms),
            ("pause", self.pause_ms != other.pause_ms),
            ("claim", self.claims != other.claims || content(|a, b| a.claim != b.claim)),
            ("probe", content(|a, b| a.probe != b.probe)),
            ("answer", content(|a, b| a.answer != b.answer)),
        ];
        all.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
    }

    /// How this verdict differs from the one before.
    pub(super) fn against(&self, then: &Self) -> String {
        if !self.gist_eq(then) {
            return self.gist();
        }
        format!("the same with another {}", self.other_than(then).join(" and another "))
    }
}
