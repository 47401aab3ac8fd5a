//! The command line's part of a configuration.

use super::{
    environment::{guessed, only},
    layers::{Layers, Source},
};
use std::path::PathBuf;
use toml::Value;

/// Flags of `triage serve`, `config check` and `config show`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The API to stand in front of, such as `http://127.0.0.1:8000`.
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Where to listen; default 127.0.0.1:8080.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// An embedded policy's name or a component's file; default http-standard.
    #[arg(long, value_name = "NAME|FILE")]
    pub policy: Option<String>,
    /// Where state is kept; default memory:.
    #[arg(long, value_name = "URL")]
    pub state: Option<String>,
    /// Worker threads; default one for each core.
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Any other key, such as upstreams.default.defaults.deadline="30s".
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Flags {
    pub(super) fn lay(&self, layers: &mut Layers) {
        let text = |value: &String| Value::String(value.clone());
        let upstream = only(layers);
        let flags = [
            ("--upstream", format!("upstreams.{upstream}.base_url"), self.upstream.as_ref().map(text)),
            ("--policy", format!("upstreams.{upstream}.policy"), self.policy.as_ref().map(text)),
            ("--listen", "server.listen".to_owned(), self.listen.as_ref().map(text)),
            ("--state", "state.url".to_owned(), self.state.as_ref().map(text)),
            ("--workers", "server.workers".to_owned(), self.workers.map(|workers| Value::Integer(workers.into()))),
        ];
        for (flag, key, value) in flags {
            if let Some(value) = value {
                layers.put(&key, value, Source::Flag(flag));
            }
        }
        for pair in &self.set {
            // Without '=' the text becomes an unknown key, which is reported with all other problems.
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            layers.put(key.trim(), guessed(value.trim()), Source::Flag("--set"));
        }
    }
}
