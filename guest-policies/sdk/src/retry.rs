//! Whether and when to send a request again: the upstream's hints, else a wait that grows.

use crate::{
    Attempt, Effect, Header, Next, Verdict, header,
    verdict::{BreakerSignal, Class},
};
use serde::Deserialize;
use std::time::{Duration, UNIX_EPOCH};

/// The response headers by which upstreams hint at a retry. Put them into `interest.response_headers` to be handed them.
pub const HINT_HEADERS: [&str; 5] =
    ["retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-should-retry", "stripe-should-retry"];

/// The longest wait that is read, 136 years: a number with any more digits means the same. The host reads no longer one either.
const MAX_SECONDS: u64 = u32::MAX as u64;

/// [`HINT_HEADERS`] in the form of `interest.response_headers`.
#[must_use]
pub fn hint_headers() -> Vec<String> {
    HINT_HEADERS.map(str::to_owned).into()
}

/// The wait that the upstream asks for, in milliseconds: `retry-after-ms` or `x-ms-retry-after-ms` where they can be read,
/// since they are the more precise ones, else `retry-after` (seconds or an HTTP-date).
pub fn asked_ms(headers: &[Header], now_unix_ms: u64) -> Option<u64> {
    let precise = |name| header(headers, name).and_then(|value| whole_ms(value.trim()));
    if let Some(ms) = precise("retry-after-ms").or_else(|| precise("x-ms-retry-after-ms")) {
        return Some(ms);
    }
    let value = header(headers, "retry-after")?.trim();
    if is_digits(value) && !value.is_empty() {
        return Some(value.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS) * 1000);
    }
    let at = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let left = at.saturating_sub(Duration::from_millis(now_unix_ms));
    u64::try_from(left.as_millis()).ok()
}

/// Milliseconds as some servers write them, with or without a fraction. A fraction counts as a whole one: never shorter than
/// asked.
fn whole_ms(value: &str) -> Option<u64> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let more = fraction.bytes().any(|byte| byte != b'0');
    let longest = MAX_SECONDS * 1000;
    Some(whole.parse().unwrap_or(longest).min(longest) + u64::from(more))
}

/// Whether a text has digits alone: a number is parsed from a sign too, which no field has.
fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the upstream says that a retry helps (`x-should-retry`, `stripe-should-retry`: `true` or `false`); none where it
/// says nothing.
pub fn should_retry(headers: &[Header]) -> Option<bool> {
    let said = |name| match header(headers, name)?.trim() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    said("x-should-retry").or_else(|| said("stripe-should-retry"))
}

impl Verdict {
    /// The verdict on a response, after [`should_retry`]: `false` ends a retry, and `true` allows one of a request that is safe
    /// or idempotent and was refused. A hint is no proof for a write, so it never sends an unsafe request again.
    #[must_use]
    pub fn hinted(self, attempt: &Attempt, headers: &[Header], delay_ms: u64) -> Self {
        match (should_retry(headers), &self.next) {
            (Some(false), Next::Retry(_)) => Self { next: Next::Deliver, ..self },
            (Some(true), Next::Deliver) if self.class == Class::Rejected && attempt.effect != Effect::Unsafe => {
                let retry =
                    Self::retry(Class::NotApplied, delay_ms, "refused, but the upstream says that a retry helps");
                Self { pause_ms: self.pause_ms, ..retry.breaker(BreakerSignal::Ignore) }
            }
            _ => self,
        }
    }
}

/// Waits between attempts: tenacity's `wait_*`, by name. All times in seconds, as tenacity has them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Wait {
    /// Always the same.
    Fixed {
        /// The wait.
        seconds: f64,
    },
    /// `multiplier * base^(n-1)`, within `min` and `max`.
    Exponential {
        /// Of the first wait.
        #[serde(default = "one")]
        multiplier: f64,
        /// Growth.
        #[serde(default = "two")]
        base: f64,
        /// The least.
        #[serde(default)]
        min: f64,
        /// The most.
        #[serde(default = "ten")]
        max: f64,
    },
    /// Uniform between 0 and the exponential wait: full jitter.
    RandomExponential {
        /// Of the first wait.
        #[serde(default = "one")]
        multiplier: f64,
        /// The least.
        #[serde(default)]
        min: f64,
        /// The most.
        #[serde(default = "ten")]
        max: f64,
    },
    /// The exponential wait plus up to `jitter`.
    ExponentialJitter {
        /// Of the first wait.
        #[serde(default = "one")]
        initial: f64,
        /// The most.
        #[serde(default = "ten")]
        max: f64,
        /// The most that chance adds.
        #[serde(default = "one")]
        jitter: f64,
    },
    /// Uniform between `min` and `max`.
    Random {
        /// The least.
        #[serde(default)]
        min: f64,
        /// The most.
        max: f64,
    },
    /// `start + increment * (n-1)`, at most `max`.
    Incrementing {
        /// The first wait.
        start: f64,
        /// What each adds.
        increment: f64,
        /// The most.
        #[serde(default = "ten")]
        max: f64,
    },
    /// One wait after another; the last one repeats.
    Chain {
        /// The waits in seconds.
        seconds: Vec<f64>,
    },
}

fn one() -> f64 {
    1.0
}
fn two() -> f64 {
    2.0
}
fn ten() -> f64 {
    10.0
}

impl Default for Wait {
    /// Exponential from 2 s with full jitter, at most 10 s.
    fn default() -> Self {
        Self::RandomExponential { multiplier: 2.0, min: 0.0, max: 10.0 }
    }
}

impl Wait {
    /// The wait before the attempt after `attempt`, in milliseconds.
    pub fn ms(&self, attempt: &Attempt) -> u64 {
        let chance = (attempt.random >> 11) as f64 / (1_u64 << 53) as f64;
        let n = f64::from(attempt.number.saturating_sub(1).min(64));
        let seconds = match self {
            Self::Fixed { seconds } => *seconds,
            Self::Exponential { multiplier, base, min, max } => (multiplier * power(*base, n)).min(*max).max(*min),
            Self::RandomExponential { multiplier, min, max } => {
                min + chance * ((multiplier * power(2.0, n)).min(*max) - min).max(0.0)
            }
            Self::ExponentialJitter { initial, max, jitter } => (initial * power(2.0, n) + chance * jitter).min(*max),
            Self::Random { min, max } => min + chance * (max - min).max(0.0),
            Self::Incrementing { start, increment, max } => (start + increment * n).min(*max),
            Self::Chain { seconds } => {
                let last = seconds.len().saturating_sub(1);
                seconds.get((n as usize).min(last)).copied().unwrap_or(0.0)
            }
        };
        // Not a number and negatives become 0; the host caps what is absurd.
        (seconds * 1000.0).max(0.0) as u64
    }
}

/// `base^n` for a whole n, without the float library.
fn power(base: f64, n: f64) -> f64 {
    let mut result = 1.0;
    for _ in 0..(n as u32) {
        result *= base;
    }
    result
}
