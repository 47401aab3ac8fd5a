//! The format of golden cases. Every word of a file is checked: a case with a misspelt column or word would protect nothing.

use super::{
    super::contract::{Class, Failure, FailureKind, Outcome, Purpose},
    CasesError,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use std::{fmt, str::FromStr, time::Duration};
use strum::VariantNames as _;
use triage_core::retry::ClampReason;

/// The columns that a header must have.
const REQUIRED: [&str; 3] = ["method", "path", "condition"];
/// The columns that a header may have.
const OPTIONAL: [&str; 24] = [
    "purpose",
    "number",
    "prior_unknown",
    "sent_ms_ago",
    "keyed",
    "taken",
    "request_headers",
    "request_body",
    "response_headers",
    "response_body",
    "settle",
    "class",
    "next",
    "breaker",
    "delay_ms",
    "pause_ms",
    "claim",
    "probe",
    "probe_headers",
    "answer_status",
    "answer_headers",
    "answer_body",
    "clamped",
    "note",
];

/// The words of the columns `next` and `breaker`.
const NEXT: [&str; 4] = ["deliver", "retry", "verify", "replace"];
const BREAKER: [&str; 3] = ["success", "failure", "ignore"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Row {
    method: String,
    path: String,
    condition: String,
    purpose: String,
    number: Option<u32>,
    prior_unknown: String,
    sent_ms_ago: Option<u64>,
    keyed: String,
    taken: String,
    request_headers: String,
    request_body: String,
    response_headers: String,
    response_body: String,
    settle: String,
    class: String,
    next: String,
    breaker: String,
    delay_ms: Option<u64>,
    pause_ms: Option<u64>,
    claim: String,
    probe: String,
    probe_headers: String,
    answer_status: Option<u16>,
    answer_headers: String,
    answer_body: String,
    clamped: String,
    note: String,
}

/// An outcome to judge, and the verdict that must follow.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) line: u64,
    pub(super) method: Method,
    pub(super) path: String,
    condition: String,
    note: String,
    pub(super) purpose: Purpose,
    pub(super) number: u32,
    pub(super) prior_unknown: bool,
    pub(super) sent_ago: Option<Duration>,
    pub(super) keyed: bool,
    pub(super) taken: Vec<String>,
    pub(super) request_headers: HeaderMap,
    pub(super) request_body: String,
    came: Came,
    /// Whether the operator trusts the policy; none where the case does not say so.
    pub(super) settle: Option<bool>,
    pub(super) expected: Expected,
}

#[derive(Debug)]
enum Came {
    Answer { status: StatusCode, headers: HeaderMap, body: String },
    Failed(Failure),
}

/// The expected verdict. An empty text, or none, is not compared.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) class: String,
    pub(super) next: String,
    pub(super) breaker: String,
    pub(super) delay_ms: Option<u64>,
    pub(super) pause_ms: Option<u64>,
    pub(super) claim: String,
    pub(super) probe: String,
    pub(super) probe_headers: HeaderMap,
    pub(super) answer_status: Option<u16>,
    pub(super) answer_headers: HeaderMap,
    pub(super) answer_body: String,
    pub(super) clamped: String,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.method, self.path, self.condition)?;
        if self.note.is_empty() { Ok(()) } else { write!(f, " ({})", self.note) }
    }
}

impl Case {
    pub(super) fn outcome(&self) -> Outcome<'_> {
        match &self.came {
            Came::Answer { status, headers, body } => {
                Outcome::Response { status: *status, headers, body: body.as_bytes(), complete: true }
            }
            Came::Failed(failure) => Outcome::Failure(*failure),
        }
    }
}

/// Reads the cases of a file, one after the other.
pub(super) fn read(csv: &str) -> impl Iterator<Item = Result<Case, CasesError>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string()).and_then(|columns| {
        check(columns)?;
        Ok(columns.clone())
    });
    let (columns, mut failed) = match header {
        Ok(columns) => (columns, None),
        Err(why) => (csv::StringRecord::new(), Some(CasesError::Malformed { line: 1, why })),
    };
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        if let Some(error) = failed.take() {
            ended = true;
            return Some(Err(error));
        }
        let mut record = csv::StringRecord::new();
        let read = reader.read_record(&mut record);
        let line = record.position().or(Some(reader.position())).map_or(0, csv::Position::line);
        let case = match read {
            Ok(false) => return None,
            Ok(true) => record.deserialize::<Row>(Some(&columns)).map_err(named).and_then(|row| case(line, row)),
            Err(error) => Err(error.to_string()),
        };
        Some(case.map_err(|why| {
            ended = true;
            CasesError::Malformed { line, why }
        }))
    })
}

/// A number that is none, with its column.
fn named(error: csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        _ => error.to_string(),
    }
}

fn check(columns: &csv::StringRecord) -> Result<(), String> {
    let all = || REQUIRED.iter().chain(&OPTIONAL).copied();
    let mut seen = Vec::new();
    for column in columns {
        if !all().any(|known| known == column) {
            let known: Vec<_> = all().collect();
            return Err(format!("{column:?} is not a column; the columns are {}", known.join(", ")));
        }
        if seen.contains(&column) {
            return Err(format!("the column {column:?} is there twice"));
        }
        seen.push(column);
    }
    match REQUIRED.iter().find(|needed| !seen.contains(needed)) {
        Some(missing) => Err(format!("the column {missing:?} is missing; every case needs {}", REQUIRED.join(", "))),
        None => Ok(()),
    }
}

fn case(line: u64, row: Row) -> Result<Case, String> {
    let method = Method::from_str(&row.method).map_err(|_| format!("{:?} is not a method", row.method))?;
    let came = match row.condition.strip_prefix("failure:") {
        Some(kind) => Came::Failed(failure(kind)?),
        None => Came::Answer {
            status: StatusCode::from_str(&row.condition).map_err(|_| format!("{:?} is not a status", row.condition))?,
            headers: headers(&row.response_headers)?,
            body: row.response_body,
        },
    };
    let is_probe = word("purpose", &row.purpose, &["request", "probe"])? == "probe";
    let clamps: Vec<&str> = ["no", "class"].iter().chain(ClampReason::VARIANTS).copied().collect();
    word("class", &row.class, Class::VARIANTS)?;
    word("next", &row.next, &NEXT)?;
    word("breaker", &row.breaker, &BREAKER)?;
    word("clamped", &row.clamped, &clamps)?;
    Ok(Case {
        line,
        method,
        path: row.path,
        condition: row.condition,
        note: row.note,
        purpose: if is_probe { Purpose::Probe } else { Purpose::Request },
        number: row.number.unwrap_or(1),
        prior_unknown: flag("prior_unknown", &row.prior_unknown)?.unwrap_or(false),
        sent_ago: row.sent_ms_ago.map(Duration::from_millis),
        keyed: flag("keyed", &row.keyed)?.unwrap_or(false),
        taken: row.taken.split_whitespace().map(str::to_owned).collect(),
        request_headers: headers(&row.request_headers)?,
        request_body: row.request_body,
        came,
        settle: flag("settle", &row.settle)?,
        expected: Expected {
            class: row.class,
            next: row.next,
            breaker: row.breaker,
            delay_ms: row.delay_ms,
            pause_ms: row.pause_ms,
            claim: row.claim,
            probe: row.probe,
            probe_headers: headers(&row.probe_headers)?,
            answer_status: row.answer_status,
            answer_headers: headers(&row.answer_headers)?,
            answer_body: row.answer_body,
            clamped: row.clamped,
        },
    })
}

/// A word of a column, or nothing.
fn word<'a>(column: &str, text: &'a str, known: &[&str]) -> Result<&'a str, String> {
    if text.is_empty() || known.contains(&text) {
        return Ok(text);
    }
    Err(format!("{text:?} is not a value of {column}; use {}", known.join(", ")))
}

fn flag(column: &str, text: &str) -> Result<Option<bool>, String> {
    Ok(match word(column, text, &["yes", "no"])? {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    })
}

fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let malformed = || format!("{line:?} is not a header; write NAME: VALUE, a line each");
        let (name, value) = line.split_once(": ").ok_or_else(malformed)?;
        let name = HeaderName::from_str(name).map_err(|_| malformed())?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| malformed())?);
    }
    Ok(headers)
}

/// Parses a kind of failure, such as `reset`, or `reset+sent` if bytes may have been sent.
fn failure(text: &str) -> Result<Failure, String> {
    use FailureKind::{Body, Connect, ConnectTimeout, Dns, Protocol, Reset, Send, Timeout, Tls};
    const ALL: [FailureKind; 9] = [Dns, Connect, ConnectTimeout, Tls, Send, Reset, Timeout, Protocol, Body];
    let (kind, sent) = text.strip_suffix("+sent").map_or((text, false), |kind| (kind, true));
    let kind = ALL.into_iter().find(|known| known.name() == kind).ok_or_else(|| {
        let known = ALL.map(FailureKind::name).join(", ");
        format!("{text:?} is not a failure; use {known}, each with +sent if bytes may have been sent")
    })?;
    Ok(Failure::new(kind, sent))
}
