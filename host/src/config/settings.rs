//! The validated settings that the host runs on.

use super::value::Values;
use crate::{
    breaker, idempotency,
    overload::{Priority, peers},
    policy::{CachePlaces, Compiler, contract::Effect, signature::KeySource},
    rate_limit::{Quota, adaptive},
    registry::Artifact,
    retry,
    secret::TokenSource,
    settlement,
    state::group::{self, Pybreaker},
    store::redis,
    telemetry, upstream,
};
use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// All settings of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the host listens and what it admits.
    pub server: Server,
    /// Where state is kept.
    pub state: State,
    /// How much of it this process keeps.
    pub records: RecordMemory,
    /// Health, metrics and control.
    pub admin: Admin,
    /// Where traces go; none: nowhere.
    pub traces: Option<telemetry::Target>,
    /// What concerns all policies.
    pub policies: Policies,
    /// How writes whose effect is unknown are settled in the background.
    pub settlement: settlement::Settings,
    /// The upstreams; at least one.
    pub upstreams: Vec<Upstream>,
    /// The host's own values with their sources, defaults included: what `config show` shows.
    pub stated: Values,
}

/// The listener's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The address. Default 127.0.0.1:8080.
    pub listen: SocketAddr,
    /// Requests under way at once, those counted whose callers have gone. Default 20,000: twice the connections, as HTTP/2
    /// ones have several.
    pub max_requests: usize,
    /// Writes under way at once whose callers have gone. Default 1,000: callers seldom leave a write.
    pub max_abandoned: usize,
    /// Requests under way at once on one connection, those counted that it has reset. Default 256.
    pub max_streams: usize,
    /// The share of connections, requests and abandoned writes that one peer may take, in percent. Default 50: a proxy in front of
    /// the host is one peer.
    pub peer_share_percent: u32,
    /// How long a caller may take to read some of an answer. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection may stay open without a request. Default 60 s: as long as most load balancers keep theirs.
    pub idle_timeout: Duration,
    /// Threads, each with a runtime of its own. Default: one for each core.
    pub workers: usize,
    /// Connections at once. Default 10,000.
    pub max_connections: usize,
    /// The bytes that a request's head may have. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Header fields that a request may have. Default 256: real ones have less than a hundred.
    pub max_header_fields: usize,
    /// How long a caller may take to send a request's head. Default 10 s.
    pub header_read_timeout: Duration,
    /// How long a drain waits for requests under way. Default 30 s.
    pub drain: Duration,
    /// How long the host says that it is not ready, and still accepts, before it drains. Default: not at all.
    pub shutdown_delay: Duration,
    /// Memory in bytes above which requests are refused. Default: 90 % of the control group's limit, where there is one.
    pub memory_limit: Option<usize>,
    /// Whether another process may listen on the same address at the same time. Default false.
    pub reuse_port: bool,
    /// TLS; none for plain text.
    pub tls: Option<Tls>,
}

impl Server {
    /// What a connection and a peer may take.
    pub(crate) fn peer_limits(&self) -> peers::Limits {
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

/// A listener's TLS: paths of PEM files, which a reload reads again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of which callers must have a certificate. None: they need not have one.
    pub client_ca: Option<PathBuf>,
}

/// The variable that holds the token that may look.
pub const READ_TOKEN: &str = "TRIAGE_ADMIN_READ_TOKEN";
/// The variable that holds the token that may look and act.
pub const WRITE_TOKEN: &str = "TRIAGE_ADMIN_WRITE_TOKEN";

/// Health, metrics and control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The address; none to do without. Default 127.0.0.1:9464, so that a host can be seen from its own machine and from no
    /// other.
    pub listen: Option<SocketAddr>,
    /// The token that may look.
    pub read_token: Option<TokenSource>,
    /// The token that may look and act. Without any token, everybody on this machine may do both.
    pub write_token: Option<TokenSource>,
    /// Requests that each worker keeps for explaining, and as many again that did not go smoothly. Default 512: about half a
    /// megabyte.
    pub explain: usize,
    /// TLS; none for plain text.
    pub tls: Option<Tls>,
}

/// What concerns all policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// Where compiled code is kept between starts. Default: below the user's cache folder, as the environment names it;
    /// none where it names none, so that a library writes nothing unasked.
    pub cache: Option<CachePlaces>,
    /// A folder whose `NAME.wasm` takes the place of the embedded policy of that name, at the start and at any time.
    pub dir: Option<PathBuf>,
    /// How often policy files are looked at without being told of a change, for folders that tell nothing. Default 2 s.
    pub poll: Duration,
    /// How components are compiled in a process of their own: set by the program that is able to, after the configuration was read.
    /// Default: none, and they are compiled in this process.
    pub compiler: Option<Compiler>,
    /// The most memory that compiling a component may take, in such a process. Default 1 GiB.
    pub compile_memory_bytes: usize,
    /// The longest that it may take. Default 2 min: ten times what a Python policy takes.
    pub compile_time: Duration,
    /// Keys of which one must have signed every component that comes from a file or a registry. Default: none, and none must be
    /// signed.
    pub keys: Vec<KeySource>,
    /// Names and passwords of registries, as a docker `config.json` has them. Default: none, and they are asked as anybody.
    pub registry_auth: Option<TokenSource>,
}

impl Settings {
    /// Lets components be compiled by `program`, which must be this `triage` itself: in a process that takes no more time and memory
    /// than the settings admit, and no more than half of what this process may have.
    pub fn compile_with(&mut self, program: PathBuf) {
        let most = self.server.memory_limit.map_or(usize::MAX, |limit| limit / 2);
        let memory_bytes = self.policies.compile_memory_bytes.min(most) as u64;
        self.policies.compiler = Some(Compiler { program, memory_bytes, time: self.policies.compile_time });
    }
}

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// In this process; lost when it ends.
    Memory,
    /// In a Redis, by all hosts of a fleet together.
    Shared(Box<redis::Settings>),
}

/// The variable that holds the password of shared state.
pub const STATE_PASSWORD: &str = "TRIAGE_STATE_PASSWORD";
/// The variable that holds the key that seals what shared state keeps of answers.
pub const STATE_KEY: &str = "TRIAGE_STATE_KEY";

/// The variable that holds the key that signs notices of settled writes.
pub const SETTLEMENT_KEY: &str = "TRIAGE_SETTLEMENT_KEY";

/// The variable that holds names and passwords of registries.
pub const REGISTRY_AUTH: &str = "TRIAGE_REGISTRY_AUTH";

/// How much memory idempotency records, stored answers and claims may take in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMemory {
    /// The bytes. Default 256 MiB: a quarter of a small machine.
    pub max_bytes: usize,
    /// The share of them that one of several tenants may take, in percent. Default 50: the others always have as much.
    pub tenant_share_percent: u32,
}

impl Default for RecordMemory {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, tenant_share_percent: 50 }
    }
}

/// Where a policy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicySource {
    /// Built into the host; granted.
    Embedded(String),
    /// A component file; not granted unless the operator says so.
    File(PathBuf),
    /// A component in a registry, by its digest; not granted unless the operator says so.
    Registry(Artifact),
    /// The native policy that the others fall back to.
    Builtin,
}

impl fmt::Display for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Registry(artifact) => artifact.fmt(f),
            Self::Builtin => f.write_str("built-in"),
        }
    }
}

/// How a candidate is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It decides after the live policy, and its verdicts are only compared.
    Shadow,
    /// It decides for a share of the requests.
    Canary,
}

impl Mode {
    /// The name in the configuration and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
        }
    }
}

/// A policy that is tried beside an upstream's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which. A file may come at any time later.
    pub policy: PolicySource,
    /// How. Default: in shadow, which changes no answer.
    pub mode: Mode,
    /// As a canary: for how many requests of a hundred. Default 10.
    pub share_percent: u32,
}

/// What becomes of an answer's URLs that lead to the upstream itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// They lead to the host, by the address that the caller used.
    Rewrite,
    /// They stay: callers may follow them past the host.
    Pass,
}

impl Redirects {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rewrite => "rewrite",
            Self::Pass => "pass",
        }
    }
}

/// One upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: String,
    /// How it is reached.
    pub connection: upstream::Settings,
    /// Requests with this path prefix are its own; the prefix is taken off. None: every path.
    pub path_prefix: Option<String>,
    /// Requests to this host (lower case, no port) are its own. None: every host.
    pub host: Option<String>,
    /// Requests that came in by this further listener are its own. None: by any.
    pub listen: Option<SocketAddr>,
    /// The policy.
    pub policy: PolicySource,
    /// Whether the fleet says which component of the policy's repository serves; the one that is named serves until it does.
    /// Default false.
    pub follow_fleet: bool,
    /// The policy that is tried beside it. Default none.
    pub candidate: Option<Candidate>,
    /// The JSON settings handed to the policy's `configure`.
    pub policy_settings: String,
    /// Whether one instance serves many requests. Default false: one request, one instance.
    pub reuse_instances: bool,
    /// The most of a request body that is buffered; above it the body is streamed once and never retried. Default 1 MiB.
    pub max_buffered_request_bytes: usize,
    /// What becomes of `Location`, `Content-Location` and `Refresh` that lead to the upstream itself. Default: they lead to the
    /// host.
    pub redirects: Redirects,
    /// The request header by which a caller gives its deadline in milliseconds. Default `triage-deadline-ms`.
    pub deadline_header: http::HeaderName,
    /// Whether requests are refused while the upstream has more to do than it bears. Default true.
    pub sheds_overload: bool,
    /// The request header by which a caller says that its request matters less. Default `triage-priority`.
    pub priority_header: http::HeaderName,
    /// How keys are honoured. Its lock is long enough for the deadlines known without the policy:
    /// [`super::idempotency`] also looks at those that the policy proposes.
    pub idempotency: idempotency::Settings,
    /// What the operator says of every endpoint, over the policy's proposals. Not the defaults: see
    /// [`super::effective_endpoint`].
    pub defaults: Values,
    /// Overrides by endpoint name; names the policy does not describe add endpoints and need method and path.
    pub endpoints: Vec<EndpointOverride>,
    /// The upstream's own values with their sources, defaults included: what `config show` shows.
    pub stated: Values,
}

/// The settings of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The limit on one attempt. Default 5 s.
    pub attempt_timeout: Duration,
    /// The limit on the whole request. Default 15 s.
    pub deadline: Duration,
    /// Whether a host takes places of the limits ahead from shared state, in lots: most attempts then ask nobody, and up to a lot
    /// a host may lie unused. Limits too small to share stay exact. Default no.
    pub leased: bool,
    /// Whether a 503 with `Retry-After` holds the whole group back for that long. Default no: one resource or one instance that
    /// is unavailable says nothing of the others. A breaker that such an answer opens stays open that long in any case.
    pub retry_after_pauses: bool,
    /// Retrying.
    pub retry: retry::Settings,
    /// The retry budget.
    pub budget: retry::budget::Settings,
    /// The circuit breaker; none to do without.
    pub breaker: Option<breaker::Settings>,
    /// The breaker of Python workers that is one with it. Default none.
    pub pybreaker: Option<Pybreaker>,
    /// Rate limits, all of which an attempt passes; the group's, where there is one.
    pub limits: Vec<Quota>,
    /// In a group: the limits of this endpoint alone, which an attempt passes too. Default: those that the policy proposes.
    pub own_limits: Vec<Quota>,
    /// A rate that follows what the upstream takes. Default none.
    pub adaptive_rate: Option<adaptive::Settings>,
    /// Attempts under way at once. Default none.
    pub concurrency: Option<usize>,
    /// Endpoints of the same group share breaker, budget and limits. Default: a group of its own.
    pub group: Option<String>,
    /// Whether the policy is trusted to settle unknown writes here. Default: yes for embedded policies, no for others.
    pub settle: Option<bool>,
    /// How the upstream honours idempotency keys of its own. Default: not at all, as far as is known.
    pub upstream_key: Option<retry::upstream_key::Settings>,
    /// What a request may do, against the stricter of method and policy: the operator's word.
    pub effect: Option<Effect>,
    /// How much requests matter while the upstream is overloaded. Default: by their effect.
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
    /// The part of the settings that the endpoint brings to its group.
    pub(crate) fn group_settings(&self) -> group::EndpointSettings {
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

    /// What an endpoint of a group has by itself: its own limits, and no breaker.
    pub(crate) fn alone(&self) -> Self {
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

/// What the operator says of one endpoint. A value that is absent is the upstream's `defaults`, else the policy's proposal, else
/// Triage's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointOverride {
    /// The endpoint's name.
    pub name: String,
    /// The values; `method` and `path` for an endpoint that the policy does not describe.
    pub values: Values,
}
