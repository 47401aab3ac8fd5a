//! Conditional writes: the condition itself finds out what became of one whose effect is unknown.
//!
//! | found | create | update | delete |
//! |---|---|---|---|
//! | nothing | late: absent, sent again | late: the same, if what it writes would be found | in effect |
//! | one | in place: it is the answer | as written: in place; late: sent again, which changes that one | late: unknown |
//! | several | unknown | unknown | late: unknown |
//!
//! Late is after `commit_within`, since servers commit late; before, the search is repeated. What is unknown an operator must look at.

use crate::{
    Settings,
    bundle::{self, Found, Match},
    endpoints::{Call, is_type, last_segment},
    update,
};
use std::fmt::Write as _;
use triage_policy::{
    Attempt, Header, Next, Outcome, Purpose, Replacement, Verdict, header,
    retry::asked_ms,
    verdict::{BreakerSignal, Class},
};

/// The longest path and query of a verification that the host takes.
const MAX_PATH_BYTES: usize = 8_000;
/// The first wait before a verification, and the longest.
const FIRST_WAIT_MS: u64 = 250;
const LONGEST_WAIT_MS: u64 = 10_000;
/// The wait after an unclear answer past `commit_within`.
const LATE_WAIT_MS: u64 = 1_000;

/// Parameters that shape a search's result and select nothing: a condition with `_count=0` would never be found.
const RESULT_PARAMETERS: [&str; 15] = [
    "_contained",
    "_containedType",
    "_count",
    "_elements",
    "_format",
    "_graph",
    "_include",
    "_maxresults",
    "_offset",
    "_pretty",
    "_revinclude",
    "_score",
    "_sort",
    "_summary",
    "_total",
];

/// Parameters of a write itself, as some servers take them beside a condition.
const WRITE_PARAMETERS: [&str; 5] = ["_cascade", "_expunge", "_hardDelete", "_remove-references", "hardDelete"];

/// What a conditional write is about: the resources of a type that match.
pub struct Condition {
    /// The call that has it.
    call: Call,
    /// `[type]?<condition>` as a GET asks for it.
    search: String,
    /// The type, such as `Patient`.
    kind: String,
    /// Where the new resource would be, relative to the request.
    folder: String,
}

impl Condition {
    /// The condition of a create, an update or a delete, if it has one that a search can verify.
    pub fn of(call: Call, attempt: &Attempt) -> Option<Self> {
        let (path, in_path) = attempt.path.split_once('?').unwrap_or((&attempt.path, ""));
        let condition = match call {
            Call::Create => {
                let mut given = attempt.request_headers.iter().filter(|header| header.name == "if-none-exist");
                let (Some(given), None) = (given.next(), given.next()) else { return None };
                parameters(&given.value)
            }
            Call::ConditionalUpdate | Call::ConditionalDelete => in_path,
            _ => return None,
        };
        let kind = last_segment(path);
        if !is_type(kind) {
            return None;
        }
        let query = query(condition)?;
        let search = format!("{}?{query}", path.trim_end_matches('/'));
        // A relative reference stays right behind a prefix that this policy does not see.
        let folder = if path.ends_with('/') { String::new() } else { format!("{kind}/") };
        (search.len() <= MAX_PATH_BYTES).then(|| Self { call, search, kind: kind.to_owned(), folder })
    }

    /// Asks for a verification, early and again. `asked`: the wait that the server asked for.
    pub fn verify(&self, settings: &Settings, attempt: &Attempt, asked: Option<u64>, reason: &str) -> Verdict {
        self.search(&self.search, delay_ms(settings, attempt).max(asked.unwrap_or(0)), reason)
    }

    fn search(&self, search: &str, delay_ms: u64, reason: &str) -> Verdict {
        let mut verdict = Verdict::verify(search.to_owned(), delay_ms, reason).breaker(BreakerSignal::Success);
        if let Next::Verify(probe) = &mut verdict.next {
            probe.headers = vec![
                field("accept", "application/fhir+json"),
                // HAPI FHIR answers a search from a cache otherwise: what was absent a minute ago would stay so.
                field("cache-control", "no-cache"),
                // A parameter that the server does not know must not be left out of the condition.
                field("prefer", "handling=strict"),
            ];
        }
        verdict
    }

    /// Judges what a verification found.
    pub fn verified(&self, settings: &Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict {
        let settled = |verdict: Verdict| verdict.breaker(BreakerSignal::Success);
        let response = match outcome {
            Outcome::Response(response) => response,
            Outcome::Failure(_) => return self.verify(settings, attempt, None, "the verification brought no answer"),
        };
        match response.status {
            200 => {}
            408 | 425 | 429 | 500..=599 => {
                let asked = asked_ms(&response.headers, attempt.now_unix_ms);
                return self.verify(settings, attempt, asked, "the server is in trouble");
            }
            _ => return settled(Verdict::deliver(Class::Unknown, "this search proves nothing")),
        }
        if !response.complete {
            // The resource is too large to be read here; its name is enough.
            let brief = format!("{}&_elements=id,meta", self.search);
            return self.search(&brief, delay_ms(settings, attempt), "the resource is too large to be read");
        }
        let again = |reason| settled(Verdict::retry(Class::NotApplied, settings.wait.ms(attempt), reason));
        let unknown = |reason| settled(Verdict::deliver(Class::Unknown, reason));
        let is_late = is_late(settings, attempt);
        match (self.call, bundle::found(response, &self.kind)) {
            (_, Found::Unclear) => self.verify(settings, attempt, None, "the search's answer proves nothing"),
            (Call::ConditionalDelete, Found::Nothing) => self.deleted(),
            (Call::ConditionalDelete, _) if is_late => unknown("what matches may have been created since"),
            (Call::ConditionalDelete, _) => self.verify(settings, attempt, None, "not deleted yet"),
            (_, Found::Several) => unknown("several match"),
            (Call::ConditionalUpdate, Found::One(found)) => {
                if found.whole.is_some_and(|whole| update::is_in_place(whole, &attempt.request_body)) {
                    self.adopted(attempt, &found)
                } else if is_late {
                    again("the match is not as written: sent again, it changes that one")
                } else {
                    self.verify(settings, attempt, None, "not as written yet")
                }
            }
            (_, Found::One(found)) => self.adopted(attempt, &found),
            (_, Found::Nothing) if !is_late => self.verify(settings, attempt, None, "not there yet"),
            // It may have changed the match so that the condition does not find it any more.
            (Call::ConditionalUpdate, Found::Nothing)
                if !update::is_found_by(
                    self.search.split_once('?').map_or("", |(_, query)| query),
                    &attempt.request_body,
                ) =>
            {
                unknown("what was written need not match the condition")
            }
            (_, Found::Nothing) => again("absent after the time it takes to commit"),
        }
    }

    /// The answer that a server gives to a delete.
    fn deleted(&self) -> Verdict {
        let answer = Replacement { status: 204, headers: Vec::new(), body: Vec::new() };
        let deleted = Verdict::deliver(Class::AlreadyApplied, "nothing matches");
        Verdict { next: Next::Replace(answer), ..deleted }.breaker(BreakerSignal::Success)
    }

    /// The answer that a server gives to a conditional create or update with one match.
    fn adopted(&self, attempt: &Attempt, found: &Match<'_>) -> Verdict {
        let mut headers = Vec::new();
        let mut location = format!("{}{}", self.folder, found.id);
        if let Some(version) = &found.version {
            let _ = write!(location, "/_history/{version}");
            headers.push(field("etag", &format!("W/\"{version}\"")));
        }
        headers.push(field("location", &location));
        let body = match found.whole {
            Some(resource) if wants_body(&attempt.request_headers) => {
                headers.push(field("content-type", "application/fhir+json"));
                resource.as_bytes().to_vec()
            }
            _ => Vec::new(),
        };
        let answer = Replacement { status: 200, headers, body };
        Verdict { next: Next::Replace(answer), ..Verdict::deliver(Class::AlreadyApplied, "found by its condition") }
    }
}

fn field(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}

/// Whether the caller wants the resource, in JSON: what was found cannot be said in XML.
fn wants_body(headers: &[Header]) -> bool {
    let minimal = header(headers, "prefer").is_some_and(|prefer| prefer.contains("return=minimal"));
    let accepts = header(headers, "accept").is_none_or(|accept| accept.contains("json") || accept.contains('*'));
    !minimal && accepts
}

/// Whether absence counts.
fn is_late(settings: &Settings, attempt: &Attempt) -> bool {
    attempt.sent_ms_ago.is_none_or(|ago| ago >= u64::from(settings.commit_within.0))
}

/// Early and again: as long as it took so far, from a quarter of a second to 10 s, and once right after the commit time.
fn delay_ms(settings: &Settings, attempt: &Attempt) -> u64 {
    let ago = attempt.sent_ms_ago.unwrap_or(0);
    let commit_within = u64::from(settings.commit_within.0);
    if ago > commit_within {
        return LATE_WAIT_MS;
    }
    let next =
        if attempt.purpose == Purpose::Request { FIRST_WAIT_MS } else { ago.clamp(FIRST_WAIT_MS, LONGEST_WAIT_MS) };
    next.min(commit_within + 1 - ago)
}

/// Whether a path has a query that selects resources.
pub fn selects_any(path_and_query: &str) -> bool {
    path_and_query.split_once('?').is_some_and(|(_, query)| query.split('&').any(selects))
}

/// The parameters of a header, and of a whole address in it (as older versions allow it) those behind the `?`.
fn parameters(condition: &str) -> &str {
    let condition = condition.trim();
    match condition.split_once('?') {
        Some((before, after)) if !before.contains(['=', '&']) => after,
        _ => condition,
    }
}

/// The condition as a query. None: no parameter is left that selects anything.
fn query(parameters: &str) -> Option<String> {
    let mut query = String::new();
    for parameter in parameters.split('&').filter(|parameter| selects(parameter)) {
        if !query.is_empty() {
            query.push('&');
        }
        encode(parameter, &mut query);
    }
    (!query.is_empty()).then_some(query)
}

fn selects(parameter: &str) -> bool {
    // Servers decode a name before they read it.
    let decoded = update::decoded(parameter.split('=').next().unwrap_or_default());
    let name = decoded.split(':').next().unwrap_or_default();
    !name.is_empty() && !RESULT_PARAMETERS.contains(&name) && !WRITE_PARAMETERS.contains(&name)
}

/// Percent-encodes what may not stand in a query. A header's value has one character for each byte.
fn encode(text: &str, query: &mut String) {
    let bytes: Vec<u8> = text.chars().map(|character| u8::try_from(u32::from(character)).unwrap_or(b'?')).collect();
    for (at, byte) in bytes.iter().enumerate() {
        let escape = bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match byte {
            b'%' if escape => query.push('%'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => query.push(char::from(*byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':'
            | b'@' | b'/' | b'?' => query.push(char::from(*byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(query, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_becomes_a_query() {
        for (condition, wanted) in [
            ("identifier=x|1", Some("identifier=x%7C1")),
            ("identifier=http://a.example/mrn%7C1", Some("identifier=http://a.example/mrn%7C1")),
            ("?identifier=x", Some("identifier=x")),
            ("Patient?identifier=x&birthdate=ge2000", Some("identifier=x&birthdate=ge2000")),
            ("http://a.example/fhir/Patient?identifier=x", Some("identifier=x")),
            ("identifier=a?b", Some("identifier=a?b")),
            ("name=a b\"#<\u{e9}", Some("name=a%20b%22%23%3C%E9")),
            ("name=100%", Some("name=100%25")),
            ("identifier=x&_count=0&_summary=count&_include:iterate=a", Some("identifier=x")),
            ("identifier=x&%5Fcount=0", Some("identifier=x")),
            ("%5felements=id&_sum%6Dary=count&_include%3Aiterate=a&identifier=x", Some("identifier=x")),
            ("identifier=x&_cascade=delete&hardDelete=true", Some("identifier=x")),
            ("%69dentifier=x", Some("%69dentifier=x")),
            ("_id=7", Some("_id=7")),
            ("_count=1", None),
            ("", None),
            ("&&", None),
            ("  ", None),
        ] {
            assert_eq!(query(parameters(condition)).as_deref(), wanted, "{condition}");
        }
    }

    #[test]
    fn a_body_goes_to_callers_that_read_json() {
        let of = |name: &str, value: &str| wants_body(&[field(name, value)]);
        assert!(wants_body(&[]) && of("accept", "application/fhir+json") && of("accept", "*/*"));
        assert!(of("prefer", "return=representation"));
        assert!(!of("prefer", "return=minimal") && !of("accept", "application/fhir+xml"));
    }
}
