//! A policy's golden cases: a CSV file of outcomes and expected verdicts, run on the real engine.
//!
//! The columns are those of the shared test vectors. An empty cell is not compared.

use super::{
    Policy,
    contract::{Attempt, Effect, Failure, FailureKind, Next, Outcome, Purpose},
};
use crate::route::{RouteError, Router};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use std::{str::FromStr, time::Duration};

/// The maximum size of the file.
const MAX_FILE_BYTES: usize = 4 << 20;
/// The maximum number of differences in the error.
const MAX_DIFFERENCES: usize = 20;
/// The wall clock of every case: 2026-01-01T00:00:00Z.
const NOW_UNIX_MS: u64 = 1_767_225_600_000;

#[derive(Debug, Deserialize)]
struct Row {
    method: String,
    path: String,
    purpose: String,
    number: u32,
    prior_unknown: String,
    sent_ms_ago: Option<u64>,
    taken: String,
    condition: String,
    request_headers: String,
    request_body: String,
    response_headers: String,
    response_body: String,
    class: String,
    next: String,
    breaker: String,
    delay_ms: Option<u64>,
    pause_ms: Option<u64>,
    claim: String,
    note: String,
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
    /// A line is not a case.
    #[error("line {line} is not a valid case: {why}")]
    Malformed {
        /// The line's number, from 1.
        line: usize,
        /// The error.
        why: String,
    },
    /// The policy's endpoints cannot be routed.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Verdicts differ from the expected ones.
    #[error("{failed} of {played} cases differ:\n{}", .differences.join("\n"))]
    Differ {
        /// The number of cases that differ.
        failed: usize,
        /// The number of all cases.
        played: usize,
        /// The first differences, a line each.
        differences: Vec<String>,
    },
}

/// Runs every case. Returns the number of cases.
///
/// # Errors
/// [`CasesError`] names the differences, or the line that is not a case.
pub fn play(policy: &Policy, csv: &str) -> Result<usize, CasesError> {
    if csv.len() > MAX_FILE_BYTES {
        return Err(CasesError::TooLarge { bytes: csv.len() });
    }
    let endpoints = &policy.description().endpoints;
    let router = Router::new(endpoints.iter().map(|e| (e.method.as_ref(), e.path.as_str())))?;
    let (mut played, mut failed, mut reported) = (0, 0, Vec::new());
    for (index, row) in csv::Reader::from_reader(csv.as_bytes()).deserialize::<Row>().enumerate() {
        let line = index + 2;
        let malformed = |why: String| CasesError::Malformed { line, why };
        let row = row.map_err(|error| malformed(error.to_string()))?;
        let differs = differences(policy, &router, &row).map_err(malformed)?;
        played += 1;
        if !differs.is_empty() {
            failed += 1;
            if reported.len() < MAX_DIFFERENCES {
                let Row { method, path, condition, note, .. } = &row;
                reported.push(format!("line {line}: {method} {path} {condition} ({note}): {differs}"));
            }
        }
    }
    if failed > 0 { Err(CasesError::Differ { failed, played, differences: reported }) } else { Ok(played) }
}

fn differences(policy: &Policy, router: &Router, row: &Row) -> Result<String, String> {
    let method = Method::from_str(&row.method).map_err(|_| format!("{:?} is not a method", row.method))?;
    let path = row.path.split('?').next().unwrap_or_default();
    let endpoint = router.find(&method, path).ok_or("no endpoint of the policy matches it")?;
    let described = policy.description().endpoints.get(endpoint).ok_or("no endpoint of the policy matches it")?;
    let (request_headers, response_headers) = (headers(&row.request_headers)?, headers(&row.response_headers)?);
    let taken: Vec<String> = row.taken.split_whitespace().map(str::to_owned).collect();
    let attempt = Attempt {
        endpoint,
        method: &method,
        effect: Effect::of(&method).max(described.effect),
        purpose: if row.purpose == "probe" { Purpose::Probe } else { Purpose::Request },
        number: row.number,
        prior_unknown: row.prior_unknown == "yes",
        sent_ago: row.sent_ms_ago.map(Duration::from_millis),
        elapsed: Duration::from_secs(1),
        remaining: Duration::from_secs(600),
        previous_delay: Duration::ZERO,
        random: 0,
        now_unix_ms: NOW_UNIX_MS,
        keyed: false,
        path: &row.path,
        request_headers: &request_headers,
        request_body: row.request_body.as_bytes(),
        taken: &taken,
    };
    let outcome = match row.condition.strip_prefix("failure:") {
        Some(kind) => Outcome::Failure(failure(kind).ok_or_else(|| format!("{kind:?} is not a failure"))?),
        None => Outcome::Response {
            status: StatusCode::from_str(&row.condition).map_err(|_| format!("{:?} is not a status", row.condition))?,
            headers: &response_headers,
            body: row.response_body.as_bytes(),
            complete: true,
        },
    };
    let verdict = match policy.decide(&attempt, &outcome) {
        Ok(verdict) => verdict,
        Err(fault) => return Ok(format!("the policy failed: {fault}")),
    };
    let (next, delay) = match &verdict.next {
        Next::Deliver => ("deliver", None),
        Next::Retry(delay) => ("retry", Some(*delay)),
        Next::Verify(probe) => ("verify", Some(probe.delay)),
        Next::Replace(_) => ("replace", None),
    };
    let breaker = verdict.breaker.name();
    let ms = |duration: Option<Duration>| duration.map_or_else(String::new, |d| d.as_millis().to_string());
    let number = |wanted: Option<u64>| wanted.map_or_else(String::new, |ms| ms.to_string());
    let compared = [
        ("class", verdict.class.name().to_owned(), row.class.clone()),
        ("next", next.to_owned(), row.next.clone()),
        ("breaker", breaker.to_owned(), row.breaker.clone()),
        ("delay_ms", ms(delay), number(row.delay_ms)),
        ("pause_ms", ms(verdict.pause), number(row.pause_ms)),
        ("claim", verdict.claim.unwrap_or_default(), row.claim.clone()),
    ];
    let wrong = compared.iter().filter(|(_, got, wanted)| !wanted.is_empty() && got != wanted);
    let wrong: Vec<String> = wrong.map(|(what, got, wanted)| format!("{what} {got:?}, not {wanted:?}")).collect();
    Ok(wrong.join(", "))
}

fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let malformed = || format!("{line:?} is not a header");
        let (name, value) = line.split_once(": ").ok_or_else(malformed)?;
        let name = HeaderName::from_str(name).map_err(|_| malformed())?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| malformed())?);
    }
    Ok(headers)
}

/// Parses a kind of failure, such as `reset`, or `reset+sent` if bytes may have been sent.
fn failure(text: &str) -> Option<Failure> {
    use FailureKind::{Body, Connect, ConnectTimeout, Dns, Protocol, Reset, Send, Timeout, Tls};
    let (kind, sent) = text.strip_suffix("+sent").map_or((text, false), |kind| (kind, true));
    let all = [Dns, Connect, ConnectTimeout, Tls, Send, Reset, Timeout, Protocol, Body];
    let kind = all.into_iter().find(|known| known.name() == kind)?;
    Some(Failure::new(kind, sent))
}
