//! One worker: a thread with a single-threaded runtime and its sockets.

use super::{
    Inherited, ServerError,
    connection::{self, Accepted},
    secret_reload::Files,
};
use crate::{Host, config::settings, tls::Tls};
use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use triage_core::rounded::Rounded;

/// The accept backlog of each socket.
const BACKLOG: i32 = 1024;
/// The pause between two accepts while memory is scarce. At this rate, connections that stay silent until their timeout take a few
/// megabytes of memory together.
const SCARCE_MEMORY_PAUSE: Duration = Duration::from_millis(50);
/// How often to search for a quiet connection to close while a new one waits.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(50);
/// How long the collector may take for the last traces.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after accept failed, usually for want of file descriptors.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);

/// Bound sockets, one for each worker and address.
pub(super) struct Listeners(Vec<Vec<Option<std::net::TcpListener>>>);

/// Binds each address once for each worker: the kernel spreads connections over the sockets (`SO_REUSEPORT`).
pub(super) fn bind(
    wanted: &[SocketAddr],
    workers: usize,
    reuse_port: bool,
    inherited: &mut Inherited,
) -> Result<Listeners, ServerError> {
    let mut all: Vec<Vec<Option<std::net::TcpListener>>> = (0..workers).map(|_| Vec::new()).collect();
    for address in wanted {
        let refused = |source| ServerError::Listen { address: *address, source };
        if let Some(socket) = inherited.claim(*address) {
            // All workers accept from the one inherited queue, which outlives this process.
            for sockets in &mut all {
                sockets.push(Some(socket.try_clone().map_err(refused)?));
            }
            continue;
        }
        // Check that no other process has the port: with `SO_REUSEPORT` it would take half of the requests, past this host's records.
        if !reuse_port {
            drop(listener(*address, false).map_err(refused)?);
        }
        let mut actual = *address;
        for sockets in &mut all {
            let socket = listener(actual, true).map_err(refused)?;
            // With port 0, the first socket gets a port, and the others share it.
            actual = socket.local_addr().map_err(refused)?;
            sockets.push(Some(socket));
        }
    }
    Ok(Listeners(all))
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listeners {
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.first().into_iter().flatten().flatten().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    pub(super) fn take(&mut self, worker: usize) -> Vec<std::net::TcpListener> {
        self.0.get_mut(worker).into_iter().flatten().filter_map(Option::take).collect()
    }
}

/// The state of a worker thread.
pub(super) struct Worker {
    pub(super) host: Host,
    /// Set for one worker, which purges expired state and watches these files.
    pub(super) keeps: Option<Arc<Files>>,
    pub(super) settings: Arc<ArcSwap<settings::Server>>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) sockets: Vec<std::net::TcpListener>,
    pub(super) connection_permits: Arc<Semaphore>,
    pub(super) stopping: CancellationToken,
}

impl Worker {
    /// Runs until the server stops. Returns whether all requests under way were finished.
    pub(super) fn run(self) -> bool {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker's runtime could not be started");
                return false;
            }
        };
        runtime.block_on(self.serve())
    }

    async fn serve(mut self) -> bool {
        let connections = TaskTracker::new();
        // Each accept loop owns its socket, so that the socket closes before the drain: a connection accepted later would never be served.
        let sockets = std::mem::take(&mut self.sockets);
        let shared = Arc::new(self);
        // Dropping the set at the end of this function aborts its tasks.
        let mut background = JoinSet::new();
        if let Some(files) = &shared.keeps {
            let (host, files) = (shared.host.clone(), Arc::clone(files));
            let watched = host.clone();
            background.spawn(async move { host.purge_expired().await });
            background.spawn(async move { watched.watch_memory().await });
            let traced = shared.host.clone();
            background.spawn(async move { traced.export_traces().await });
            background.spawn(async move { files.follow().await });
        }
        // Settling stops before the drain: another host continues its verifications, and the drain still writes their records back.
        let mut settling = JoinSet::new();
        if shared.keeps.is_some() {
            let host = shared.host.clone();
            settling.spawn(async move { host.settle_writes().await });
        }
        let mut accepting = JoinSet::new();
        for socket in sockets {
            match TcpListener::from_std(socket) {
                Ok(socket) => {
                    accepting.spawn(Self::accept(Arc::clone(&shared), socket, connections.clone()));
                }
                Err(error) => tracing::error!(%error, "a listener could not be used"),
            }
        }
        while accepting.join_next().await.is_some() {}
        settling.shutdown().await;
        connections.close();
        let drained = async {
            connections.wait().await;
            shared.host.drained().await;
        };
        let limit = shared.settings.load().drain;
        let finished = timeout(limit, drained).await.is_ok();
        if shared.keeps.is_some() {
            let _ = timeout(LAST_EXPORT_TIMEOUT, shared.host.export_rest()).await;
        }
        if !finished {
            tracing::warn!(limit = %Rounded(limit), "requests were still under way at the end of the drain time");
        }
        finished
    }

    async fn accept(self: Arc<Self>, socket: TcpListener, connections: TaskTracker) {
        let listener = socket.local_addr().ok();
        loop {
            // While memory is scarce, connections wait in the kernel, which costs this process nothing. Accept one now and then all the
            // same, so that its caller gets a refusal instead of silence.
            if self.host.is_full() && !self.stopping.is_cancelled() {
                sleep(SCARCE_MEMORY_PAUSE).await;
            }
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = self.stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(own) = self.host.shared.peers.connect(peer.ip()) else {
                        self.note_crowded_peer(peer);
                        continue;
                    };
                    // Take the permit after the accept: a loop that waits for a caller must not hold a permit that another socket's caller
                    // needs.
                    let Some(permit) = self.connection_permit().await else { return };
                    let _ = stream.set_nodelay(true);
                    let accepted = Accepted {
                        host: self.host.clone(),
                        listener,
                        settings: self.settings.load_full(),
                        own: Arc::new(own),
                        stopping: self.stopping.clone(),
                    };
                    let acceptor = self.tls.as_deref().map(Tls::acceptor);
                    let served = connection::begin(accepted, acceptor, stream, peer);
                    connections.spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_RETRY_WAIT).await;
                }
            }
        }
    }

    /// Takes a permit for one more connection; none if the server stops first. At the cap, a quiet connection is closed. If all are busy,
    /// new connections wait in the kernel's backlog.
    async fn connection_permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.connection_permits).try_acquire_owned() {
            return Some(permit);
        }
        let mut wanted = pin!(Arc::clone(&self.connection_permits).acquire_owned());
        loop {
            self.host.shared.peers.reclaim();
            tokio::select! {
                // An accepted connection is served even if the server stops.
                biased;
                permit = wanted.as_mut() => return permit.ok(),
                () = self.stopping.cancelled() => return None,
                () = sleep(RECLAIM_INTERVAL) => {}
            }
        }
    }

    /// Records that a peer exceeds its share of connections, once a minute: a line for each refusal would fill the log.
    fn note_crowded_peer(&self, peer: SocketAddr) {
        let host = &self.host.shared;
        host.events.note_seldom("peer-limited", &peer.ip().to_string(), || {
            let share = self.settings.load().peer_share_percent;
            format!("it has {share} % of the connections (server.peer_share): the host closes further ones")
        });
    }
}
