//! The admin listener: health, metrics and control.
//!
//! It runs on one thread with its own runtime and a lower priority, and admits few connections and few requests a second, so that abuse of
//! it does not slow the data path. Without tokens, every caller may read and act. A listener that other machines can reach does not start
//! without a token.

use triage_admission as admission;
use triage_bounded_file as bounded_file;
use triage_config as config;
use triage_core::{breaker, clock, contract, rate_limit, retry, rounded, secret};
use triage_decision_log as decision_log;
use triage_engine as policy;
use triage_gateway::{Host, tls};
use triage_overload as overload;
use triage_problem as error;
use triage_rollout as rollout;
use triage_settlement as settlement;
use triage_state::{self as state, idempotency};
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;
use triage_upstream as upstream;
use triage_upstream_runtime as upstream_runtime;

mod actions;
mod auth;
mod client;
mod conditions;
mod connection_limits;
mod dto;
mod listen;
mod openapi;
mod openmetrics;
mod page;
mod quotas;
mod read_handlers;
mod recordings;
mod response;
mod role;
mod routes;
mod session;
mod sse;

pub use auth::TokenError;
pub use client::{Client, ClientError, ClientTls, Shape};
pub use routes::openapi;

use crate::{
    clock::Clock,
    config::settings,
    state_redis::RedisConnection,
    tls::{Tls, TlsError},
};
use arc_swap::ArcSwap;
use auth::Access;
use conditions::monitor::Monitor;
use parking_lot::Mutex;
use sse::Live;
use std::{
    io,
    net::{SocketAddr, TcpListener},
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
    /// The host cannot listen on the address.
    #[error(
        "cannot listen on {address} (admin.listen); it must be an address of this machine that no other program, such as another \
         host, listens on: give --admin ADDRESS, or --admin off to do without"
    )]
    Listen {
        /// The address of `admin.listen`.
        address: SocketAddr,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A token is invalid.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The listener's TLS files are invalid.
    #[error("TLS cannot be set up for the admin listener (admin.tls)")]
    Tls(#[source] TlsError),
    /// The operating system could not start the thread.
    #[error("the admin listener's thread could not be started")]
    Thread(#[source] io::Error),
}

/// Checks that the listener's tokens are valid.
///
/// # Errors
/// [`TokenError`]
pub fn check(settings: &settings::Admin, clock: Clock) -> Result<(), TokenError> {
    if settings.listen.is_some() {
        Access::of(settings, clock)?;
    }
    Ok(())
}

/// The state of the host process: starting, serving or draining.
#[derive(Debug, Default)]
pub struct Lifecycle {
    serving: AtomicBool,
    draining: AtomicBool,
    workers: Mutex<usize>,
}

impl Lifecycle {
    /// Marks the start as finished: every worker accepts connections.
    pub fn serving(&self, workers: usize) {
        *self.workers.lock() = workers;
        self.serving.store(true, Ordering::Release);
    }

    /// Marks the host as draining: no new connections.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Why the host is not ready; none if it is.
    pub fn unready(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Acquire) {
            Some("the host is stopping; it finishes the requests under way")
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

/// State that every handler has access to.
#[derive(Debug, Clone)]
struct AdminState {
    host: Host,
    settings: Arc<ArcSwap<settings::Settings>>,
    lifecycle: Arc<Lifecycle>,
    access: Arc<ArcSwap<Access>>,
    live: Arc<Live>,
    monitor: Arc<Monitor>,
    /// Whether callers connect with TLS.
    is_encrypted: bool,
    started_unix_ms: u64,
    /// The `OpenAPI` document.
    document: &'static str,
}

impl AdminState {
    /// Why the host is not ready; none if it is.
    fn unready(&self) -> Option<&'static str> {
        self.lifecycle.unready().or_else(|| {
            let settings = self.settings.load();
            let required = matches!(&settings.state, settings::State::Shared(shared) if shared.required);
            let link = self.host.shared.link.as_ref();
            if link.is_some_and(RedisConnection::is_unauthorized) {
                // A wrong password does not fix itself, so that a rollout with one must stop here.
                return Some("shared state refuses this host's name or password (state.password_file, TRIAGE_STATE_PASSWORD or state.url)");
            }
            let is_down = self.host.shared.link.as_ref().is_some_and(|link| !link.is_up());
            (required && is_down).then_some("shared state cannot be reached, and state.required is true")
        })
    }

    fn access(&self) -> Arc<Access> {
        self.access.load_full()
    }
}

/// Tokens that were read but are not in force yet.
#[derive(Debug)]
pub struct Prepared(Access);

/// The running listener. Dropping it stops it.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    state: AdminState,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Admin {
    /// Starts the listener, if the settings name an address.
    ///
    /// # Errors
    /// [`AdminError`]
    pub fn start(
        host: &Host,
        settings: &settings::Settings,
        lifecycle: &Arc<Lifecycle>,
        inherited: Option<TcpListener>,
    ) -> Result<Option<Self>, AdminError> {
        let Some(wanted) = settings.admin.listen else { return Ok(None) };
        let access = Arc::new(ArcSwap::from_pointee(Access::of(&settings.admin, host.shared.clock)?));
        let tls = settings.admin.tls.as_ref().map(|tls| Tls::open(tls, &["http/1.1"]).map(Arc::new));
        let tls = tls.transpose().map_err(AdminError::Tls)?;
        let refused = |source| AdminError::Listen { address: wanted, source };
        let socket = inherited.map_or_else(|| listen::bind(wanted), Ok).map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        let state = AdminState {
            host: host.clone(),
            settings: Arc::new(ArcSwap::from_pointee(settings.clone())),
            lifecycle: Arc::clone(lifecycle),
            access,
            live: Arc::new(Live::new()),
            monitor: Arc::default(),
            is_encrypted: tls.is_some(),
            started_unix_ms: host.shared.clock.unix_ms(),
            document: routes::openapi(),
        };
        let (own, own_tls) = (state.clone(), tls.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let run = move || {
            let routers = listen::Routers { all: routes::router(state.clone()), health: routes::health(state.clone()) };
            listen::run(socket, tls, routers, sse::run(state), stopped);
        };
        let thread = thread::Builder::new().name("triage-admin".to_owned()).spawn(run).map_err(AdminError::Thread)?;
        Ok(Some(Self { address, state: own, tls: own_tls, stop, thread: Some(thread) }))
    }

    /// Access to the certificates and tokens, to reload them.
    pub fn secrets(&self) -> Secrets {
        Secrets { state: self.state.clone(), tls: self.tls.clone() }
    }

    /// The address it listens on, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Certificates and tokens of a listener, which a reload reads again.
#[derive(Debug, Clone)]
pub struct Secrets {
    state: AdminState,
    tls: Option<Arc<Tls>>,
}

impl Secrets {
    /// Reads certificates and tokens again. The certificates apply at once, the tokens after [`Self::adopt`].
    ///
    /// # Errors
    /// [`AdminError`]; then nothing changes.
    pub fn prepare(&self, settings: &settings::Settings) -> Result<Prepared, AdminError> {
        let access = Access::of(&settings.admin, self.state.host.shared.clock)?;
        if let Some(tls) = &self.tls {
            tls.reload().map_err(AdminError::Tls)?;
        }
        Ok(Prepared(access))
    }

    /// Applies new tokens and settings. Sessions end if the tokens have changed.
    pub fn adopt(&self, Prepared(access): Prepared, settings: &settings::Settings) {
        if !access.has_the_tokens_of(&self.state.access()) {
            self.state.access.store(Arc::new(access));
        }
        self.state.settings.store(Arc::new(settings.clone()));
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
