//! `OperationOutcome`: its worst issue, by family. Servers write it as JSON and as XML.

use crate::xml;
use serde::Deserialize;
use std::borrow::Cow;
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
struct OperationOutcome<'a> {
    #[serde(borrow, default)]
    issue: Vec<Entry<'a>>,
}

/// An issue, as it stands there.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Entry<'a> {
    /// How grave it is.
    #[serde(borrow, default)]
    pub severity: Cow<'a, str>,
    /// What it is.
    #[serde(borrow, default)]
    pub code: Cow<'a, str>,
}

impl Issue {
    /// The worst `error` or `fatal` issue; fatal goes before error, what needs waiting before what is final.
    pub fn worst(response: &Response) -> Option<Self> {
        let grave = |entry: &&Entry<'_>| matches!(&*entry.severity, "error" | "fatal");
        let found = entries(&response.body);
        let found = found.iter().filter(grave);
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

/// Whether an outcome beside a search's matches says more than a remark. One that cannot be read, or has no issue, may.
pub fn warns(body: &[u8]) -> bool {
    let issues = entries(body);
    issues.is_empty() || issues.iter().any(|entry| !matches!(&*entry.severity, "information" | "success"))
}

/// The issues of an outcome, by what its body begins with: the content type is not always right.
fn entries(body: &[u8]) -> Vec<Entry<'_>> {
    let body = text(body);
    match body.first() {
        Some(b'{') => json::from_slice(body).map_or_else(|_| Vec::new(), |outcome: OperationOutcome<'_>| outcome.issue),
        Some(b'<') => xml::issues(body),
        _ => Vec::new(),
    }
}

/// A body without byte order mark and leading blanks.
pub fn text(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start()
}
