//! The conditions of a host: everything that an operator should know now, and what to do about it.
//!
//! The API, the page, `triage status` and the metric `triage_condition` show this one list, so that they cannot disagree. While
//! the list is empty, no breaker, limit, budget or overload control refuses requests, and fewer than 1 % fail. Refusals of a single request,
//! such as `key-reused`, are no condition.
//!
//! `facts` gathers, `rules` decides purely, and [`Tracker`] remembers since when each condition holds.

pub(super) mod facts;
mod failure_remedies;
pub(super) mod monitor;
mod refusal_remedies;
mod rules;

use crate::dto::{Condition, ConditionId, Severity};
use facts::{Facts, Reach};
use std::collections::HashMap;

/// The subject of conditions of the whole host.
const HOST: &str = "host";

/// A condition that holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    id: ConditionId,
    severity: Severity,
    subject: String,
    /// Since when it holds, if that is known.
    since_unix_ms: Option<u64>,
    text: String,
    remedy: String,
}

impl Finding {
    fn new(id: ConditionId, severity: Severity, subject: &str, text: String, remedy: String) -> Self {
        Self { id, severity, subject: subject.to_owned(), since_unix_ms: None, text, remedy }
    }

    fn since(self, unix_ms: u64) -> Self {
        Self { since_unix_ms: Some(unix_ms), ..self }
    }
}

/// Remembers since when each condition holds.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    since: HashMap<(ConditionId, String), u64>,
    /// Since when shared state cannot be used.
    state_lost_unix_ms: Option<u64>,
}

/// Shared state became unreachable or reachable between two updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateChange {
    /// It can no longer be reached.
    Lost,
    /// It can be reached again; it could not since this time.
    Back {
        /// Since when it could not be reached, in milliseconds since 1970.
        since_unix_ms: u64,
    },
}

impl Tracker {
    /// The conditions now, the most severe first, and whether shared state was lost or came back since the last update.
    pub(super) fn update(&mut self, facts: &Facts) -> (Vec<Condition>, Option<StateChange>) {
        let mut findings = rules::findings(facts);
        findings.sort_by(|a, b| (a.severity, a.id, &a.subject).cmp(&(b.severity, b.id, &b.subject)));
        let mut since = HashMap::with_capacity(findings.len());
        let conditions = findings.into_iter().map(|finding| {
            let Finding { id, severity, subject, since_unix_ms, text, remedy } = finding;
            let key = (id, subject.clone());
            let known = since_unix_ms.or_else(|| self.since.get(&key).copied()).unwrap_or(facts.now_unix_ms);
            since.insert(key, known);
            Condition { id, severity, subject, since_unix_ms: known, text, remedy }
        });
        let conditions = conditions.collect();
        self.since = since;
        let is_lost = facts.state.as_ref().is_some_and(|state| state.reach != Reach::Up);
        let change = match (self.state_lost_unix_ms, is_lost) {
            (None, true) => Some(StateChange::Lost),
            (Some(since_unix_ms), false) => Some(StateChange::Back { since_unix_ms }),
            _ => None,
        };
        self.state_lost_unix_ms = is_lost.then(|| self.state_lost_unix_ms.unwrap_or(facts.now_unix_ms));
        (conditions, change)
    }
}

#[cfg(test)]
mod tests;
