//! Connection limits: a few per address, a few in total, and always one for health checks.
//!
//! Orchestrators restart a host whose health check fails. A connection over the limits is therefore still served, briefly and for health
//! checks only; the newest such connection replaces the oldest.

use crate::overload::peers::{Connection, Limits, Peers};
use std::{collections::VecDeque, net::IpAddr, sync::Arc};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

/// Maximum connections: a few scrapers, health checks and people.
const MAX_CONNECTIONS: usize = 256;
/// Maximum connections of one address.
const MAX_ADDRESS_CONNECTIONS: usize = 64;
/// Additional connections that can only request health.
const MAX_HEALTH_CONNECTIONS: usize = 64;

/// The permits for connections.
#[derive(Debug)]
pub(super) struct ConnectionLimits {
    permits: Arc<Semaphore>,
    peers: Arc<Peers>,
    health: VecDeque<AbortHandle>,
}

/// A permit for one connection, returned when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    _permit: OwnedSemaphorePermit,
    _own: Connection,
}

impl ConnectionLimits {
    pub(super) fn new() -> Self {
        let all = usize::MAX;
        let limits = Limits {
            peer_connections: MAX_ADDRESS_CONNECTIONS,
            streams: all,
            requests: all,
            peer_requests: all,
            abandoned: all,
            peer_abandoned: all,
        };
        Self { permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)), peers: Peers::new(limits), health: VecDeque::new() }
    }

    /// A permit for the connection; none if it may only request health.
    pub(super) fn enter(&self, address: IpAddr) -> Option<ConnectionSlot> {
        let own = self.peers.connect(address)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(ConnectionSlot { _permit: permit, _own: own })
    }

    /// Registers a connection that may only request health, and closes the oldest one if there are too many.
    pub(super) fn health(&mut self, connection: AbortHandle) {
        self.health.retain(|own| !own.is_finished());
        if self.health.len() >= MAX_HEALTH_CONNECTIONS
            && let Some(oldest) = self.health.pop_front()
        {
            oldest.abort();
        }
        self.health.push_back(connection);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::task::JoinSet;

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_places_to_others() {
        let limits = ConnectionLimits::new();
        let own: Vec<_> = std::iter::from_fn(|| limits.enter(address(1))).take(1000).collect();
        assert_eq!(own.len(), MAX_ADDRESS_CONNECTIONS);
        let all: Vec<_> =
            (2..100).flat_map(|n| (0..10).filter_map(|_| limits.enter(address(n))).collect::<Vec<_>>()).collect();
        assert_eq!(own.len() + all.len(), MAX_CONNECTIONS);
        drop(all);
        assert!(limits.enter(address(2)).is_some() && limits.enter(address(1)).is_none());
        drop(own);
        assert!(limits.enter(address(1)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_that_asks_for_health_is_served() {
        let mut limits = ConnectionLimits::new();
        let mut connections = JoinSet::new();
        for _ in 0..=MAX_HEALTH_CONNECTIONS {
            limits.health(connections.spawn(std::future::pending::<()>()));
        }
        assert!(connections.join_next().await.unwrap().unwrap_err().is_cancelled(), "the oldest one went");
        assert_eq!((connections.len(), limits.health.len()), (MAX_HEALTH_CONNECTIONS, MAX_HEALTH_CONNECTIONS));
    }
}
