//! The validated settings that the host runs on.

use super::value::Values;
pub use crate::choices::{Mode, PolicySource, Redirects};
use crate::{
    breaker, idempotency,
    overload::{Priority, peers},
    policy::{CachePaths, Compiler, contract::Effect, signature::KeySource},
    rate_limit::{Quota, adaptive},
    redis, retry,
    secret::TokenSource,
    settlement,
    state::group::{self, Pybreaker},
    telemetry, upstream,
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// All settings of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The listener, its limits and its timeouts.
    pub server: Server,
    /// The store of records, limits and breakers.
    pub state: State,
    /// The memory for idempotency records in this process.
    pub records: RecordMemory,
    /// The admin listener: health, metrics and control.
    pub admin: Admin,
    /// The OTLP target of traces. Default: none, and no traces are sent.
    pub traces: Option<telemetry::Target>,
    /// Settings that all policies share.
    pub policies: Policies,
    /// How the host settles writes of unknown effect in the background.
    pub settlement: settlement::Settings,
    /// The upstreams, at least one.
    pub upstreams: Vec<Upstream>,
    /// The host's own values with their sources, including defaults, for `config show`.
    pub stated: Values,
}

/// The listener for callers: addresses, limits and timeouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address to listen on. Default 127.0.0.1:8080.
    pub listen: SocketAddr,
    /// Concurrent requests, including those whose callers have left. Default 20,000: twice the connections, because an HTTP/2 connection
    /// carries several requests.
    pub max_requests: usize,
    /// Concurrent writes whose callers have left. Default 1,000: callers seldom abandon a write.
    pub max_abandoned: usize,
    /// Concurrent requests on one connection, including those that it has reset. Default 256.
    pub max_streams: usize,
    /// The share of connections, requests and abandoned writes that one peer may use, in percent. Default 50: a proxy in front of the host
    /// is a single peer.
    pub peer_share_percent: u32,
    /// How long a write to a caller may make no progress. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection may stay open without a request. Default 60 s, as long as most load balancers keep theirs.
    pub idle_timeout: Duration,
    /// Threads, each with its own runtime. Default: one per core.
    pub workers: usize,
    /// Concurrent connections. Default 10,000.
    pub max_connections: usize,
    /// Maximum bytes of a request's head. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Maximum header fields of a request. Default 256: real requests have fewer than a hundred.
    pub max_header_fields: usize,
    /// How long a caller may take to send a request's head. Default 10 s.
    pub header_read_timeout: Duration,
    /// How long a drain waits for running requests. Default 30 s.
    pub drain: Duration,
    /// How long the host reports "not ready" but still accepts connections before it drains. Default 0.
    pub shutdown_delay: Duration,
    /// Memory in bytes above which requests are refused. Default: derived from the control group's limit, if it has one.
    pub memory_limit: Option<usize>,
    /// Whether another process may listen on the same address at the same time. Default false.
    pub reuse_port: bool,
    /// TLS; none for plain text.
    pub tls: Option<Tls>,
}

impl Server {
    /// The limits of one connection and one peer.
    pub fn peer_limits(&self) -> peers::Limits {
        let share = |all: usize| (all.saturating_mul(self.peer_share_percent as usize) / 100).max(1);
        peers::Limits {
            peer_connections: share(self.max_connections),
            streams: self.max_streams,
            requests: self.max_requests,
            peer_requests: share(self.max_requests),
            abandoned: self.max_abandoned,
            peer_abandoned: share(self.max_abandoned),
        }
    }
}

/// A listener's TLS: paths of PEM files. A reload reads the files again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain, without the root.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities for client certificates, which callers must then have. None: callers need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The variable for the admin token that may read.
pub const READ_TOKEN: &str = "TRIAGE_ADMIN_READ_TOKEN";
/// The variable for the admin token that may read and act.
pub const WRITE_TOKEN: &str = "TRIAGE_ADMIN_WRITE_TOKEN";

/// The admin listener: health, metrics and control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Address to listen on; none switches the listener off. Default 127.0.0.1:9464, which only this machine can reach.
    pub listen: Option<SocketAddr>,
    /// The token that may read.
    pub read_token: Option<TokenSource>,
    /// The token that may read and act. Without any token, every caller on this machine may do both.
    pub write_token: Option<TokenSource>,
    /// Requests that each worker keeps for `triage explain`, and again as many that did not go smoothly. Default 512, about 0.5 MB.
    pub explain: usize,
    /// TLS; none for plain text.
    pub tls: Option<Tls>,
}

/// Settings that all policies share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// Folders of the compiled-code cache. Default: in the user's cache folder, if the environment names one; otherwise none, so that a
    /// library writes no files unasked.
    pub cache: Option<CachePaths>,
    /// A folder whose `NAME.wasm` replaces the embedded policy of that name, at the start and whenever the file changes.
    pub dir: Option<PathBuf>,
    /// How often policy files are checked in addition to file notifications, which some file systems do not send. Default 2 s.
    pub poll: Duration,
    /// Compiles components in a separate process. The program sets this after loading the configuration, since a library has no executable
    /// to start. Default: none, and components are compiled in this process.
    pub compiler: Option<Compiler>,
    /// Maximum memory of that process in bytes. Default 1 GiB.
    pub compile_memory_bytes: usize,
    /// Maximum time to compile one component. Default 2 min, ten times what a Python policy needs.
    pub compile_time: Duration,
    /// Public keys. Every component from a file or a registry must be signed by one of them. Default: none, and no signature is needed.
    pub keys: Vec<KeySource>,
    /// Credentials for registries, as a docker `config.json` holds them. Default: none, for anonymous access.
    pub registry_auth: Option<TokenSource>,
}

impl Settings {
    /// Compiles components in a separate process of `program`, which must be this `triage` executable. That process gets the time and
    /// memory of the settings, and at most half of this process's memory limit.
    pub fn compile_with(&mut self, program: PathBuf) {
        let most = self.server.memory_limit.map_or(usize::MAX, |limit| limit / 2);
        let memory_bytes = self.policies.compile_memory_bytes.min(most) as u64;
        self.policies.compiler = Some(Compiler { program, memory_bytes, time: self.policies.compile_time });
    }
}

/// The store for records, limits and breakers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Memory of this process; lost when it ends.
    Memory,
    /// A Redis that all hosts of a fleet share.
    Shared(Box<redis::Settings>),
}

/// The variable for the password of shared state.
pub const STATE_PASSWORD: &str = "TRIAGE_STATE_PASSWORD";
/// The variable for the key that encrypts responses in shared state.
pub const STATE_KEY: &str = "TRIAGE_STATE_KEY";

/// The variable for the key that signs settlement notices.
pub const SETTLEMENT_KEY: &str = "TRIAGE_SETTLEMENT_KEY";

/// The variable for registry credentials.
pub const REGISTRY_AUTH: &str = "TRIAGE_REGISTRY_AUTH";

/// Memory for idempotency records, stored responses and claims in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMemory {
    /// Maximum bytes. Default 256 MiB, a quarter of a small machine.
    pub max_bytes: usize,
    /// The share of `max_bytes` that one tenant may use beside others, in percent. Default 50, so that the others always have as much.
    pub tenant_share_percent: u32,
}

impl Default for RecordMemory {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, tenant_share_percent: 50 }
    }
}

/// A policy that is tried beside an upstream's live one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The candidate. A file may appear after the start.
    pub policy: PolicySource,
    /// Default: shadow, which changes no response.
    pub mode: Mode,
    /// In canary mode, the percentage of requests. Default 10.
    pub share_percent: u32,
}

/// The settings of one upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// The name in the configuration: `upstreams.NAME`.
    pub name: String,
    /// Address and HTTP client settings.
    pub connection: upstream::Settings,
    /// Only requests with this path prefix match, and it is removed. None: every path.
    pub path_prefix: Option<String>,
    /// Only requests to this host (lower case, without port) match. None: every host.
    pub host: Option<String>,
    /// Only requests to this additional listener match. None: any listener.
    pub listen: Option<SocketAddr>,
    /// The source of the live policy.
    pub policy: PolicySource,
    /// Whether the fleet chooses the component from the policy's repository. Until it has chosen, the component named in `policy` serves.
    /// Default false.
    pub follow_fleet: bool,
    /// A policy to try beside the live one. Default none.
    pub candidate: Option<Candidate>,
    /// JSON settings for the policy's `configure`.
    pub policy_settings: String,
    /// Whether a policy instance is reused for many requests. Default false: one instance per request.
    pub reuse_instances: bool,
    /// Maximum bytes of a request body to buffer. A longer body is streamed once and never retried. Default 1 MiB.
    pub max_buffered_request_bytes: usize,
    /// How to handle `Location`, `Content-Location` and `Refresh` that lead to the upstream. Default: rewrite to the host's address.
    pub redirects: Redirects,
    /// The request header for the caller's deadline in milliseconds. Default `triage-deadline-ms`.
    pub deadline_header: http::HeaderName,
    /// Whether requests are refused while the upstream is overloaded. Default true.
    pub sheds_overload: bool,
    /// The request header for a lower priority. Default `triage-priority`.
    pub priority_header: http::HeaderName,
    /// Idempotency settings. The lock fits the deadlines known without the policy; [`super::idempotency()`] also includes those that the
    /// policy proposes.
    pub idempotency: idempotency::Settings,
    /// The operator's values for every endpoint, which override the policy's proposals. For effective settings see
    /// [`super::effective_endpoint`].
    pub defaults: Values,
    /// Overrides by endpoint name. A name that the policy does not describe adds an endpoint and needs method and path.
    pub endpoints: Vec<EndpointOverride>,
    /// The upstream's own values with their sources, including defaults, for `config show`.
    pub stated: Values,
}

/// The settings of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Limit for one attempt. Default 5 s.
    pub attempt_timeout: Duration,
    /// Limit for the whole request. Default 15 s.
    pub deadline: Duration,
    /// Whether the host prefetches rate-limit permits from shared state in batches. Most attempts then need no round trip, but up to one
    /// batch per host may stay unused. Limits too small to share stay exact. Default false.
    pub leased: bool,
    /// Whether a 503 with `Retry-After` pauses the whole group for that long. Default false: one unavailable resource or instance says
    /// nothing about the others. A breaker that opens on such a response stays open that long in any case.
    pub retry_after_pauses: bool,
    /// When and how often to retry.
    pub retry: retry::Settings,
    /// The retry budget of the group.
    pub budget: retry::budget::Settings,
    /// The circuit breaker; none if disabled.
    pub breaker: Option<breaker::Settings>,
    /// The breaker of Python workers to share. Default none.
    pub pybreaker: Option<Pybreaker>,
    /// Rate limits, all of which an attempt must pass. In a group they are the group's.
    pub limits: Vec<Quota>,
    /// In a group, additional limits of this endpoint alone. Default: those that the policy proposes.
    pub own_limits: Vec<Quota>,
    /// A rate that adapts to the upstream's throughput. Default none.
    pub adaptive_rate: Option<adaptive::Settings>,
    /// Maximum concurrent attempts. Default none.
    pub concurrency: Option<usize>,
    /// Endpoints of one group share breaker, budget and limits. Default: each endpoint forms its own group.
    pub group: Option<String>,
    /// Whether the policy is trusted to settle unknown writes here. Default: only embedded policies.
    pub settle: Option<bool>,
    /// The upstream's own support for idempotency keys. Default: none.
    pub upstream_key: Option<retry::upstream_key::Settings>,
    /// The operator's effect for the endpoint. It overrides the stricter of the method's and the policy's effect.
    pub effect: Option<Effect>,
    /// The priority of requests while the upstream is overloaded. Default: by effect.
    pub priority: Option<Priority>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(15),
            leased: false,
            retry_after_pauses: false,
            retry: retry::Settings::default(),
            budget: retry::budget::Settings::default(),
            breaker: Some(breaker::Settings::default()),
            pybreaker: None,
            limits: Vec::new(),
            own_limits: Vec::new(),
            adaptive_rate: None,
            concurrency: None,
            group: None,
            settle: None,
            upstream_key: None,
            effect: None,
            priority: None,
        }
    }
}

impl Endpoint {
    /// The settings that the endpoint contributes to its group.
    pub fn group_settings(&self) -> group::EndpointSettings {
        let group = group::Settings {
            breaker: self.breaker.clone(),
            limits: self.limits.clone(),
            budget: self.budget.clone(),
            leased: self.leased,
            pybreaker: self.pybreaker.clone(),
        };
        let own = group::Settings { breaker: None, limits: self.own_limits.clone(), pybreaker: None, ..group.clone() };
        group::EndpointSettings { group, own, adaptive_rate: self.adaptive_rate }
    }

    /// The settings of one endpoint inside a group: its own limits, no breaker.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self {
            limits: self.own_limits.clone(),
            own_limits: Vec::new(),
            group: None,
            breaker: None,
            pybreaker: None,
            adaptive_rate: None,
            ..self.clone()
        }
    }
}

/// The operator's values for one endpoint. A missing value comes from the upstream's `defaults`, then from the policy's proposal, then from
/// Triage's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointOverride {
    /// The endpoint's name.
    pub name: String,
    /// The values; an endpoint that the policy does not describe needs `method` and `path`.
    pub values: Values,
}
