//! What an update wrote, compared with what a search finds.

use triage_policy::json::{self, Value};

/// Elements that a server sets or adds by itself.
const SERVER_SETS: [&str; 3] = ["id", "meta", "text"];
/// Elements of `meta` that are the server's alone.
const SERVER_SETS_IN_META: [&str; 3] = ["lastUpdated", "source", "versionId"];

/// Whether a resource is what an update with this body leaves: each element of one is in the other, but for those that servers
/// set themselves. A body in another format, or one that was handed over in part, proves nothing.
pub fn is_in_place(found: &str, body: &[u8]) -> bool {
    let (Ok(Value::Object(found)), Ok(Value::Object(written))) = (json::from_str(found), json::from_slice(body)) else {
        return false;
    };
    let written_holds = written.iter().all(|(name, value)| match (name.as_str(), found.get(name)) {
        ("meta", found) => meta_is_in_place(found, value),
        (_, found) => found == Some(value),
    });
    written_holds && found.keys().all(|name| written.contains_key(name) || SERVER_SETS.contains(&name.as_str()))
}

/// Servers add tags, profiles and labels to those that are written, and keep those of before.
fn meta_is_in_place(found: Option<&Value>, written: &Value) -> bool {
    let Some(written) = written.as_object() else { return false };
    written.iter().filter(|(name, _)| !SERVER_SETS_IN_META.contains(&name.as_str())).all(|(name, value)| {
        match (found.and_then(|found| found.get(name)), value) {
            (Some(Value::Array(found)), Value::Array(written)) => written.iter().all(|own| found.contains(own)),
            (found, _) => found == Some(value),
        }
    })
}

/// Whether a resource with this body would be found by the query: each parameter names an identifier that is in it. Of any other
/// parameter that is not known.
pub fn is_found_by(query: &str, body: &[u8]) -> bool {
    let Ok(Value::Object(written)) = json::from_slice(body) else { return false };
    let identifiers: &[Value] = match written.get("identifier") {
        Some(Value::Array(several)) => several,
        Some(one) => std::slice::from_ref(one),
        None => return false,
    };
    query.split('&').all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = decoded(value);
        // A list of alternatives, and escapes of its separators, are not read.
        if decoded(name) != "identifier" || value.contains([',', '\\', '$']) {
            return false;
        }
        let part = |identifier: &Value, name: &str| identifier.get(name).and_then(Value::as_str).map(str::to_owned);
        identifiers.iter().any(|own| match value.split_once('|') {
            Some((system, code)) => {
                !system.is_empty()
                    && !code.is_empty()
                    && part(own, "system").as_deref() == Some(system)
                    && part(own, "value").as_deref() == Some(code)
            }
            None => !value.is_empty() && part(own, "value").as_deref() == Some(&*value),
        })
    })
}

/// A part of a query, decoded. What is no escape stays as it is.
pub fn decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [byte, rest @ ..] = bytes {
        let digit = |at: usize| rest.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        (decoded, bytes) = match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => (pushed(decoded, (high * 16 + low) as u8), &rest[2..]),
            (b'+', ..) => (pushed(decoded, b' '), rest),
            _ => (pushed(decoded, *byte), rest),
        };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn pushed(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = r#"{"resourceType":"Patient","active":true,"name":[{"text":"Ann"}]}"#;

    #[test]
    fn what_is_found_is_in_place_if_nothing_else_is_there() {
        let with = |more: &str| WRITTEN.replacen('{', &format!("{{{more},"), 1);
        for (case, found, written, wanted) in [
            ("the same", WRITTEN.to_owned(), WRITTEN.to_owned(), true),
            (
                "in another order",
                r#"{"name":[{"text":"Ann"}],"active":true,"resourceType":"Patient"}"#.to_owned(),
                WRITTEN.to_owned(),
                true,
            ),
            (
                "what the server sets",
                with(r#""id":"1","meta":{"versionId":"2"},"text":{"div":"a"}"#),
                WRITTEN.to_owned(),
                true,
            ),
            ("an element of before", with(r#""gender":"male""#), WRITTEN.to_owned(), false),
            ("another value", WRITTEN.replace("Ann", "Anna"), WRITTEN.to_owned(), false),
            ("an element that is not there", WRITTEN.to_owned(), with(r#""gender":"male""#), false),
            ("another narrative", with(r#""text":{"div":"a"}"#), with(r#""text":{"div":"b"}"#), false),
            ("another id", with(r#""id":"1""#), with(r#""id":"2""#), false),
            (
                "a tag among others",
                with(r#""meta":{"tag":[{"code":"a"},{"code":"b"}]}"#),
                with(r#""meta":{"tag":[{"code":"b"}]}"#),
                true,
            ),
            (
                "a tag that is not there",
                with(r#""meta":{"tag":[{"code":"a"}]}"#),
                with(r#""meta":{"tag":[{"code":"b"}]}"#),
                false,
            ),
            (
                "a version that the caller read",
                with(r#""meta":{"versionId":"3"}"#),
                with(r#""meta":{"versionId":"2"}"#),
                true,
            ),
            ("a part of a body", WRITTEN.to_owned(), WRITTEN[..20].to_owned(), false),
            ("XML", WRITTEN.to_owned(), "<Patient/>".to_owned(), false),
            ("nothing", WRITTEN.to_owned(), String::new(), false),
        ] {
            assert_eq!(is_in_place(&found, written.as_bytes()), wanted, "{case}");
        }
    }

    #[test]
    fn what_is_written_is_found_by_its_identifiers_alone() {
        let body = r#"{"identifier":[{"system":"urn:a","value":"1"},{"system":"urn:b","value":"2 3"}],"name":"x"}"#;
        for (query, wanted) in [
            ("identifier=urn:a%7C1", true),
            ("identifier=urn:a|1", true),
            ("identifier=1", true),
            ("identifier=urn:a%7C1&identifier=urn%3Ab%7C2%203", true),
            ("identifier=urn:b%7C2+3", true),
            ("%69dentifier=urn:a%7C1", true),
            ("identifier=urn:b%7C1", false),
            ("identifier=%7C1", false),
            ("identifier=urn:a%7C", false),
            ("identifier=", false),
            ("identifier=urn:a%7C1%2Curn:b%7C9", false),
            ("identifier:not=urn:a%7C1", false),
            ("identifier=urn:a%7C1&name=x", false),
            ("name=x", false),
            ("", false),
        ] {
            assert_eq!(is_found_by(query, body.as_bytes()), wanted, "{query}");
        }
        assert!(is_found_by("identifier=urn:a%7C1", br#"{"identifier":{"system":"urn:a","value":"1"}}"#));
        assert!(!is_found_by("identifier=urn:a%7C1", b"{}") && !is_found_by("identifier=urn:a%7C1", b"<Patient/>"));
    }
}
