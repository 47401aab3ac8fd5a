//! Reads the members of an admin listener's answer as text for people.

use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};
use triage_core::rounded::Rounded;

/// Text from a host, safe for a terminal: without control characters. `-` if there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").replace(char::is_control, "?")
}

/// A number of milliseconds as a duration.
pub fn millis(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_millis)
}

/// A number of milliseconds for people; `-` if there is none.
pub fn duration(value: &Value) -> String {
    millis(value).map_or_else(|| "-".to_owned(), |duration| Rounded(duration).to_string())
}

/// A time since 1970, in milliseconds, as `28 Nov 2026 09:16:58` (UTC).
pub fn moment(unix_ms: &Value) -> String {
    // httpdate can write no later time.
    const END_OF_9999: Duration = Duration::from_secs(253_402_300_799);
    let date = httpdate::fmt_http_date(UNIX_EPOCH + millis(unix_ms).unwrap_or_default().min(END_OF_9999));
    // Without the weekday and the zone.
    date.trim_end_matches(" GMT").split_once(", ").map_or_else(String::new, |(_, date)| date.to_owned())
}

/// The name of a group, as events and metrics write it.
pub fn group(value: &Value) -> String {
    format!("{}/{}", text(&value["upstream"]), text(&value["group"]))
}

/// The objects of a list.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[][..], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_moment_is_short_and_any_number_is_one() {
        assert_eq!(moment(&json!(1_764_321_418_000_u64)), "28 Nov 2025 09:16:58");
        assert_eq!(moment(&json!(u64::MAX)), "31 Dec 9999 23:59:59");
        assert_eq!(moment(&json!(null)), "01 Jan 1970 00:00:00");
    }

    #[test]
    fn text_of_a_host_cannot_steer_a_terminal() {
        assert_eq!(text(&json!("a\u{1b}[31m\nb")), "a?[31m?b");
        assert_eq!(text(&json!(7)), "-");
    }
}
