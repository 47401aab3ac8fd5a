//! The report of a replay.

use super::format::{Head, Next, RecordedVerdict};
use std::{collections::BTreeMap, fmt, time::Duration};
use triage_core::rounded::Rounded;

/// Maximum of groups of differences. Differences beyond it are only counted.
const MAX_GROUPS: usize = 1000;
/// Maximum of groups that are displayed.
const MAX_SHOWN_GROUPS: usize = 50;

/// Why a decision could not be replayed faithfully: the candidate reads something that the log lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missing {
    /// The path, which also determines the endpoint.
    Path,
    /// Values of headers.
    Headers,
    /// Body of the request or the response.
    Bodies,
    /// Claims of other requests.
    Claims,
    /// A part that the recorded policy did not read, so that it was not recorded.
    Unread,
}

impl Missing {
    /// The text in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Path => "the path was not recorded",
            Self::Headers => "header values were not recorded",
            Self::Bodies => "bodies were not recorded",
            Self::Claims => "claims were not recorded",
            Self::Unread => "the recorded policy did not read the part that the candidate reads",
        }
    }

    /// Whether a log with contents would have it.
    fn is_content(self) -> bool {
        self != Self::Unread
    }
}

/// A group of decisions that differ in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difference {
    /// Name of the endpoint in the recorded policy.
    pub endpoint: String,
    /// Status, or name of the failure.
    pub outcome: String,
    /// The recorded verdict.
    pub then: String,
    /// The candidate's verdict.
    pub now: String,
}

/// The report of a replay.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The recorded policies: name, version and digest.
    pub recorded: Vec<String>,
    /// The candidate: name, version and digest.
    pub candidate: String,
    /// Decisions in the log.
    pub decisions: u64,
    /// Decisions that were dropped during the recording.
    pub dropped: u64,
    /// Decisions that were not replayed, by the reason.
    pub not_replayed: BTreeMap<Missing, u64>,
    /// Replayed decisions with another verdict.
    pub differing: u64,
    /// These in groups: number of decisions, and the line of the first one.
    pub differences: BTreeMap<Difference, (u64, u64)>,
    /// Differing decisions beyond the groups.
    pub ungrouped: u64,
    /// Whether the candidate's settings differ from those of the recorded policy.
    pub other_settings: bool,
    /// Whether the last line is incomplete.
    pub cut_off: bool,
    /// Duration of the replay.
    pub took: Duration,
}

impl Report {
    /// Number of replayed decisions.
    pub fn replayed(&self) -> u64 {
        self.decisions - self.not_replayed.values().sum::<u64>()
    }

    /// Whether at least one decision was replayed, and none differs.
    pub fn agrees(&self) -> bool {
        self.differing == 0 && self.replayed() > 0
    }

    /// Adds a difference in a line.
    pub(super) fn differs(&mut self, difference: impl FnOnce() -> Difference, line: u64) {
        self.differing += 1;
        self.group(difference(), 1, line);
    }

    fn group(&mut self, difference: Difference, count: u64, line: u64) {
        if let Some((counted, first)) = self.differences.get_mut(&difference) {
            *counted += count;
            *first = line.min(*first);
        } else if self.differences.len() < MAX_GROUPS {
            self.differences.insert(difference, (count, line));
        } else {
            self.ungrouped += count;
        }
    }

    /// Adds the report of another thread of the same replay.
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
        const MAX_NAMED: usize = 16;
        let digest = head.digest.as_deref().map_or_else(|| "native".to_owned(), |digest| plain(digest, 12));
        let name = format!("{} {} ({digest})", plain(&head.policy, 64), plain(&head.version, 64));
        if !self.recorded.contains(&name) && self.recorded.len() < MAX_NAMED {
            self.recorded.push(name);
        }
    }
}

/// Makes text of a log safe for a terminal: no control characters, and limited length.
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
            writeln!(f, "the recorded policy had other settings; set the candidate's settings with --settings")?;
        }
        writeln!(
            f,
            "{replayed} of {} decisions replayed in {}: {a_second:.0} a second",
            self.decisions,
            Rounded(self.took)
        )?;
        for (missing, count) in &self.not_replayed {
            writeln!(f, "  {count} could not be replayed faithfully: {}", missing.name())?;
        }
        if self.not_replayed.keys().any(|missing| missing.is_content()) {
            writeln!(f, "  record with --contents to include the omitted parts; the trace is confidential then")?;
        }
        if self.dropped > 0 {
            writeln!(f, "  {} decisions were dropped during the recording: they arrived too fast", self.dropped)?;
        }
        if self.cut_off {
            writeln!(f, "  the last line is incomplete and was skipped")?;
        }
        if replayed == 0 {
            return writeln!(f, "no verdict was compared");
        }
        if self.differing == 0 {
            return writeln!(f, "no verdict differs");
        }
        writeln!(f, "{} verdicts differ:", self.differing)?;
        let mut groups: Vec<_> = self.differences.iter().collect();
        groups.sort_by_key(|(_, (count, line))| (std::cmp::Reverse(*count), *line));
        for (Difference { endpoint, outcome, then, now }, (count, line)) in groups.iter().take(MAX_SHOWN_GROUPS) {
            writeln!(f, "{count:>10}  {endpoint} {outcome}: {then} -> {now}  (line {line})")?;
        }
        let hidden: u64 =
            groups.iter().skip(MAX_SHOWN_GROUPS).map(|(_, (count, _))| count).sum::<u64>() + self.ungrouped;
        if hidden > 0 { writeln!(f, "{hidden:>10}  in other ways") } else { Ok(()) }
    }
}

impl RecordedVerdict {
    /// A summary without delays and contents, by which differences are grouped.
    pub(super) fn summary(&self) -> String {
        let breaker = self.breaker.name();
        let next = match self.next {
            Next::Deliver => "deliver".to_owned(),
            Next::Retry => "retry".to_owned(),
            Next::Verify => "verify".to_owned(),
            Next::Replace => format!("replace by {}", self.status.unwrap_or_default()),
        };
        format!("{}, {breaker}, {next}", self.class.name())
    }

    /// Whether two verdicts are equal. Contents are compared if both have them; the reason for logs is not.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.other_than(other).is_empty() && self.summary_eq(other)
    }

    fn summary_eq(&self, other: &Self) -> bool {
        (self.class, self.breaker, self.next, self.status) == (other.class, other.breaker, other.next, other.status)
    }

    /// Names of the fields outside the summary that differ from `other`.
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

    /// Describes this verdict, in contrast to the recorded one.
    pub(super) fn against(&self, then: &Self) -> String {
        if !self.summary_eq(then) {
            return self.summary();
        }
        format!("the same with another {}", self.other_than(then).join(" and another "))
    }
}
