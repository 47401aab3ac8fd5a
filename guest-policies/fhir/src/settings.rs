//! What an operator may set.

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use std::fmt;
use triage_policy::retry::Wait;

/// `policy_settings` of an upstream.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Waits between attempts, as tenacity's `wait_*`.
    pub wait: Wait,
    /// How late after its last byte a create may still be committed, and found by a search. A server with an index that lags
    /// needs more than the default.
    pub commit_within: CommitWithin,
}

/// A time such as `"60s"`, in milliseconds; a bare number counts seconds. Default 60 s: the longest request time-out of the large
/// servers and of the proxies before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitWithin(pub u32);

/// An hour is the longest time that a description may name; a deadline needs room beside it.
const MAX_MS: f64 = 3_300_000.0;

impl Default for CommitWithin {
    fn default() -> Self {
        Self(60_000)
    }
}

impl<'de> Deserialize<'de> for CommitWithin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Read)
    }
}

struct Read;

impl Visitor<'_> for Read {
    type Value = CommitWithin;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time from 1ms to 55m, such as \"60s\"")
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<CommitWithin, E> {
        self.visit_f64(seconds as f64)
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<CommitWithin, E> {
        self.visit_f64(seconds as f64)
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<CommitWithin, E> {
        within(seconds * 1000.0).ok_or_else(|| E::custom("commit_within must be from 1ms to 55m, such as \"60s\""))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<CommitWithin, E> {
        let units = [("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)];
        let number = |(unit, ms): (&str, f64)| Some(text.strip_suffix(unit)?.trim().parse::<u32>().ok()? as f64 * ms);
        let ms = units.into_iter().find_map(number);
        ms.and_then(within).ok_or_else(|| E::custom("commit_within must be from 1ms to 55m, such as \"60s\""))
    }
}

fn within(ms: f64) -> Option<CommitWithin> {
    (1.0..=MAX_MS).contains(&ms).then_some(CommitWithin(ms as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use triage_policy::json;

    fn read(text: &str) -> Result<u32, String> {
        let settings = json::from_str::<Settings>(&format!("{{\"commit_within\": {text}}}"));
        settings.map(|settings| settings.commit_within.0).map_err(|error| error.to_string())
    }

    #[test]
    fn commit_within_is_a_time_with_a_unit_or_in_seconds() {
        for (text, ms) in [("\"90s\"", 90_000), ("\"250ms\"", 250), ("\"2m\"", 120_000), ("30", 30_000), ("0.5", 500)] {
            assert_eq!(read(text), Ok(ms), "{text}");
        }
        for text in ["0", "-1", "\"\"", "\"s\"", "\"1h\"", "\"56m\"", "\"-5s\"", "1e300", "true"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("from 1ms to 55m"), "{text}: {error}");
        }
        assert_eq!(Settings::default().commit_within.0, 60_000);
    }
}
