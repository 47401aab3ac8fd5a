//! One policy for a whole fleet: announced at one host, staged by all, switched together, rolled back together.
//!
//! ```text
//! course      what one host knows of it, and what it does next: pure
//! following   one upstream's: beats, and swaps       announcing   what operators ask
//! staging     from a digest to a policy that may serve         shelf   compiled ones at hand
//! memory      what is known at the next start
//! told        what operators hear of it
//! ```
//!
//! The protocol itself, and its twin of the script in shared state, is [`crate::state::rollout`].
//!
//! What stands in shared state is a digest, and never where it comes from: each host pulls it from the repository that its own
//! configuration names, verifies it, and compiles it itself. Whoever can write there can at most choose among what the operator's registry
//! holds and, where there are keys, what is signed.

mod commands;
mod follower;
mod notices;
mod planner;
mod policy_cache;
mod staging;
mod state_file;

pub(crate) use commands::CommandOutcome;
pub use commands::{NotAnnounced, NotRolledBack};
pub(crate) use follower::start;
pub use follower::{Follower, FollowerContext, Report};

use crate::state::rollout::{
    Aborted, FleetState, FleetStatus, HostStatus, Message, MessageOutcome, PolicyRef, Proposed, Why,
};

/// The name of this host among the others: the machine's, and a part by chance, so that two hosts of one machine are two.
pub fn host_name(entropy: &crate::rng::Rng) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || ".-_".contains(*c);
    let machine: String = machine.trim().chars().filter(fits).take(40).collect();
    let machine = if machine.is_empty() { "host" } else { &machine };
    format!("{machine}-{:08x}", entropy.next() >> 32)
}
