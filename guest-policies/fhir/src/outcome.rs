//! `OperationOutcome`: its worst issue, by family.

use serde::Deserialize;
use triage_policy::{Response, json};

/// What the worst issue says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Issue {
    /// Sending it again cannot help.
    Final,
    /// There is one already.
    Duplicate,
    /// A condition matched several.
    MultipleMatches,
    /// The caller's credentials.
    Login,
    /// It may help to come back.
    Transient,
    /// A lock.
    Lock,
    /// Too many requests.
    Throttled,
}

#[derive(Deserialize)]
struct OperationOutcome {
    #[serde(default)]
    issue: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    severity: String,
    #[serde(default)]
    code: String,
}

impl Issue {
    /// The worst `error` or `fatal` issue; fatal goes before error, what needs waiting before what is final.
    pub fn worst(response: &Response) -> Option<Self> {
        if !response.body.starts_with(b"{") {
            return None;
        }
        let outcome: OperationOutcome = json::from_slice(&response.body).ok()?;
        let grave = |entry: &&Entry| matches!(entry.severity.as_str(), "error" | "fatal");
        let found = outcome.issue.iter().filter(grave);
        found
            .filter_map(|entry| Some((entry.severity == "fatal", Self::of(&entry.code)?)))
            .max()
            .map(|(_, issue)| issue)
    }

    fn of(code: &str) -> Option<Self> {
        Some(match code {
            "throttled" => Self::Throttled,
            "lock-error" => Self::Lock,
            "transient" | "no-store" | "exception" | "timeout" | "incomplete" => Self::Transient,
            "login" | "expired" => Self::Login,
            "multiple-matches" => Self::MultipleMatches,
            "duplicate" => Self::Duplicate,
            "invalid" | "structure" | "required" | "value" | "invariant" | "business-rule" | "code-invalid"
            | "extension" | "too-long" | "too-costly" | "not-supported" | "forbidden" | "suppressed" | "unknown"
            | "security" | "processing" | "not-found" | "deleted" => Self::Final,
            _ => return None,
        })
    }
}
