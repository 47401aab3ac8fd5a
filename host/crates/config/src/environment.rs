//! The layers above the file: the environment, and flags above it.

use super::{
    builder::Draft,
    flags::Flags,
    layers::Raw,
    problem::{Problem, Source},
    schema, settings, spelling,
    value::Value,
    value_type::{self, Kind},
};
use crate::{rate_limit::Quota, redis::Address, units};
use percent_encoding::percent_decode_str;
use std::{borrow::Cow, collections::BTreeSet, num::NonZeroU32, time::Duration};

/// Variables with a short name. A key that begins with a dot belongs to the upstream.
const NAMED: [(&str, &str); 7] = [
    ("TRIAGE_LISTEN", "server.listen"),
    ("TRIAGE_ADMIN", "admin.listen"),
    ("TRIAGE_WORKERS", "server.workers"),
    ("TRIAGE_STATE", "state.url"),
    ("TRIAGE_DRAIN", "server.drain"),
    ("TRIAGE_UPSTREAM", ".base_url"),
    ("TRIAGE_POLICY", ".policy"),
];
/// Variables with our prefix that other code reads.
const OTHERS: [&str; 13] = [
    "TRIAGE_LOG",
    "TRIAGE_LOG_FORMAT",
    "TRIAGE_ADMIN_URL",
    "TRIAGE_ADMIN_TOKEN",
    "TRIAGE_ADMIN_CA_FILE",
    "TRIAGE_ADMIN_CLIENT_CERTIFICATE",
    "TRIAGE_ADMIN_CLIENT_KEY",
    settings::READ_TOKEN,
    settings::WRITE_TOKEN,
    settings::STATE_PASSWORD,
    settings::STATE_KEY,
    settings::REGISTRY_AUTH,
    settings::SETTLEMENT_KEY,
];
/// The seed's variables for settings of every endpoint.
const SEED: [(&str, &str); 6] = [
    ("HOSPITAL_API_TIMEOUT", "attempt_timeout"),
    ("RETRY_MAX_ATTEMPTS", "retry.max_attempts"),
    ("RETRY_MIN_WAIT", "retry.min_wait"),
    ("RETRY_MAX_WAIT", "retry.max_wait"),
    ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "breaker.failure_threshold"),
    ("CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "breaker.open_for"),
];
/// OpenTelemetry's variables for the target of traces. The first one that is set counts: it is for traces alone.
const OTEL_TARGETS: [(&str, &str); 2] = [
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "telemetry.otlp.traces_endpoint"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp.endpoint"),
];
/// The seed's Redis was its Celery queue. An AMQP URL here is ignored.
const SEED_BROKER_URL: &str = "CELERY_BROKER_URL";
const SEED_BASE_URL: &str = "HOSPITAL_API_BASE_URL";
const GENERAL: &str = "TRIAGE__";

/// Merges the environment and the flags over the draft.
pub(super) fn read(draft: &mut Draft, env: &[(String, String)], flags: &Flags) {
    // An empty variable counts as unset, because compose files pass unset variables as empty.
    let env = Env(env.iter().filter(|(_, value)| !value.trim().is_empty()).collect());
    let general: Vec<Statement<'_>> = env.general();
    let sets: Vec<Statement<'_>> = flags.set.iter().filter_map(|set| statement_of_flag(draft, set)).collect();
    let layers = Layers { targets: targets(draft, &env, &general, &sets, flags), env, flags };
    layers.seed(draft);
    layers.named(draft);
    for statement in &general {
        draft.state(&statement.path, &Raw::Word(statement.value.to_owned()), statement.source.clone());
    }
    layers.flags(draft);
    for statement in &sets {
        draft.state(&statement.path, &Raw::Word(statement.value.to_owned()), statement.source.clone());
    }
    layers.seed_state(draft);
    layers.otel(draft);
}

struct Statement<'a> {
    path: Vec<String>,
    value: &'a str,
    source: Source,
}

impl Statement<'_> {
    fn upstream(&self) -> Option<&String> {
        self.path.get(1).filter(|name| self.path[0] == "upstreams" && value_type::is_name(name))
    }
}

struct Env<'a>(Vec<&'a (String, String)>);

impl<'a> Env<'a> {
    fn get(&self, wanted: &str) -> Option<&'a str> {
        // A process environment has each name once. In a list with duplicates, the last one wins.
        self.0.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    fn general(&self) -> Vec<Statement<'a>> {
        let ours = self.0.iter().filter_map(|(name, value)| Some((name, name.strip_prefix(GENERAL)?, value)));
        ours.map(|(name, rest, value)| Statement { path: path_of_variable(rest), value, source: env_source(name) })
            .collect()
    }
}

/// Parses `UPSTREAMS__HOSPITAL__ENDPOINTS__CREATE_HOSPITAL__DEADLINE`. In names, `_` stands for `-`, which a variable cannot contain.
fn path_of_variable(rest: &str) -> Vec<String> {
    let mut path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
    if path.first().is_some_and(|first| first == "upstreams") {
        let is_endpoint = path.get(2).is_some_and(|third| third == "endpoints");
        for (index, segment) in path.iter_mut().enumerate() {
            if index == 1 || (index == 3 && is_endpoint) {
                *segment = segment.replace('_', "-");
            }
        }
    }
    path
}

fn statement_of_flag<'a>(draft: &mut Draft, set: &'a str) -> Option<Statement<'a>> {
    let source = Source::Flag("--set");
    let Some((path, value)) = set.split_once('=').filter(|(path, _)| !path.trim().is_empty()) else {
        let got = Raw::Text(set.to_owned()).to_string();
        draft.fault(Problem::value("--set", got, "KEY=VALUE, such as server.drain=5s"), &source);
        return None;
    };
    Some(Statement { path: path.trim().split('.').map(str::to_owned).collect(), value, source })
}

fn env_source(name: &str) -> Source {
    Source::Env(name.to_owned())
}

/// Every upstream of this or a later layer. If none is named, a base URL alone creates one: `hospital` for the seed's variable, else
/// `default`.
fn targets(
    draft: &mut Draft,
    env: &Env<'_>,
    general: &[Statement<'_>],
    sets: &[Statement<'_>],
    flags: &Flags,
) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = draft.upstreams.keys().cloned().collect();
    names.extend(general.iter().chain(sets).filter_map(Statement::upstream).cloned());
    if names.is_empty() && env.get(SEED_BASE_URL).is_some() {
        draft.upstream("hospital", &env_source(SEED_BASE_URL));
        if let Some(upstream) = draft.upstreams.get_mut("hospital") {
            let policy = settings::PolicySource::Embedded("hospital-directory".to_owned());
            upstream.own.set("policy", Value::Policy(policy), env_source(SEED_BASE_URL));
        }
        names.insert("hospital".to_owned());
    }
    if names.is_empty() && (flags.upstream.is_some() || env.get("TRIAGE_UPSTREAM").is_some()) {
        names.insert("default".to_owned());
    }
    names
}

struct Layers<'a> {
    targets: BTreeSet<String>,
    env: Env<'a>,
    flags: &'a Flags,
}

impl Layers<'_> {
    /// The seed's variables apply to every endpoint of every upstream, over the file's `defaults` and the policies' proposals.
    fn seed(&self, draft: &mut Draft) {
        for (name, key) in SEED {
            let Some(text) = self.env.get(name) else { continue };
            let Some(key) = schema::KEYS.iter().find(|known| known.name == key) else { continue };
            let path = format!("upstreams.*.defaults.{}", key.name);
            let value = match key.kind {
                Kind::Duration | Kind::Wait => seconds(draft, &path, text, &env_source(name), key.kind),
                kind => draft.read(&path, kind, false, &Raw::Word(text.to_owned()), &env_source(name)),
            };
            self.every_default(draft, key.name, value, name);
        }
        self.seed_limit(draft);
        self.seed_keep(draft);
        if let Some(url) = self.env.get(SEED_BASE_URL) {
            let target = match draft.hospital_directories().as_slice() {
                [only] => Ok(only.clone()),
                [] => Err("no upstream has the policy hospital-directory"),
                _ => Err("several upstreams have the policy hospital-directory"),
            };
            shortcut(draft, target, "base_url", url, env_source(SEED_BASE_URL));
        }
    }

    /// `RATE_LIMIT_REQUESTS` per `RATE_LIMIT_PERIOD`. A missing one takes the seed's default, 10 or 1 s. `off` means no limit.
    fn seed_limit(&self, draft: &mut Draft) {
        const REQUESTS: &str = "RATE_LIMIT_REQUESTS";
        const PERIOD: &str = "RATE_LIMIT_PERIOD";
        let (requests, period) = (self.env.get(REQUESTS), self.env.get(PERIOD));
        let name = if requests.is_some() { REQUESTS } else { PERIOD };
        if requests.is_none() && period.is_none() {
            return;
        }
        let path = "upstreams.*.defaults.limits[0]";
        let requests = requests.map_or(Some(Value::Count(10)), |text| {
            let kind = Kind::Count(1, u64::from(u32::MAX));
            draft.read(&format!("{path}.requests"), kind, true, &Raw::Word(text.to_owned()), &env_source(REQUESTS))
        });
        let period = period.map_or(Some(Value::Duration(Duration::from_secs(1))), |text| {
            seconds(draft, &format!("{path}.period"), text, &env_source(PERIOD), Kind::Duration)
        });
        let limits = match (requests, period) {
            (Some(Value::Off), Some(_)) => Vec::new(),
            (Some(Value::Count(requests)), Some(Value::Duration(period))) => {
                let Some(requests) = u32::try_from(requests).ok().and_then(NonZeroU32::new) else { return };
                vec![Quota { requests, period, burst: requests }]
            }
            _ => return,
        };
        self.every_default(draft, "limits", Some(Value::Limits(limits)), name);
    }

    /// Sets how long responses are kept, for every upstream.
    fn seed_keep(&self, draft: &mut Draft) {
        const CACHE_TTL: &str = "IDEMPOTENCY_CACHE_TTL";
        const KEY: &str = "idempotency.keep";
        let Some(text) = self.env.get(CACHE_TTL) else { return };
        let source = env_source(CACHE_TTL);
        let Some(value) = seconds(draft, &format!("upstreams.*.{KEY}"), text, &source, Kind::Duration) else { return };
        for name in &self.targets {
            if draft.upstream(name, &source)
                && let Some(upstream) = draft.upstreams.get_mut(name)
            {
                upstream.own.set(KEY, value.clone(), source.clone());
            }
        }
    }

    /// Uses the seed's Redis if no other key or variable sets `state.url`.
    fn seed_state(&self, draft: &mut Draft) {
        const KEY: &str = "state.url";
        let url = self.env.get(SEED_BROKER_URL).filter(|url| Address::is_meant(url.trim()));
        if let Some(url) = url.filter(|_| draft.host.get(KEY).is_none()) {
            self.statement(draft, KEY, url, env_source(SEED_BROKER_URL));
        }
    }

    /// Uses OpenTelemetry's own variables for keys that no other layer sets. They often reach every container of a cluster, so they must
    /// not change what an operator has said of Triage; without a target of traces they say nothing.
    fn otel(&self, draft: &mut Draft) {
        const SHARE: &str = "telemetry.otlp.share";
        const SERVICE: &str = "telemetry.otlp.service_name";
        const RESOURCE: &str = "telemetry.otlp.resource_attributes";
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
        const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let says = |name: &str, words: &[&str]| {
            self.env.get(name).is_some_and(|text| words.iter().any(|word| text.trim().eq_ignore_ascii_case(word)))
        };
        // The exporter sends JSON over HTTP: an endpoint for gRPC would refuse every batch.
        let is_off = says("OTEL_SDK_DISABLED", &["true"])
            || says("OTEL_TRACES_EXPORTER", &["none"])
            || says("OTEL_TRACES_SAMPLER", &["always_off", "parentbased_always_off"])
            || says("OTEL_EXPORTER_OTLP_PROTOCOL", &["grpc"])
            || says("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &["grpc"]);
        if is_off {
            return;
        }
        if OTEL_TARGETS.iter().all(|(_, key)| draft.host.get(key).is_none()) {
            let target = OTEL_TARGETS.iter().find_map(|(name, key)| Some((name, key, self.env.get(name)?)));
            let Some((name, key, url)) = target else { return };
            self.statement(draft, key, url, env_source(name));
        }
        // The argument of another sampler is no ratio.
        let is_ratio = self.env.get("OTEL_TRACES_SAMPLER").is_none_or(|name| name.trim().ends_with("traceidratio"));
        if let Some(text) = self.env.get(ARGUMENT).filter(|_| is_ratio && draft.host.get(SHARE).is_none()) {
            match percent_of_ratio(text) {
                Some(percent) => draft.host.set(SHARE, Value::Percent(percent), env_source(ARGUMENT)),
                None => {
                    let got = Raw::Text(text.to_owned()).to_string();
                    draft.fault(Problem::value(SHARE, got, "a ratio from 0 to 1, such as 0.25"), &env_source(ARGUMENT));
                }
            }
        }
        if let Some(name) = self.env.get(SERVICE_NAME).filter(|_| draft.host.get(SERVICE).is_none()) {
            self.statement(draft, SERVICE, name, env_source(SERVICE_NAME));
        }
        if let Some(text) = self.env.get(ATTRIBUTES).filter(|_| draft.host.get(RESOURCE).is_none()) {
            match resource_attributes(text) {
                Some(all) => draft.host.set(RESOURCE, Value::Json(all), env_source(ATTRIBUTES)),
                None => draft.fault(
                    Problem::value(
                        RESOURCE,
                        "a text",
                        "a list such as service.namespace=care,deployment.environment.name=production",
                    ),
                    &env_source(ATTRIBUTES),
                ),
            }
        }
    }

    fn every_default(&self, draft: &mut Draft, key: &'static str, value: Option<Value>, variable: &str) {
        let Some(value) = value else { return };
        for name in &self.targets {
            let source = env_source(variable);
            if draft.upstream(name, &source)
                && let Some(upstream) = draft.upstreams.get_mut(name)
            {
                upstream.defaults.set(key, value.clone(), source);
            }
        }
    }

    fn named(&self, draft: &mut Draft) {
        for (name, key) in NAMED {
            if let Some(value) = self.env.get(name) {
                self.statement(draft, key, value, env_source(name));
            }
        }
        let known = || NAMED.iter().map(|(name, _)| *name).chain(OTHERS);
        let unknown = self.env.0.iter().map(|(name, _)| name.as_str()).filter(|name| {
            name.starts_with("TRIAGE_") && !name.starts_with(GENERAL) && !known().any(|known| known == *name)
        });
        for name in unknown {
            let near = spelling::nearest(name, known()).map(str::to_owned);
            draft.fault(Problem::unknown(spelling::shown(name), near), &Source::Env(spelling::shown(name)));
        }
    }

    fn flags(&self, draft: &mut Draft) {
        let given = [
            ("--listen", "server.listen", &self.flags.listen),
            ("--admin", "admin.listen", &self.flags.admin),
            ("--workers", "server.workers", &self.flags.workers),
            ("--state", "state.url", &self.flags.state),
            ("--upstream", ".base_url", &self.flags.upstream),
            ("--policy", ".policy", &self.flags.policy),
        ];
        for (name, key, value) in given {
            if let Some(value) = value {
                self.statement(draft, key, value, Source::Flag(name));
            }
        }
    }

    fn statement(&self, draft: &mut Draft, key: &str, value: &str, source: Source) {
        let Some(of_upstream) = key.strip_prefix('.') else {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            return draft.state(&path, &Raw::Word(value.to_owned()), source);
        };
        let mut targets = self.targets.iter();
        let target = match (targets.next(), targets.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err("there is no upstream"),
            (Some(_), Some(_)) => Err("there are several upstreams"),
        };
        shortcut(draft, target, of_upstream, value, source);
    }
}

/// Sets a key of the only upstream.
fn shortcut(draft: &mut Draft, target: Result<String, &str>, key: &str, value: &str, source: Source) {
    let path = |name: &str| ["upstreams", name, key].map(str::to_owned);
    match target {
        Ok(name) => draft.state(&path(&name), &Raw::Word(value.to_owned()), source),
        Err(because) => {
            let key = format!("upstreams.*.{key}");
            let must_be = format!("set by name: --set upstreams.NAME.{}=...", key.trim_start_matches("upstreams.*."));
            draft.fault(Problem::conflict(key, "a value", because, must_be), &source);
        }
    }
}

/// Parses a time of the seed: seconds without a unit.
fn seconds(draft: &mut Draft, path: &str, text: &str, source: &Source, kind: Kind) -> Option<Value> {
    if units::seconds(text).is_some() {
        return draft.read(path, kind, false, &Raw::Word(format!("{}s", text.trim())), source);
    }
    let got = Raw::Word(text.to_owned()).to_string();
    draft.fault(Problem::value(path, got, "a number of seconds, such as 2 or 0.5"), source);
    None
}

/// Parses a ratio from 0 to 1 and rounds it up to a whole percent, so that a small one does not end all traces.
fn percent_of_ratio(text: &str) -> Option<u32> {
    let ratio = text.trim().parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))?;
    // 0.07 * 100 is a little above 7.
    Some((ratio * 100.0 - 1e-9).ceil() as u32)
}

/// Parses `KEY=VALUE,KEY=VALUE` with percent-encoding (OpenTelemetry's resource SDK). None if a part is no such pair.
fn resource_attributes(text: &str) -> Option<serde_json::Value> {
    let decoded = |part: &str| percent_decode_str(part.trim()).decode_utf8().ok().map(Cow::into_owned);
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((decoded(key).filter(|key| !key.is_empty())?, serde_json::Value::String(decoded(value)?)))
    };
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs.map(pair).collect::<Option<_>>().map(serde_json::Value::Object)
}
