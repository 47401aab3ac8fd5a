//! A search's answer, as far as it proves something.

use crate::outcome;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use triage_policy::{Response, json};

/// What a search says of its condition.
pub enum Found<'a> {
    /// One resource matches.
    One(Match<'a>),
    /// No resource matches.
    Nothing,
    /// More than one resource matches.
    Several,
    /// It cannot be told.
    Unclear,
}

/// The resource that matches.
pub struct Match<'a> {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: Option<String>,
    /// All of it, as the server wrote it; none where the server left parts out.
    pub whole: Option<&'a str>,
}

#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(rename = "resourceType", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    total: Option<u64>,
    #[serde(borrow, default)]
    entry: Vec<Entry<'a>>,
    #[serde(borrow, default)]
    link: Vec<Link<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    resource: Option<&'a RawValue>,
    #[serde(borrow, default)]
    search: Option<Search<'a>>,
}

#[derive(Deserialize)]
struct Search<'a> {
    #[serde(borrow, default)]
    mode: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Link<'a> {
    #[serde(borrow, default)]
    relation: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(rename = "resourceType", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    meta: Meta<'a>,
}

#[derive(Default, Deserialize)]
struct Meta<'a> {
    #[serde(rename = "versionId", borrow, default)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tag: Vec<Tag<'a>>,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow, default)]
    code: Cow<'a, str>,
}

/// Reads a whole answer to a search for resources of one type.
pub fn found<'a>(response: &'a Response, kind: &str) -> Found<'a> {
    let Ok(bundle) = json::from_slice::<Bundle<'_>>(outcome::text(&response.body)) else { return Found::Unclear };
    if bundle.kind != "Bundle" {
        return Found::Unclear;
    }
    let mut matches = Vec::new();
    for entry in &bundle.entry {
        let mode = entry.search.as_ref().map_or("", |search| &*search.mode);
        // A match or a warning may be meant where a server has left the resource out.
        let Some(raw) = entry.resource else {
            if mode == "include" {
                continue;
            }
            return Found::Unclear;
        };
        let Ok(resource) = json::from_str::<Resource<'_>>(raw.get()) else { return Found::Unclear };
        if resource.kind == "OperationOutcome" {
            // A warning may say that a parameter was left out: then it was another search.
            if outcome::warns(raw.get().as_bytes()) {
                return Found::Unclear;
            }
            continue;
        }
        let is_match = matches!(mode, "" | "match");
        if is_match && resource.kind == kind {
            matches.push((raw, resource));
        } else if is_match {
            return Found::Unclear;
        }
    }
    let more = bundle.link.iter().any(|link| link.relation == "next");
    match (matches.as_slice(), bundle.total) {
        ([_, _, ..], _) | (_, Some(2..)) => Found::Several,
        ([(raw, resource)], Some(1)) => one(raw, resource),
        ([(raw, resource)], None) if !more => one(raw, resource),
        ([], Some(0)) => Found::Nothing,
        ([], None) if !more => Found::Nothing,
        _ => Found::Unclear,
    }
}

fn one<'a>(raw: &'a RawValue, resource: &Resource<'_>) -> Found<'a> {
    if !is_id(&resource.id) {
        return Found::Unclear;
    }
    let version = resource.meta.version.as_deref().filter(|version| is_id(version));
    let partial = resource.meta.tag.iter().any(|tag| tag.code == "SUBSETTED");
    let whole = (!partial).then(|| raw.get());
    Found::One(Match { id: resource.id.to_string(), version: version.map(str::to_owned), whole })
}

/// A FHIR id: it goes into a header.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> String {
        let response = Response { status: 200, headers: Vec::new(), body: body.as_bytes().to_vec(), complete: true };
        match found(&response, "Patient") {
            Found::One(found) => format!("{} {:?} {}", found.id, found.version, found.whole.unwrap_or("-")),
            Found::Nothing => "nothing".to_owned(),
            Found::Several => "several".to_owned(),
            Found::Unclear => "unclear".to_owned(),
        }
    }

    #[test]
    fn only_a_clear_answer_proves_something() {
        let entry = r#"{"resource":{"resourceType":"Patient","id":"1","meta":{"versionId":"3"},"x":1.50}}"#;
        let resource = r#"{"resourceType":"Patient","id":"1","meta":{"versionId":"3"},"x":1.50}"#;
        let found = format!("1 Some(\"3\") {resource}");
        let included = r#"{"resource":{"resourceType":"Organization","id":"9"},"search":{"mode":"include"}}"#;
        let other = r#"{"resource":{"resourceType":"Group","id":"9"}}"#;
        let brief = r#"{"resource":{"resourceType":"Patient","id":"1","meta":{"tag":[{"code":"SUBSETTED"}]}}}"#;
        let outcome = |severity: &str| {
            format!(
                r#"{{"resource":{{"resourceType":"OperationOutcome","issue":[{{"severity":"{severity}","code":"invalid"}}]}},"search":{{"mode":"outcome"}}}}"#
            )
        };
        let unread = |issue: &str| format!(r#"{{"resourceType":"OperationOutcome","issue":{issue}}}"#);
        let bundle = |rest: &str| format!(r#"{{"resourceType":"Bundle","type":"searchset"{rest}}}"#);
        let next = r#","link":[{"relation":"self"},{"relation":"next"}]"#;
        for (case, rest, wanted) in [
            ("one", format!(r#","total":1,"entry":[{entry}]"#), found.as_str()),
            ("one without a total", format!(r#","entry":[{entry}]"#), &found),
            ("one beside an included", format!(r#","total":1,"entry":[{entry},{included}]"#), &found),
            ("one, parts left out", format!(r#","total":1,"entry":[{brief}]"#), "1 None -"),
            ("one beside a remark", format!(r#","total":1,"entry":[{entry},{}]"#, outcome("information")), &found),
            ("one beside a warning", format!(r#","total":1,"entry":[{entry},{}]"#, outcome("warning")), "unclear"),
            ("one of a page", format!(r#","entry":[{entry}]{next}"#), "unclear"),
            ("one of two", format!(r#","total":2,"entry":[{entry}]"#), "several"),
            ("two", format!(r#","entry":[{entry},{entry}]"#), "several"),
            ("none", r#","total":0,"entry":[]"#.to_owned(), "nothing"),
            ("none, said by leaving all out", String::new(), "nothing"),
            ("an empty page", next.to_owned(), "unclear"),
            ("a count only", r#","total":1"#.to_owned(), "unclear"),
            ("none beside a warning", format!(r#","total":0,"entry":[{}]"#, outcome("warning")), "unclear"),
            ("another type", format!(r#","total":1,"entry":[{other}]"#), "unclear"),
            ("a name only", r#","entry":[{"fullUrl":"a/1"}]"#.to_owned(), "unclear"),
            (
                "a match without its resource",
                r#","entry":[{"resource":null,"search":{"mode":"match"}}]"#.to_owned(),
                "unclear",
            ),
            ("an outcome without its issues", r#","entry":[{"search":{"mode":"outcome"}}]"#.to_owned(), "unclear"),
            (
                "an included without its resource",
                r#","total":0,"entry":[{"search":{"mode":"include"}}]"#.to_owned(),
                "nothing",
            ),
            (
                "an outcome that cannot be read",
                format!(r#","total":0,"entry":[{{"resource":{}}}]"#, unread("3")),
                "unclear",
            ),
            (
                "an outcome that says nothing",
                format!(r#","total":0,"entry":[{{"resource":{}}}]"#, unread("[]")),
                "unclear",
            ),
            ("an id that is none", format!(r#","entry":[{}]"#, entry.replace("\"1\"", "\"1\\r\\n\"")), "unclear"),
        ] {
            assert_eq!(read(&bundle(&rest)), wanted, "{case}");
        }
        for body in
            ["", "{}", "[]", "<Bundle/>", r#"{"resourceType":"Patient"}"#, r#"{"resourceType":"Bundle","entry":3}"#]
        {
            assert_eq!(read(body), "unclear", "{body}");
        }
        assert_eq!(read(&format!("\u{feff} {}", bundle(""))), "nothing");
    }
}
