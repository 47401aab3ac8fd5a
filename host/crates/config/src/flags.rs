//! The flags that `serve`, `config check` and `config show` share.

use std::path::PathBuf;

/// Flags, the layer over the file and the environment. All are text here and are validated together with the other layers, so that every
/// problem is reported at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Base URL of the API; without a file, this alone is enough
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address of health, metrics and control, or off [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS|off")]
    pub admin: Option<String>,
    /// An embedded policy's name, or a component file [default: http-standard]
    #[arg(long, value_name = "NAME|FILE")]
    pub policy: Option<String>,
    /// The state store [default: memory:]
    #[arg(long, value_name = "URL")]
    pub state: Option<String>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Any key of the file, such as --set upstreams.default.defaults.deadline=30s
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}
