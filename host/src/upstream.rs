//! The upstream: one API behind the host. The only user of reqwest.

use std::time::Duration;

/// How an upstream is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Scheme, authority and path prefix, such as `https://hospital.example/api`.
    pub base_url: http::Uri,
    /// The limit on making a connection. Default 3 s, below every attempt timeout.
    pub connect_timeout: Duration,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Speak HTTP/2 without TLS or negotiation. Default false.
    pub http2_prior_knowledge: bool,
    /// How long an idle connection serves safe requests. Default 30 s; unsafe ones use connections idle for less than 4 s.
    pub idle_timeout: Duration,
    /// Idle connections kept for each core. Default 256.
    pub max_idle: usize,
}

impl Settings {
    /// The defaults for a base URL.
    pub fn new(base_url: http::Uri) -> Self {
        Self {
            base_url,
            connect_timeout: Duration::from_secs(3),
            ca_file: None,
            http2_prior_knowledge: false,
            idle_timeout: Duration::from_secs(30),
            max_idle: 256,
        }
    }
}
