//! Limits one connection's and one peer's share of the host: connections, requests, and writes whose callers have gone.
//!
//! A caller that resets an HTTP/2 stream, or closes its connection after a request, frees its stream in the protocol at once, while an
//! unsafe request runs on to its end. Without a count of its own, such work has no bound: one connection started 11,200 writes in eight
//! seconds. So requests are counted until their work ends, per connection, per peer and in total.
//!
//! A connection that only waits for its caller (for a next request, or for the caller to read) is *quiet*. Quiet connections are closed
//! after a while, and earlier at the connection limit.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection that was quiet for less is not reclaimed: its next request may be on the way.
const RECLAIM_AFTER: Duration = Duration::from_secs(1);

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one peer.
    pub peer_connections: usize,
    /// Requests under way at once on one connection.
    pub streams: usize,
    /// Requests under way at once on the host.
    pub requests: usize,
    /// Requests under way at once of one peer.
    pub peer_requests: usize,
    /// Writes under way at once on the host whose callers have gone.
    pub abandoned: usize,
    /// Writes under way at once of one peer whose callers have gone.
    pub peer_abandoned: usize,
}

/// The scope of an exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One connection.
    Connection,
    /// One peer.
    Peer,
    /// The whole host.
    Host,
}

impl Scope {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "this connection",
            Self::Peer => "this address",
            Self::Host => "this host",
        }
    }
}

/// A limit on requests under way was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// The scope of the limit.
    pub scope: Scope,
    /// The limit.
    pub limit: usize,
    /// Whether the limit is that of writes whose callers have gone.
    pub abandoned: bool,
}

/// Counts of work under way in one scope.
#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    abandoned: AtomicUsize,
}

/// A peer's address; for IPv6 its /64 prefix, from which a caller can choose any address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PeerAddress(IpAddr);

impl PeerAddress {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

#[derive(Debug)]
struct Peer {
    address: PeerAddress,
    connections: AtomicUsize,
    load: Load,
}

/// The host's connections and requests, by peer.
#[derive(Debug)]
pub struct Peers {
    limits: Limits,
    began: Instant,
    load: Load,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    peers: HashMap<PeerAddress, Arc<Peer>>,
    connections: HashMap<u64, Arc<State>>,
    next: u64,
}

/// One caller's connection. Dropping it ends its count.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    state: Arc<State>,
    peers: Arc<Peers>,
}

#[derive(Debug)]
struct State {
    peer: Arc<Peer>,
    load: Load,
    /// Requests whose responses have not ended.
    open: AtomicUsize,
    /// Open requests that do not wait for the caller.
    working: AtomicUsize,
    /// When the connection last did anything but wait for its caller, in milliseconds since the host began.
    active_ms: AtomicU64,
    reclaimed: CancellationToken,
}

/// A connection's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A request is worked on.
    Working,
    /// Every response waits for the caller to read, for this long.
    Unread(Duration),
    /// No request is open, for this long.
    Idle(Duration),
}

impl Peers {
    /// A host without connections.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, began: Instant::now(), load: Load::default(), known: Mutex::default() })
    }

    /// Counts a connection; none if the peer is at its limit.
    pub fn connect(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let address = PeerAddress::of(address);
        let mut known = self.known.lock();
        let peer = known
            .peers
            .entry(address)
            .or_insert_with(|| Arc::new(Peer { address, connections: AtomicUsize::new(0), load: Load::default() }));
        if peer.connections.load(Relaxed) >= self.limits.peer_connections {
            return None;
        }
        peer.connections.fetch_add(1, Relaxed);
        let state = Arc::new(State {
            peer: Arc::clone(peer),
            load: Load::default(),
            open: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            active_ms: AtomicU64::new(self.now_ms()),
            reclaimed: CancellationToken::new(),
        });
        let id = known.next;
        known.next += 1;
        known.connections.insert(id, Arc::clone(&state));
        Some(Connection { id, state, peers: Arc::clone(self) })
    }

    /// Counts a request, before anything of it is sent.
    ///
    /// # Errors
    /// [`TooMany`]; nothing is counted.
    pub fn begin(self: &Arc<Self>, connection: Option<&Connection>, is_unsafe: bool) -> Result<UnderWay, TooMany> {
        let limits = &self.limits;
        let state = connection.map(|connection| Arc::clone(&connection.state));
        let mut bounds = vec![(Scope::Host, limits.requests, limits.abandoned)];
        if state.is_some() {
            bounds.push((Scope::Peer, limits.peer_requests, limits.peer_abandoned));
            bounds.push((Scope::Connection, limits.streams, limits.streams));
        }
        let work = Work { peers: Arc::clone(self), state, phase: AtomicU8::new(RUNS) };
        for (counted, ((scope, requests, abandoned), load)) in bounds.into_iter().zip(work.loads()).enumerate() {
            let full = if is_unsafe && load.abandoned.load(Relaxed) >= abandoned {
                Some((abandoned, true))
            } else if load.requests.fetch_add(1, Relaxed) >= requests {
                load.requests.fetch_sub(1, Relaxed);
                Some((requests, false))
            } else {
                None
            };
            if let Some((limit, abandoned)) = full {
                work.loads().take(counted).for_each(|load| {
                    load.requests.fetch_sub(1, Relaxed);
                });
                return Err(TooMany { scope, limit, abandoned });
            }
        }
        Ok(UnderWay(Arc::new(work)))
    }

    /// Closes the connection that has been quiet longest, of the peer with the most connections. Returns whether there was one.
    pub fn reclaim(&self) -> bool {
        let now = self.now_ms();
        let grace = crate::clock::millis(RECLAIM_AFTER);
        let known = self.known.lock();
        let quiet = known.connections.values().filter_map(|state| {
            let for_ms = now.saturating_sub(state.active_ms.load(Relaxed));
            let is_quiet = state.working.load(Relaxed) == 0 && for_ms >= grace && !state.reclaimed.is_cancelled();
            is_quiet.then(|| ((state.peer.connections.load(Relaxed), for_ms), state))
        });
        let chosen = quiet.max_by_key(|(rank, _)| *rank);
        if let Some((_, state)) = &chosen {
            state.reclaimed.cancel();
        }
        chosen.is_some()
    }

    /// The number of requests under way, and how many of them are writes whose callers have gone.
    pub fn under_way(&self) -> (usize, usize) {
        (self.load.requests.load(Relaxed), self.load.abandoned.load(Relaxed))
    }

    fn now_ms(&self) -> u64 {
        crate::clock::millis(self.began.elapsed())
    }
}

impl Connection {
    /// Counts a request on this connection. It works until its response waits for the caller.
    pub fn open(&self) -> OpenRequest {
        self.state.open.fetch_add(1, Relaxed);
        self.state.working.fetch_add(1, Relaxed);
        self.touch();
        OpenRequest { state: Arc::clone(&self.state), peers: Arc::clone(&self.peers), is_working: true }
    }

    /// Whether the connection has a request whose response has not ended.
    pub fn is_open(&self) -> bool {
        self.state.open.load(Relaxed) > 0
    }

    /// The connection's activity.
    pub fn activity(&self) -> Activity {
        let quiet = self.peers.now_ms().saturating_sub(self.state.active_ms.load(Relaxed));
        let quiet = Duration::from_millis(quiet);
        match (self.state.working.load(Relaxed), self.state.open.load(Relaxed)) {
            (0, 0) => Activity::Idle(quiet),
            (0, _) => Activity::Unread(quiet),
            _ => Activity::Working,
        }
    }

    /// Resolves when another caller needs this connection's permit.
    pub async fn reclaimed(&self) {
        self.state.reclaimed.cancelled().await;
    }

    fn touch(&self) {
        self.state.active_ms.store(self.peers.now_ms(), Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut known = self.peers.known.lock();
        known.connections.remove(&self.id);
        self.state.peer.connections.fetch_sub(1, Relaxed);
        known.forget(&self.state.peer);
    }
}

impl Known {
    /// Forgets a peer with nothing under way: an attacker has many addresses.
    fn forget(&mut self, peer: &Peer) {
        let is_known = self.peers.get(&peer.address).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), peer));
        // The address may have connected again since, with a new count.
        if is_known && peer.connections.load(Relaxed) == 0 && peer.load.requests.load(Relaxed) == 0 {
            self.peers.remove(&peer.address);
        }
    }
}

/// A request whose response has not ended.
#[derive(Debug)]
pub struct OpenRequest {
    state: Arc<State>,
    peers: Arc<Peers>,
    is_working: bool,
}

impl OpenRequest {
    /// The response now waits for the caller.
    pub fn waits(&mut self) {
        if std::mem::take(&mut self.is_working) {
            self.state.working.fetch_sub(1, Relaxed);
        }
        self.touch();
    }

    /// The caller has taken all available bytes.
    pub fn works(&mut self) {
        if !std::mem::replace(&mut self.is_working, true) {
            self.state.working.fetch_add(1, Relaxed);
        }
        self.touch();
    }

    /// The caller has taken a part of the available bytes.
    pub fn touch(&self) {
        self.state.active_ms.store(self.peers.now_ms(), Relaxed);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.waits();
        self.state.open.fetch_sub(1, Relaxed);
    }
}

const RUNS: u8 = 0;
const ABANDONED: u8 = 1;
const ENDED: u8 = 2;

#[derive(Debug)]
struct Work {
    peers: Arc<Peers>,
    state: Option<Arc<State>>,
    phase: AtomicU8,
}

impl Work {
    /// The counts of the host, the peer and the connection, as far as the request has them.
    fn loads(&self) -> impl Iterator<Item = &Load> {
        let own = self.state.as_deref().into_iter().flat_map(|state| [&state.peer.load, &state.load]);
        std::iter::once(&self.peers.load).chain(own)
    }
}

/// Counts a request until its work has ended.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub struct UnderWay(Arc<Work>);

/// The caller of a detached request. Dropped before [`CallerWaits::answered`], it counts as gone.
#[derive(Debug)]
pub struct CallerWaits(Option<Arc<Work>>);

impl UnderWay {
    /// Watches the caller of a detached request.
    pub fn caller(&self) -> CallerWaits {
        CallerWaits(Some(Arc::clone(&self.0)))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let was_abandoned = self.0.phase.swap(ENDED, SeqCst) == ABANDONED;
        for load in self.0.loads() {
            load.requests.fetch_sub(1, Relaxed);
            if was_abandoned {
                load.abandoned.fetch_sub(1, Relaxed);
            }
        }
        if let Some(state) = &self.0.state
            && state.peer.connections.load(Relaxed) == 0
        {
            self.0.peers.known.lock().forget(&state.peer);
        }
    }
}

impl CallerWaits {
    /// The caller stayed until the end.
    pub fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for CallerWaits {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        // Count first: if the work ends at this moment, it either sees the count or has already set the phase to ended.
        for load in work.loads() {
            load.abandoned.fetch_add(1, Relaxed);
        }
        if work.phase.compare_exchange(RUNS, ABANDONED, SeqCst, SeqCst).is_err() {
            for load in work.loads() {
                load.abandoned.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
#[path = "peers/tests.rs"]
mod tests;
