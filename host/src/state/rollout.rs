//! The contract between the hosts of a fleet about the policy of one upstream: what a host says, and what it hears.

mod codec;
pub mod protocol;

pub(crate) use codec::is_name;
pub use protocol::{Aborted, FleetState, HostStatus, Message, MessageOutcome, PolicyRef, Why};

use crate::policy::Digest;
use std::time::Duration;

/// How things stand, as shared state tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetStatus {
    /// Which policy serves the fleet.
    pub standing: FleetState,
    /// What is proposed.
    pub proposed: Option<Proposed>,
    /// The last proposal that came to nothing.
    pub aborted: Option<Aborted>,
    /// Hosts that live, by name.
    pub hosts: Vec<Host>,
}

/// What is proposed: see [`protocol::Proposal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    /// Which proposal.
    pub id: u64,
    /// The component.
    pub digest: Digest,
    /// The host that announced it.
    pub by: String,
    /// Whether it may be one that was rolled back.
    pub promoted: bool,
    /// How long hosts are still waited for.
    pub left: Duration,
}

/// A host that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// How long ago it spoke.
    pub silent: Duration,
    /// The generation that serves there.
    pub generation: u64,
    /// The proposal that it could serve at once.
    pub staged: Option<u64>,
}

/// What came of a word, and how things stand then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageReply {
    /// What came of it.
    pub outcome: MessageOutcome,
    /// Whether something else than ours was found there, and thrown away.
    pub flawed: bool,
    /// How things stand.
    pub view: FleetStatus,
}
