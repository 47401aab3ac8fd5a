//! Connections with TLS or HTTP/2. The protocol is negotiated, and with HTTP/2 many requests share a connection.

use super::{
    BoxError, GUARDED_MAX_IDLE, Identity, Inbound, KEEPALIVE_INTERVAL, Outbound, OutboundBody, Settings,
    TransportError, classify,
    resolve::{Marked, Resolver},
    url::below,
};
use crate::contract::Failure;
use http_body_util::BodyExt as _;
use reqwest::{Client, Url, redirect};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{sync::Arc, time::Duration};

/// Maximum bytes of a response head over HTTP/2. The library's default of 16 KiB is too small for the allowed number of fields.
const MAX_HEAD_BYTES: u32 = 256 << 10;

/// Two pools: one for safe requests, and one that keeps idle connections only briefly for all others.
#[derive(Debug)]
pub(super) struct Negotiated {
    base: Url,
    safe: Client,
    guarded: Client,
}

impl Negotiated {
    /// # Errors
    /// [`TransportError::Client`]
    pub(super) fn new(
        base: &Url,
        settings: &Settings,
        tls: &ClientConfig,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Self, TransportError> {
        let client = |idle: Duration| {
            let mut builder = Client::builder()
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .connect_timeout(settings.connect_timeout)
                .pool_idle_timeout(idle)
                .pool_max_idle_per_host(settings.max_idle)
                .http1_max_headers(settings.max_header_fields)
                .http2_max_header_list_size(MAX_HEAD_BYTES)
                .tcp_nodelay(true)
                .tcp_keepalive(KEEPALIVE_INTERVAL)
                .dns_resolver(Arc::new(Marked(Arc::clone(resolver))))
                .tls_backend_preconfigured(tls.clone());
            if settings.http2_prior_knowledge {
                builder = builder.http2_prior_knowledge();
            }
            builder.build().map_err(|error| TransportError::Client(error.into()))
        };
        Ok(Self { base: base.clone(), safe: client(settings.idle_timeout)?, guarded: client(GUARDED_MAX_IDLE)? })
    }

    pub(super) async fn send(&self, request: Outbound) -> Result<Inbound, Failure> {
        let mut outbound = reqwest::Request::new(request.method, below(&self.base, &request.path_and_query));
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
    }
}

/// TLS with rustls and ring. An `http` upstream needs no root certificates; loading the system's would take 30 ms at the start.
///
/// # Errors
/// [`TransportError`] if a certificate or key cannot be read or used.
pub fn tls(settings: &Settings) -> Result<ClientConfig, TransportError> {
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
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransportError::Client(error.into()))?
        .with_root_certificates(roots);
    let mut config = match &settings.identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = identity_files(identity)?;
            config.with_client_auth_cert(chain, key).map_err(|_| TransportError::Identity(identity.clone()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificate with its chain, and the key.
fn identity_files(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TransportError> {
    let unreadable = || TransportError::Certificate(identity.certificate.clone());
    let read = CertificateDer::pem_file_iter(&identity.certificate).map_err(|_| unreadable())?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(|_| unreadable())?;
    if chain.is_empty() {
        return Err(unreadable());
    }
    let key = PrivateKeyDer::from_pem_file(&identity.key).map_err(|_| TransportError::Key(identity.key.clone()))?;
    Ok((chain, key))
}
