//! One policy for a whole fleet: announced at one host, staged by all, switched together, rolled back together.
//!
//! ```text
//! planner        what one host knows of the fleet, and its next action: pure
//! follower       one upstream's heartbeats and switches
//! commands       operators' commands
//! staging        from a digest to a checked policy
//! policy_cache   compiled policies in memory
//! state_file     the fleet's state for the next start
//! notices        reports to operators
//! ```
//!
//! The protocol, and a Rust model of the script in shared state, is in [`crate::state::rollout`].
//!
//! Shared state holds a digest, never its origin: each host pulls the component from the repository in its own configuration, verifies it
//! and compiles it itself. So write access to shared state only allows a choice among the components in the operator's registry, or among
//! the signed ones if there are keys.

mod commands;
mod follower;
mod notices;
mod planner;
mod policy_cache;
mod staging;
mod state_file;

pub use commands::CommandOutcome;
pub use commands::{NotAnnounced, NotRolledBack};
pub(super) use follower::start;
pub use follower::{Follower, FollowerContext, Report};

use crate::state::rollout::{
    Aborted, FleetState, FleetStatus, HostStatus, Message, MessageOutcome, PolicyRef, Proposed, Why,
};

/// This host's name in the fleet: the machine's name and a random part, because one machine may run several hosts.
pub fn host_name(entropy: &crate::rng::Rng) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || ".-_".contains(*c);
    let machine: String = machine.trim().chars().filter(fits).take(40).collect();
    let machine = if machine.is_empty() { "host" } else { &machine };
    format!("{machine}-{:08x}", entropy.next() >> 32)
}
