//! One worker: a thread, a single-threaded runtime, its sockets.

use super::{
    Inherited, ServerError,
    connection::{self, Accepted},
    secret_reload::Files,
};
use crate::{config::settings, pipeline::Host, tls::Tls};
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

/// How many connections the kernel keeps ready for each socket.
const BACKLOG: i32 = 1024;
/// Between two connections while memory is scarce: with the time that a silent one has, a few megabytes of them at most.
const FULL: Duration = Duration::from_millis(50);
/// Between two looks for a connection to close while places are wanted.
const RECLAIM_AGAIN: Duration = Duration::from_millis(50);
/// What a collector may take for the last traces.
const LAST_TRACES: Duration = Duration::from_secs(2);
/// After accept failed for want of file descriptors.
const OUT_OF_FILES: Duration = Duration::from_millis(50);

/// Bound sockets, one for each worker and address.
pub(super) struct Listeners(Vec<Vec<Option<std::net::TcpListener>>>);

/// Binds each address once for each worker: the kernel spreads connections over them (`SO_REUSEPORT`).
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
            // All workers accept from the one queue: it outlives this process.
            for sockets in &mut all {
                sockets.push(Some(socket.try_clone().map_err(refused)?));
            }
            continue;
        }
        // A shared port could be shared with another host too: half of the requests would go past this one's records.
        if !reuse_port {
            drop(listener(*address, false).map_err(refused)?);
        }
        let mut actual = *address;
        for sockets in &mut all {
            let socket = listener(actual, true).map_err(refused)?;
            // Port 0 is chosen by the first socket and shared by the others.
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

/// What a worker thread runs on.
pub(super) struct Worker {
    pub(super) host: Host,
    /// One of the workers clears away what has expired, and follows these files.
    pub(super) keeps: Option<Arc<Files>>,
    pub(super) settings: Arc<ArcSwap<settings::Server>>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) sockets: Vec<std::net::TcpListener>,
    pub(super) places: Arc<Semaphore>,
    pub(super) stopping: CancellationToken,
}

impl Worker {
    /// Runs until the server stops; whether everything that was under way then was finished.
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
        // Each goes with its loop: what is still listened on while the host drains would be accepted and never answered.
        let sockets = std::mem::take(&mut self.sockets);
        let shared = Arc::new(self);
        // Ends with this function: dropping the set aborts what is in it.
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
        // Ends before the drain: what it was verifying is left to another host, and that is still to be written.
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
            let _ = timeout(LAST_TRACES, shared.host.export_rest()).await;
        }
        if !finished {
            tracing::warn!(?limit, "requests were still under way when the drain's time was over");
        }
        finished
    }

    async fn accept(self: Arc<Self>, socket: TcpListener, connections: TaskTracker) {
        let listener = socket.local_addr().ok();
        loop {
            // What waits in the kernel costs this process nothing. One is let in now and then all the same, and told so: nobody is
            // left to wait for an answer that never comes.
            if self.host.is_full() && !self.stopping.is_cancelled() {
                sleep(FULL).await;
            }
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = self.stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(own) = self.host.shared.peers.connect(peer.ip()) else {
                        self.crowded(peer);
                        continue;
                    };
                    // After the accept: a loop that waits for a caller holds no place that another socket's caller needs.
                    let Some(place) = self.place().await else { return };
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
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(OUT_OF_FILES).await;
                }
            }
        }
    }

    /// A place for one more connection; none when the server stops before there is one. At the cap a quiet connection is closed;
    /// where each one works, connections wait in the kernel's backlog.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        let mut wanted = pin!(Arc::clone(&self.places).acquire_owned());
        loop {
            self.host.shared.peers.reclaim();
            tokio::select! {
                // Who was accepted is served, though the server stops.
                biased;
                place = wanted.as_mut() => return place.ok(),
                () = self.stopping.cancelled() => return None,
                () = sleep(RECLAIM_AGAIN) => {}
            }
        }
    }

    /// A peer has more connections than it may. Told of once a minute: a line for each would fill the log.
    fn crowded(&self, peer: SocketAddr) {
        let host = &self.host.shared;
        host.events.note_seldom("peer-limited", &peer.ip().to_string(), || {
            let share = self.settings.load().peer_share_percent;
            format!("it has {share} % of the connections (server.peer_share): further ones are closed")
        });
    }
}
