//! What one connection and one peer may take of the host: connections, requests, and writes whose callers have gone.
//!
//! A caller that resets an HTTP/2 stream, or closes its connection after a request, frees its place in the protocol at once, while an
//! unsafe request runs on to its end. Without a count of its own such work has no bound: one connection began 11,200 writes in eight
//! seconds. Hence requests are counted until their work ends, for the connection, for the peer and in all.
//!
//! A connection that waits for its caller alone (for a next request, or for the caller to read) is *quiet*. Quiet connections end after
//! a while, and earlier where places are scarce.

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

/// A connection that was quiet for less is not closed to make a place: its next request may be on the way.
const RECLAIM_AFTER: Duration = Duration::from_secs(1);

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that one peer may have.
    pub peer_connections: usize,
    /// Requests under way at once on one connection.
    pub streams: usize,
    /// Requests under way at once.
    pub requests: usize,
    /// Of which one peer's.
    pub peer_requests: usize,
    /// Writes under way at once whose callers have gone.
    pub abandoned: usize,
    /// Of which one peer's.
    pub peer_abandoned: usize,
}

/// Whose bound a request or a connection met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The connection's.
    Connection,
    /// The peer's.
    Peer,
    /// The host's.
    Host,
}

impl Scope {
    /// In messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "this connection",
            Self::Peer => "this address",
            Self::Host => "this host",
        }
    }
}

/// As many requests as may be are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// Whose.
    pub scope: Scope,
    /// The bound.
    pub limit: usize,
    /// Whether it is that of writes whose callers have gone.
    pub abandoned: bool,
}

/// What is under way somewhere.
#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    abandoned: AtomicUsize,
}

/// An address, or what stands for one: an IPv6 caller has a /64 to choose from.
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

/// One caller's connection. Dropping it gives its place back.
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
    /// Requests whose answers have not ended.
    open: AtomicUsize,
    /// Those of them that do not wait for the caller.
    working: AtomicUsize,
    /// When it last did anything but wait for its caller, in milliseconds since the host began.
    active_ms: AtomicU64,
    reclaimed: CancellationToken,
}

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A request is worked on.
    Working,
    /// Every answer on it waits for the caller to read, for so long.
    Unread(Duration),
    /// Nothing was asked for so long.
    Idle(Duration),
}

impl Peers {
    /// Without a connection.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, began: Instant::now(), load: Load::default(), known: Mutex::default() })
    }

    /// Counts a connection; none where the peer has as many as it may.
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
    /// [`TooMany`]; nothing is counted then.
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

    /// Closes the connection that is quiet for longest, of the peer with the most connections. Whether there was one.
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

    /// Requests under way, and of those the ones whose callers have gone.
    pub fn under_way(&self) -> (usize, usize) {
        (self.load.requests.load(Relaxed), self.load.abandoned.load(Relaxed))
    }

    fn now_ms(&self) -> u64 {
        crate::clock::millis(self.began.elapsed())
    }
}

impl Connection {
    /// A request came in on it: it works until the answer waits for the caller.
    pub fn open(&self) -> OpenRequest {
        self.state.open.fetch_add(1, Relaxed);
        self.state.working.fetch_add(1, Relaxed);
        self.touch();
        OpenRequest { state: Arc::clone(&self.state), peers: Arc::clone(&self.peers), is_working: true }
    }

    /// Whether it has a request whose answer has not ended.
    pub fn is_open(&self) -> bool {
        self.state.open.load(Relaxed) > 0
    }

    /// How it stands.
    pub fn activity(&self) -> Activity {
        let quiet = self.peers.now_ms().saturating_sub(self.state.active_ms.load(Relaxed));
        let quiet = Duration::from_millis(quiet);
        match (self.state.working.load(Relaxed), self.state.open.load(Relaxed)) {
            (0, 0) => Activity::Idle(quiet),
            (0, _) => Activity::Unread(quiet),
            _ => Activity::Working,
        }
    }

    /// Ends when its place is wanted for another caller.
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
    /// A peer with nothing under way is not kept: an attacker has many addresses.
    fn forget(&mut self, peer: &Peer) {
        let is_known = self.peers.get(&peer.address).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), peer));
        // Its address may have come back since, and stand for another count.
        if is_known && peer.connections.load(Relaxed) == 0 && peer.load.requests.load(Relaxed) == 0 {
            self.peers.remove(&peer.address);
        }
    }
}

/// A request whose answer has not ended.
#[derive(Debug)]
pub struct OpenRequest {
    state: Arc<State>,
    peers: Arc<Peers>,
    is_working: bool,
}

impl OpenRequest {
    /// From now on it waits for its caller.
    pub fn waits(&mut self) {
        if std::mem::take(&mut self.is_working) {
            self.state.working.fetch_sub(1, Relaxed);
        }
        self.touch();
    }

    /// The caller has taken what there was.
    pub fn works(&mut self) {
        if !std::mem::replace(&mut self.is_working, true) {
            self.state.working.fetch_add(1, Relaxed);
        }
        self.touch();
    }

    /// The caller has taken a part of what there was.
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
    /// The host's, the peer's and the connection's, as far as there are any.
    fn loads(&self) -> impl Iterator<Item = &Load> {
        let own = self.state.as_deref().into_iter().flat_map(|state| [&state.peer.load, &state.load]);
        std::iter::once(&self.peers.load).chain(own)
    }
}

/// A request that is counted until its work has ended.
#[derive(Debug)]
#[must_use = "dropping it ends the count"]
pub struct UnderWay(Arc<Work>);

/// The caller of a request that runs on without it. Dropped before [`CallerWaits::answered`], it counts as gone.
#[derive(Debug)]
pub struct CallerWaits(Option<Arc<Work>>);

impl UnderWay {
    /// Watches the caller of a request that runs on without it.
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
    /// The caller was there until the end.
    pub fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for CallerWaits {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        // Counted first: work that ends at this moment finds it counted, or is found ended.
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
