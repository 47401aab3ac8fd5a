//! The transport over sockets: no redirects, no retries, nothing decoded. [`Plain`] speaks HTTP/1.1,
//! [`Negotiated`] TLS and HTTP/2.

use super::{
    BoxError, Inbound, Outbound, Settings, Transport,
    dns_refresh::Followed,
    http1::Plain,
    reqwest_client::{Negotiated, tls},
    resolve::{Resolver, SystemResolver},
};
use crate::{clock, policy::contract::Failure};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use reqwest::Url;
use rustls::ClientConfig;
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Servers close idle connections after 5 s and more; a write must not race that close (RFC 9112 section 9.3.1).
pub(super) const GUARDED_IDLE: Duration = Duration::from_millis(3900);
/// Between two signs of life on a silent connection.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why an upstream's client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The CA file cannot be read.
    #[error("certificate authorities could not be read from {}; it must be a PEM file with at least one certificate", .0.display())]
    Authorities(PathBuf),
    /// The URL is none that can be called.
    #[error("base url {0:?} cannot be called; it must be an absolute http or https url")]
    Url(String),
    /// TLS or the client could not be set up.
    #[error("the http client could not be set up")]
    Client(#[source] BoxError),
}

/// A lookup that takes longer tells nothing.
const LOOKUP: Duration = Duration::from_secs(5);

/// One worker's connections to an upstream.
#[derive(Debug)]
pub struct HttpClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Url,
    settings: Settings,
    tls: ClientConfig,
    resolver: Arc<dyn Resolver>,
    /// Exchanged as a whole when the upstream moves: what is under way ends on the old ones, and idle connections go with them.
    pools: ArcSwap<Pools>,
    watched: Option<Watched>,
}

/// Connections, by what is spoken over them.
#[derive(Debug)]
enum Pools {
    Plain(Arc<Plain>),
    Negotiated(Arc<Negotiated>),
}

/// A name whose addresses may change.
#[derive(Debug)]
struct Watched {
    name: String,
    every: Duration,
    since: Instant,
    /// When it was last looked up, in milliseconds since then.
    looked_ms: AtomicU64,
    followed: Mutex<Followed>,
}

impl Pools {
    fn new(
        base: &Url,
        settings: &Settings,
        tls: &ClientConfig,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Self, TransportError> {
        Ok(match Plain::new(base, settings, resolver)? {
            Some(plain) => Self::Plain(Arc::new(plain)),
            None => Self::Negotiated(Arc::new(Negotiated::new(base, settings, tls, resolver)?)),
        })
    }
}

impl HttpClient {
    /// Makes ready; connects to nothing yet.
    ///
    /// # Errors
    /// [`TransportError`] where the CA file or the URL is unusable.
    pub fn new(settings: &Settings) -> Result<Self, TransportError> {
        Self::with_resolver(settings, Arc::new(SystemResolver))
    }

    /// The same with names resolved in another way.
    ///
    /// # Errors
    /// As for [`HttpClient::new`].
    pub fn with_resolver(settings: &Settings, resolver: Arc<dyn Resolver>) -> Result<Self, TransportError> {
        let base = settings.base_url.to_string();
        let base = Url::parse(base.trim_end_matches('/')).map_err(|_| TransportError::Url(base))?;
        let tls = tls(settings)?;
        let pools = ArcSwap::from_pointee(Pools::new(&base, settings, &tls, &resolver)?);
        let name = base.domain().map(str::to_owned);
        let watched = name.zip(settings.dns_refresh).map(|(name, every)| Watched {
            name,
            every,
            since: Instant::now(),
            looked_ms: AtomicU64::new(0),
            followed: Mutex::default(),
        });
        Ok(Self(Arc::new(Inner { base, settings: settings.clone(), tls, resolver, pools, watched })))
    }
}

impl Watched {
    /// Whether it is time to look the name up: true once for everybody who asks.
    fn is_due(&self) -> bool {
        let (now, looked) = (clock::millis(self.since.elapsed()), self.looked_ms.load(Relaxed));
        let is_due = looked == 0 || now.saturating_sub(looked) >= clock::millis(self.every);
        is_due && self.looked_ms.compare_exchange(looked, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

impl Inner {
    /// Looks the upstream's name up now and then, beside the requests and only while there are any, and moves to new connections
    /// when it leads elsewhere: a pool would hold on to the old address for as long as that answers.
    fn follow(self: &Arc<Self>) {
        if self.watched.as_ref().is_some_and(Watched::is_due) {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.look_up().await });
        }
    }

    async fn look_up(&self) {
        let Some(watched) = &self.watched else { return };
        let Ok(Ok(found)) = timeout(LOOKUP, self.resolver.resolve(watched.name.clone())).await else { return };
        let addresses = found.iter().map(std::net::SocketAddr::ip).collect::<std::collections::BTreeSet<IpAddr>>();
        if !watched.followed.lock().found(addresses) {
            return;
        }
        match Pools::new(&self.base, &self.settings, &self.tls, &self.resolver) {
            Ok(pools) => {
                if let Pools::Plain(plain) = &*self.pools.swap(Arc::new(pools)) {
                    // Those who wait for an answer over the old ones hold them.
                    plain.forget();
                }
                tracing::info!(name = %watched.name, "the upstream has other addresses: connections are made anew");
            }
            Err(error) => {
                tracing::warn!(%error, "the upstream has other addresses, and connections could not be made anew");
            }
        }
    }
}

impl Transport for HttpClient {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let inner = &self.0;
        inner.follow();
        // Whoever waits for an answer holds its own: idle connections go when the upstream moves.
        match &**inner.pools.load() {
            Pools::Plain(plain) => {
                let plain = Arc::clone(plain);
                Box::pin(async move { plain.send(request).await })
            }
            Pools::Negotiated(negotiated) => {
                let negotiated = Arc::clone(negotiated);
                Box::pin(async move { negotiated.send(request).await })
            }
        }
    }
}
