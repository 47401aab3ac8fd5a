//! Types of configuration values: parse and validate a value as written.

use super::{layers::Raw, problem::Problem, settings::PolicySource, value::Value};
use crate::{
    overload::Priority,
    policy::prebuilt,
    rate_limit::Quota,
    redis::{self, Address},
    route::Router,
    units,
};
use std::{num::NonZeroU32, time::Duration};

/// The longest duration that a key takes. A longer one is a mistake and could overflow deadline arithmetic.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);
/// The most signature keys a list takes; a longer list is a mistake.
const MAX_KEYS: usize = 16;
/// The most limits an endpoint takes; a longer list is a mistake.
const MAX_LIMITS: usize = 16;

/// The type of a key's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Address,
    Url,
    State,
    /// A prefix of keys in shared state.
    Prefix,
    Policy,
    Json,
    /// A table of texts.
    Texts,
    /// A text that the host only shows.
    Text,
    PathPrefix,
    Host,
    File,
    Bool,
    /// A count within this inclusive range.
    Count(u64, u64),
    /// A thread count, or `"auto"`.
    Workers,
    /// A size in bytes, or `"auto"`: derived from the control group's limit.
    Memory,
    /// A percentage of at least this.
    Percent(u32),
    /// At least 1 ms.
    Duration,
    /// A duration that may be zero.
    Wait,
    /// A size of at least this many bytes.
    Size(u64),
    Header,
    /// One header or a list of them.
    Headers,
    Method,
    Template,
    Effect,
    /// The priority of requests during overload.
    Priority,
    Name,
    Limits,
    /// The mode of a candidate policy.
    Mode,
    /// Whether a verification after a loss of shared state may adopt an unclaimed match.
    AfterLoss,
    /// The handling of URLs that lead to the upstream.
    Redirects,
    /// Public keys, as text or files.
    Keys,
    /// How a failure counts when its write turned out to be applied.
    Settled,
    /// The implementation that shares a breaker.
    Interop,
    /// The key prefix of a shared breaker.
    Namespace,
}

impl Kind {
    /// Parses a value. Problems are added to `problems` under `path`.
    pub(super) fn read(self, path: &str, raw: &Raw, may_be_off: bool, problems: &mut Vec<Problem>) -> Option<Value> {
        if may_be_off && raw.text() == Some("off") {
            return Some(Value::Off);
        }
        match self {
            Self::Limits => limits(path, raw, problems).map(Value::Limits),
            _ => match self.simple(raw) {
                Ok(value) => Some(value),
                Err(must_be) => {
                    let or = if may_be_off { ", or \"off\"" } else { "" };
                    let got = match (self, raw) {
                        (Self::Url, _) => without_userinfo(raw).to_string(),
                        (Self::State, _) => scheme_only(raw),
                        // The text may hold secrets.
                        (Self::Json | Self::Texts, Raw::Word(_) | Raw::Text(_)) => "a text".to_owned(),
                        _ => raw.to_string(),
                    };
                    problems.push(Problem::value(path, got, must_be + or));
                    None
                }
            },
        }
    }

    /// Parses a value; the error states the expected form.
    fn simple(self, raw: &Raw) -> Result<Value, String> {
        let text = |rule: &str| raw.text().map(str::trim).ok_or_else(|| rule.to_owned());
        match self {
            Self::Address => {
                const RULE: &str = "an IP address and a port, such as \"127.0.0.1:8080\"";
                text(RULE)?.parse().map(Value::Address).map_err(|_| RULE.to_owned())
            }
            Self::Url => url(text(URL)?).map(Value::Url),
            Self::State => match text(redis::RULE)? {
                "memory:" => Ok(Value::State(None)),
                shared => Address::parse(shared).map(|address| Value::State(Some(address))),
            },
            Self::Prefix => {
                let prefix = text(PREFIX_OF_KEYS)?;
                let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
                let fits = (1..=64).contains(&prefix.len()) && prefix.bytes().all(fine);
                if fits { Ok(Value::Text(prefix.to_owned())) } else { Err(PREFIX_OF_KEYS.to_owned()) }
            }
            Self::Policy => policy(text(&policy_rule())?),
            Self::Json => {
                const RULE: &str = "a table (or its JSON text) without null";
                let structured = raw.structured();
                let is_table = matches!(structured, Raw::Table(_));
                structured.json().filter(|_| is_table).map(Value::Json).ok_or_else(|| RULE.to_owned())
            }
            Self::Texts => {
                const RULE: &str = "a table of texts";
                let texts = raw
                    .structured()
                    .json()
                    .filter(|json| json.as_object().is_some_and(|all| all.values().all(serde_json::Value::is_string)));
                texts.map(Value::Json).ok_or_else(|| RULE.to_owned())
            }
            Self::Text => {
                const RULE: &str = "1 to 255 characters without control characters";
                let words = text(RULE)?;
                let fits = (1..=255).contains(&words.chars().count()) && !words.chars().any(char::is_control);
                if fits { Ok(Value::Text(words.to_owned())) } else { Err(RULE.to_owned()) }
            }
            Self::PathPrefix => path_prefix(text(PREFIX)?),
            Self::Host => host(text(HOST)?),
            Self::File => {
                const RULE: &str = "the path of a file";
                let path = text(RULE)?;
                if path.is_empty() { Err(RULE.to_owned()) } else { Ok(Value::File(path.into())) }
            }
            Self::Bool => raw.truth().map(Value::Bool).ok_or_else(|| "true or false".to_owned()),
            Self::Count(least, most) => count(raw, least, most),
            Self::Workers if raw.text() == Some("auto") => Ok(Value::Count(cores())),
            Self::Workers => count(raw, 1, 1024).map_err(|rule| rule + ", or \"auto\" for one per core"),
            Self::Memory if raw.text() == Some("auto") => Ok(memory().map_or(Value::Off, Value::Size)),
            Self::Memory => sized(raw, MIN_MEMORY_BYTES, 1 << 50).map_err(|rule| rule + ", or \"auto\""),
            Self::Percent(least) => percent(raw, least),
            Self::Duration => duration(raw, Duration::from_millis(1)),
            Self::Wait => duration(raw, Duration::ZERO),
            Self::Size(least) => size(raw, least),
            Self::Header => {
                const RULE: &str = "a header name, such as \"x-tenant\"";
                http::HeaderName::from_bytes(text(RULE)?.as_bytes()).map(Value::Header).map_err(|_| RULE.to_owned())
            }
            Self::Headers => headers(raw),
            Self::Method => method(text(METHOD)?),
            Self::Template => template(text(TEMPLATE)?),
            Self::Effect => text(EFFECT)?.parse().map(Value::Effect).map_err(|_| EFFECT.to_owned()),
            Self::Priority => Priority::of(text(PRIORITY)?).map(Value::Priority).ok_or_else(|| PRIORITY.to_owned()),
            Self::Name => {
                let name = text(NAME)?;
                if is_name(name) { Ok(Value::Text(name.to_owned())) } else { Err(NAME.to_owned()) }
            }
            Self::Mode => text(MODE)?.parse().map(Value::Mode).map_err(|_| MODE.to_owned()),
            Self::AfterLoss => text(AFTER_LOSS)?.parse().map(Value::AfterLoss).map_err(|_| AFTER_LOSS.to_owned()),
            Self::Redirects => text(REDIRECTS)?.parse().map(Value::Redirects).map_err(|_| REDIRECTS.to_owned()),
            Self::Keys => {
                let one = |raw: &Raw| raw.text().and_then(|text| text.trim().parse().ok());
                let structured = raw.structured();
                let read = match &structured {
                    Raw::List(items) => items.iter().take(MAX_KEYS + 1).map(one).collect::<Option<Vec<_>>>(),
                    single => one(single).map(|key| vec![key]),
                };
                read.filter(|keys| keys.len() <= MAX_KEYS).map(Value::Keys).ok_or_else(|| KEYS.to_owned())
            }
            Self::Settled => match text(SETTLED)? {
                signal @ ("ignore" | "failure") => Ok(Value::Text(signal.to_owned())),
                _ => Err(SETTLED.to_owned()),
            },
            Self::Interop => match text(INTEROP)? {
                name @ "pybreaker" => Ok(Value::Text(name.to_owned())),
                _ => Err(INTEROP.to_owned()),
            },
            Self::Namespace => {
                let name = text(NAMESPACE)?;
                let fits = (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
                if fits { Ok(Value::Text(name.to_owned())) } else { Err(NAMESPACE.to_owned()) }
            }
            Self::Limits => Err(LIMITS.to_owned()),
        }
    }
}

fn headers(raw: &Raw) -> Result<Value, String> {
    const RULE: &str = "a header name, such as \"x-tenant\", or a list of 1 to 8 of them";
    const MAX_HEADERS: usize = 8;
    let one = |raw: &Raw| http::HeaderName::from_bytes(raw.text()?.trim().as_bytes()).ok();
    let structured = raw.structured();
    let read = match &structured {
        Raw::List(items) => items.iter().take(MAX_HEADERS + 1).map(one).collect::<Option<Vec<_>>>(),
        single => one(single).map(|name| vec![name]),
    };
    let fits = |names: &Vec<http::HeaderName>| (1..=MAX_HEADERS).contains(&names.len());
    read.filter(fits).map(Value::Headers).ok_or_else(|| RULE.to_owned())
}

const SETTLED: &str = "\"ignore\" or \"failure\"";
const URL: &str = "an absolute http or https URL, such as \"http://127.0.0.1:8000\"";
const PREFIX_OF_KEYS: &str = "1 to 64 characters of A-Z, a-z, 0-9 and -_.:";
const PREFIX: &str = "a path that starts with \"/\" and has no query, fragment, blank or dot segment, such as \"/api\"";
const HOST: &str = "a host name without scheme, port and path, such as \"hospital.example\"";
const METHOD: &str = "a method in upper case, such as \"POST\", or \"*\" for all";
const TEMPLATE: &str = "a URI template that starts with \"/\", such as \"/hospitals/{id}\"";
const EFFECT: &str = "\"safe\", \"idempotent\" or \"unsafe\"";
const PRIORITY: &str = "\"low\", \"normal\" or \"high\"";
const LIMITS: &str = "a list of limits, such as [{ requests = 10, period = \"1s\", burst = 10 }]";
const MODE: &str = "\"shadow\" or \"canary\"";
const AFTER_LOSS: &str = "\"ask\" or \"adopt\"";
const REDIRECTS: &str = "\"rewrite\" or \"pass\"";
const INTEROP: &str = "\"pybreaker\"";
const NAMESPACE: &str = "1 to 128 visible ASCII characters";
const KEYS: &str = "a list of at most 16 minisign public keys: each the key itself (\"RW...\"), or the path of a file that ends \
                    in .pub";
pub(super) const NAME: &str = "1 to 64 characters of a-z, 0-9 and -";

pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A smaller limit leaves no memory for policies and requests.
const MIN_MEMORY_BYTES: u64 = 64 << 20;

/// Memory to leave free below a control group's limit. The host's program must stay in the page cache, which does not count as used (about
/// 30 MiB), and between two samples of the group's usage the host may exceed its own limit (by 18 MiB as measured).
const MEMORY_RESERVE_BYTES: u64 = 48 << 20;

/// The memory limit derived from the control group's limit; none if the group has none.
fn memory() -> Option<u64> {
    crate::telemetry::Cgroup::own().map(|group| below_group_limit(group.limit()))
}

/// Seven eighths of a control group's limit; less for a small group.
fn below_group_limit(limit: u64) -> u64 {
    let reserve = (limit / 8).max(MEMORY_RESERVE_BYTES).min(limit / 2);
    // Round down to whole mebibytes, so that `config show` can write it.
    (limit - reserve) >> 20 << 20
}

/// The number of threads that can run at once; 1 if the system does not say.
fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// Parses an upstream's or a collector's URL. The crate `url` would accept and repair what is refused here, such as `http:host` or a
/// backslash, and the transports take a [`http::Uri`].
fn url(text: &str) -> Result<http::Uri, String> {
    if text.contains('#') {
        return Err("a URL without a fragment".to_owned());
    }
    let url: http::Uri = text.parse().map_err(|_| URL.to_owned())?;
    let authority = url.authority().ok_or(URL)?;
    if authority.as_str().contains('@') {
        return Err("a URL without user name and password; credentials belong in request headers".to_owned());
    }
    match url.scheme_str() {
        Some("http" | "https") if authority.host().is_empty() => Err(URL.to_owned()),
        Some("http" | "https") if url.query().is_some() => Err("a URL without a query".to_owned()),
        Some("http" | "https") => Ok(url),
        Some(_) => Err(URL.to_owned()),
        None => Err(format!("a URL with its scheme: write \"http://{authority}\" or \"https://{authority}\"")),
    }
}

/// A URL may contain a password; messages must not repeat it.
pub(super) fn without_userinfo(raw: &Raw) -> Raw {
    let hidden = |text: &str| {
        let (user, host) = text.rsplit_once('@')?;
        let scheme = user.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
        Some(Raw::Text(format!("{scheme}***@{host}")))
    };
    raw.text().and_then(hidden).unwrap_or_else(|| raw.clone())
}

/// A malformed address may contain a password anywhere.
fn scheme_only(raw: &Raw) -> String {
    match raw.text().and_then(|text| text.split_once(':')) {
        Some((scheme, _)) => Raw::Text(format!("{scheme}:...")).to_string(),
        None => raw.to_string(),
    }
}

fn policy_rule() -> String {
    format!(
        "an embedded policy ({}), the path of a component that ends in .wasm, or one in a registry (oci://HOST/REPOSITORY@sha256:DIGEST)",
        prebuilt::names().join(", ")
    )
}

fn policy(text: &str) -> Result<Value, String> {
    if text == "builtin" {
        return Ok(Value::Policy(PolicySource::Builtin));
    }
    if prebuilt::names().contains(&text) {
        return Ok(Value::Policy(PolicySource::Embedded(text.to_owned())));
    }
    if text.starts_with("oci://") {
        let artifact = text.parse().map_err(|why| format!("oci://HOST/REPOSITORY@sha256:DIGEST: {why}"))?;
        return Ok(Value::Policy(PolicySource::Registry(artifact)));
    }
    let path = std::path::Path::new(text);
    if path.extension().is_some_and(|extension| extension == "wasm") {
        return Ok(Value::Policy(PolicySource::File(path.to_owned())));
    }
    Err(super::spelling::nearest(text, prebuilt::names().into_iter())
        .map_or_else(policy_rule, |near| format!("{}; did you mean {near:?}?", policy_rule())))
}

fn path_prefix(text: &str) -> Result<Value, String> {
    let fine = crate::route::is_plain(text)
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#{}\"".contains(&b))
        && !text.contains("//");
    if fine { Ok(Value::Text(text.to_owned())) } else { Err(PREFIX.to_owned()) }
}

fn host(text: &str) -> Result<Value, String> {
    let fine = (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if fine { Ok(Value::Text(text.to_ascii_lowercase())) } else { Err(HOST.to_owned()) }
}

fn count(raw: &Raw, least: u64, most: u64) -> Result<Value, String> {
    let fits = raw.whole().filter(|count| (least..=most).contains(count));
    fits.map(Value::Count).ok_or_else(|| format!("a whole number from {least} to {most}"))
}

fn percent(raw: &Raw, least: u32) -> Result<Value, String> {
    let share = raw.whole().and_then(|share| u32::try_from(share).ok()).filter(|share| (least..=100).contains(share));
    share.map(Value::Percent).ok_or_else(|| format!("a whole number of percent, from {least} to 100"))
}

fn duration(raw: &Raw, least: Duration) -> Result<Value, String> {
    if let Some(number) = raw.bare_number() {
        return Err(format!(
            "a duration with its unit: write \"{number}s\" for seconds, \"{number}ms\" for milliseconds"
        ));
    }
    let range = format!("from {} to {}", units::write_duration(least), units::write_duration(MAX_DURATION));
    let read = raw.text().and_then(units::duration).filter(|duration| (least..=MAX_DURATION).contains(duration));
    read.map(Value::Duration).ok_or_else(|| format!("a duration {range}, such as \"250ms\", \"5s\", \"1m\" or \"24h\""))
}

fn size(raw: &Raw, least: u64) -> Result<Value, String> {
    sized(raw, least, 1 << 30)
}

fn sized(raw: &Raw, least: u64, most: u64) -> Result<Value, String> {
    if let Some(number) = raw.bare_number() {
        return Err(format!("a size with its unit: write \"{number}B\" for bytes, \"{number}KiB\" for kibibytes"));
    }
    let read = raw.text().and_then(units::size).filter(|bytes| (least..=most).contains(bytes));
    let range = format!("from {} to {}", units::write_size(least), units::write_size(most));
    read.map(Value::Size).ok_or_else(|| format!("a size {range}, such as \"64KiB\" or \"1MiB\""))
}

fn method(text: &str) -> Result<Value, String> {
    if text == "*" {
        return Ok(Value::Method(None));
    }
    let upper = !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    let method = http::Method::from_bytes(text.as_bytes()).ok().filter(|_| upper);
    method.map(|method| Value::Method(Some(method))).ok_or_else(|| METHOD.to_owned())
}

fn template(text: &str) -> Result<Value, String> {
    let fine = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if !fine || Router::new(std::iter::once((None, text))).is_err() {
        return Err(TEMPLATE.to_owned());
    }
    Ok(Value::Text(text.to_owned()))
}

fn limits(path: &str, raw: &Raw, problems: &mut Vec<Problem>) -> Option<Vec<Quota>> {
    let structured = raw.structured();
    let Raw::List(items) = &structured else {
        problems.push(Problem::value(path, structured.to_string(), LIMITS));
        return None;
    };
    if items.len() > MAX_LIMITS {
        let got = format!("{} limits", items.len());
        problems.push(Problem::value(path, got, format!("at most {MAX_LIMITS} limits")));
        return None;
    }
    let read = items.iter().enumerate().map(|(index, item)| limit(&format!("{path}[{index}]"), item, problems));
    // Parse every limit before failing, so that all problems are reported.
    read.collect::<Vec<_>>().into_iter().collect()
}

fn limit(path: &str, raw: &Raw, problems: &mut Vec<Problem>) -> Option<Quota> {
    const KEYS: [&str; 3] = ["requests", "period", "burst"];
    const MAX_COUNT: Kind = Kind::Count(1, u32::MAX as u64);
    let Raw::Table(entries) = raw else {
        let rule = "a table, such as { requests = 10, period = \"1s\", burst = 10 }";
        problems.push(Problem::value(path, raw.to_string(), rule));
        return None;
    };
    let before = problems.len();
    for (key, _) in entries.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())) {
        let near = super::spelling::nearest(key, KEYS.into_iter()).map(str::to_owned);
        problems.push(Problem::unknown(format!("{path}.{}", super::spelling::shown(key)), near));
    }
    let mut read = |key: &str, kind: Kind, required: bool| {
        let path = format!("{path}.{key}");
        match entries.iter().find(|(name, _)| name == key) {
            Some((_, raw)) => kind.read(&path, raw, false, problems),
            None => {
                if required {
                    problems.push(Problem::value(
                        path,
                        "nothing",
                        kind.simple(&Raw::Bool(false)).err().unwrap_or_default(),
                    ));
                }
                None
            }
        }
    };
    let requests = read("requests", MAX_COUNT, true);
    let period = read("period", Kind::Duration, true);
    let burst = read("burst", MAX_COUNT, false);
    if problems.len() > before {
        return None;
    }
    let number = |value| match value {
        Some(Value::Count(count)) => u32::try_from(count).ok().and_then(NonZeroU32::new),
        _ => None,
    };
    let (Some(requests), Some(Value::Duration(period))) = (number(requests), period) else { return None };
    Some(Quota { requests, period, burst: number(burst).unwrap_or(requests) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_keeps_a_reserve() {
        let limits = [64, 160, 256, 512, 4096].map(|mib: u64| below_group_limit(mib << 20) >> 20);
        assert_eq!(limits, [32, 112, 208, 448, 3584]);
    }
}
