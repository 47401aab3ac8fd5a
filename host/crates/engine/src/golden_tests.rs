//! A policy's golden cases: a CSV file of outcomes and expected verdicts, run on the real engine.
//!
//! The book's page on the format is `host/docs/src/reference/cases.md`.

mod case;
mod compare;

use super::{
    Policy,
    contract::{Attempt, Effect, Outcome},
    host_view::HostView,
};
use crate::route::{RouteError, Router};
use case::Case;
use http::{HeaderMap, Method};
use std::{fmt, time::Duration};

/// The maximum size of the file.
const MAX_FILE_BYTES: usize = 4 << 20;
/// The maximum number of differences in the error.
const MAX_DIFFERENCES: usize = 20;
/// The wall clock of every case: 2026-01-01T00:00:00Z.
pub(super) const NOW_UNIX_MS: u64 = 1_767_225_600_000;

/// A case that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The number of its line.
    pub line: u64,
    /// The request, the outcome, and what differs.
    pub text: String,
}

/// Why the cases did not pass.
#[derive(Debug, thiserror::Error)]
pub enum CasesError {
    /// The file is too large.
    #[error("the cases have {bytes} bytes; at most {} are allowed", MAX_FILE_BYTES)]
    TooLarge {
        /// The file's size.
        bytes: usize,
    },
    /// The file has no case.
    #[error("there is no case: each line below the header is one")]
    Empty,
    /// A line is not a case, or the first line is not a header.
    #[error("line {line} is not a valid {}: {why}", if *.line == 1 { "header" } else { "case" })]
    Malformed {
        /// The line's number, from 1.
        line: u64,
        /// The error.
        why: String,
    },
    /// The policy's endpoints cannot be routed.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Verdicts differ from the expected ones.
    #[error("{failed} of {played} cases differ:{}", Lines("\nline ", .differences))]
    Differ {
        /// The number of cases that differ.
        failed: usize,
        /// The number of all cases.
        played: usize,
        /// The first differences.
        differences: Vec<Difference>,
    },
}

impl CasesError {
    /// The error with the file's name beside each line number, as editors and terminals link it.
    pub fn in_file(&self, file: &str) -> String {
        match self {
            Self::TooLarge { .. } | Self::Route(_) => format!("{file}: {self}"),
            Self::Empty => format!("{file}:1: {self}"),
            Self::Malformed { line, why } => format!("{file}:{line}: {why}"),
            Self::Differ { failed, played, differences } => {
                format!("{failed} of {played} cases differ:{}", Lines(&format!("\n{file}:"), differences))
            }
        }
    }
}

/// Differences, a line each.
struct Lines<'a>(&'a str, &'a [Difference]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.iter().try_for_each(|Difference { line, text }| write!(f, "{}{line}: {text}", self.0))
    }
}

/// Runs every case and compares its verdict. Returns the number of cases.
///
/// # Errors
/// [`CasesError`] names the differences, or the line that is not a case.
pub fn play(policy: &Policy, csv: &str) -> Result<usize, CasesError> {
    play_each(policy, csv, None)
}

/// Runs every case, compares its verdict, and checks that the host would follow it. `settle`: whether the operator trusts the policy to
/// settle unknown writes, where a case does not say so itself. Returns the number of cases.
///
/// # Errors
/// [`CasesError`] as for [`play`].
pub fn play_clamped(policy: &Policy, csv: &str, settle: bool) -> Result<usize, CasesError> {
    play_each(policy, csv, Some(settle))
}

/// A request of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// The distinct requests of the cases, at most `most`.
pub(super) fn requests(csv: &str, most: usize) -> Result<Vec<Request>, CasesError> {
    let mut found = Vec::new();
    for case in case::read(csv) {
        let Case { method, path, request_headers: headers, request_body: body, .. } = case?;
        let request = Request { method, path, headers, body };
        if found.len() < most && !found.contains(&request) {
            found.push(request);
        }
    }
    Ok(found)
}

fn play_each(policy: &Policy, csv: &str, settle: Option<bool>) -> Result<usize, CasesError> {
    if csv.len() > MAX_FILE_BYTES {
        return Err(CasesError::TooLarge { bytes: csv.len() });
    }
    let endpoints = &policy.description().endpoints;
    let router = Router::new(endpoints.iter().map(|e| (e.method.as_ref(), e.path.as_str())))?;
    let (mut played, mut failed, mut reported) = (0, 0, Vec::new());
    for case in case::read(csv) {
        let case = case?;
        let line = case.line;
        let differs = differences(policy, &router, &case, settle).map_err(|why| CasesError::Malformed { line, why })?;
        played += 1;
        if !differs.is_empty() {
            failed += 1;
            if reported.len() < MAX_DIFFERENCES {
                reported.push(Difference { line, text: format!("{case}: {differs}") });
            }
        }
    }
    match (played, failed) {
        (0, _) => Err(CasesError::Empty),
        (_, 0) => Ok(played),
        _ => Err(CasesError::Differ { failed, played, differences: reported }),
    }
}

fn differences(policy: &Policy, router: &Router, case: &Case, settle: Option<bool>) -> Result<String, String> {
    let unmatched = "no endpoint of the policy matches it";
    let path = case.path.split('?').next().unwrap_or_default();
    let endpoint = router.find(&case.method, path).ok_or(unmatched)?;
    let described = policy.description().endpoints.get(endpoint).ok_or(unmatched)?;
    let attempt = Attempt {
        endpoint,
        method: &case.method,
        effect: Effect::of(&case.method).max(described.effect),
        purpose: case.purpose,
        number: case.number,
        prior_unknown: case.prior_unknown,
        sent_ago: case.sent_ago,
        elapsed: Duration::from_secs(1),
        remaining: Duration::from_secs(600),
        previous_delay: Duration::ZERO,
        random: 0,
        now_unix_ms: NOW_UNIX_MS,
        keyed: case.keyed,
        path: &case.path,
        request_headers: &case.request_headers,
        request_body: case.request_body.as_bytes(),
        taken: &case.taken,
    };
    let outcome: Outcome<'_> = case.outcome();
    let verdict = match policy.decide(&attempt, &outcome) {
        Ok(verdict) => verdict,
        Err(fault) => return Ok(format!("the policy failed: {}", fault.for_author())),
    };
    let mut differs = compare::verdict(&verdict, &case.expected);
    if let Some(settle) = settle {
        let granted = case.settle.unwrap_or(settle);
        differs.extend(compare::clamp(&HostView::of(described, &attempt, &outcome, &verdict, granted), &case.expected));
    }
    Ok(differs.join(", "))
}

#[cfg(test)]
mod tests;
