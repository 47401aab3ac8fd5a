//! Health, metrics and control, on a listener of its own.
//!
//! It runs on one thread with a runtime of its own and a lower priority, admits few connections and few requests a second, so
//! that abuse of it does not slow the data path. Whoever reaches it may look and act, unless tokens are configured; beyond this
//! machine it does not start without one.

mod access;
mod actions;
mod answer;
mod client;
mod listen;
mod live;
mod look;
mod page;
mod routes;
mod session;
mod shapes;

pub use access::TokenError;
pub use client::{Client, ClientError};
pub use routes::OPENAPI;

use crate::{clock::Clock, config::settings, pipeline::Host};
use access::Access;
use live::Live;
use parking_lot::Mutex;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio_util::sync::CancellationToken;

/// Why the admin listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address} (admin.listen); it must be an address of this machine that no other program, such as another \
         host, listens on: give --admin ADDRESS, or --admin off to do without"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The thread could not be started.
    #[error("the admin listener's thread could not be started")]
    Thread(#[source] io::Error),
}

/// Whether the tokens can be used that a listener would need.
///
/// # Errors
/// [`TokenError`]
pub fn check(settings: &settings::Admin, clock: Clock) -> Result<(), TokenError> {
    if settings.listen.is_some() {
        Access::of(settings, clock)?;
    }
    Ok(())
}

/// How the host as a process stands.
#[derive(Debug, Default)]
pub struct Lifecycle {
    serving: AtomicBool,
    draining: AtomicBool,
    workers: Mutex<usize>,
}

impl Lifecycle {
    /// Every worker accepts connections now.
    pub fn serving(&self, workers: usize) {
        *self.workers.lock() = workers;
        self.serving.store(true, Ordering::Release);
    }

    /// No new connections from now on.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Why the host should not be sent requests; none: it should.
    pub fn unready(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Acquire) {
            Some("the host is stopping and finishes what is under way")
        } else if self.serving.load(Ordering::Acquire) {
            None
        } else {
            Some("the host is starting")
        }
    }

    fn workers(&self) -> usize {
        *self.workers.lock()
    }
}

/// What every handler has.
#[derive(Debug, Clone)]
struct Desk {
    host: Host,
    settings: Arc<settings::Settings>,
    lifecycle: Arc<Lifecycle>,
    access: Arc<Access>,
    live: Arc<Live>,
    /// Whether callers come by TLS.
    is_encrypted: bool,
    started_unix_ms: u64,
}

impl Desk {
    fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }
}

/// The running listener; it ends when dropped.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Admin {
    /// Listens, where the settings name an address.
    ///
    /// # Errors
    /// [`AdminError`]
    pub fn start(
        host: &Host,
        settings: &settings::Settings,
        lifecycle: &Arc<Lifecycle>,
    ) -> Result<Option<Self>, AdminError> {
        let Some(wanted) = settings.admin.listen else { return Ok(None) };
        let access = Arc::new(Access::of(&settings.admin, host.shared.clock)?);
        let refused = |source| AdminError::Listen { address: wanted, source };
        let socket = listen::bind(wanted).map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        let desk = Desk {
            host: host.clone(),
            settings: Arc::new(settings.clone()),
            lifecycle: Arc::clone(lifecycle),
            access,
            live: Arc::new(Live::new()),
            is_encrypted: false,
            started_unix_ms: host.shared.clock.unix_ms(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let run = move || listen::run(socket, routes::router(desk.clone()), live::run(desk), stopped);
        let thread = thread::Builder::new().name("triage-admin".to_owned()).spawn(run).map_err(AdminError::Thread)?;
        Ok(Some(Self { address, stop, thread: Some(thread) }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
