//! Values as written, before they are parsed for a key.

use std::fmt;
use toml::de::{DeTable, DeValue};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// Text of a variable or flag; the key decides its type.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Number(String),
    /// A boolean.
    Bool(bool),
    /// A TOML date or time.
    Moment(String),
    /// A list.
    List(Vec<Raw>),
    /// A table.
    Table(Vec<(String, Raw)>),
}

/// Longer texts are cut in messages.
const MAX_SHOWN_CHARS: usize = 60;

impl Raw {
    pub(super) fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(whole) => Self::Whole(whole),
                Err(_) => Self::Number(number.as_str().to_owned()),
            },
            DeValue::Float(number) => Self::Number(number.as_str().to_owned()),
            DeValue::Boolean(truth) => Self::Bool(*truth),
            DeValue::Datetime(moment) => Self::Moment(moment.to_string()),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            DeValue::Table(table) => Self::table(table),
        }
    }

    pub(super) fn table(table: &DeTable<'_>) -> Self {
        Self::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), Self::of(value.get_ref()))).collect())
    }

    /// Parses a word that holds a list or table, written as JSON or as TOML. Any other value is returned unchanged.
    pub(super) fn structured(&self) -> Self {
        let Self::Word(word) = self else { return self.clone() };
        if let Ok(json) = serde_json::from_str(word) {
            return Self::of_json(&json);
        }
        DeValue::parse(word).map_or_else(|_| self.clone(), |value| Self::of(value.get_ref()))
    }

    fn of_json(json: &serde_json::Value) -> Self {
        use serde_json::Value;
        match json {
            Value::Null => Self::Number("null".to_owned()),
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Number(number) => number.as_i64().map_or_else(|| Self::Number(number.to_string()), Self::Whole),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::of_json).collect()),
            Value::Object(map) => Self::Table(map.iter().map(|(k, v)| (k.clone(), Self::of_json(v))).collect()),
        }
    }

    /// Converts to JSON; none for a number that JSON cannot represent.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        use serde_json::Value;
        Some(match self {
            Self::Word(text) | Self::Text(text) | Self::Moment(text) => Value::String(text.clone()),
            Self::Whole(number) => Value::from(*number),
            Self::Number(number) => Value::Number(serde_json::Number::from_f64(number.parse().ok()?)?),
            Self::Bool(truth) => Value::Bool(*truth),
            Self::List(items) => Value::Array(items.iter().map(Self::json).collect::<Option<_>>()?),
            Self::Table(entries) => {
                let entries = entries.iter().map(|(key, value)| Some((key.clone(), value.json()?)));
                Value::Object(entries.collect::<Option<_>>()?)
            }
        })
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn whole(&self) -> Option<u64> {
        match self {
            Self::Word(text) => text.trim().parse().ok(),
            Self::Whole(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn truth(&self) -> Option<bool> {
        match self {
            Self::Word(text) => text.trim().parse().ok(),
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The number, if it was written without a unit.
    pub(super) fn bare_number(&self) -> Option<String> {
        match self {
            Self::Word(text) | Self::Text(text) | Self::Number(text) => {
                let text = text.trim();
                let digits = text.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok();
                digits.then(|| text.to_owned())
            }
            Self::Whole(number) => Some(number.unsigned_abs().to_string()),
            _ => None,
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(text) | Self::Text(text) => {
                let cut: String = text.chars().take(MAX_SHOWN_CHARS).collect();
                let more = if cut.len() < text.len() { "..." } else { "" };
                write!(f, "{cut:?}{more}")
            }
            Self::Whole(number) => write!(f, "{number}"),
            Self::Number(number) => f.write_str(number),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Moment(_) => f.write_str("a date or time"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}
