//! Values with units, and the words that say what a value must be.

use std::time::Duration;
use toml::Value;

/// A parser of one kind of value, and what it takes.
pub(super) type Kind<T> = (fn(&Value) -> Option<T>, &'static str);

/// `"250ms"`, `"5s"`, `"1m"`, `"24h"`; decimals are taken.
pub(super) const DURATION: Kind<Duration> =
    (duration, "be a duration with its unit, such as \"250ms\", \"5s\", \"1m\" or \"24h\"");
/// `"64KiB"`, `"1MiB"` or a number of bytes.
pub(super) const SIZE: Kind<usize> =
    (size, "be a size in bytes with its unit, such as \"512B\", \"64KiB\" or \"1MiB\"");
/// true or false.
pub(super) const FLAG: Kind<bool> = (Value::as_bool, "be true or false");
/// A number from 1.
pub(super) const COUNT: Kind<u32> = (count, "be a whole number from 1 to 1000000000");
/// A number from 0.
pub(super) const NUMBER: Kind<u32> = (number, "be a whole number from 0 to 1000000000");
/// A share.
pub(super) const PERCENT: Kind<u32> = (percent, "be a whole number from 0 to 100");
/// Text.
pub(super) const TEXT: Kind<String> = (text, "be a text that is not empty");

const MOST: i64 = 1_000_000_000;

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn number(value: &Value) -> Option<u32> {
    value.as_integer().filter(|number| (0..=MOST).contains(number)).and_then(|number| u32::try_from(number).ok())
}

fn count(value: &Value) -> Option<u32> {
    number(value).filter(|number| *number > 0)
}

fn percent(value: &Value) -> Option<u32> {
    number(value).filter(|number| *number <= 100)
}

/// Splits "12.5ms" into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    Some((number.parse().ok()?, unit.trim()))
}

pub(super) fn duration(value: &Value) -> Option<Duration> {
    let (number, unit) = split(value.as_str()?.trim())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    // A year bounds every sum of times that the host computes.
    (seconds <= 366.0 * 86_400.0).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

fn size(value: &Value) -> Option<usize> {
    let (number, unit) = split(value.as_str()?.trim())?;
    let factor = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number * factor;
    (bytes <= 64.0 * 1024.0 * 1024.0 * 1024.0).then_some(bytes as usize)
}

/// A duration as the file would have it.
pub(super) fn written(duration: Duration) -> String {
    let ms = crate::clock::millis(duration);
    match ms {
        0 => "0s".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}
