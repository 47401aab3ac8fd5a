//! The contract between the hosts of a fleet about the policy of one upstream: the messages of a host, and the replies.

mod codec;
pub mod protocol;

pub use codec::is_name;
pub use protocol::{Aborted, FleetState, HostStatus, Message, MessageOutcome, PolicyRef, Why};

use crate::digest::Digest;
use std::time::Duration;

/// Status of the agreement, as read from shared state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetStatus {
    /// The policy that the fleet serves.
    pub state: FleetState,
    /// The open proposal, if any.
    pub proposed: Option<Proposed>,
    /// The last aborted proposal.
    pub aborted: Option<Aborted>,
    /// Live hosts, by name.
    pub hosts: Vec<Host>,
}

/// The open proposal: see [`protocol::Proposal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    /// Random id of the proposal.
    pub id: u64,
    /// Digest of the component's manifest.
    pub digest: Digest,
    /// Name of the host that announced it.
    pub by: String,
    /// Whether a quarantined component is allowed.
    pub promoted: bool,
    /// Time left for hosts to stage it.
    pub left: Duration,
}

/// A live host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The host's name: see `is_name`.
    pub name: String,
    /// Time since its last message.
    pub silent: Duration,
    /// The generation that the host serves.
    pub generation: u64,
    /// The proposal that the host has loaded and could serve at once.
    pub staged: Option<u64>,
}

/// The reply to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageReply {
    /// The outcome of the message.
    pub outcome: MessageOutcome,
    /// Whether a foreign value was found in shared state, and discarded.
    pub flawed: bool,
    /// The status after the message.
    pub view: FleetStatus,
}
