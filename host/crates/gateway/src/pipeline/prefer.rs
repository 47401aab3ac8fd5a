//! Parses `Prefer: wait=N` (RFC 7240 section 4.3): how long a caller waits for its response.

use http::{HeaderMap, HeaderName};
use std::time::Duration;

/// The request header that lists preferences.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Most digits of the number of seconds: thirty years.
const MAX_DIGITS: usize = 9;

/// The first `wait` preference, if it is a number of seconds from 1. Other and malformed preferences are ignored, as the RFC demands.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| split(value, ','));
    let found = preferences.find_map(|preference| {
        let (name, value) = split(preference, ';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim())
    })?;
    let digits = found.strip_prefix('"').and_then(|quoted| quoted.strip_suffix('"')).unwrap_or(found);
    let is_number = (1..=MAX_DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.parse().ok().filter(|seconds: &u64| is_number && *seconds > 0)?;
    Some(Duration::from_secs(seconds))
}

/// Splits at separators outside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    text.split(move |character| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match character {
            '\\' if is_quoted && !was_escaped => is_escaped = true,
            '"' if !was_escaped => is_quoted = !is_quoted,
            _ => {}
        }
        character == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_wait_of_a_caller() {
        for (values, expected) in [
            (vec!["wait=10"], Some(10)),
            (vec!["Wait = \"7\""], Some(7)),
            (vec!["respond-async, wait=5; foo=bar"], Some(5)),
            (vec!["respond-async", "wait=4"], Some(4)),
            (vec!["foo=\"a, wait=1\", wait=3"], Some(3)),
            (vec!["foo=\"a\\\", wait=1\", wait=3"], Some(3)),
            (vec!["wait=2, wait=9"], Some(2)),
            (vec!["wait=999999999"], Some(999_999_999)),
            (vec!["wait=0"], None),
            (vec!["wait=-1"], None),
            (vec!["wait=+1"], None),
            (vec!["wait=1.5"], None),
            (vec!["wait=9999999999"], None),
            (vec!["wait"], None),
            (vec!["wait=\"1"], None),
            (vec!["return=minimal"], None),
            (vec![], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(PREFER, HeaderValue::from_static(value));
            }
            assert_eq!(wait(&headers), expected.map(Duration::from_secs), "{values:?}");
        }
    }
}
