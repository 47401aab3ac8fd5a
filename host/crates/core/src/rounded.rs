//! Durations for people to read, in one form everywhere: `12.3 ms`, `2.01 s`, `1 min 2 s`, `3 h 5 min`, `4 d 7 h`.
//!
//! Configuration and JSON have exact forms of their own: see [`crate::units`].

use std::{fmt, time::Duration};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Displays a duration with three digits below a minute, and with two units from a minute on.
///
/// ```
/// use std::time::Duration;
/// use triage_core::rounded::Rounded;
///
/// assert_eq!(Rounded(Duration::from_micros(1_147)).to_string(), "1.15 ms");
/// assert_eq!(Rounded(Duration::from_millis(61_857)).to_string(), "1 min 2 s");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rounded(pub Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&below_a_minute(self.0).unwrap_or_else(|| two_units(self.0)))
    }
}

/// A unit, its length in microseconds, and the number from which a greater unit is used.
const SMALL_UNITS: [(&str, f64, f64); 3] = [("µs", 1.0, 1e3), ("ms", 1e3, 1e3), ("s", 1e6, 60.0)];

fn below_a_minute(duration: Duration) -> Option<String> {
    if duration.is_zero() {
        return Some("0 s".to_owned());
    }
    let us = duration.as_secs_f64() * 1e6;
    SMALL_UNITS.into_iter().find_map(|(unit, length, end)| {
        let value = us / length;
        let scale = if value < 10.0 {
            100.0
        } else if value < 100.0 {
            10.0
        } else {
            1.0
        };
        // The greater unit shows what rounds up to it: 999.7 ms is 1 s.
        let rounded = (value * scale).round() / scale;
        (rounded < end).then(|| format!("{rounded} {unit}"))
    })
}

fn two_units(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    // Round in the unit that is shown last, so that 59 min 59.9 s is 1 h.
    let to = |unit: u64| (seconds + unit / 2) / unit * unit;
    let (seconds, great, small) = if seconds < HOUR {
        (seconds, (MINUTE, "min"), (1, "s"))
    } else if to(MINUTE) < DAY {
        (to(MINUTE), (HOUR, "h"), (MINUTE, "min"))
    } else {
        (to(HOUR), (DAY, "d"), (HOUR, "h"))
    };
    let (whole, rest) = (seconds / great.0, seconds % great.0 / small.0);
    if rest == 0 { format!("{whole} {}", great.1) } else { format!("{whole} {} {rest} {}", great.1, small.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_below_a_minute_have_three_digits() {
        for (us, text) in [
            (0, "0 s"),
            (7, "7 µs"),
            (999, "999 µs"),
            (1_147, "1.15 ms"),
            (12_340, "12.3 ms"),
            (123_456, "123 ms"),
            (999_700, "1 s"),
            (2_000_000, "2 s"),
            (2_013_000, "2.01 s"),
            (59_940_000, "59.9 s"),
        ] {
            assert_eq!(Rounded(Duration::from_micros(us)).to_string(), text);
        }
    }

    #[test]
    fn durations_from_a_minute_have_two_units() {
        for (ms, text) in [
            (59_960, "1 min"),
            (60_000, "1 min"),
            (61_857, "1 min 2 s"),
            (300_000, "5 min"),
            (3_599_700, "1 h"),
            (3_600_000, "1 h"),
            (11_112_000, "3 h 5 min"),
            (86_399_000, "1 d"),
            (370_800_000, "4 d 7 h"),
            (u64::MAX, "213503982334 d 14 h"),
        ] {
            assert_eq!(Rounded(Duration::from_millis(ms)).to_string(), text, "{ms}");
        }
    }

    #[test]
    fn a_width_aligns_it() {
        assert_eq!(format!("{:>8}", Rounded(Duration::from_millis(2))), "    2 ms");
    }
}
