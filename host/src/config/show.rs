//! The effective values, and where each came from.

use super::{Loaded, Source, merge, value::written};
use crate::{
    config::settings::{Endpoint, PolicySource, Upstream},
    policy::contract::Description,
};
use std::fmt::Write as _;

/// Renders a configuration with its policies' descriptions, one for each upstream, as TOML with comments.
pub fn show(loaded: &Loaded, descriptions: &[Description]) -> String {
    let mut text = String::new();
    let server = &loaded.settings.server;
    let rows = [
        ("server.listen", format!("{:?}", server.listen.to_string())),
        ("server.workers", server.workers.to_string()),
        ("server.max_connections", server.max_connections.to_string()),
        ("server.max_header_bytes", format!("\"{}B\"", server.max_header_bytes)),
        ("server.header_read_timeout", quoted(server.header_read_timeout)),
        ("server.drain", quoted(server.drain)),
        ("state.url", "\"memory:\"".to_owned()),
    ];
    for (key, value) in rows {
        row(&mut text, loaded, key, &value, None);
    }
    for (upstream, description) in loaded.settings.upstreams.iter().zip(descriptions) {
        show_upstream(&mut text, loaded, upstream, description);
    }
    text
}

fn show_upstream(text: &mut String, loaded: &Loaded, upstream: &Upstream, description: &Description) {
    let path = format!("upstreams.{}", upstream.name);
    let policy = match &upstream.policy {
        PolicySource::Embedded(name) => name.clone(),
        PolicySource::File(file) => file.display().to_string(),
        PolicySource::Builtin => "builtin".to_owned(),
    };
    let keys = &upstream.idempotency;
    let rows = [
        ("base_url", format!("{:?}", upstream.connection.base_url.to_string())),
        ("policy", format!("{policy:?}")),
        ("connect_timeout", quoted(upstream.connection.connect_timeout)),
        ("idle_timeout", quoted(upstream.connection.idle_timeout)),
        ("reuse_instances", upstream.reuse_instances.to_string()),
        ("max_buffered_request", format!("\"{}B\"", upstream.max_buffered_request_bytes)),
        ("idempotency.keep", quoted(keys.keep)),
        ("idempotency.lock", quoted(keys.lock)),
        ("idempotency.max_request", format!("\"{}B\"", keys.max_request_bytes)),
        ("idempotency.max_response", format!("\"{}B\"", keys.max_response_bytes)),
        ("idempotency.max_records", keys.max_records.to_string()),
    ];
    for (key, value) in rows {
        row(text, loaded, &format!("{path}.{key}"), &value, None);
    }
    for (described, endpoint) in merge::endpoints(upstream, description).unwrap_or_default() {
        let proposed = &described.defaults;
        for (key, value, by_policy) in endpoint_rows(&endpoint) {
            let from_policy = match by_policy {
                Some("attempt_timeout") => proposed.attempt_timeout.is_some(),
                Some("deadline") => proposed.deadline.is_some(),
                Some("max_attempts") => proposed.max_attempts.is_some(),
                Some("limits") => !proposed.limits.is_empty(),
                Some("concurrency") => proposed.concurrency.is_some(),
                _ => false,
            };
            let own = format!("{path}.endpoints.{}.{key}", described.name);
            let common = format!("{path}.defaults.{key}");
            let said = loaded.layers.source(&own).or_else(|| loaded.layers.source(&common)).cloned();
            let source = said.or_else(|| from_policy.then(|| Source::Policy(description.name.clone())));
            row(text, loaded, &own, &value, Some(source.unwrap_or(Source::Default)));
        }
    }
}

type Row = (&'static str, String, Option<&'static str>);

fn endpoint_rows(endpoint: &Endpoint) -> Vec<Row> {
    let limits: Vec<String> = endpoint
        .limits
        .iter()
        .map(|quota| {
            format!("{{ requests = {}, period = {}, burst = {} }}", quota.requests, quoted(quota.period), quota.burst)
        })
        .collect();
    let mut rows = vec![
        ("attempt_timeout", quoted(endpoint.attempt_timeout), Some("attempt_timeout")),
        ("deadline", quoted(endpoint.deadline), Some("deadline")),
        ("retry.max_attempts", endpoint.retry.max_attempts.to_string(), Some("max_attempts")),
        ("retry.min_wait", quoted(endpoint.retry.min_wait), None),
        ("retry.max_wait", quoted(endpoint.retry.max_wait), None),
        ("budget.percent", endpoint.budget.percent.to_string(), None),
        ("budget.floor_per_second", endpoint.budget.floor_per_second.to_string(), None),
        ("budget.capacity", endpoint.budget.capacity.to_string(), None),
        ("limits", format!("[{}]", limits.join(", ")), Some("limits")),
    ];
    if let Some(most) = endpoint.concurrency {
        rows.push(("concurrency", most.to_string(), Some("concurrency")));
    }
    match &endpoint.breaker {
        None => rows.push(("breaker.enabled", "false".to_owned(), None)),
        Some(breaker) => rows.extend([
            ("breaker.failure_threshold", breaker.consecutive_failures.unwrap_or(0).to_string(), None),
            ("breaker.failure_rate", breaker.failure_rate_percent.unwrap_or(0).to_string(), None),
            ("breaker.window", quoted(breaker.window), None),
            ("breaker.minimum_calls", breaker.minimum_calls.to_string(), None),
            ("breaker.open_for", quoted(breaker.open_for), None),
            ("breaker.open_for_max", quoted(breaker.open_for_max), None),
            ("breaker.jitter", breaker.jitter_percent.to_string(), None),
            ("breaker.probes", breaker.probes.to_string(), None),
            ("breaker.probe_lease", quoted(breaker.probe_lease), None),
        ]),
    }
    rows
}

fn quoted(duration: std::time::Duration) -> String {
    format!("{:?}", written(duration))
}

fn row(text: &mut String, loaded: &Loaded, key: &str, value: &str, source: Option<Source>) {
    let source = source.or_else(|| loaded.layers.source(key).cloned()).unwrap_or(Source::Default);
    let _ = writeln!(text, "{:<90} # {source}", format!("{key} = {value}"));
}
