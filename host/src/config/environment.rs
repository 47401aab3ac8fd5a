//! Environment variables: `TRIAGE_*`, and the names that the replaced Python stack used.

use super::layers::{Layers, Source};
use toml::Value;

/// What a variable's text becomes.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Number,
    /// Seconds, decimals allowed, as tenacity and pybreaker have them.
    Seconds,
}

/// Variables of the host itself.
const OWN: [(&str, &str, Form); 4] = [
    ("TRIAGE_LISTEN", "server.listen", Form::Text),
    ("TRIAGE_WORKERS", "server.workers", Form::Number),
    ("TRIAGE_STATE", "state.url", Form::Text),
    ("TRIAGE_DRAIN", "server.drain", Form::Text),
];

/// The seed's names: they set every upstream's defaults.
const SEED: [(&str, &str, Form); 5] = [
    ("RETRY_MAX_ATTEMPTS", "retry.max_attempts", Form::Number),
    ("RETRY_MIN_WAIT", "retry.min_wait", Form::Seconds),
    ("RETRY_MAX_WAIT", "retry.max_wait", Form::Seconds),
    ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "breaker.failure_threshold", Form::Number),
    ("CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "breaker.open_for", Form::Seconds),
];

/// The upstream that is meant where none has a name.
pub(super) const ONLY: &str = "default";

pub(super) fn lay(layers: &mut Layers, environment: &[(String, String)]) {
    let get = |name: &str| environment.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    for (name, key, form) in OWN {
        if let Some(text) = get(name) {
            layers.put(key, value(text, form), Source::Environment(name.to_owned()));
        }
    }
    for (name, policy) in [("HOSPITAL_API_BASE_URL", Some("hospital-directory")), ("TRIAGE_UPSTREAM", None)] {
        let Some(url) = get(name) else { continue };
        let upstream = only(layers);
        let source = || Source::Environment(name.to_owned());
        layers.put(&format!("upstreams.{upstream}.base_url"), Value::String(url.to_owned()), source());
        let named = layers.source(&format!("upstreams.{upstream}.policy")).is_some();
        if let Some(policy) = policy.filter(|_| !named) {
            layers.put(&format!("upstreams.{upstream}.policy"), Value::String(policy.to_owned()), source());
        }
    }
    if let Some(policy) = get("TRIAGE_POLICY") {
        let upstream = only(layers);
        let source = Source::Environment("TRIAGE_POLICY".to_owned());
        layers.put(&format!("upstreams.{upstream}.policy"), Value::String(policy.to_owned()), source);
    }
    seed(layers, &get);
    for (name, text) in environment {
        if let Some(path) = name.strip_prefix("TRIAGE__") {
            let key = path.to_ascii_lowercase().replace("__", ".");
            layers.put(&key, guessed(text), Source::Environment(name.clone()));
        }
    }
}

fn seed<'a>(layers: &mut Layers, get: &impl Fn(&str) -> Option<&'a str>) {
    let upstreams = layers.upstreams();
    for upstream in upstreams {
        let defaults = format!("upstreams.{upstream}.defaults");
        for (name, key, form) in SEED {
            if let Some(text) = get(name) {
                layers.put(&format!("{defaults}.{key}"), value(text, form), Source::Environment(name.to_owned()));
            }
        }
        if let Some(requests) = get("RATE_LIMIT_REQUESTS") {
            let mut limit = toml::Table::new();
            limit.insert("requests".to_owned(), value(requests, Form::Number));
            limit.insert("burst".to_owned(), value(requests, Form::Number));
            limit.insert("period".to_owned(), value(get("RATE_LIMIT_PERIOD").unwrap_or("1.0"), Form::Seconds));
            let source = Source::Environment("RATE_LIMIT_REQUESTS".to_owned());
            layers.put(&format!("{defaults}.limits"), Value::Array(vec![Value::Table(limit)]), source);
        }
    }
}

/// The one upstream, or the name that the only one gets.
pub(super) fn only(layers: &Layers) -> String {
    layers.upstreams().into_iter().next().unwrap_or_else(|| ONLY.to_owned())
}

fn value(text: &str, form: Form) -> Value {
    let trimmed = text.trim();
    match form {
        Form::Text => Value::String(trimmed.to_owned()),
        Form::Number => trimmed.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Integer),
        Form::Seconds if trimmed.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0) => {
            Value::String(format!("{trimmed}s"))
        }
        Form::Seconds => Value::String(text.to_owned()),
    }
}

/// A TOML value where the text is one, else a text.
pub(super) fn guessed(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}
