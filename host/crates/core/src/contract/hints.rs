//! The response headers by which an upstream says whether and when to send a request again. Components read them by the SDK's
//! `retry` module, which follows the same rules.

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};
use std::time::{Duration, UNIX_EPOCH};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const X_MS_RETRY_AFTER_MS: HeaderName = HeaderName::from_static("x-ms-retry-after-ms");
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// The longest wait that is read, 136 years: a longer one counts as this.
const MAX_SECONDS: u64 = u32::MAX as u64;

/// All response headers that hint at a retry.
pub const HINT_HEADERS: [HeaderName; 5] =
    [RETRY_AFTER, RETRY_AFTER_MS, X_MS_RETRY_AFTER_MS, X_SHOULD_RETRY, STRIPE_SHOULD_RETRY];

/// The wait that the upstream asks for: that of `retry-after-ms` or `x-ms-retry-after-ms` if valid, because they are more precise, else
/// that of `Retry-After`, in seconds or as an HTTP-date relative to `now_unix_ms` (RFC 9110 section 10.2.3).
pub fn retry_after(headers: &HeaderMap, now_unix_ms: u64) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(wait) = [RETRY_AFTER_MS, X_MS_RETRY_AFTER_MS].iter().find_map(|name| milliseconds(text(name)?)) {
        return Some(wait);
    }
    let value = text(&RETRY_AFTER)?;
    if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() {
        return Some(Duration::from_secs(value.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS)));
    }
    let at = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_millis(now_unix_ms)))
}

/// Milliseconds, with or without a fraction, as some servers write them. A fraction is rounded up, so that the wait is never shorter than
/// asked for.
fn milliseconds(value: &str) -> Option<Duration> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let more = fraction.bytes().any(|byte| byte != b'0');
    let longest = MAX_SECONDS * 1000;
    let whole = whole.parse().unwrap_or(longest).min(longest);
    Some(Duration::from_millis(whole + u64::from(more)))
}

/// Whether the upstream recommends a retry (`x-should-retry`, `stripe-should-retry`: `true` or `false`); none without such a header. A
/// recommendation does not prove that a write was not applied.
pub fn should_retry(headers: &HeaderMap) -> Option<bool> {
    let said = |name: &HeaderName| match headers.get(name)?.to_str().ok()?.trim() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    [X_SHOULD_RETRY, STRIPE_SHOULD_RETRY].iter().find_map(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const NOW_UNIX_MS: u64 = 1_767_225_600_000;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        for (value, expected) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("99999999999999999999", Some(u64::from(u32::MAX))),
            ("Thu, 01 Jan 2026 00:00:10 GMT", Some(10)),
            ("Wed, 01 Jan 2025 00:00:10 GMT", Some(0)),
            ("soon", None),
            ("18446744073709551615", Some(u64::from(u32::MAX))),
            ("-1", None),
            ("+5", None),
            ("5.0", None),
            ("", None),
        ] {
            let headers = map(&[("retry-after", value)]);
            assert_eq!(retry_after(&headers, NOW_UNIX_MS), expected.map(Duration::from_secs), "Retry-After: {value}");
        }
    }

    #[test]
    fn milliseconds_go_before_seconds_where_they_can_be_read() {
        for (headers, expected_ms) in [
            (map(&[("retry-after-ms", "1500"), ("retry-after", "2")]), Some(1500)),
            (map(&[("x-ms-retry-after-ms", "40"), ("retry-after", "1")]), Some(40)),
            (map(&[("retry-after-ms", "12"), ("x-ms-retry-after-ms", "40")]), Some(12)),
            (map(&[("retry-after-ms", "1.0")]), Some(1)),
            (map(&[("retry-after-ms", "1.5")]), Some(2)),
            (map(&[("retry-after-ms", "soon"), ("retry-after", "2")]), Some(2000)),
            (map(&[("retry-after-ms", "-5")]), None),
            (map(&[("retry-after-ms", ".5")]), None),
            (map(&[("retry-after-ms", "99999999999999999999999")]), Some(u64::from(u32::MAX) * 1000)),
        ] {
            let wait = retry_after(&headers, NOW_UNIX_MS);
            assert_eq!(wait, expected_ms.map(Duration::from_millis), "{headers:?}");
        }
    }

    #[test]
    fn a_hint_that_is_neither_true_nor_false_says_nothing() {
        for (headers, expected) in [
            (map(&[("x-should-retry", "true")]), Some(true)),
            (map(&[("x-should-retry", "false"), ("stripe-should-retry", "true")]), Some(false)),
            (map(&[("x-should-retry", "perhaps"), ("stripe-should-retry", "false")]), Some(false)),
            (map(&[("stripe-should-retry", " true ")]), Some(true)),
            (map(&[("x-should-retry", "1")]), None),
            (map(&[]), None),
        ] {
            assert_eq!(should_retry(&headers), expected, "{headers:?}");
        }
    }
}
