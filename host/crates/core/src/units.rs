//! Durations and sizes with their units, in both directions.
//!
//! `humantime` accepts `1h 30m` and refuses `1.5s`. `bytesize` accepts `64kb` and computes fractions in floating point. Both would
//! change the values that a configuration may contain.

use std::time::Duration;

const DURATIONS: [(&str, u64); 6] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000), ("d", 86_400_000_000)];
const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a duration such as `250ms`, `1.5s` or `24h`, exact to a microsecond.
pub fn duration(text: &str) -> Option<Duration> {
    quantity(text, &DURATIONS).map(Duration::from_micros)
}

/// Reads seconds without a unit, decimals allowed.
pub fn seconds(text: &str) -> Option<Duration> {
    duration(&format!("{}s", text.trim()))
}

/// Reads a size such as `64KiB`.
pub fn size(text: &str) -> Option<u64> {
    quantity(text, &SIZES)
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(*factor),
        Some((whole, part)) => {
            // A fraction finer than the base unit, or one of more than 12 digits, is not exact.
            let digits = u32::try_from(part.len()).ok().filter(|digits| (1..=12).contains(digits))?;
            let scale = 10_u128.pow(digits);
            let scaled = whole.parse::<u64>().ok().map(u128::from)? * scale + u128::from(part.parse::<u64>().ok()?);
            let product = scaled.checked_mul(u128::from(*factor))?;
            (product % scale == 0).then(|| u64::try_from(product / scale).ok())?
        }
    }
}

/// Writes a duration in the greatest unit that holds it exactly, to a microsecond.
pub fn write_duration(duration: Duration) -> String {
    let micros = crate::clock::micros(duration);
    if micros == 0 { "0s".to_owned() } else { write(micros, &DURATIONS) }
}

/// Writes a size in the greatest unit that holds it exactly.
pub fn write_size(bytes: u64) -> String {
    if bytes == 0 { "0B".to_owned() } else { write(bytes, &SIZES) }
}

fn write(amount: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().rev().find(|(_, factor)| amount.is_multiple_of(*factor));
    exact.map_or_else(String::new, |(unit, factor)| format!("{}{unit}", amount / factor))
}
