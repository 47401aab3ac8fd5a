//! HTTP clients for an upstream: HTTP/1.1 without TLS with hyper, TLS and HTTP/2 with reqwest.

use triage_core::{clock, contract};

pub mod answer_head;
mod classify;
mod dns_refresh;
pub mod flush_notice;
pub mod headers;
mod http1;
mod http_client;
pub mod redirect;
mod reqwest_client;
mod resolve;
pub mod url;

pub use http_client::{HttpClient, TransportError};
pub use reqwest_client::tls;
pub use resolve::{Resolver, SystemResolver};

use crate::contract::Failure;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use std::{path::PathBuf, time::Duration};

/// Servers close idle connections after 5 s or more. A write must not race that close (RFC 9112 section 9.3.1).
const GUARDED_MAX_IDLE: Duration = Duration::from_millis(3900);
/// Interval of keepalive probes on a silent connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The error type of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streaming body, for requests and responses.
pub type Body = http_body_util::combinators::BoxBody<Bytes, BoxError>;

/// A body from bytes in memory.
pub fn full(bytes: Bytes) -> Body {
    use http_body_util::BodyExt as _;
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// A body that continues after bytes that were already read.
pub fn prefixed(read: Bytes, rest: Body) -> Body {
    use futures_util::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::{BodyDataStream, BodyExt, StreamBody};
    if read.is_empty() {
        return rest;
    }
    let first = stream::iter([Ok(Frame::data(read))]);
    let rest = BodyDataStream::new(rest).map(|data| data.map(Frame::data));
    BodyExt::boxed(StreamBody::new(first.chain(rest)))
}

/// A request to the upstream.
#[derive(Debug)]
pub struct Outbound {
    /// The HTTP method.
    pub method: Method,
    /// Path and query below the upstream's base URL.
    pub path_and_query: String,
    /// The headers, without hop-by-hop ones.
    pub headers: HeaderMap,
    /// The request body.
    pub body: OutboundBody,
    /// Whether a send may have an effect. Such a request uses only connections that have not been idle for long.
    pub guarded: bool,
}

/// A request body.
#[derive(Debug)]
pub enum OutboundBody {
    /// In memory; can be sent again.
    Bytes(Bytes),
    /// A stream; can be sent only once.
    Stream(Body),
}

/// An upstream's response. Its body is still streaming.
#[derive(Debug)]
pub struct Inbound {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers as received.
    pub headers: HeaderMap,
    /// The response body.
    pub body: Body,
}

/// Sends a request once. Implemented by [`HttpClient`] with sockets and by the emulator in-process.
///
/// Dropping the future abandons the request, but does not undo what was sent.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Sends the request and waits for the head of the response.
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>>;

    /// Whether dropping the future of [`Transport::send`] stops the request's bytes at once. False by default: another task may write them,
    /// as for TLS and HTTP/2. The host then makes the body of a write break off when it loses the right to send it.
    fn stops_when_dropped(&self) -> bool {
        false
    }
}

/// The files of a client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A PEM file with the certificate and its chain.
    pub certificate: PathBuf,
    /// A PEM file with the certificate's private key.
    pub key: PathBuf,
}

/// The address of an upstream and the settings of its HTTP client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Scheme, authority and path prefix, such as `https://hospital.example/api`.
    pub base_url: http::Uri,
    /// Maximum time to open a connection. Default 3 s, shorter than every attempt timeout.
    pub connect_timeout: Duration,
    /// A PEM file of certificate authorities to trust instead of the system's. Default none.
    pub ca_file: Option<PathBuf>,
    /// The certificate that this client shows if the server asks for one. Default none.
    pub identity: Option<Identity>,
    /// Whether to use HTTP/2 without TLS or negotiation. Default false.
    pub http2_prior_knowledge: bool,
    /// Maximum idle time of a connection for safe requests. Default 30 s. Unsafe requests use only connections idle for less than 4 s.
    pub idle_timeout: Duration,
    /// Maximum idle connections per core. Default 256.
    pub max_idle: usize,
    /// Maximum header fields of a response. Default 256: real responses have fewer than a hundred.
    pub max_header_fields: usize,
    /// How often the upstream's name is resolved while there are requests. If two lookups in a row agree on new addresses, all connections
    /// are replaced. Default 5 s; none never replaces them.
    pub dns_refresh: Option<Duration>,
}

impl Settings {
    /// Whether this is HTTP/1.1 without TLS. The request that uses such a connection also drives it.
    pub fn is_plain(&self) -> bool {
        self.base_url.scheme() == Some(&http::uri::Scheme::HTTP) && !self.http2_prior_knowledge
    }

    /// The default settings for a base URL.
    pub fn new(base_url: http::Uri) -> Self {
        Self {
            base_url,
            connect_timeout: Duration::from_secs(3),
            ca_file: None,
            identity: None,
            http2_prior_knowledge: false,
            idle_timeout: Duration::from_secs(30),
            max_idle: 256,
            max_header_fields: 256,
            dns_refresh: Some(Duration::from_secs(5)),
        }
    }
}
