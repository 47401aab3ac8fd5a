//! Inherited sockets: systemd's socket activation, or another supervisor that speaks its protocol (`LISTEN_FDS`, `LISTEN_PID`). The
//! supervisor keeps them open, so that no connection is lost between two processes.

use listenfd::ListenFd;
use std::net::{SocketAddr, TcpListener};

/// Inherited sockets that no listener has claimed yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Takes the sockets from the environment. Works once per process.
    pub fn take() -> Self {
        let mut sockets = ListenFd::from_env();
        let mut all = Vec::new();
        for index in 0..sockets.len() {
            match sockets.take_tcp_listener(index) {
                Ok(Some(socket)) => match (socket.set_nonblocking(true), socket.local_addr()) {
                    (Ok(()), Ok(address)) => all.push((address, socket)),
                    (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, index, "a socket of the service \
                                                                                        manager cannot be used"),
                },
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, index, "a socket of the service manager is not a TCP listener"),
            }
        }
        Self(all)
    }

    /// Takes the socket for an address. A socket for all IPv6 addresses also matches all IPv4 addresses.
    pub(super) fn claim(&mut self, wanted: SocketAddr) -> Option<TcpListener> {
        let is_it = |address: SocketAddr| {
            let everywhere = address.ip().is_unspecified() && wanted.ip().is_unspecified();
            address == wanted || everywhere && address.port() == wanted.port()
        };
        let index = self.0.iter().position(|(address, _)| is_it(*address))?;
        Some(self.0.swap_remove(index).1)
    }

    /// The addresses of unclaimed sockets.
    pub(super) fn unclaimed(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_socket_is_claimed_once_and_by_its_own_address() {
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, two) = (socket(), socket());
        let (first, second) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let mut inherited =
            Inherited(vec![(first, one), (second, two), ((std::net::Ipv6Addr::UNSPECIFIED, port).into(), everywhere)]);
        assert!(inherited.claim(second).is_some() && inherited.claim(second).is_none());
        assert!(
            inherited.claim(([127, 0, 0, 1], port).into()).is_none(),
            "a socket for all is not for this machine alone"
        );
        assert!(inherited.claim(([0, 0, 0, 0], port).into()).is_some());
        assert_eq!(inherited.unclaimed(), [first]);
    }
}
