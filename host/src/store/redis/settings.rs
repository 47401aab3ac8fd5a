//! The settings of the state that a fleet shares in Redis.

use super::Address;
use crate::{idempotency::AfterLoss, secret::TokenSource};
use std::{path::PathBuf, time::Duration};

/// The settings of the state that a fleet shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// What every key there begins with; fleets with the same one share state. Default `triage`.
    pub prefix: String,
    /// How long one step may take before this host goes on by itself. Default 20 ms: 20 times what one takes in one data
    /// centre, and little beside an attempt.
    pub timeout: Duration,
    /// How many hosts must have seen failures before the whole fleet's breaker opens; all of them where fewer live. Default 2,
    /// so that one host with a bad network opens its own breaker alone.
    pub quorum: u32,
    /// Whether a host that does not reach it says that it should not be sent requests. Default false.
    pub required: bool,
    /// Whether writes go on without it, although another host may send one again. Default false: they are refused.
    pub writes_alone: bool,
    /// What a verification after a loss of its data may adopt. Default [`AfterLoss::Ask`].
    pub after_loss: AfterLoss,
    /// PEM file of authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The password; goes before one in the URL.
    pub password: Option<TokenSource>,
    /// The key that seals stored answers: 32 bytes in hex or base64.
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
