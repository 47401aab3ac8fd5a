//! The transport over sockets: no redirects, no retries, nothing decoded. Over TLS or HTTP/2 by reqwest, otherwise by [`Plain`].

use super::{
    BoxError, Inbound, Outbound, OutboundBody, Settings, Transport, classify,
    follow::Followed,
    plain::Plain,
    resolve::{Marked, Resolver, SystemResolver},
};
use crate::{clock, policy::contract::Failure};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use reqwest::{Client, Url, redirect};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject as _};
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
const GUARDED_IDLE: Duration = Duration::from_millis(3900);

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

/// Connections: for safe requests any that idle, young ones for all others.
#[derive(Debug)]
enum Pools {
    /// HTTP/1.1 without TLS.
    Plain(Arc<Plain>),
    /// TLS or HTTP/2.
    Negotiated { safe: Client, guarded: Client },
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
        if let Some(plain) = Plain::new(base, settings, resolver)? {
            return Ok(Self::Plain(Arc::new(plain)));
        }
        let client = |idle: Duration| {
            let mut builder = Client::builder()
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .connect_timeout(settings.connect_timeout)
                .pool_idle_timeout(idle)
                .pool_max_idle_per_host(settings.max_idle)
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(15))
                .dns_resolver(Arc::new(Marked(Arc::clone(resolver))))
                .tls_backend_preconfigured(tls.clone());
            if settings.http2_prior_knowledge {
                builder = builder.http2_prior_knowledge();
            }
            builder.build().map_err(|error| TransportError::Client(error.into()))
        };
        Ok(Self::Negotiated { safe: client(settings.idle_timeout)?, guarded: client(GUARDED_IDLE)? })
    }
}

impl HttpClient {
    /// Makes the two pools: one for safe requests, one of young connections for all others.
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

/// A URL below the base. Scheme and authority were parsed once: that is most of what parsing a URL costs.
pub(super) fn below(base: &Url, path_and_query: &str) -> Url {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let mut url = base.clone();
    match base.path() {
        "" | "/" => url.set_path(path),
        prefix => url.set_path(&[prefix, path].concat()),
    }
    url.set_query(query);
    url
}

/// TLS by rustls with ring. An `http` upstream needs no roots, and loading the system's takes 30 ms of the start.
pub(crate) fn tls(settings: &Settings) -> Result<ClientConfig, TransportError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &settings.ca_file {
        let unreadable = || TransportError::Authorities(path.clone());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|_| unreadable())? {
            roots.add(certificate.map_err(|_| unreadable())?).map_err(|_| unreadable())?;
        }
        if roots.is_empty() {
            return Err(unreadable());
        }
    } else if settings.base_url.scheme_str() == Some("https") {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransportError::Client(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

impl Transport for HttpClient {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let inner = &self.0;
        inner.follow();
        // Whoever waits for an answer holds no pool: idle connections go when the upstream moves.
        let client = match &**inner.pools.load() {
            Pools::Plain(plain) => {
                let plain = Arc::clone(plain);
                let youngest = if request.guarded { GUARDED_IDLE } else { Duration::MAX };
                return Box::pin(async move { plain.send(request, youngest).await });
            }
            Pools::Negotiated { guarded, .. } if request.guarded => guarded.clone(),
            Pools::Negotiated { safe, .. } => safe.clone(),
        };
        Box::pin(async move {
            let mut outbound = reqwest::Request::new(request.method, below(&inner.base, &request.path_and_query));
            *outbound.headers_mut() = request.headers;
            *outbound.body_mut() = match request.body {
                OutboundBody::Bytes(bytes) if bytes.is_empty() => None,
                OutboundBody::Bytes(bytes) => Some(bytes.into()),
                OutboundBody::Stream(body) => Some(reqwest::Body::wrap(body)),
            };
            let answer = client.execute(outbound).await.map_err(|error| classify::failure(&error))?;
            let (head, body) = http::Response::from(answer).into_parts();
            let body = body.map_err(|error| Box::new(error) as BoxError).boxed();
            Ok(Inbound { status: head.status, headers: head.headers, body })
        })
    }
}
