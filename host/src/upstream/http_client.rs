//! The transport over sockets: two connection pools, no redirects, no retries, nothing decoded.

use super::{BoxError, Inbound, Outbound, OutboundBody, Settings, Transport, classify, resolve::SystemResolver};
use crate::policy::contract::Failure;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use reqwest::{Client, Url, redirect};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject as _};
use std::{path::PathBuf, sync::Arc, time::Duration};

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

/// One worker's connections to an upstream.
#[derive(Debug)]
pub struct HttpClient {
    base: Url,
    safe: Client,
    guarded: Client,
}

impl HttpClient {
    /// Makes the two pools: one for safe requests, one of young connections for all others.
    ///
    /// # Errors
    /// [`TransportError`] where the CA file or the URL is unusable.
    pub fn new(settings: &Settings) -> Result<Self, TransportError> {
        let base = settings.base_url.to_string();
        let base = Url::parse(base.trim_end_matches('/')).map_err(|_| TransportError::Url(base))?;
        let tls = tls(settings)?;
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
                .dns_resolver(Arc::new(SystemResolver));
            if let Some(tls) = &tls {
                builder = builder.tls_backend_preconfigured(tls.clone());
            }
            if settings.http2_prior_knowledge {
                builder = builder.http2_prior_knowledge();
            }
            builder.build().map_err(|error| TransportError::Client(error.into()))
        };
        Ok(Self { base, safe: client(settings.idle_timeout)?, guarded: client(GUARDED_IDLE)? })
    }
}

impl HttpClient {
    /// A URL below the base. Scheme and authority were parsed once: that is most of what parsing a URL costs.
    fn url(&self, path_and_query: &str) -> Url {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut url = self.base.clone();
        match self.base.path() {
            "" | "/" => url.set_path(path),
            prefix => url.set_path(&[prefix, path].concat()),
        }
        url.set_query(query);
        url
    }
}

/// TLS by rustls with ring. An `http` upstream needs no roots, and loading the system's takes 30 ms of the start.
pub(crate) fn tls(settings: &Settings) -> Result<Option<ClientConfig>, TransportError> {
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
    Ok(Some(config))
}

impl Transport for HttpClient {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            let mut outbound = reqwest::Request::new(request.method, self.url(&request.path_and_query));
            *outbound.headers_mut() = request.headers;
            *outbound.body_mut() = match request.body {
                OutboundBody::Bytes(bytes) if bytes.is_empty() => None,
                OutboundBody::Bytes(bytes) => Some(bytes.into()),
                OutboundBody::Stream(body) => Some(reqwest::Body::wrap(body)),
            };
            let client = if request.guarded { &self.guarded } else { &self.safe };
            let answer = client.execute(outbound).await.map_err(|error| classify::failure(&error))?;
            let (head, body) = http::Response::from(answer).into_parts();
            let body = body.map_err(|error| Box::new(error) as BoxError).boxed();
            Ok(Inbound { status: head.status, headers: head.headers, body })
        })
    }
}
