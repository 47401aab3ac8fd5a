//! HTTP/1.1 without TLS. The request that uses a connection drives it.
//!
//! A request and its connection are one task, so that reads and writes wake no other task and use no channel. (Measured on the whole host:
//! 0.9 of the throughput of a bare proxy whose client has a task per connection; before, 0.8.) A request that is still in a closed
//! connection's queue was not sent. The connection returns it, and it is sent over another one.

mod connection;
mod pool;

use super::{
    GUARDED_MAX_IDLE, Inbound, KEEPALIVE_INTERVAL, Outbound, OutboundBody, Settings, TransportError, classify,
    resolve::{Marked, Resolver},
    url::{self, below},
};
use crate::contract::{Failure, FailureKind};
use connection::{Payload, Wire};
use http::{
    HeaderValue, Request, Uri, Version,
    header::{CONNECTION, HOST},
    response,
    uri::PathAndQuery,
};
use hyper_util::client::legacy::connect::HttpConnector;
use pool::Idle;
use reqwest::Url;
use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};
use tokio::time::timeout;
use tower_service::Service as _;

/// One worker's connections to an upstream.
#[derive(Debug)]
pub(super) struct Plain {
    connector: HttpConnector<Marked>,
    origin: Uri,
    host: HeaderValue,
    base: Url,
    /// The base URL's path without its trailing slash, prepended to every request's path.
    prefix: String,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_header_fields: usize,
    idle: Arc<Idle>,
}

impl Plain {
    /// Creates the client; none if the upstream uses TLS or HTTP/2.
    ///
    /// # Errors
    /// [`TransportError::Url`]
    pub(super) fn new(
        base: &Url,
        settings: &Settings,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Option<Self>, TransportError> {
        let origin = &settings.base_url;
        if !settings.is_plain() {
            return Ok(None);
        }
        let unusable = || TransportError::Url(origin.to_string());
        let authority = origin.authority().ok_or_else(unusable)?;
        let host = match origin.port_u16() {
            Some(80) | None => authority.host().to_owned(),
            Some(port) => format!("{}:{port}", authority.host()),
        };
        let mut connector = HttpConnector::new_with_resolver(Marked(Arc::clone(resolver)));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE_INTERVAL));
        connector.set_connect_timeout(Some(settings.connect_timeout));
        Ok(Some(Self {
            connector,
            origin: origin.clone(),
            host: HeaderValue::try_from(host).map_err(|_| unusable())?,
            base: base.clone(),
            prefix: origin.path().trim_end_matches('/').to_owned(),
            connect_timeout: settings.connect_timeout,
            idle_timeout: settings.idle_timeout,
            max_header_fields: settings.max_header_fields,
            idle: Arc::new(Idle::new(settings.max_idle, settings.idle_timeout)),
        }))
    }

    /// Sends over an idle connection or a new one. A guarded request uses only a connection that has not been idle for long.
    pub(super) async fn send(&self, request: Outbound) -> Result<Inbound, Failure> {
        let youngest = if request.guarded { GUARDED_MAX_IDLE.min(self.idle_timeout) } else { self.idle_timeout };
        let mut message = self.message(request)?;
        loop {
            let idle = poll_fn(|cx| Poll::Ready(self.idle.take(youngest, cx))).await;
            let is_new = idle.is_none();
            let mut wire = match idle {
                Some(wire) => wire,
                None => self.connect().await?,
            };
            match wire.send(message).await {
                Ok(answer) => {
                    let (head, incoming) = answer.into_parts();
                    let idle = stays_open(&head).then(|| Arc::clone(&self.idle));
                    let body = connection::streaming(incoming, wire, idle);
                    return Ok(Inbound { status: head.status, headers: head.headers, body });
                }
                Err(mut error) => match error.take_message() {
                    // The upstream closed the connection after the check. Nothing was sent.
                    Some(unsent) if !is_new => message = unsent,
                    Some(_) => return Err(Failure::new(FailureKind::Reset, false)),
                    None => return Err(classify::broken(error.error())),
                },
            }
        }
    }

    /// Closes all idle connections.
    pub(super) fn forget(&self) {
        self.idle.clear();
    }

    fn message(&self, request: Outbound) -> Result<Request<Payload>, Failure> {
        let Outbound { method, path_and_query, headers, body, .. } = request;
        let target = match self.prefix.as_str() {
            _ if !url::is_plain(&path_and_query) => {
                let url = below(&self.base, &path_and_query);
                PathAndQuery::try_from(match url.query() {
                    Some(query) => [url.path(), "?", query].concat(),
                    None => url.path().to_owned(),
                })
            }
            "" => PathAndQuery::try_from(path_and_query),
            prefix => PathAndQuery::try_from([prefix, &path_and_query].concat()),
        };
        let target = target.map_err(|_| Failure::new(FailureKind::Protocol, false))?;
        let mut message = Request::new(match body {
            OutboundBody::Bytes(bytes) => Payload::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty())),
            OutboundBody::Stream(body) => Payload::Stream(body),
        });
        *message.method_mut() = method;
        *message.uri_mut() = Uri::from(target);
        *message.headers_mut() = headers;
        message.headers_mut().insert(HOST, self.host.clone());
        Ok(message)
    }

    async fn connect(&self) -> Result<Wire, Failure> {
        let connecting = self.connector.clone().call(self.origin.clone());
        let unconnected = |kind| Failure::new(kind, false);
        let stream = match timeout(self.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| classify::connecting(&error))?,
            Err(_) => return Err(unconnected(FailureKind::ConnectTimeout)),
        };
        Wire::open(stream, self.max_header_fields).await.map_err(|_| unconnected(FailureKind::Connect))
    }
}

/// Whether the upstream keeps the connection open after this response (RFC 9112 section 9.3).
fn stays_open(head: &response::Parts) -> bool {
    let mut options = head.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    head.version == Version::HTTP_11
        && !options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
}
