//! The owners of a record: the fencing token, the host and its lease, and what a holder may have sent.

use super::super::fingerprint::KeyTag;
use crate::{clock::Timestamp, rng::Rng};
use std::{fmt, time::Duration};

/// An owner's proof that it still owns the record. Each begin draws a random one, so that no token recurs after a loss of data.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FencingToken(pub u128);

impl FencingToken {
    /// Draws a random token.
    pub fn draw(entropy: &Rng) -> Self {
        Self(u128::from(entropy.next()) << 64 | u128::from(entropy.next()))
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({:08x})", self.0 as u32)
    }
}

/// How long a host counts as alive after its last heartbeat; its locks end when the lease ends. Hosts renew it early enough for one
/// renewal to fail. It outlasts a restart of the server and is much shorter than a lock.
pub const HOST_LEASE: Duration = Duration::from_secs(15);

/// The id of one of the processes that share a store. Each start draws a random one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// Facts of the store that decide whether a record is up to date and its holder alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreFacts {
    /// When the store last lost data, if ever.
    pub lost: Option<Timestamp>,
    /// The end of the heartbeat lease of the host that holds the record; none if the store does not know the host.
    pub host_until: Option<Timestamp>,
}

impl StoreFacts {
    /// The end of the lease of the holder's host. The store may have lost a renewal: a lease from before the loss counts as running
    /// until all hosts had time to renew.
    pub(super) fn host_ends(&self) -> Option<Timestamp> {
        self.host_until.map(|until| until.max(self.lost.map_or(until, |lost| lost.after(HOST_LEASE))))
    }
}

/// The upstream's own key, if every send of a record so far carried the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedSends {
    /// The key.
    pub key: KeyTag,
    /// The time since the first send.
    pub first_ago: Duration,
}

/// Which key of the upstream's own a record's sends carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    /// No send so far.
    None,
    /// Every send carried this key, the first at this time.
    Keyed(KeyTag, Timestamp),
    /// The keys differ, or a send carried none.
    Mixed,
}

impl Sends {
    pub(super) fn with(self, key: Option<KeyTag>, now: Timestamp) -> Self {
        match (self, key) {
            (Self::None, Some(key)) => Self::Keyed(key, now),
            (Self::Keyed(first, at), Some(key)) if first == key => Self::Keyed(first, at),
            _ => Self::Mixed,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) fence: FencingToken,
    /// The key of the upstream's own that its sends carry.
    pub(super) key: Option<KeyTag>,
    pub(super) host: Option<HostId>,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    /// When this holder last marked a send; none if it sent nothing.
    pub(super) sent: Option<Timestamp>,
    pub(super) prior: Option<Prior>,
}

/// The last moment at which an earlier holder may have sent a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prior {
    pub(super) sent: Timestamp,
    /// Whether no send is marked, and only a loss of the store's data, or the caller, suggests one.
    pub(super) doubtful: bool,
}

impl Prior {
    pub(super) fn assumed(sent: Timestamp) -> Self {
        Self { sent, doubtful: true }
    }
}

impl Holder {
    /// The latest time at which the holder may send: the end of its lock or of its host's lease, the earlier of both.
    pub(super) fn ends(&self, facts: &StoreFacts) -> Timestamp {
        facts.host_ends().filter(|_| self.host.is_some()).map_or(self.until, |ends| ends.min(self.until))
    }

    /// The earliest time at which the holder may end, right after one of its transitions, which renews its host's lease.
    pub(super) fn first_end(&self, now: Timestamp) -> Timestamp {
        self.host.map_or(self.until, |_| self.until.min(now.after(HOST_LEASE)))
    }

    /// The last moment at which a crashed holder may have sent a byte: the end of its lock or lease, if it ever marked a send.
    pub(super) fn last_byte_if_vanished(&self, facts: &StoreFacts) -> Option<Prior> {
        let prior = self.prior.map(|prior| prior.sent);
        let own = self.sent.map(|sent| sent.max(self.ends(facts)));
        Some(Prior { sent: own.max(prior)?, doubtful: self.is_doubtful() })
    }

    /// Whether this holder, or one before it, may have sent a byte.
    pub(super) fn may_have_sent(&self) -> bool {
        self.sent.is_some() || self.prior.is_some()
    }

    /// Whether only a loss of data, or the caller, suggests a send.
    pub(super) fn is_doubtful(&self) -> bool {
        self.sent.is_none() && self.prior.is_some_and(|prior| prior.doubtful)
    }
}
