//! Configuration: defaults, overridden by the policy's proposals, then by one TOML file, the environment and the flags.
//!
//! ```toml
//! [server]
//! listen = "127.0.0.1:8080"
//!
//! [upstreams.hospital]                       # any number, distinguished by path_prefix, host or listen
//! base_url = "https://hospital.example/api"
//! policy = "hospital-directory"
//!
//! [upstreams.hospital.defaults]              # all its endpoints; overrides the policy's proposals
//! limits = [{ requests = 10, period = "1s", burst = 10 }]
//! retry = { max_attempts = 5 }
//!
//! [upstreams.hospital.endpoints.create-hospital]   # one endpoint; overrides `defaults`
//! attempt_timeout = "20s"
//!
//! [upstreams.hospital.endpoints.report]      # an endpoint that the policy does not describe
//! method = "POST"
//! path = "/reports/{id}"
//! effect = "idempotent"
//! ```
//!
//! Every key is in [`reference()`]. Durations and sizes carry their unit (`"250ms"`, `"64KiB"`).
//!
//! The variables `TRIAGE_LISTEN`, `TRIAGE_ADMIN`, `TRIAGE_WORKERS`, `TRIAGE_STATE`, `TRIAGE_UPSTREAM` and `TRIAGE_POLICY` equal the flags
//! of these names, and `TRIAGE_DRAIN` sets `server.drain`. `TRIAGE__SERVER__DRAIN=5s` sets any key (in names, `_` stands for `-`). An empty
//! variable counts as unset.
//!
//! The seed's names (`RETRY_MAX_ATTEMPTS`, `RETRY_MIN_WAIT`, `RETRY_MAX_WAIT`, `CIRCUIT_BREAKER_FAILURE_THRESHOLD`,
//! `CIRCUIT_BREAKER_RECOVERY_TIMEOUT`, `RATE_LIMIT_REQUESTS`, `RATE_LIMIT_PERIOD`, `HOSPITAL_API_TIMEOUT`; times in seconds) set `defaults`
//! of every upstream, and `IDEMPOTENCY_CACHE_TTL` sets its `idempotency.keep`. `HOSPITAL_API_BASE_URL` is the base URL of the upstream with
//! the policy `hospital-directory`; without any upstream it creates one.
//!
//! OpenTelemetry's names (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER_ARG`) set keys below `telemetry.otlp` that no other layer sets, unless
//! `OTEL_SDK_DISABLED` is `true`.
//!
//! Secrets come from files or from `TRIAGE_ADMIN_READ_TOKEN`, `TRIAGE_ADMIN_WRITE_TOKEN`, `TRIAGE_STATE_PASSWORD` and `TRIAGE_STATE_KEY`.
//!
//! The crates `config` and `figment` deserialize through serde, which stops at the first problem. This crate is our own because it reports
//! all problems at once, each with its source.
//!
//! A layer overrides another key by key. Across layers, the more specific key wins: an endpoint's own value in the file overrides
//! `defaults` set by a flag.

use triage_core::{breaker, clock, rate_limit, retry, route, secret, units};
use triage_engine as policy;
use triage_overload as overload;
use triage_registry as registry;
use triage_settlement as settlement;
use triage_state::{self as state, idempotency};
use triage_state_redis as redis;
use triage_telemetry as telemetry;
use triage_upstream as upstream;

mod build;
mod builder;
mod choices;
mod environment;
mod file;
mod flags;
mod layers;
mod merge;
mod problem;
mod pybreaker;
mod reload;
mod resolve;
mod schema;
pub mod settings;
mod show;
mod spelling;
#[cfg(test)]
mod tests;
mod validate;
mod value;
mod value_type;

pub use flags::Flags;
pub use problem::{Fault, Problem, Problems, Source};
pub use reload::{Reload, reload};
pub use resolve::{check_against, effective_endpoint, effective_values, endpoints, idempotency};
pub use schema::reference;
pub use show::show;
pub use value::{Sourced, Value, Values};

use builder::Draft;
use settings::Settings;
use std::path::Path;

/// The inputs of a configuration. The caller reads the environment and the disk.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The file's path for messages, and its text.
    pub file: Option<(String, String)>,
    /// Environment variables; unrelated ones are ignored.
    pub environment: Vec<(String, String)>,
    /// Command-line flags, the top layer.
    pub flags: Flags,
}

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings to run with.
    pub settings: Settings,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Every problem at once; if the file is not TOML, only its syntax errors.
pub fn load(inputs: &Inputs) -> Result<Loaded, Problems> {
    let mut draft = Draft::default();
    let is_toml = match &inputs.file {
        Some((path, text)) => file::read(&mut draft, Path::new(path), text),
        None => true,
    };
    environment::read(&mut draft, &inputs.environment, &inputs.flags);
    if !is_toml {
        // A key that seems to be missing may be in the file that could not be parsed.
        draft.problems.retain(|problem| !matches!(problem.fault, Fault::Conflict { .. }));
        Problems::check(std::mem::take(&mut draft.problems))?;
    }
    let (settings, problems) = build::settings(draft, &inputs.environment);
    Problems::check(problems)?;
    Ok(Loaded { settings })
}

/// Settings from a file's text, without environment and flags.
///
/// # Errors
/// Every problem at once.
pub fn from_toml(text: &str) -> Result<Settings, Problems> {
    let inputs = Inputs { file: Some(("triage.toml".to_owned(), text.to_owned())), ..Inputs::default() };
    load(&inputs).map(|loaded| loaded.settings)
}

/// Default settings with one upstream, named `default`.
///
/// # Errors
/// Every problem with the base URL and the policy's name.
pub fn for_upstream(base_url: &str, policy: &str) -> Result<Settings, Problems> {
    let flags = Flags { upstream: Some(base_url.to_owned()), policy: Some(policy.to_owned()), ..Flags::default() };
    load(&Inputs { flags, ..Inputs::default() }).map(|loaded| loaded.settings)
}

/// The output of `config check`: success, or every problem.
pub fn verdict(checked: &Result<Loaded, Problems>) -> String {
    match checked {
        Ok(loaded) => {
            let named =
                |upstream: &settings::Upstream| format!("{} at {}", upstream.name, upstream.connection.base_url);
            let upstreams: Vec<String> = loaded.settings.upstreams.iter().map(named).collect();
            format!("the configuration holds: {}\n", upstreams.join(", "))
        }
        Err(problems) => {
            let count = problems.iter().count();
            let plural = if count == 1 { "" } else { "s" };
            let lines = problems.to_string().replace('\n', "\n  ");
            format!("the configuration has {count} problem{plural}:\n  {lines}\n")
        }
    }
}

/// Parses a duration in the configuration's format, such as `250ms`, `1.5s` or `24h`.
///
/// # Errors
/// A text that shows the expected form.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    units::duration(text).ok_or_else(|| format!("{text:?} is not a duration; write one such as 250ms, 30s or 5m"))
}
