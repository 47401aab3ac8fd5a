//! The listener: one single-threaded runtime for each core, each with its own sockets and connections.

mod connection;
mod descriptors;
mod h2_preface;
mod metered;
mod request_check;
mod secret_reload;
mod socket_activation;
mod streams;
mod worker;
mod write_through;

pub use descriptors::{Missing, raise as raise_descriptors};
pub use socket_activation::Inherited;

use crate::{
    Host, HostError,
    admin::{Admin, AdminError, Lifecycle},
    clock::Clock,
    config::{self, settings::Settings},
    rng::Rng,
    rollout::{PolicyWatcher, WatchError},
    tls::{Tls, TlsError},
    upstream_runtime::ServiceError,
};
use arc_swap::ArcSwap;
use std::{io, net::SocketAddr, sync::Arc, thread};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The host could not be built.
    #[error(transparent)]
    Host(#[from] HostError),
    /// An address could not be bound.
    #[error("cannot listen on {address}; it must be an address of this machine that no other program listens on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An inherited socket matches no configured listener.
    #[error(
        "the system passed sockets on {}, but no listener is configured there; server.listen, an upstream's listen or \
         admin.listen must name each", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Unclaimed(Vec<SocketAddr>),
    /// The certificate or key of the listeners was refused.
    #[error("TLS cannot be set up for the listeners (server.tls)")]
    Tls(#[source] TlsError),
    /// The admin listener could not be started.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The watcher of policy files could not be started.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// A thread or runtime could not be started.
    #[error("a worker thread could not be started")]
    Worker(#[source] io::Error),
}

/// Why a changed configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The new values do not fit those that only a restart can change.
    #[error("the new values conflict with unchanged values: {0}")]
    Problems(config::Problems),
    /// A new value does not fit an upstream's policy.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The admin listener's tokens or certificate were refused.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The certificate or key of the listeners was refused.
    #[error("the listeners' certificate was not read again (server.tls)")]
    Tls(#[source] TlsError),
}

/// A running server. Dropping it stops accepting; [`Server::stop`] drains it.
#[derive(Debug)]
pub struct Server {
    host: Host,
    settings: Arc<ArcSwap<Settings>>,
    /// The settings that workers read for each connection.
    live: Arc<ArcSwap<config::settings::Server>>,
    tls: Option<Arc<Tls>>,
    addresses: Vec<SocketAddr>,
    stopping: CancellationToken,
    workers: Vec<thread::JoinHandle<bool>>,
    lifecycle: Arc<Lifecycle>,
    /// Serves until the last request is finished.
    admin: Option<Admin>,
    _policies: PolicyWatcher,
}

impl Server {
    /// Loads policies, binds every listener and starts the workers.
    ///
    /// # Errors
    /// [`ServerError`]; nothing keeps running then.
    pub fn start(settings: &Settings) -> Result<Self, ServerError> {
        Self::start_with(settings, Inherited::default())
    }

    /// Starts on the sockets that the process inherited; binds the others.
    ///
    /// # Errors
    /// [`ServerError`]; nothing keeps running then.
    pub fn start_with(settings: &Settings, mut inherited: Inherited) -> Result<Self, ServerError> {
        let tls = settings.server.tls.as_ref().map(|tls| Tls::open(tls, &["h2", "http/1.1"]).map(Arc::new));
        let tls = tls.transpose().map_err(ServerError::Tls)?;
        let host = Host::new(settings, Clock::system(), Rng::system())?;
        let stopping = CancellationToken::new();
        let connection_permits = Arc::new(Semaphore::new(settings.server.max_connections));
        let mut wanted = vec![settings.server.listen];
        wanted.extend(settings.upstreams.iter().filter_map(|upstream| upstream.listen));
        wanted.dedup();
        let mut listeners =
            worker::bind(&wanted, settings.server.workers.max(1), settings.server.reuse_port, &mut inherited)?;
        let admin_socket = settings.admin.listen.and_then(|wanted| inherited.claim(wanted));
        let unclaimed = inherited.unclaimed();
        if !unclaimed.is_empty() {
            return Err(ServerError::Unclaimed(unclaimed));
        }
        let addresses = listeners.addresses();
        // Before the first request, so that policies in the folder serve from the start.
        let policies = host.watch(&settings.policies)?;
        let lifecycle = Arc::new(Lifecycle::default());
        let admin = Admin::start(&host, settings, &lifecycle, admin_socket)?;
        let server_settings = Arc::new(ArcSwap::from_pointee(settings.server.clone()));
        let workers = Vec::new();
        let settings_now = Arc::new(ArcSwap::from_pointee(settings.clone()));
        let files = secret_reload::Files {
            host: host.clone(),
            settings: Arc::clone(&settings_now),
            tls: tls.clone(),
            admin: admin.as_ref().map(Admin::secrets),
        };
        let mut files = Some(Arc::new(files));
        let mut server = Self {
            host,
            settings: settings_now,
            live: Arc::clone(&server_settings),
            tls,
            addresses,
            stopping,
            workers,
            lifecycle,
            admin,
            _policies: policies,
        };
        for index in 0..settings.server.workers.max(1) {
            let own = server.host.worker(settings)?;
            let worker = worker::Worker {
                host: own,
                keeps: files.take(),
                settings: Arc::clone(&server_settings),
                tls: server.tls.clone(),
                sockets: listeners.take(index),
                connection_permits: Arc::clone(&connection_permits),
                stopping: server.stopping.clone(),
            };
            let spawned = thread::Builder::new().name(format!("triage-{index}")).spawn(move || worker.run());
            server.workers.push(spawned.map_err(ServerError::Worker)?);
        }
        server.lifecycle.serving(server.workers.len());
        Ok(server)
    }

    /// The address of the admin listener, if there is one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// The bound addresses; the first one is `server.listen`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The host behind the listeners, for calls in process.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Applies a changed configuration as far as possible without a restart, and reloads certificates and tokens. Returns the keys that
    /// changed and those that need a restart. Blocks while it reads files.
    ///
    /// # Errors
    /// [`ReloadError`]; the old configuration then stays in force.
    pub fn reload(&self, settings: &Settings) -> Result<config::Reload, ReloadError> {
        let done = self.reloaded(settings);
        if let Err(error) = &done {
            self.host.reload_refused(error);
        }
        done
    }

    /// Logs that a changed configuration could not be read.
    pub fn reload_refused(&self, error: &(dyn std::error::Error + 'static)) {
        self.host.reload_refused(error);
    }

    fn reloaded(&self, settings: &Settings) -> Result<config::Reload, ReloadError> {
        let reload = config::reload(&self.settings.load(), settings).map_err(ReloadError::Problems)?;
        // Steps that can fail come first.
        let access = self.admin.as_ref().map(|admin| admin.secrets().prepare(&reload.settings)).transpose()?;
        if let Some(tls) = &self.tls {
            tls.reload().map_err(ReloadError::Tls)?;
        }
        self.host.reload(&reload)?;
        if let (Some(admin), Some(access)) = (&self.admin, access) {
            admin.secrets().adopt(access, &reload.settings);
        }
        self.live.store(Arc::new(reload.settings.server.clone()));
        self.settings.store(Arc::new(reload.settings.clone()));
        Ok(reload)
    }

    /// Stops accepting, finishes requests under way up to `server.drain`, and ends the workers. Blocks. Returns whether all requests were
    /// finished.
    pub fn stop(mut self) -> bool {
        self.lifecycle.draining();
        // Readiness now fails, but the listeners stay open: load balancers get time to turn away.
        let delay = self.live.load().shutdown_delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        self.stopping.cancel();
        // Join every worker before combining the results. A worker that panicked finished nothing.
        let finished: Vec<bool> = self.workers.drain(..).map(|worker| worker.join().unwrap_or(false)).collect();
        finished.into_iter().all(|finished| finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
