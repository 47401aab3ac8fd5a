//! Settings of shared state in Redis: the section `state` of the configuration.

use super::Address;
use crate::{idempotency::AfterLoss, secret::TokenSource};
use std::{path::PathBuf, time::Duration};

/// Settings of shared state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of Redis: `state.url`.
    pub address: Address,
    /// Prefix of every key. Fleets with the same prefix share state. Default `triage`.
    pub prefix: String,
    /// Time limit of a script call; after it this host continues without shared state. Default 20 ms: 20 times the usual duration within a
    /// data centre, and short beside an attempt.
    pub timeout: Duration,
    /// Number of hosts that must have seen failures before the fleet's breaker opens, at most all live hosts. Default 2, so that a
    /// host with a bad network opens only its own breaker.
    pub quorum: u32,
    /// Whether a host reports itself as not ready while it cannot reach Redis. Default false.
    pub required: bool,
    /// Whether to accept writes without Redis, at the risk that another host repeats one. Default false: they are refused.
    pub writes_alone: bool,
    /// Whether a verification may adopt an unclaimed match after a loss of data. Default [`AfterLoss::Ask`].
    pub after_loss: AfterLoss,
    /// PEM file of CA certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The password; takes precedence over one in the URL.
    pub password: Option<TokenSource>,
    /// The key that encrypts stored responses: 32 bytes in hex or base64.
    pub key: Option<TokenSource>,
}

impl Settings {
    /// The defaults for an address.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            prefix: "triage".to_owned(),
            timeout: Duration::from_millis(20),
            quorum: 2,
            required: false,
            writes_alone: false,
            after_loss: AfterLoss::Ask,
            ca_file: None,
            password: None,
            key: None,
        }
    }
}
