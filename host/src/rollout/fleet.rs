//! One policy for a whole fleet: announced at one host, staged by all, switched together, rolled back together.
//!
//! ```text
//! agreement   what all agree on: pure, the same as the script in shared state
//! course      what one host knows of it, and what it does next: pure
//! following   one upstream's: beats, and swaps       announcing   what operators ask
//! staging     from a digest to a policy that may serve         shelf   compiled ones at hand
//! memory      what is known at the next start         written   how it is written
//! told        what operators hear of it
//! ```
//!
//! What stands in shared state is a digest, and never where it comes from: each host pulls it from the repository that its own
//! configuration names, verifies it, and compiles it itself. Whoever can write there can at most choose among what the operator's registry
//! holds and, where there are keys, what is signed.

pub mod agreement;
mod announcing;
mod course;
mod following;
mod memory;
mod shelf;
mod staging;
mod told;
mod written;

pub use agreement::{Aborted, Chosen, Outcome, Speaker, Standing, Why, Word};
pub(crate) use announcing::Said;
pub use announcing::{NotAnnounced, NotRolledBack};
pub(crate) use following::start;
pub use following::{Following, Report, With};
pub(crate) use written::is_name;

use crate::policy::Digest;
use std::time::Duration;

/// How things stand, as shared state tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Which policy serves the fleet.
    pub standing: Standing,
    /// What is proposed.
    pub proposed: Option<Proposed>,
    /// The last proposal that came to nothing.
    pub aborted: Option<Aborted>,
    /// Hosts that live, by name.
    pub hosts: Vec<Host>,
}

/// What is proposed: see [`agreement::Proposal`].
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

/// The name of this host among the others: the machine's, and a part by chance, so that two hosts of one machine are two.
pub fn host_name(entropy: &crate::entropy::Entropy) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || ".-_".contains(*c);
    let machine: String = machine.trim().chars().filter(fits).take(40).collect();
    let machine = if machine.is_empty() { "host" } else { &machine };
    format!("{machine}-{:08x}", entropy.next() >> 32)
}
