//! Parsed values, and how they are displayed.

use super::{
    choices::{Mode, PolicySource, Redirects},
    problem::Source,
};
use crate::{
    idempotency::AfterLoss,
    overload::Priority,
    policy::{contract::Effect, signature::KeySource},
    rate_limit::Quota,
    redis::Address,
    units,
};
use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// A value of the type that its key takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Switched off: `"off"`.
    Off,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number from 0.
    Count(u64),
    /// A share in percent.
    Percent(u32),
    /// A duration, at most 366 days.
    Duration(Duration),
    /// A size in bytes.
    Size(u64),
    /// A name, host or path.
    Text(String),
    /// The path of a local file.
    File(PathBuf),
    /// An IP address and port to listen on.
    Address(SocketAddr),
    /// A base URL.
    Url(http::Uri),
    /// The address of shared state; none for state in this process.
    State(Option<Address>),
    /// The source of a policy.
    Policy(PolicySource),
    /// A header name.
    Header(http::HeaderName),
    /// A list of header names.
    Headers(Vec<http::HeaderName>),
    /// A method; none for all methods.
    Method(Option<http::Method>),
    /// The effect of a request.
    Effect(Effect),
    /// The priority of requests during overload.
    Priority(Priority),
    /// Rate limits of a group or endpoint.
    Limits(Vec<Quota>),
    /// The mode of a candidate policy.
    Mode(Mode),
    /// Whether a verification after a loss of data may adopt an unclaimed match.
    AfterLoss(AfterLoss),
    /// The handling of URLs that lead to the upstream.
    Redirects(Redirects),
    /// Public keys for policy signatures.
    Keys(Vec<KeySource>),
    /// The policy's own settings, a JSON object.
    Json(serde_json::Value),
}

/// Writes the value as TOML. Possible secrets are hidden.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("\"off\""),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}"),
            Self::Duration(duration) => write!(f, "\"{}\"", units::write_duration(*duration)),
            Self::Size(bytes) => write!(f, "\"{}\"", units::write_size(*bytes)),
            Self::Text(text) => quoted(f, text),
            Self::File(path) | Self::Policy(PolicySource::File(path)) => quoted(f, &path.to_string_lossy()),
            Self::Address(address) => write!(f, "\"{address}\""),
            Self::Url(url) => quoted(f, &url.to_string()),
            Self::State(None) => f.write_str("\"memory:\""),
            Self::State(Some(address)) => quoted(f, &address.to_string()),
            Self::Policy(PolicySource::Builtin) => f.write_str("\"builtin\""),
            Self::Policy(PolicySource::Embedded(name)) => quoted(f, name),
            Self::Policy(PolicySource::Registry(artifact)) => quoted(f, &artifact.to_string()),
            Self::Header(name) => write!(f, "\"{name}\""),
            Self::Headers(names) => {
                let quoted = names.iter().map(|name| format!("\"{name}\""));
                write!(f, "[{}]", quoted.collect::<Vec<_>>().join(", "))
            }
            Self::Method(method) => quoted(f, method.as_ref().map_or("*", http::Method::as_str)),
            Self::Effect(effect) => quoted(f, effect.name()),
            Self::Priority(priority) => quoted(f, priority.name()),
            Self::Limits(limits) => {
                f.write_str("[")?;
                for (index, limit) in limits.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    let period = units::write_duration(limit.period);
                    let (requests, burst) = (limit.requests, limit.burst);
                    write!(f, "{comma}{{ requests = {requests}, period = \"{period}\", burst = {burst} }}")?;
                }
                f.write_str("]")
            }
            Self::Mode(mode) => write!(f, "\"{}\"", mode.name()),
            Self::AfterLoss(after) => write!(f, "\"{}\"", after.name()),
            Self::Redirects(redirects) => write!(f, "\"{}\"", redirects.name()),
            Self::Keys(keys) => {
                let quoted = keys.iter().map(|key| toml::Value::String(key.to_string()).to_string());
                write!(f, "[{}]", quoted.collect::<Vec<_>>().join(", "))
            }
            Self::Json(json) => inline(f, json),
        }
    }
}

/// Whether TOML accepts the key without quotes.
pub(super) fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&toml::Value::String(text.to_owned()).to_string())
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('-', "_");
    ["secret", "token", "password", "credential", "api_key", "apikey", "private_key"].iter().any(|s| key.contains(s))
}

fn inline(f: &mut fmt::Formatter<'_>, json: &serde_json::Value) -> fmt::Result {
    use serde_json::Value;
    match json {
        // No key accepts null, and TOML has none.
        Value::Null => f.write_str("\"\""),
        Value::Bool(_) | Value::Number(_) => write!(f, "{json}"),
        Value::String(text) => quoted(f, text),
        Value::Array(items) => {
            f.write_str("[")?;
            for (index, item) in items.iter().enumerate() {
                f.write_str(if index > 0 { ", " } else { "" })?;
                inline(f, item)?;
            }
            f.write_str("]")
        }
        Value::Object(map) if map.is_empty() => f.write_str("{}"),
        Value::Object(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                f.write_str(if index > 0 { ", " } else { "{ " })?;
                if is_bare(key) {
                    f.write_str(key)?;
                } else {
                    quoted(f, key)?;
                }
                f.write_str(" = ")?;
                if is_secret(key) { f.write_str("\"(hidden)\"")? } else { inline(f, value)? }
            }
            f.write_str(" }")
        }
    }
}

/// A value and its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced {
    /// The parsed value.
    pub value: Value,
    /// The layer that set it.
    pub source: Source,
}

/// Values by key, such as `retry.max_attempts`: one layer, or several merged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values(BTreeMap<&'static str, Sourced>);

impl Values {
    /// The value of a key, if this layer sets it.
    pub fn get(&self, key: &str) -> Option<&Sourced> {
        self.0.get(key)
    }

    /// Whether this layer sets no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn set(&mut self, key: &'static str, value: Value, source: Source) {
        self.0.insert(key, Sourced { value, source });
    }

    /// Merges a layer over this one: its values win.
    pub(super) fn cover(&mut self, upper: &Self) {
        self.0.extend(upper.0.iter().map(|(key, stated)| (*key, stated.clone())));
    }

    pub(super) fn read<T: Field>(&self, key: &str) -> Option<T> {
        self.get(key).and_then(|stated| T::of(&stated.value))
    }

    /// Copies a key's value into a field; an unset key leaves the field unchanged.
    pub(super) fn fill<T: Field>(&self, key: &str, field: &mut T) {
        if let Some(value) = self.read(key) {
            *field = value;
        }
    }

    /// Whether the operator set the key, so that its value must not be adjusted.
    pub(super) fn is_operators(&self, key: &str) -> bool {
        self.get(key).is_some_and(|stated| stated.source.is_operator())
    }

    pub(super) fn source(&self, key: &str) -> Option<Source> {
        self.get(key).map(|stated| stated.source.clone())
    }
}

/// A settings field that can be read from a [`Value`].
pub(super) trait Field: Sized {
    /// Converts the value; none if it has another type.
    fn of(value: &Value) -> Option<Self>;
}

macro_rules! fields {
    ($($pattern:pat => $type:ty, $field:expr;)*) => {$(
        impl Field for $type {
            fn of(value: &Value) -> Option<Self> {
                match value { $pattern => $field, _ => None }
            }
        }
    )*};
}

fields! {
    Value::Bool(truth) => bool, Some(*truth);
    Value::Count(number) | Value::Size(number) => usize, usize::try_from(*number).ok();
    Value::Duration(duration) => Duration, Some(*duration);
    Value::Text(text) => String, Some(text.clone());
    Value::File(path) => PathBuf, Some(path.clone());
    Value::Address(address) => SocketAddr, Some(*address);
    Value::Url(url) => http::Uri, Some(url.clone());
    Value::Policy(policy) => PolicySource, Some(policy.clone());
    Value::Header(name) => http::HeaderName, Some(name.clone());
    Value::Headers(names) => Vec<http::HeaderName>, Some(names.clone());
    Value::Effect(effect) => Effect, Some(*effect);
    Value::Priority(priority) => Priority, Some(*priority);
    Value::Limits(limits) => Vec<Quota>, Some(limits.clone());
    Value::Mode(mode) => Mode, Some(*mode);
    Value::AfterLoss(after) => AfterLoss, Some(*after);
    Value::Redirects(redirects) => Redirects, Some(*redirects);
    Value::Keys(keys) => Vec<KeySource>, Some(keys.clone());
    Value::Json(json) => serde_json::Value, Some(json.clone());
}

impl Field for u32 {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Percent(percent) => Some(*percent),
            Value::Count(count) => Self::try_from(*count).ok(),
            _ => None,
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Off => Some(None),
            _ => T::of(value).map(Some),
        }
    }
}

impl Field for Option<Address> {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::State(address) => Some(address.clone()),
            _ => None,
        }
    }
}

impl Field for Option<http::Method> {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Method(method) => Some(method.clone()),
            _ => None,
        }
    }
}
