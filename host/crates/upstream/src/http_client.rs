//! The transport over sockets, without redirects, retries or content decoding. [`Plain`] implements HTTP/1.1, [`Negotiated`] TLS and
//! HTTP/2.

use super::{
    BoxError, Identity, Inbound, Outbound, Settings, Transport,
    dns_refresh::Followed,
    http1::Plain,
    reqwest_client::{Negotiated, tls},
    resolve::{Resolver, SystemResolver},
};
use crate::{clock, contract::Failure};
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

/// Why an upstream's HTTP client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The CA file cannot be read; its path.
    #[error("certificate authorities could not be read from {}; it must be a PEM file with at least one certificate", .0.display())]
    Authorities(PathBuf),
    /// The file of the client's certificate cannot be read; its path.
    #[error("a client certificate could not be read from {}; it must be a PEM file with the certificate and its chain", .0.display())]
    Certificate(PathBuf),
    /// The file of the client's private key cannot be read; its path.
    #[error("a private key could not be read from {}; it must be a PEM file with the key of the client certificate, unencrypted", .0.display())]
    Key(PathBuf),
    /// The client's certificate and key do not fit; their paths.
    #[error("the client certificate in {} cannot be used with the key in {}; give the key that belongs to the certificate", .0.certificate.display(), .0.key.display())]
    Identity(Identity),
    /// The URL cannot be used.
    #[error("base url {0:?} cannot be called; it must be an absolute http or https url")]
    Url(String),
    /// TLS or the HTTP client failed to initialise.
    #[error("the http client could not be set up")]
    Client(#[source] BoxError),
}

/// Maximum time of a lookup; a slower one is ignored.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// One worker's connections to an upstream.
#[derive(Debug)]
pub struct HttpClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Url,
    settings: Settings,
    tls: ClientConfig,
    resolver: Arc<dyn Resolver>,
    /// Replaced as a whole when the upstream's addresses change. Running requests keep the old pool alive until they end; its idle
    /// connections are closed.
    pools: ArcSwap<Pools>,
    watched: Option<Watched>,
}

/// The connections, by protocol.
#[derive(Debug)]
enum Pools {
    Plain(Arc<Plain>),
    Negotiated(Arc<Negotiated>),
}

/// A name that is resolved repeatedly.
#[derive(Debug)]
struct Watched {
    name: String,
    every: Duration,
    since: Instant,
    /// The time of the last lookup, in milliseconds after `since`.
    looked_up_ms: AtomicU64,
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
    /// Creates the client without connecting.
    ///
    /// # Errors
    /// [`TransportError`] if the CA file, the client certificate, its key or the URL cannot be used, or if TLS cannot be set up.
    pub fn new(settings: &Settings) -> Result<Self, TransportError> {
        Self::with_resolver(settings, Arc::new(SystemResolver))
    }

    /// Creates the client with another resolver.
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
            looked_up_ms: AtomicU64::new(0),
            followed: Mutex::default(),
        });
        Ok(Self(Arc::new(Inner { base, settings: settings.clone(), tls, resolver, pools, watched })))
    }
}

impl Watched {
    /// Whether a lookup is due. Returns true to only one of several concurrent callers.
    fn is_due(&self) -> bool {
        let (now, looked_up) = (clock::millis(self.since.elapsed()), self.looked_up_ms.load(Relaxed));
        let is_due = looked_up == 0 || now.saturating_sub(looked_up) >= clock::millis(self.every);
        is_due && self.looked_up_ms.compare_exchange(looked_up, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

impl Inner {
    /// Resolves the upstream's name from time to time in the background, only while there are requests, and replaces the connections if its
    /// addresses have changed. A pool would otherwise use the old address as long as it responds.
    fn follow(self: &Arc<Self>) {
        if self.watched.as_ref().is_some_and(Watched::is_due) {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.look_up().await });
        }
    }

    async fn look_up(&self) {
        let Some(watched) = &self.watched else { return };
        let Ok(Ok(found)) = timeout(LOOKUP_TIMEOUT, self.resolver.resolve(watched.name.clone())).await else { return };
        let addresses = found.iter().map(std::net::SocketAddr::ip).collect::<std::collections::BTreeSet<IpAddr>>();
        if !watched.followed.lock().found(addresses) {
            return;
        }
        match Pools::new(&self.base, &self.settings, &self.tls, &self.resolver) {
            Ok(pools) => {
                if let Pools::Plain(plain) = &*self.pools.swap(Arc::new(pools)) {
                    // Running requests keep their connections of the old pool.
                    plain.forget();
                }
                tracing::info!(name = %watched.name, "the upstream's addresses changed: the host opens new connections");
            }
            Err(error) => {
                tracing::warn!(%error, "the upstream's addresses changed, but the host could not open new connections");
            }
        }
    }
}

impl Transport for HttpClient {
    fn stops_when_dropped(&self) -> bool {
        matches!(&**self.0.pools.load(), Pools::Plain(_))
    }

    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let inner = &self.0;
        inner.follow();
        // A running request holds its own pool, so that only idle connections close when the pool is replaced.
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
