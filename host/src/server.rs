//! The listener: one single-threaded runtime for each core, each with a socket and connections of its own.

mod connection;
mod worker;

use crate::{
    admin::{Admin, AdminError, Lifecycle},
    clock::Clock,
    config::settings::Settings,
    entropy::Entropy,
    pipeline::{Host, HostError},
    rollout::{Watch, WatchError},
};
use std::{io, net::SocketAddr, sync::Arc, thread};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The host could not be made.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; it must be an address of this machine that no other program listens on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Health, metrics and control cannot be offered.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Policy files cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// A thread or runtime could not be started.
    #[error("a worker thread could not be started")]
    Worker(#[source] io::Error),
}

/// A running server. Dropping it stops accepting; [`Server::stop`] drains it.
#[derive(Debug)]
pub struct Server {
    host: Host,
    addresses: Vec<SocketAddr>,
    stopping: CancellationToken,
    workers: Vec<thread::JoinHandle<bool>>,
    lifecycle: Arc<Lifecycle>,
    /// Answers until the last request is finished.
    admin: Option<Admin>,
    _policies: Watch,
}

impl Server {
    /// Loads policies, binds every listener and starts the workers.
    ///
    /// # Errors
    /// [`ServerError`]; nothing keeps running then.
    pub fn start(settings: &Settings) -> Result<Self, ServerError> {
        let host = Host::new(settings, Clock::system(), Entropy::system())?;
        let stopping = CancellationToken::new();
        let places = Arc::new(Semaphore::new(settings.server.max_connections));
        let mut wanted = vec![settings.server.listen];
        wanted.extend(settings.upstreams.iter().filter_map(|upstream| upstream.listen));
        wanted.dedup();
        let mut listeners = worker::bind(&wanted, settings.server.workers.max(1))?;
        let addresses = listeners.addresses();
        // Before the first request: what lies in the folder already serves from the start.
        let policies = host.watch(&settings.policies)?;
        let lifecycle = Arc::new(Lifecycle::default());
        let admin = Admin::start(&host, settings, &lifecycle)?;
        let workers = Vec::new();
        let mut server = Self { host, addresses, stopping, workers, lifecycle, admin, _policies: policies };
        for index in 0..settings.server.workers.max(1) {
            let own = server.host.worker(settings)?;
            let worker = worker::Worker {
                host: own,
                tidies: index == 0,
                settings: settings.server.clone(),
                sockets: listeners.take(index),
                places: Arc::clone(&places),
                stopping: server.stopping.clone(),
            };
            let spawned = thread::Builder::new().name(format!("triage-{index}")).spawn(move || worker.run());
            server.workers.push(spawned.map_err(ServerError::Worker)?);
        }
        server.lifecycle.serving(server.workers.len());
        Ok(server)
    }

    /// Where health, metrics and control are, if anywhere.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// The addresses that are listened on; the first one is `server.listen`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The host behind the listeners, for calls in process.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Stops accepting, finishes what is under way up to `server.drain`, and ends the workers. Blocks. Says whether everything
    /// was finished.
    pub fn stop(mut self) -> bool {
        self.lifecycle.draining();
        self.stopping.cancel();
        // Every worker is joined before any is judged; one that panicked finished nothing.
        let finished: Vec<bool> = self.workers.drain(..).map(|worker| worker.join().unwrap_or(false)).collect();
        finished.into_iter().all(|finished| finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
