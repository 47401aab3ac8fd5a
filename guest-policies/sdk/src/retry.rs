//! When to come back: what the upstream asks for, else a wait that grows.

use crate::{Attempt, Header, header};
use serde::Deserialize;
use std::time::{Duration, UNIX_EPOCH};

/// The wait that `retry-after` (seconds or HTTP-date) or `x-ms-retry-after-ms` asks for, in milliseconds.
pub fn asked_ms(headers: &[Header], now_unix_ms: u64) -> Option<u64> {
    if let Some(ms) = header(headers, "x-ms-retry-after-ms").and_then(|value| value.trim().parse().ok()) {
        return Some(ms);
    }
    let value = header(headers, "retry-after")?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let at = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let left = at.saturating_sub(Duration::from_millis(now_unix_ms));
    u64::try_from(left.as_millis()).ok()
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
