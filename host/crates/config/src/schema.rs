//! The table of all configuration keys. The loader, `config show` and the book's reference are derived from it.

use super::{value::is_bare, value_type::Kind};
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
    key(Host, "server.workers", Kind::Workers, Some("auto"), "threads, each with a runtime of its own; `auto`: one a core"),
    key(Host, "server.max_connections", Kind::Count(1, 1_000_000), Some("10000"), "connections at once"),
    key(Host, "server.max_requests", Kind::Count(1, 10_000_000), Some("20000"), "requests under way at once; a write counts until it has ended, also when its caller has gone"),
    key(Host, "server.max_abandoned", Kind::Count(1, 10_000_000), Some("1000"), "writes under way at once whose callers have gone (a reset stream, a closed connection); further writes are refused before they are sent"),
    key(Host, "server.max_streams", Kind::Count(1, 100_000), Some("256"), "requests under way at once on one connection, those counted that it has reset"),
    key(Host, "server.peer_share", Kind::Percent(1), Some("50"), "share of the connections, of the requests and of the abandoned writes that one peer (an IPv4 address, an IPv6 /64 network) may take, in percent; a proxy in front of the host is one peer"),
    key(Host, "server.write_timeout", Kind::Duration, Some("30s"), "time in which a caller must read some of an answer; else its stream, or its HTTP/1.1 connection, is closed"),
    key(Host, "server.idle_timeout", Kind::Duration, Some("60s"), "time after which a connection without a request is closed, however often it answers pings; where connections are scarce, the one that is quiet for longest goes earlier"),
    key(Host, "server.max_header_bytes", Kind::Size(8 << 10), Some("64KiB"), "bytes of a request's head"),
    key(Host, "server.max_header_fields", Kind::Count(16, 4096), Some("256"), "header fields of a request; above that 431"),
    key(Host, "server.header_read_timeout", Kind::Duration, Some("10s"), "time a caller may take to send a request's head"),
    key(Host, "server.drain", Kind::Wait, Some("30s"), "time that requests under way get when the host stops"),
    key(Host, "server.shutdown_delay", Kind::Wait, Some("0s"), "time before that in which it still accepts and says that it is not ready, so that balancers turn away"),
    key(Host, "server.reuse_port", Kind::Bool, Some("false"), "whether another process may listen on the same address, as when a new host takes over from an old one"),
    key(Host, "server.memory_limit", Kind::Memory, Some("auto"), "memory above which requests are refused, those of low priority from 80 % on; `auto`: the control group's limit less an eighth of it, at least 48 MiB, or none without one"),
    key(Host, "server.tls.certificate", Kind::File, None, "PEM file of the listeners' certificate chain; makes them speak TLS; read again when it changes, and on SIGHUP"),
    key(Host, "server.tls.key", Kind::File, None, "PEM file of its private key; read again too"),
    key(Host, "server.tls.client_ca", Kind::File, None, "PEM file of authorities of which callers must have a certificate (mutual TLS); read again too"),
    key(Host, "admin.listen", Kind::Address, Some("127.0.0.1:9464"), "address of health, metrics and control, or `off`; beyond this machine it needs a token"),
    key(Host, "admin.read_token_file", Kind::File, None, "file with the token that may look, read again when it changes; or TRIAGE_ADMIN_READ_TOKEN"),
    key(Host, "admin.write_token_file", Kind::File, None, "file with the token that may look and act, read again too; or TRIAGE_ADMIN_WRITE_TOKEN"),
    key(Host, "admin.explain", Kind::Count(0, 1_000_000), Some("512"), "requests that each worker keeps for `triage explain`, and as many again that did not go smoothly; 0: none"),
    key(Host, "admin.tls.certificate", Kind::File, None, "the same for the admin listener"),
    key(Host, "admin.tls.key", Kind::File, None, "the same"),
    key(Host, "admin.tls.client_ca", Kind::File, None, "the same; whoever has such a certificate needs no token where there is none"),
    key(Host, "telemetry.otlp.endpoint", Kind::Url, None, "URL of an OpenTelemetry collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; traces go to `/v1/traces` below it"),
    key(Host, "telemetry.otlp.share", Kind::Percent(0), Some("100"), "share of the requests that are traced, in percent; where a caller sends a `traceparent`, that decides"),
    key(Host, "policies.dir", Kind::File, None, "folder whose NAME.wasm takes the place of the embedded policy NAME, now or at any time later"),
    key(Host, "policies.poll", Kind::Duration, Some("2s"), "how often policy files are looked at where the system tells of no change"),
    key(Host, "policies.keys", Kind::Keys, Some("[]"), "minisign public keys (`RW...`, or paths of .pub files): where there are any, a component from a file or a registry must come with a signature of one of them, NAME.wasm.minisig"),
    key(Host, "policies.registry_auth_file", Kind::File, None, "file with names and passwords of registries, a docker config.json; or the same in TRIAGE_REGISTRY_AUTH"),
    key(Host, "policies.cache", Kind::Bool, Some("true"), "whether compiled policies are kept for the next start"),
    key(Host, "policies.compile_memory", Kind::Size(64 << 20), Some("1GiB"), "memory that compiling one policy may take, at most half of `server.memory_limit`; `triage serve` compiles in a process of its own and ends it there. The code may take half of it, at most 256 MiB"),
    key(Host, "policies.compile_time", Kind::Duration, Some("2m"), "time that compiling one policy may take"),
    key(Host, "policies.cache_dir", Kind::File, None, "folder for them and for components from registries, of this user alone; unset: `triage/compiled` in $XDG_CACHE_HOME or ~/.cache"),
    key(Host, "state.url", Kind::State, Some("memory:"), "where state is kept: `memory:` is this process; the URL of a Redis or Valkey (`redis://`, `rediss://`, `unix://`, several addresses for a Cluster, `redis+sentinel://.../MASTER`) makes all hosts that name it one fleet"),
    key(Host, "state.prefix", Kind::Prefix, Some("triage"), "what every key there begins with; hosts with the same one are a fleet"),
    key(Host, "state.timeout", Kind::Duration, Some("20ms"), "longest time that one step of shared state may cost a request; then this host goes on by itself"),
    key(Host, "state.quorum", Kind::Count(1, 1_000), Some("2"), "hosts that must see failures before the whole fleet's breaker opens (all, where fewer live)"),
    key(Host, "state.required", Kind::Bool, Some("false"), "whether `/readyz` says no while shared state cannot be reached"),
    key(Host, "state.writes_alone", Kind::Bool, Some("false"), "whether writes go on while shared state cannot be reached, by this host's own records alone: another host, or this one where it began it in shared state, may then send one again; else they get 503"),
    key(Host, "state.after_loss", Kind::AfterLoss, Some("ask"), "after a loss of its data, what a verification may adopt of what no claim names: `ask`, nothing for a request of which no host knows that it was sent (504 `effect-unknown` until an operator settles it); `adopt`, anything that fits, so that a request may be given what an equal one made"),
    key(Host, "state.record_memory", Kind::Size(1 << 20), Some("256MiB"), "memory that idempotency records, their stored answers and claims may take in this process, at most half of `server.memory_limit`; from 7/8 of it on new keys are refused, so that requests under way can still store their answers"),
    key(Host, "state.tenant_share", Kind::Percent(1), Some("50"), "share of that memory that one tenant may take, in percent, where tenants are told apart: one that fills its share leaves the others theirs"),
    key(Host, "state.ca_file", Kind::File, None, "PEM file of authorities to trust for `rediss://` instead of the system's"),
    key(Host, "state.password_file", Kind::File, None, "file with the password, before one in the URL; or TRIAGE_STATE_PASSWORD"),
    key(Host, "state.key_file", Kind::File, None, "file with the key that seals stored answers there, 32 bytes in hex or base64; or TRIAGE_STATE_KEY"),
    key(Host, "settlement.enabled", Kind::Bool, Some("true"), "whether writes that were left unknown are verified in the background, without their callers; with shared state it takes a `state.key_file`, as what they asked is kept there sealed"),
    key(Host, "settlement.margin", Kind::Wait, Some("1h"), "how long a write is verified after its policy's `commit-within`: longer than most outages; then it stays unknown for an operator"),
    key(Host, "settlement.interval", Kind::Duration, Some("2s"), "between two looks for writes to verify, and the shortest time between two verifications of one"),
    key(Host, "settlement.concurrency", Kind::Count(1, 1_000), Some("8"), "writes that this host verifies at once, within the limits of the endpoint that is asked"),
    key(Host, "settlement.max_request", Kind::Size(0), Some("64KiB"), "most of a request's body that is kept to verify it; where the policy reads more, only the caller's next try settles the write"),
    key(Host, "settlement.notify", Kind::Url, None, "URL that is told of every settled write by POST, signed: its record, upstream, endpoint, class and time, and nothing of what it holds"),
    key(Host, "settlement.notify_key_file", Kind::File, None, "file with the key that signs these (HMAC-SHA256), at least 16 characters; or TRIAGE_SETTLEMENT_KEY"),

    key(Upstream, "base_url", Kind::Url, None, "scheme, host, port and path prefix of the API; required"),
    key(Upstream, "policy", Kind::Policy, Some("http-standard"), "embedded policy, the path of a component (from the file's folder), or a component in a registry (`oci://HOST/REPOSITORY@sha256:DIGEST`)"),
    key(Upstream, "follow_fleet", Kind::Bool, Some("false"), "whether the fleet says which component of the policy's repository serves (`triage policy push --announce`): `policy` must be an `oci://` name, which serves until the fleet has said something, and `state.url` a Redis"),
    key(Upstream, "candidate.policy", Kind::Policy, None, "policy that is tried beside it; its file may come later"),
    key(Upstream, "candidate.mode", Kind::Mode, Some("shadow"), "`shadow`: it decides after the other one and is only compared; `canary`: it decides for a share of the requests"),
    key(Upstream, "candidate.share", Kind::Percent(1), Some("10"), "that share, in percent, by the hash of a request's idempotency key, else of its x-request-id"),
    key(Upstream, "policy_settings", Kind::Json, Some("{}"), "table handed to the policy's `configure`"),
    key(Upstream, "reuse_instances", Kind::Bool, Some("false"), "whether one policy instance serves many requests"),
    key(Upstream, "path_prefix", Kind::PathPrefix, None, "only requests below this path; it is taken off"),
    key(Upstream, "host", Kind::Host, None, "only requests with this `Host`"),
    key(Upstream, "listen", Kind::Address, None, "only requests to this further listener"),
    key(Upstream, "ca_file", Kind::File, None, "PEM file of authorities to trust instead of the system's"),
    key(Upstream, "connect_timeout", Kind::Duration, Some("3s"), "limit on making a connection"),
    key(Upstream, "idle_timeout", Kind::Duration, Some("30s"), "how long an idle connection serves safe requests (unsafe ones: under 4 s)"),
    key(Upstream, "max_idle", Kind::Count(0, 65_536), Some("256"), "idle connections kept for each core"),
    key(Upstream, "max_header_fields", Kind::Count(16, 4096), Some("256"), "header fields of an answer; above that the attempt fails (`protocol`), and a write is unknown"),
    key(Upstream, "dns_refresh", Kind::Duration, Some("5s"), "how often the upstream's name is looked up while requests come; once two lookups in a row say something new, connections are made anew; or `off`"),
    key(Upstream, "http2_prior_knowledge", Kind::Bool, Some("false"), "speak HTTP/2 without TLS or negotiation"),
    key(Upstream, "max_buffered_request", Kind::Size(0), Some("1MiB"), "request bodies above it are streamed once and never retried"),
    key(Upstream, "redirects", Kind::Redirects, Some("rewrite"), "`rewrite`: `Location`, `Content-Location` and `Refresh` that lead to the upstream itself lead to this host instead, by the address that the caller used; `pass`: they stay, and callers go past this host"),
    key(Upstream, "deadline_header", Kind::Header, Some("triage-deadline-ms"), "request header by which a caller gives its deadline"),
    key(Upstream, "overload.enabled", Kind::Bool, Some("true"), "whether fewer attempts are sent at once while the upstream has more to do than it bears, and requests above that are refused, the least important first"),
    key(Upstream, "overload.priority_header", Kind::Header, Some("triage-priority"), "request header by which a caller says that it matters less: `low` or `normal`"),
    key(Upstream, "idempotency.keep", Kind::Duration, Some("24h"), "how long a finished record is kept for replays"),
    key(Upstream, "idempotency.lock", Kind::Duration, Some("150s"), "how long an owner holds a record before it counts as crashed; grows to the longest deadline + 30 s; with shared state a host counts as crashed 15 s after its last heartbeat"),
    key(Upstream, "idempotency.max_request", Kind::Size(0), Some("1MiB"), "largest body of a keyed request"),
    key(Upstream, "idempotency.max_response", Kind::Size(0), Some("1MiB"), "largest answer kept for replays"),
    key(Upstream, "idempotency.max_records", Kind::Count(1, 100_000_000), Some("1000000"), "records kept at most; new keys are refused then. A write without a key leaves none while unsettled records take half of it"),
    key(Upstream, "idempotency.record_status", Kind::Bool, Some("false"), "whether callers may read what became of their requests: a 504 `effect-unknown` names `/.triage/records/ID` in `Location`; else these paths are 404. They are never forwarded. Needs `idempotency.tenant_header`, whose value should be a secret of the caller, such as a token, and with shared state its key (`state.key_file`)"),
    key(Upstream, "idempotency.orphans", Kind::Duration, Some("10m"), "how long a write without a key whose caller has gone before its answer is kept for the next equal request, which takes it over; or `off`"),
    key(Upstream, "idempotency.max_orphans", Kind::Count(1, 100_000_000), Some("10000"), "writes without a key that are under way or kept at most; more are sent without being kept"),
    key(Upstream, "idempotency.tenant_header", Kind::Headers, Some("[\"authorization\", \"cookie\", \"api-key\", \"apikey\", \"ocp-apim-subscription-key\", \"x-api-key\", \"x-auth-token\"]"), "request header, or a list of them, whose values together name the tenant: a key and an orphan are its own; where a credential changes between repetitions, name one that stays; `off`: all callers are one. For a write without a key the credentials of the default count in any case"),
    key(Upstream, "idempotency.replay_set_cookie", Kind::Bool, Some("false"), "whether an answer that is given again has the `Set-Cookie` of the first one"),

    key(Endpoint, "attempt_timeout", Kind::Duration, Some("5s"), "limit on one attempt"),
    key(Endpoint, "deadline", Kind::Duration, Some("15s"), "limit on the whole request; grows to the attempt timeout + 10 s"),
    key(Endpoint, "leased", Kind::Bool, Some("false"), "with shared state: whether each host takes places of the limits ahead, in lots, and asks nobody for most attempts; limits too small for that stay exact"),
    key(Endpoint, "concurrency", Kind::Count(1, 1_000_000), Some("off"), "attempts under way at once"),
    key(Endpoint, "limits", Kind::Limits, Some("[]"), "rate limits, all of which an attempt passes: `{ requests, period, burst }`, burst = requests if not given; any stretch of time takes at most burst and what its length is worth, so give a burst of 1 for an upstream that counts by fixed windows"),
    key(Endpoint, "limits_replace", Kind::Bool, Some("false"), "in a `group`: whether its `limits` take the place of those that the policy proposes for an endpoint; else an attempt passes both. Outside a group, `limits` always do"),
    key(Endpoint, "retry_after_pauses", Kind::Bool, Some("false"), "whether a 503 with `Retry-After` holds the whole group back for that long, at most 5 min. Off: one resource or one instance that is unavailable says nothing of the others"),
    key(Endpoint, "adaptive_rate.enabled", Kind::Bool, Some("false"), "whether fewer requests are sent once the upstream throttles (429), at a rate that falls with that and rises again while it answers; within `limits`, and each host by itself"),
    key(Endpoint, "adaptive_rate.floor_per_minute", Kind::Count(1, 1_000_000), Some("6"), "requests a minute below which that rate never falls"),
    key(Endpoint, "adaptive_rate.rise_per_minute", Kind::Count(1, 100_000_000), Some("600"), "requests a minute by which it rises within a minute; the same at all hosts of a fleet"),
    key(Endpoint, "group", Kind::Name, None, "endpoints of one group share breaker, budget and limits"),
    key(Endpoint, "effect", Kind::Effect, None, "`safe`, `idempotent` or `unsafe`, against method and policy"),
    key(Endpoint, "priority", Kind::Priority, None, "`low`, `normal` or `high`: who is served while the upstream is overloaded; unset: `normal` for what is safe, `high` for what is not"),
    key(Endpoint, "settle", Kind::Bool, None, "whether the policy is trusted to settle unknown writes; embedded ones are, others not"),
    key(Endpoint, "upstream_key.header", Kind::Header, Some("off"), "request header in which the upstream takes an idempotency key, such as `Idempotency-Key`: each attempt of an unsafe request carries the same key, and one whose effect is unknown is sent again with it; or `off`"),
    key(Endpoint, "upstream_key.valid_for", Kind::Duration, Some("24h"), "how long the upstream keeps a key, counted from the first send; after that a request is not sent again"),
    key(Endpoint, "upstream_key.generate", Kind::Bool, Some("true"), "whether a request whose caller sends no key gets one"),
    key(Endpoint, "retry.max_attempts", Kind::Count(1, 100), Some("3"), "attempts a request may make, the first one counted"),
    key(Endpoint, "retry.min_wait", Kind::Wait, Some("2s"), "shortest wait before a retry without a hint of the upstream"),
    key(Endpoint, "retry.max_wait", Kind::Wait, Some("10s"), "longest wait before a retry without a hint of the upstream"),
    key(Endpoint, "budget.percent", Kind::Percent(0), Some("20"), "retries that traffic earns, in percent of first attempts"),
    key(Endpoint, "budget.floor_per_second", Kind::Count(0, U32), Some("3"), "retries a second that are free"),
    key(Endpoint, "budget.capacity", Kind::Count(1, U32), Some("100"), "most retries that can be saved up"),
    key(Endpoint, "breaker.enabled", Kind::Bool, Some("true"), "whether there is a breaker"),
    key(Endpoint, "breaker.failure_threshold", Kind::Count(1, U32), Some("5"), "failures in a row that trip it, or `off`"),
    key(Endpoint, "breaker.failure_rate", Kind::Percent(1), Some("50"), "share of failures in the window that trips it, in percent, or `off`"),
    key(Endpoint, "breaker.baseline", Kind::Percent(1), Some("off"), "how far above its usual share of failures, in percentage points, it trips instead, once that is known; or `off`. With `state.url = \"memory:\"` only"),
    key(Endpoint, "breaker.slow_call_after", Kind::Duration, Some("off"), "when a call counts as slow, or `off`"),
    key(Endpoint, "breaker.slow_rate", Kind::Percent(1), Some("80"), "share of slow calls in the window that trips it, in percent"),
    key(Endpoint, "breaker.window", Kind::Duration, Some("30s"), "length of the sliding window"),
    key(Endpoint, "breaker.minimum_calls", Kind::Count(1, U32), Some("20"), "calls in the window before a rate counts"),
    key(Endpoint, "breaker.open_for", Kind::Duration, Some("60s"), "how long it stays open the first time"),
    key(Endpoint, "breaker.open_for_max", Kind::Duration, Some("5m"), "longest time open; each failed probe doubles it up to here"),
    key(Endpoint, "breaker.jitter", Kind::Percent(0), Some("10"), "random part of the open time, in percent"),
    key(Endpoint, "breaker.probes", Kind::Count(1, 1_000), Some("1"), "probes at once, and successes in a row that close it"),
    key(Endpoint, "breaker.probe_lease", Kind::Duration, Some("35s"), "how long a probe holds its place; grows to the attempt timeout + 5 s"),
    key(Endpoint, "breaker.settled", Kind::Settled, Some("ignore"), "what a failed attempt counts as once verification has found its write applied: `ignore`, or `failure`"),
    key(Endpoint, "breaker.interop", Kind::Interop, Some("off"), "`pybreaker`: Python workers share the breaker, by pybreaker's keys in the Redis of `state.url`"),
    key(Endpoint, "breaker.interop_namespace", Kind::Namespace, Some("off"), "the `namespace` of their CircuitRedisStorage, or `off` for none; each group has its own. On a Cluster it needs a hash tag"),

    key(Added, "method", Kind::Method, None, "method of an endpoint that the policy does not describe, or `*`"),
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

/// The most similar candidate, if a typing error explains the difference.
pub(super) fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > 64 {
        return None;
    }
    let scored = candidates.map(|candidate| (strsim::levenshtein(wanted, candidate), candidate));
    let (distance, near) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + wanted.chars().count() / 5).then_some(near)
}

/// A segment as TOML writes it: quoted if necessary.
pub(super) fn shown(segment: &str) -> String {
    let cut: String = segment.chars().take(64).collect();
    if is_bare(segment) && cut.len() == segment.len() { cut } else { format!("{cut:?}") }
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
        "\nSIGHUP puts a changed key into force where its row says so; the others wait for a restart.\n\
         `…` stands for `upstreams.NAME.defaults.` (every endpoint) and for `upstreams.NAME.endpoints.NAME.` (one of them).\n",
    );
    table
}
