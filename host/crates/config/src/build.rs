//! Builds the settings from the merged draft.

use super::{
    builder::{Draft, UpstreamDraft},
    merge,
    problem::Problem,
    pybreaker, resolve,
    schema::Scope,
    settings::{
        Admin, Candidate, EndpointOverride, Mode, Policies, PolicySource, READ_TOKEN, REGISTRY_AUTH, RecordMemory,
        Redirects, SETTLEMENT_KEY, STATE_KEY, STATE_PASSWORD, Server, Settings, State, Tls, Upstream, WRITE_TOKEN,
    },
    validate,
    value::Values,
};
use crate::{
    idempotency,
    policy::CachePaths,
    redis::{self, Address},
    secret::{Secret, TokenSource},
    settlement,
    telemetry::Target,
    upstream,
};
use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

/// Builds the settings and collects conflicts between values.
pub(super) fn settings(draft: Draft, environment: &[(String, String)]) -> (Settings, Vec<Problem>) {
    let Draft { host, upstreams, mut problems, .. } = draft;
    let mut stated = merge::table_defaults(Scope::Host);
    stated.cover(&host);
    if upstreams.is_empty() {
        let must_be = "at least one upstream: give --upstream URL, or base_url below [upstreams.NAME]";
        problems.push(Problem::value("upstreams", "none", must_be));
    }
    let built = upstreams.into_iter().map(|(name, draft)| upstream(name, draft, &mut problems)).collect();
    let settings = Settings {
        server: server(&stated),
        admin: admin(&stated, environment),
        traces: traces(&stated),
        policies: policies(&stated, environment),
        settlement: settlement(&stated, environment),
        state: state(&stated, environment),
        records: records(&stated),
        upstreams: built,
        stated,
    };
    problems.extend(validate::upstreams(&settings));
    problems.extend(validate::fleet(&settings));
    problems.extend(pybreaker::stated(&settings));
    problems.extend(validate::baselines(&settings));
    problems.extend(validate::admin(&settings));
    problems.extend(validate::tls(&settings.stated));
    problems.extend(validate::record_status(&settings));
    problems.extend(validate::settlement(&settings));
    (settings, problems)
}

/// A listener's TLS settings, if certificate and key are both given. `validate::tls` reports one without the other.
fn tls(stated: &Values, certificate: &str, key: &str, client_ca: &str) -> Option<Tls> {
    Some(Tls { certificate: stated.read(certificate)?, key: stated.read(key)?, client_ca: stated.read(client_ca) })
}

pub(super) fn server(stated: &Values) -> Server {
    let mut server = Server {
        listen: (Ipv4Addr::LOCALHOST, 8080).into(),
        workers: 1,
        max_connections: 10_000,
        max_requests: 20_000,
        max_abandoned: 1000,
        max_streams: 256,
        peer_share_percent: 50,
        write_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_mins(1),
        max_header_bytes: 64 << 10,
        max_header_fields: 256,
        header_read_timeout: Duration::from_secs(10),
        drain: Duration::from_secs(30),
        shutdown_delay: Duration::ZERO,
        memory_limit: None,
        reuse_port: false,
        tls: tls(stated, "server.tls.certificate", "server.tls.key", "server.tls.client_ca"),
    };
    stated.fill("server.listen", &mut server.listen);
    stated.fill("server.workers", &mut server.workers);
    stated.fill("server.max_connections", &mut server.max_connections);
    stated.fill("server.max_requests", &mut server.max_requests);
    stated.fill("server.max_abandoned", &mut server.max_abandoned);
    stated.fill("server.max_streams", &mut server.max_streams);
    stated.fill("server.peer_share", &mut server.peer_share_percent);
    stated.fill("server.write_timeout", &mut server.write_timeout);
    stated.fill("server.idle_timeout", &mut server.idle_timeout);
    stated.fill("server.max_header_bytes", &mut server.max_header_bytes);
    stated.fill("server.max_header_fields", &mut server.max_header_fields);
    stated.fill("server.header_read_timeout", &mut server.header_read_timeout);
    stated.fill("server.drain", &mut server.drain);
    stated.fill("server.shutdown_delay", &mut server.shutdown_delay);
    stated.fill("server.memory_limit", &mut server.memory_limit);
    stated.fill("server.reuse_port", &mut server.reuse_port);
    server
}

/// A secret from the environment overrides one from a file, as every variable does.
fn secret(stated: &Values, environment: &[(String, String)], key: &str, variable: &str) -> Option<TokenSource> {
    let found = environment.iter().rev().find(|(name, value)| name == variable && !value.trim().is_empty());
    let held = found.map(|(_, value)| TokenSource::Environment(Secret::new(value.trim())));
    held.or_else(|| stated.read(key).map(TokenSource::File))
}

fn state(stated: &Values, environment: &[(String, String)]) -> State {
    let Some(address) = stated.read::<Option<Address>>("state.url").flatten() else { return State::Memory };
    let mut shared = redis::Settings {
        ca_file: stated.read("state.ca_file"),
        password: secret(stated, environment, "state.password_file", STATE_PASSWORD),
        key: secret(stated, environment, "state.key_file", STATE_KEY),
        ..redis::Settings::new(address)
    };
    stated.fill("state.prefix", &mut shared.prefix);
    stated.fill("state.timeout", &mut shared.timeout);
    stated.fill("state.quorum", &mut shared.quorum);
    stated.fill("state.required", &mut shared.required);
    stated.fill("state.writes_alone", &mut shared.writes_alone);
    stated.fill("state.after_loss", &mut shared.after_loss);
    State::Shared(Box::new(shared))
}

fn records(stated: &Values) -> RecordMemory {
    let mut records = RecordMemory::default();
    stated.fill("state.record_memory", &mut records.max_bytes);
    stated.fill("state.tenant_share", &mut records.tenant_share_percent);
    records
}

fn admin(stated: &Values, environment: &[(String, String)]) -> Admin {
    let token = |key: &str, variable: &str| secret(stated, environment, key, variable);
    let mut admin = Admin {
        listen: None,
        read_token: token("admin.read_token_file", READ_TOKEN),
        write_token: token("admin.write_token_file", WRITE_TOKEN),
        explain: 512,
        tls: tls(stated, "admin.tls.certificate", "admin.tls.key", "admin.tls.client_ca"),
    };
    stated.fill("admin.listen", &mut admin.listen);
    stated.fill("admin.explain", &mut admin.explain);
    admin
}

fn traces(stated: &Values) -> Option<Target> {
    let below = || {
        let collector: http::Uri = stated.read("telemetry.otlp.endpoint")?;
        format!("{}/v1/traces", collector.to_string().trim_end_matches('/')).parse().ok()
    };
    let endpoint = stated.read("telemetry.otlp.traces_endpoint").or_else(below)?;
    let mut target = Target::new(endpoint);
    stated.fill("telemetry.otlp.share", &mut target.share_percent);
    let attributes: Option<serde_json::Value> = stated.read("telemetry.otlp.resource_attributes");
    let attributes = attributes.as_ref().and_then(serde_json::Value::as_object).into_iter().flatten();
    target.resource.extend(attributes.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))));
    let service: Option<String> = stated.read("telemetry.otlp.service_name");
    target.resource.extend(service.map(|name| ("service.name".to_owned(), name)));
    Some(target)
}

/// Compiled code is cached in the user's cache folder. The key that seals it is kept apart, in the state folder.
fn policies(stated: &Values, environment: &[(String, String)]) -> Policies {
    let variable = |name: &str| {
        let found = environment.iter().find(|(own, value)| own == name && !value.is_empty());
        found.map(|(_, value)| PathBuf::from(value))
    };
    let wanted = stated.read("policies.cache").unwrap_or(true);
    let folders = CachePaths::of_user(stated.read("policies.cache_dir"), variable);
    let mut poll = Duration::from_secs(2);
    stated.fill("policies.poll", &mut poll);
    let mut compile_memory_bytes = 1 << 30;
    let mut compile_time = Duration::from_mins(2);
    stated.fill("policies.compile_memory", &mut compile_memory_bytes);
    stated.fill("policies.compile_time", &mut compile_time);
    Policies {
        compiler: None,
        compile_memory_bytes,
        compile_time,
        cache: folders.filter(|_| wanted),
        dir: stated.read("policies.dir"),
        poll,
        keys: stated.read("policies.keys").unwrap_or_default(),
        registry_auth: secret(stated, environment, "policies.registry_auth_file", REGISTRY_AUTH),
    }
}

fn settlement(stated: &Values, environment: &[(String, String)]) -> settlement::Settings {
    let mut settlement = settlement::Settings::default();
    stated.fill("settlement.enabled", &mut settlement.enabled);
    stated.fill("settlement.margin", &mut settlement.margin);
    stated.fill("settlement.interval", &mut settlement.interval);
    stated.fill("settlement.concurrency", &mut settlement.concurrency);
    stated.fill("settlement.max_request", &mut settlement.max_request_bytes);
    let key = secret(stated, environment, "settlement.notify_key_file", SETTLEMENT_KEY);
    settlement.notify = stated.read("settlement.notify").map(|url| settlement::Target { url, key });
    settlement
}

fn upstream(name: String, draft: UpstreamDraft, problems: &mut Vec<Problem>) -> Upstream {
    let UpstreamDraft { own, defaults, endpoints, has_base_url } = draft;
    let path = format!("upstreams.{name}");
    if !has_base_url {
        let must_be = "the URL of the API, such as \"http://127.0.0.1:8000\"";
        problems.push(Problem::value(format!("{path}.base_url"), "nothing", must_be));
    }
    let mut stated = merge::table_defaults(Scope::Upstream);
    stated.cover(&own);
    let endpoints = endpoints.into_iter().map(|(name, values)| EndpointOverride { name, values }).collect();
    let mut settings = upstream_of(name, stated, defaults, endpoints);
    if settings.candidate.as_ref().is_some_and(|candidate| candidate.policy == settings.policy) {
        let got = settings.policy.to_string();
        let must_be = "a policy other than the upstream's own";
        problems.push(Problem::value(format!("{path}.candidate.policy"), got, must_be));
    }
    fit(&path, &mut settings, problems);
    settings
}

/// An upstream's settings from its values.
fn upstream_of(name: String, stated: Values, defaults: Values, endpoints: Vec<EndpointOverride>) -> Upstream {
    // A missing base URL is already a problem, so these settings are discarded.
    let base_url = stated.read("base_url").unwrap_or_default();
    let mut settings = Upstream {
        connection: connection(&stated, base_url),
        path_prefix: stated.read("path_prefix").and_then(|prefix: String| {
            let prefix = prefix.trim_end_matches('/');
            (!prefix.is_empty()).then(|| prefix.to_owned())
        }),
        host: stated.read("host"),
        listen: stated.read("listen"),
        policy: PolicySource::Builtin,
        follow_fleet: false,
        candidate: stated.read("candidate.policy").map(|policy| Candidate {
            policy,
            mode: stated.read("candidate.mode").unwrap_or(Mode::Shadow),
            share_percent: stated.read("candidate.share").unwrap_or(10),
        }),
        policy_settings: stated
            .read("policy_settings")
            .map_or("{}".to_owned(), |json: serde_json::Value| json.to_string()),
        reuse_instances: false,
        max_buffered_request_bytes: 1 << 20,
        redirects: Redirects::Rewrite,
        deadline_header: http::HeaderName::from_static("triage-deadline-ms"),
        sheds_overload: true,
        priority_header: http::HeaderName::from_static("triage-priority"),
        idempotency: keys(&stated),
        defaults,
        endpoints,
        stated,
        name,
    };
    settings.stated.fill("policy", &mut settings.policy);
    settings.stated.fill("follow_fleet", &mut settings.follow_fleet);
    settings.stated.fill("reuse_instances", &mut settings.reuse_instances);
    settings.stated.fill("max_buffered_request", &mut settings.max_buffered_request_bytes);
    settings.stated.fill("redirects", &mut settings.redirects);
    settings.stated.fill("deadline_header", &mut settings.deadline_header);
    settings.stated.fill("overload.enabled", &mut settings.sheds_overload);
    settings.stated.fill("overload.priority_header", &mut settings.priority_header);
    settings
}

/// Builds an upstream from values merged with those of another configuration.
pub(super) fn upstream_again(
    name: &str,
    stated: Values,
    defaults: Values,
    endpoints: Vec<EndpointOverride>,
) -> Upstream {
    let mut settings = upstream_of(name.to_owned(), stated, defaults, endpoints);
    // Conflicts were already reported when the new configuration was loaded.
    fit(&format!("upstreams.{name}"), &mut settings, &mut Vec::new());
    settings
}

/// Checks the endpoints as far as possible without the policy, and extends the record lock beyond their deadlines.
fn fit(path: &str, settings: &mut Upstream, problems: &mut Vec<Problem>) {
    let mut check = |own: Option<&EndpointOverride>| {
        let values = merge::merged(&Values::default(), &settings.defaults, own.map(|own| &own.values));
        let path = own.map_or_else(|| format!("{path}.defaults"), |own| format!("{path}.endpoints.{}", own.name));
        problems.extend(validate::endpoint(&path, &values, own.map(|own| &own.values)));
        if own.is_none_or(|own| own.values.get("deadline").is_some()) {
            problems.extend(validate::lock(&settings.name, &settings.stated, &path, &values));
        }
        resolve::lock_for(&values)
    };
    let longest = settings.endpoints.iter().map(|own| check(Some(own))).fold(Duration::ZERO, Duration::max);
    let longest = longest.max(check(None));
    if !settings.stated.is_operators("idempotency.lock") {
        settings.idempotency.lock = settings.idempotency.lock.max(longest);
    }
}

fn connection(stated: &Values, base_url: http::Uri) -> upstream::Settings {
    let mut connection = upstream::Settings::new(base_url);
    connection.ca_file = stated.read("ca_file");
    stated.fill("connect_timeout", &mut connection.connect_timeout);
    stated.fill("idle_timeout", &mut connection.idle_timeout);
    stated.fill("max_idle", &mut connection.max_idle);
    stated.fill("max_header_fields", &mut connection.max_header_fields);
    stated.fill("dns_refresh", &mut connection.dns_refresh);
    stated.fill("http2_prior_knowledge", &mut connection.http2_prior_knowledge);
    connection
}

fn keys(stated: &Values) -> idempotency::Settings {
    let mut keys = idempotency::Settings::default();
    stated.fill("idempotency.keep", &mut keys.keep);
    stated.fill("idempotency.lock", &mut keys.lock);
    stated.fill("idempotency.max_request", &mut keys.max_request_bytes);
    stated.fill("idempotency.max_response", &mut keys.max_response_bytes);
    stated.fill("idempotency.max_records", &mut keys.max_records);
    stated.fill("idempotency.record_status", &mut keys.record_status);
    stated.fill("idempotency.orphans", &mut keys.orphans);
    stated.fill("idempotency.max_orphans", &mut keys.max_orphans);
    let mut tenant: Option<Vec<http::HeaderName>> = Some(std::mem::take(&mut keys.tenant_headers));
    stated.fill("idempotency.tenant_header", &mut tenant);
    keys.tenant_headers = tenant.unwrap_or_default();
    stated.fill("idempotency.replay_set_cookie", &mut keys.replay_set_cookie);
    keys
}
