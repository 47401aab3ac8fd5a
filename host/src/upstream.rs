//! The upstream: one API behind the host. Plain HTTP/1.1 goes over hyper, TLS and HTTP/2 over reqwest.

pub(crate) mod answer_head;
mod classify;
mod dns_refresh;
pub mod headers;
mod http1;
mod http_client;
mod leased_body;
pub mod redirect;
mod reqwest_client;
mod resolve;
mod url;

pub use http_client::{HttpClient, TransportError};
pub(crate) use leased_body::leased;
pub(crate) use reqwest_client::tls;
pub use resolve::{Resolver, SystemResolver};

use crate::policy::contract::Failure;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use std::time::Duration;

/// What bodies fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that streams, in either direction.
pub type Body = http_body_util::combinators::BoxBody<Bytes, BoxError>;

/// A body that is there already.
pub fn full(bytes: Bytes) -> Body {
    use http_body_util::BodyExt as _;
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// A body whose beginning was read already.
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
    /// The method.
    pub method: Method,
    /// Path and query below the upstream's base.
    pub path_and_query: String,
    /// The headers, cleaned of what is hop-by-hop.
    pub headers: HeaderMap,
    /// The body.
    pub body: OutboundBody,
    /// Whether a send may have an effect: such requests use young connections only.
    pub guarded: bool,
}

/// A request body.
#[derive(Debug)]
pub enum OutboundBody {
    /// In memory: may be sent again.
    Bytes(Bytes),
    /// Passed through: can be sent once.
    Stream(Body),
}

/// An upstream's answer; its body still streams.
#[derive(Debug)]
pub struct Inbound {
    /// The status.
    pub status: StatusCode,
    /// The headers as they came.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

/// Sends one request, once. Implemented by [`HttpClient`] over sockets and by the emulator in process.
///
/// Dropping the future abandons the request; what was sent stays sent.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Sends, and waits for the head of the answer.
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>>;
}

/// How an upstream is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Scheme, authority and path prefix, such as `https://hospital.example/api`.
    pub base_url: http::Uri,
    /// The limit on making a connection. Default 3 s, below every attempt timeout.
    pub connect_timeout: Duration,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Speak HTTP/2 without TLS or negotiation. Default false.
    pub http2_prior_knowledge: bool,
    /// How long an idle connection serves safe requests. Default 30 s; unsafe ones use connections idle for less than 4 s.
    pub idle_timeout: Duration,
    /// Idle connections kept for each core. Default 256.
    pub max_idle: usize,
    /// Header fields that an answer may have. Default 256: real ones have less than a hundred.
    pub max_header_fields: usize,
    /// How often the name is looked up while it is used: two lookups in a row that say something new move all connections.
    /// Default 5 s; none to leave them where they are.
    pub dns_refresh: Option<Duration>,
}

impl Settings {
    /// Whether HTTP/1.1 without TLS is spoken: such a connection is driven by the request that uses it.
    pub(crate) fn is_plain(&self) -> bool {
        self.base_url.scheme() == Some(&http::uri::Scheme::HTTP) && !self.http2_prior_knowledge
    }

    /// The defaults for a base URL.
    pub fn new(base_url: http::Uri) -> Self {
        Self {
            base_url,
            connect_timeout: Duration::from_secs(3),
            ca_file: None,
            http2_prior_knowledge: false,
            idle_timeout: Duration::from_secs(30),
            max_idle: 256,
            max_header_fields: 256,
            dns_refresh: Some(Duration::from_secs(5)),
        }
    }
}
