//! The table of all configuration keys. The loader, `config show` and the book's reference are derived from it.

use super::{
    spelling::{nearest, shown},
    value_type::Kind,
};
use std::fmt::Write as _;

/// The part of the configuration that a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Host,
    /// With the prefix `upstreams.NAME.`.
    Upstream,
    /// With the prefix `upstreams.NAME.defaults.` or `upstreams.NAME.endpoints.NAME.`.
    Endpoint,
    /// Only for an endpoint that the policy does not describe.
    Added,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) scope: Scope,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The default, written as in a variable; none if the key is unset.
    pub(super) default: Option<&'static str>,
    pub(super) meaning: &'static str,
}

impl Key {
    /// Whether SIGHUP applies a new value; otherwise a restart does.
    pub(super) fn is_reloaded(&self) -> bool {
        matches!(self.scope, Scope::Endpoint | Scope::Added) || RELOADED.contains(&self.name)
    }

    /// Whether the key takes `"off"`: that is its default, or the key is listed here.
    pub(super) fn may_be_off(&self) -> bool {
        self.default == Some("off")
            || matches!(
                self.name,
                "dns_refresh"
                    | "idempotency.orphans"
                    | "idempotency.tenant_header"
                    | "server.memory_limit"
                    | "admin.listen"
                    | "breaker.failure_threshold"
                    | "breaker.failure_rate"
            )
    }
}

/// Host and upstream keys that SIGHUP applies. It applies every endpoint key.
pub(super) const RELOADED: [&str; 18] = [
    "server.write_timeout",
    "server.idle_timeout",
    "server.max_header_bytes",
    "server.max_header_fields",
    "server.header_read_timeout",
    "server.drain",
    "server.shutdown_delay",
    "admin.read_token_file",
    "admin.write_token_file",
    "max_buffered_request",
    "redirects",
    "deadline_header",
    "overload.enabled",
    "overload.priority_header",
    "idempotency.keep",
    "idempotency.lock",
    "idempotency.max_request",
    "idempotency.max_response",
];

const fn key(
    scope: Scope,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Key {
    Key { scope, name, kind, default, meaning }
}

const U32: u64 = u32::MAX as u64;

use Scope::{Added, Endpoint, Host, Upstream};

#[rustfmt::skip]
pub(super) static KEYS: &[Key] = &[
    key(Host, "server.listen", Kind::Address, Some("127.0.0.1:8080"), "address that callers connect to"),
    key(Host, "server.workers", Kind::Workers, Some("auto"), "threads, each with a runtime of its own; `auto`: one per core"),
    key(Host, "server.max_connections", Kind::Count(1, 1_000_000), Some("10000"), "maximum of open connections"),
    key(Host, "server.max_requests", Kind::Count(1, 10_000_000), Some("20000"), "maximum of requests under way; a write counts until it ends, even if its caller disconnects"),
    key(Host, "server.max_abandoned", Kind::Count(1, 10_000_000), Some("1000"), "maximum of writes under way whose callers have disconnected (a reset stream, a closed connection); the host refuses further writes before it sends them"),
    key(Host, "server.max_streams", Kind::Count(1, 100_000), Some("256"), "maximum of requests under way on one connection; requests that the connection has reset count"),
    key(Host, "server.peer_share", Kind::Percent(1), Some("50"), "maximum share of the connections, the requests and the abandoned writes for one peer (an IPv4 address, an IPv6 /64 network), in percent; a proxy in front of the host is one peer"),
    key(Host, "server.write_timeout", Kind::Duration, Some("30s"), "time in which a caller must read some of a response; after it the host closes the stream, or the HTTP/1.1 connection"),
    key(Host, "server.idle_timeout", Kind::Duration, Some("60s"), "time after which the host closes a connection without a request, even if it answers pings; at `server.max_connections` the longest idle connection closes earlier"),
    key(Host, "server.max_header_bytes", Kind::Size(8 << 10), Some("64KiB"), "maximum bytes of a request's head"),
    key(Host, "server.max_header_fields", Kind::Count(16, 4096), Some("256"), "maximum header fields of a request; a request with more gets 431"),
    key(Host, "server.header_read_timeout", Kind::Duration, Some("10s"), "time in which a caller must send a request's head"),
    key(Host, "server.drain", Kind::Wait, Some("30s"), "time in which requests under way may finish when the host stops"),
    key(Host, "server.shutdown_delay", Kind::Wait, Some("0s"), "time before `server.drain` in which the host still accepts requests but reports not ready, so that load balancers stop sending"),
    key(Host, "server.reuse_port", Kind::Bool, Some("false"), "whether another process may listen on the same address, for example a new host that replaces an old one"),
    key(Host, "server.memory_limit", Kind::Memory, Some("auto"), "memory above which the host refuses requests, those of low priority from 80 % on; `auto`: the control group's limit less an eighth of it, at least 48 MiB; no limit outside a control group"),
    key(Host, "server.tls.certificate", Kind::File, None, "PEM file of the listeners' certificate chain; turns TLS on; read again when it changes, and on SIGHUP"),
    key(Host, "server.tls.key", Kind::File, None, "PEM file of the certificate's private key; read again when it changes, and on SIGHUP"),
    key(Host, "server.tls.client_ca", Kind::File, None, "PEM file of authorities; callers must show a certificate of one of them (mutual TLS); read again when it changes, and on SIGHUP"),
    key(Host, "admin.listen", Kind::Address, Some("127.0.0.1:9464"), "address of health, metrics and control, or `off`; an address that other machines reach needs a token"),
    key(Host, "admin.read_token_file", Kind::File, None, "file with the read token, read again when it changes; or TRIAGE_ADMIN_READ_TOKEN"),
    key(Host, "admin.write_token_file", Kind::File, None, "file with the write token, which allows reads and actions, read again when it changes; or TRIAGE_ADMIN_WRITE_TOKEN"),
    key(Host, "admin.explain", Kind::Count(0, 1_000_000), Some("512"), "requests that each worker keeps for `triage explain`, and as many again that had an incident (a retry, a refusal, a failure); 0: none"),
    key(Host, "admin.tls.certificate", Kind::File, None, "as `server.tls.certificate`, for the admin listener"),
    key(Host, "admin.tls.key", Kind::File, None, "as `server.tls.key`, for the admin listener"),
    key(Host, "admin.tls.client_ca", Kind::File, None, "as `server.tls.client_ca`, for the admin listener; without tokens, such a certificate gives full access"),
    key(Host, "telemetry.otlp.endpoint", Kind::Url, None, "URL of an OpenTelemetry collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; traces go to `/v1/traces` below it"),
    key(Host, "telemetry.otlp.traces_endpoint", Kind::Url, None, "URL that takes the traces, if it is not `/v1/traces` below `telemetry.otlp.endpoint`"),
    key(Host, "telemetry.otlp.share", Kind::Percent(0), Some("100"), "share of the requests that are traced, in percent; if the caller sends a `traceparent`, its sampled flag decides"),
    key(Host, "telemetry.otlp.service_name", Kind::Text, None, "`service.name` of the traces; unset: the one in `telemetry.otlp.resource_attributes`, or `triage`"),
    key(Host, "telemetry.otlp.resource_attributes", Kind::Texts, Some("{}"), "table of texts; every trace has these attributes, such as `{ \"deployment.environment.name\" = \"production\" }`"),
    key(Host, "policies.dir", Kind::File, None, "folder; NAME.wasm in it replaces the embedded policy NAME, at the start or later"),
    key(Host, "policies.poll", Kind::Duration, Some("2s"), "interval at which the host checks policy files where the system does not notify of changes"),
    key(Host, "policies.keys", Kind::Keys, Some("[]"), "minisign public keys (`RW...`, or paths of .pub files); if any is set, a component from a file or a registry must have a signature by one of them, NAME.wasm.minisig"),
    key(Host, "policies.registry_auth_file", Kind::File, None, "file with names and passwords of registries, a docker config.json; or its content in TRIAGE_REGISTRY_AUTH"),
    key(Host, "policies.cache", Kind::Bool, Some("true"), "whether compiled policies are cached for the next start"),
    key(Host, "policies.compile_memory", Kind::Size(64 << 20), Some("1GiB"), "maximum memory for compiling one policy, at most half of `server.memory_limit`; `triage serve` compiles in a child process and ends it there. The code may take half of it, at most 256 MiB"),
    key(Host, "policies.compile_time", Kind::Duration, Some("2m"), "maximum time for compiling one policy"),
    key(Host, "policies.cache_dir", Kind::File, None, "folder for compiled policies and for components from registries, accessible to this user only; unset: `triage/compiled` in $XDG_CACHE_HOME or ~/.cache"),
    key(Host, "state.url", Kind::State, Some("memory:"), "the state store: `memory:` is this process; the URL of a Redis or Valkey (`redis://`, `rediss://`, `unix://`, several addresses for a Cluster, `redis+sentinel://.../MASTER`) makes all hosts with that URL one fleet"),
    key(Host, "state.prefix", Kind::Prefix, Some("triage"), "prefix of every key in the state store; hosts with the same prefix are one fleet"),
    key(Host, "state.timeout", Kind::Duration, Some("20ms"), "maximum time of one call to shared state; after it the host continues without shared state"),
    key(Host, "state.quorum", Kind::Count(1, 1_000), Some("2"), "hosts that must see failures before the whole fleet's breaker opens (all hosts, if fewer are alive)"),
    key(Host, "state.required", Kind::Bool, Some("false"), "whether `/readyz` reports not ready while shared state cannot be reached"),
    key(Host, "state.writes_alone", Kind::Bool, Some("false"), "whether writes continue while shared state cannot be reached, with this host's own records only: another host, or this one if it began the write in shared state, may then send a write again; if not, they get 503"),
    key(Host, "state.after_loss", Kind::AfterLoss, Some("ask"), "after shared state has lost data, which matches without a claim a verification may adopt: `ask`, none for a request without evidence that it was sent (504 `effect-unknown` until an operator settles it); `adopt`, any that fits, so a request may get the result of an equal request"),
    key(Host, "state.record_memory", Kind::Size(1 << 20), Some("256MiB"), "memory for idempotency records, their stored responses and claims in this process, at most half of `server.memory_limit`; from 7/8 of it on the host refuses new keys, so that requests under way can still store their responses"),
    key(Host, "state.tenant_share", Kind::Percent(1), Some("50"), "maximum share of `state.record_memory` for one tenant, in percent, if tenants are distinguished: a tenant that uses up its share does not affect the others"),
    key(Host, "state.ca_file", Kind::File, None, "PEM file of authorities to trust for `rediss://` instead of the system's"),
    key(Host, "state.password_file", Kind::File, None, "file with the password, before one in the URL; or TRIAGE_STATE_PASSWORD"),
    key(Host, "state.key_file", Kind::File, None, "file with the key that encrypts stored responses in shared state, 32 bytes in hex or base64; or TRIAGE_STATE_KEY"),
    key(Host, "settlement.enabled", Kind::Bool, Some("true"), "whether the host verifies unknown writes in the background, without their callers; with shared state it needs a `state.key_file`, because shared state keeps their requests encrypted"),
    key(Host, "settlement.margin", Kind::Wait, Some("1h"), "how long the host verifies a write after its policy's `commit-within`: choose it longer than most outages; then the write stays unknown for an operator"),
    key(Host, "settlement.interval", Kind::Duration, Some("2s"), "interval between two searches for writes to verify, and the shortest time between two verifications of one write"),
    key(Host, "settlement.concurrency", Kind::Count(1, 1_000), Some("8"), "maximum of verifications at once at this host, within the limits of the verified endpoint"),
    key(Host, "settlement.max_request", Kind::Size(0), Some("64KiB"), "maximum bytes of a request's body that are kept for its verification; if the policy reads more, only the caller's next try settles the write"),
    key(Host, "settlement.notify", Kind::Url, None, "URL that receives a signed POST for every settled write: its record, upstream, endpoint, class and time, without the write's contents"),
    key(Host, "settlement.notify_key_file", Kind::File, None, "file with the key that signs the notices (HMAC-SHA256), at least 16 characters; or TRIAGE_SETTLEMENT_KEY"),

    key(Upstream, "base_url", Kind::Url, None, "scheme, host, port and path prefix of the API; required"),
    key(Upstream, "policy", Kind::Policy, Some("http-standard"), "embedded policy, the path of a component (relative to the configuration file's folder), or a component in a registry (`oci://HOST/REPOSITORY@sha256:DIGEST`)"),
    key(Upstream, "follow_fleet", Kind::Bool, Some("false"), "whether the fleet chooses which component of the policy's repository serves (`triage policy push --announce`): `policy` must be an `oci://` name, which serves until the fleet has chosen, and `state.url` a Redis"),
    key(Upstream, "candidate.policy", Kind::Policy, None, "candidate policy, tried beside the serving policy; its file may be added later"),
    key(Upstream, "candidate.mode", Kind::Mode, Some("shadow"), "`shadow`: the candidate decides after the serving policy, and the host only compares; `canary`: the candidate decides for a share of the requests"),
    key(Upstream, "candidate.share", Kind::Percent(1), Some("10"), "share of the requests for a canary, in percent, by the hash of a request's idempotency key, else of its x-request-id"),
    key(Upstream, "policy_settings", Kind::Json, Some("{}"), "table that the host passes to the policy's `configure`"),
    key(Upstream, "reuse_instances", Kind::Bool, Some("false"), "whether one policy instance serves many requests"),
    key(Upstream, "path_prefix", Kind::PathPrefix, None, "only requests below this path; the host removes it before it sends"),
    key(Upstream, "host", Kind::Host, None, "only requests with this `Host` header"),
    key(Upstream, "listen", Kind::Address, None, "only requests to this additional listener"),
    key(Upstream, "ca_file", Kind::File, None, "PEM file of authorities to trust instead of the system's"),
    key(Upstream, "connect_timeout", Kind::Duration, Some("3s"), "maximum time to connect"),
    key(Upstream, "idle_timeout", Kind::Duration, Some("30s"), "how long the host uses an idle connection for safe requests (for unsafe ones: under 4 s)"),
    key(Upstream, "max_idle", Kind::Count(0, 65_536), Some("256"), "idle connections kept for each core"),
    key(Upstream, "max_header_fields", Kind::Count(16, 4096), Some("256"), "maximum header fields of a response; with more the attempt fails (`protocol`), and a write is unknown"),
    key(Upstream, "dns_refresh", Kind::Duration, Some("5s"), "interval of DNS lookups of the upstream's name while requests arrive; after two lookups in a row with a new address the host opens new connections; or `off`"),
    key(Upstream, "http2_prior_knowledge", Kind::Bool, Some("false"), "use HTTP/2 without TLS or negotiation"),
    key(Upstream, "max_buffered_request", Kind::Size(0), Some("1MiB"), "body size above which the host streams a request once and never retries it"),
    key(Upstream, "redirects", Kind::Redirects, Some("rewrite"), "`rewrite`: `Location`, `Content-Location` and `Refresh` URLs of the upstream are rewritten to this host, with the address that the caller used; `pass`: they stay, and callers bypass this host"),
    key(Upstream, "deadline_header", Kind::Header, Some("triage-deadline-ms"), "request header with the caller's deadline"),
    key(Upstream, "overload.enabled", Kind::Bool, Some("true"), "whether the host limits concurrent attempts while the upstream is overloaded, and refuses requests above that limit, the lowest priority first"),
    key(Upstream, "overload.priority_header", Kind::Header, Some("triage-priority"), "request header with which a caller lowers its priority: `low` or `normal`"),
    key(Upstream, "idempotency.keep", Kind::Duration, Some("24h"), "how long a finished record is kept for replays"),
    key(Upstream, "idempotency.lock", Kind::Duration, Some("150s"), "how long an owner holds a record before the host counts it as crashed; grows to the longest deadline + 30 s; with shared state a host counts as crashed 15 s after its last heartbeat"),
    key(Upstream, "idempotency.max_request", Kind::Size(0), Some("1MiB"), "maximum body of a request with a key"),
    key(Upstream, "idempotency.max_response", Kind::Size(0), Some("1MiB"), "maximum response kept for replays"),
    key(Upstream, "idempotency.max_records", Kind::Count(1, 100_000_000), Some("1000000"), "maximum of records; above it the host refuses new keys. While unsettled records take half of it, a write without a key gets no record"),
    key(Upstream, "idempotency.record_status", Kind::Bool, Some("false"), "whether callers may read the status of their requests: a 504 `effect-unknown` names `/.triage/records/ID` in `Location`; else these paths are 404. They are never forwarded. Needs `idempotency.tenant_header`, whose value should be a secret of the caller, such as a token, and with shared state its key (`state.key_file`)"),
    key(Upstream, "idempotency.orphans", Kind::Duration, Some("10m"), "how long the host keeps a write without a key whose caller disconnected before the response; the next equal request adopts it; or `off`"),
    key(Upstream, "idempotency.max_orphans", Kind::Count(1, 100_000_000), Some("10000"), "maximum of writes without a key that are under way or kept; the host sends further ones without keeping them"),
    key(Upstream, "idempotency.tenant_header", Kind::Headers, Some("[\"authorization\", \"cookie\", \"api-key\", \"apikey\", \"ocp-apim-subscription-key\", \"x-api-key\", \"x-auth-token\"]"), "request header, or a list of them, whose values together identify the tenant: keys and kept writes belong to one tenant; if a credential changes between repetitions, name a header that does not change; `off`: all callers are one tenant. For a write without a key the credentials of the default always count"),
    key(Upstream, "idempotency.replay_set_cookie", Kind::Bool, Some("false"), "whether a replayed response has the `Set-Cookie` of the first one"),

    key(Endpoint, "attempt_timeout", Kind::Duration, Some("5s"), "maximum time of one attempt"),
    key(Endpoint, "deadline", Kind::Duration, Some("15s"), "maximum time of the whole request; grows to the attempt timeout + 10 s"),
    key(Endpoint, "leased", Kind::Bool, Some("false"), "with shared state: whether each host reserves permits of the limits ahead, in batches, so that most attempts need no call to shared state; limits too small for that stay exact"),
    key(Endpoint, "concurrency", Kind::Count(1, 1_000_000), Some("off"), "maximum of attempts under way"),
    key(Endpoint, "limits", Kind::Limits, Some("[]"), "rate limits; an attempt must pass all of them: `{ requests, period, burst }`, burst = requests by default; any time span admits at most burst plus requests / period times its length, so use a burst of 1 for an upstream that counts by fixed windows"),
    key(Endpoint, "limits_replace", Kind::Bool, Some("false"), "in a `group`: whether its `limits` replace those that the policy proposes for an endpoint; else an attempt must pass both. Outside a group, `limits` always replace them"),
    key(Endpoint, "retry_after_pauses", Kind::Bool, Some("false"), "whether a 503 with `Retry-After` pauses the whole group for that time, at most 5 min. Off: an unavailable resource or instance does not affect the others"),
    key(Endpoint, "adaptive_rate.enabled", Kind::Bool, Some("false"), "whether the host lowers its rate when the upstream throttles (429), and raises it again while the upstream answers; within `limits`, each host by itself"),
    key(Endpoint, "adaptive_rate.floor_per_minute", Kind::Count(1, 1_000_000), Some("6"), "minimum of the adaptive rate, in requests a minute"),
    key(Endpoint, "adaptive_rate.rise_per_minute", Kind::Count(1, 100_000_000), Some("600"), "increase of the adaptive rate within a minute, in requests a minute; must be equal at all hosts of a fleet"),
    key(Endpoint, "group", Kind::Name, None, "endpoints of one group share breaker, budget and limits"),
    key(Endpoint, "effect", Kind::Effect, None, "effect of a request: `safe`, `idempotent` or `unsafe`; overrides method and policy"),
    key(Endpoint, "priority", Kind::Priority, None, "priority while the upstream is overloaded: `low`, `normal` or `high`; unset: `normal` for safe requests, `high` for others"),
    key(Endpoint, "settle", Kind::Bool, None, "whether the policy is trusted to settle unknown writes; embedded policies are, others are not"),
    key(Endpoint, "upstream_key.header", Kind::Header, Some("off"), "request header for the upstream's idempotency key, such as `Idempotency-Key`: each attempt of an unsafe request carries the same key, and a request with unknown effect is sent again with it; or `off`"),
    key(Endpoint, "upstream_key.valid_for", Kind::Duration, Some("24h"), "how long the upstream keeps a key, counted from the first send; after that the host does not send the request again"),
    key(Endpoint, "upstream_key.generate", Kind::Bool, Some("true"), "whether the host creates a key for a request without one"),
    key(Endpoint, "retry.max_attempts", Kind::Count(1, 100), Some("3"), "maximum of attempts for a request, the first one included"),
    key(Endpoint, "retry.min_wait", Kind::Wait, Some("2s"), "shortest wait before a retry if the upstream gives no hint"),
    key(Endpoint, "retry.max_wait", Kind::Wait, Some("10s"), "longest wait before a retry if the upstream gives no hint"),
    key(Endpoint, "budget.percent", Kind::Percent(0), Some("20"), "retries that the budget gains, in percent of first attempts"),
    key(Endpoint, "budget.floor_per_second", Kind::Count(0, U32), Some("3"), "retries a second that the budget gains independent of traffic"),
    key(Endpoint, "budget.capacity", Kind::Count(1, U32), Some("100"), "maximum of saved retries"),
    key(Endpoint, "breaker.enabled", Kind::Bool, Some("true"), "whether the group has a breaker"),
    key(Endpoint, "breaker.failure_threshold", Kind::Count(1, U32), Some("5"), "failures in a row that trip it, or `off`"),
    key(Endpoint, "breaker.failure_rate", Kind::Percent(1), Some("50"), "failure rate in the window that trips it, in percent, or `off`"),
    key(Endpoint, "breaker.baseline", Kind::Percent(1), Some("off"), "percentage points above the endpoint's usual failure rate that trip it; replaces `failure_rate` once the usual rate is known; or `off`. With `state.url = \"memory:\"` only"),
    key(Endpoint, "breaker.slow_call_after", Kind::Duration, Some("off"), "time after which a call counts as slow, or `off`"),
    key(Endpoint, "breaker.slow_rate", Kind::Percent(1), Some("80"), "rate of slow calls in the window that trips it, in percent"),
    key(Endpoint, "breaker.window", Kind::Duration, Some("30s"), "length of the sliding window"),
    key(Endpoint, "breaker.minimum_calls", Kind::Count(1, U32), Some("20"), "minimum of calls in the window before a rate counts"),
    key(Endpoint, "breaker.open_for", Kind::Duration, Some("60s"), "how long it stays open after the first trip"),
    key(Endpoint, "breaker.open_for_max", Kind::Duration, Some("5m"), "maximum open time; each failed probe doubles the time up to this"),
    key(Endpoint, "breaker.jitter", Kind::Percent(0), Some("10"), "random part of the open time (jitter), in percent"),
    key(Endpoint, "breaker.probes", Kind::Count(1, 1_000), Some("1"), "maximum of concurrent probes, and successes in a row that close it"),
    key(Endpoint, "breaker.probe_lease", Kind::Duration, Some("35s"), "how long a probe holds its permit; grows to the attempt timeout + 5 s"),
    key(Endpoint, "breaker.settled", Kind::Settled, Some("ignore"), "how the breaker counts a failed attempt whose write a verification has found applied: `ignore`, or `failure`"),
    key(Endpoint, "breaker.interop", Kind::Interop, Some("off"), "`pybreaker`: share the breaker with Python workers, through pybreaker's keys in the Redis of `state.url`"),
    key(Endpoint, "breaker.interop_namespace", Kind::Namespace, Some("off"), "`namespace` of the Python workers' CircuitRedisStorage, or `off` for none; each group needs its own. On a Cluster it needs a hash tag"),

    key(Added, "method", Kind::Method, None, "method of an endpoint that the policy does not describe, or `*` for all"),
    key(Added, "path", Kind::Template, None, "URI template of an endpoint that the policy does not describe"),
];

/// The table that a value belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Host,
    Upstream(String),
    Defaults(String),
    Endpoint(String, String),
}

/// The meaning of a key path.
#[derive(Debug)]
pub(super) enum KeyScope {
    Leaf(Owner, &'static Key),
    /// A table of keys.
    Branch,
    /// An upstream's table.
    Upstream(String),
    /// An endpoint's table.
    Endpoint(String, String),
    /// Not a key; the nearest known path, if any.
    Unknown(Option<String>),
}

/// Resolves a key path.
pub(super) fn scope(path: &[String]) -> KeyScope {
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] | ["upstreams"] | ["upstreams", _, "defaults" | "endpoints"] => KeyScope::Branch,
        ["upstreams", name] => KeyScope::Upstream((*name).to_owned()),
        ["upstreams", name, "endpoints", endpoint] => KeyScope::Endpoint((*name).to_owned(), (*endpoint).to_owned()),
        ["upstreams", name, "defaults", rest @ ..] => {
            within(&[Endpoint], &[], rest, Owner::Defaults((*name).to_owned()), &format!("upstreams.{name}.defaults."))
        }
        ["upstreams", name, "endpoints", endpoint, rest @ ..] => {
            let owner = Owner::Endpoint((*name).to_owned(), (*endpoint).to_owned());
            within(&[Endpoint, Added], &[], rest, owner, &format!("upstreams.{name}.endpoints.{endpoint}."))
        }
        ["upstreams", name, rest @ ..] => {
            let before = format!("upstreams.{name}.");
            let found =
                within(&[Upstream], &["defaults", "endpoints"], rest, Owner::Upstream((*name).to_owned()), &before);
            // An endpoint's key, one level too high.
            match (found, within(&[Endpoint], &[], rest, Owner::Host, "")) {
                (KeyScope::Unknown(_), KeyScope::Leaf(..) | KeyScope::Branch) => {
                    KeyScope::Unknown(Some(format!("{before}defaults.{}", rest.join("."))))
                }
                (found, _) => found,
            }
        }
        rest => within(&[Host], &["upstreams"], rest, Owner::Host, ""),
    }
}

fn within(scopes: &[Scope], branches: &[&'static str], rest: &[&str], owner: Owner, before: &str) -> KeyScope {
    let wanted = rest.join(".");
    let keys = || KEYS.iter().filter(|key| scopes.contains(&key.scope));
    if let Some(key) = keys().find(|key| key.name == wanted) {
        return KeyScope::Leaf(owner, key);
    }
    let table = format!("{wanted}.");
    if keys().any(|key| key.name.starts_with(&table)) {
        return KeyScope::Branch;
    }
    let names = keys().map(|key| key.name).chain(keys().filter_map(|key| Some(key.name.split_once('.')?.0)));
    let near = nearest(&wanted, names.chain(branches.iter().copied()));
    KeyScope::Unknown(near.map(|near| format!("{before}{near}")))
}

/// A key path as text.
pub(super) fn joined(path: &[String]) -> String {
    path.iter().map(|segment| shown(segment)).collect::<Vec<_>>().join(".")
}

/// A Markdown table of every key with default and meaning: the configuration reference of the book.
pub fn reference() -> String {
    let mut table = String::from("| key | default | reload | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let before = match key.scope {
            Host => "",
            Upstream => "upstreams.NAME.",
            Endpoint => "... .",
            Added => "upstreams.NAME.endpoints.NAME.",
        };
        let name = format!("{before}{}", key.name).replace("... .", "… ");
        let default = key.default.map_or(String::new(), |default| format!("`{default}`"));
        let reload = if key.is_reloaded() { "yes" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {default} | {reload} | {} |", key.meaning);
    }
    table.push_str(
        "\nAfter SIGHUP a changed key takes effect if its row says so; the others need a restart.\n`…` stands for `upstreams.NAME.defaults.` (every endpoint) and for `upstreams.NAME.endpoints.NAME.` (one of them).\n",
    );
    table
}
