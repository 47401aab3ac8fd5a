//! One connection: HTTP/1.1 or HTTP/2, by ALPN or by the client's preface.

use super::{
    h2_preface::{self, Prefaced},
    metered::{Metered, Taking},
    request_check,
    streams::{StreamExecutor, Watched},
};
use crate::{
    Host,
    config::settings,
    flush_notice::{Confirming, Handover},
    overload::peers::{Activity, Connection},
    upstream::{BoxError, headers::Caller},
};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// The most response bytes that hyper buffers for an HTTP/2 stream. With its default of 400 kB, one connection could take 100 MB.
const MAX_SEND_BUFFER_BYTES: usize = 64 << 10;

/// How often an HTTP/2 peer is pinged, and how long it may take to respond.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long a new connection may wait for its first request after the server stops. A request may be on its way on a connection accepted a
/// moment before, and hyper closes connections from which nothing was read.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a connection has sent a request yet.
#[derive(Default)]
struct RequestSeen {
    seen: AtomicBool,
    notify: Notify,
}

impl RequestSeen {
    fn record(&self) {
        if !self.seen.swap(true, Relaxed) {
            self.notify.notify_one();
        }
    }

    /// Resolves if a connection has sent no request for too long. hyper detects the protocol before it starts any other timer, so a caller
    /// that sends nothing, or half a preface, would stay connected for ever. Twice the limit, because a slow head has its own limit.
    async fn without_request(&self, limit: Duration) {
        sleep(limit.saturating_mul(2)).await;
        if self.seen.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves after the server stops, once the first request has arrived or its time is over.
    async fn last_call(&self, stopping: &CancellationToken) {
        stopping.cancelled().await;
        if !self.seen.load(Relaxed) {
            let _ = timeout(FIRST_REQUEST_TIMEOUT, self.notify.notified()).await;
        }
    }
}

/// An accepted connection and what serves it.
pub(super) struct Accepted {
    pub(super) host: Host,
    pub(super) listener: Option<SocketAddr>,
    pub(super) settings: Arc<settings::Server>,
    pub(super) own: Arc<Connection>,
    pub(super) stopping: CancellationToken,
}

/// Does the TLS handshake if the listener has TLS, then serves. A handshake may take as long as a request's head.
pub(super) async fn begin(accepted: Accepted, tls: Option<TlsAcceptor>, stream: TcpStream, peer: SocketAddr) {
    let Some(acceptor) = tls else {
        let caller = Caller::new(peer.ip(), "http");
        return serve(accepted, stream, Protocol::Either, caller).await;
    };
    let handshaken = tokio::select! {
        handshaken = timeout(accepted.settings.header_read_timeout, handshake(acceptor, stream)) => handshaken,
        () = async { accepted.stopping.cancelled().await; sleep(FIRST_REQUEST_TIMEOUT).await } => return,
        () = accepted.own.reclaimed() => return,
    };
    let caller = Caller::new(peer.ip(), "https");
    match handshaken {
        Ok(Ok(Handshake::Http2(stream))) => {
            serve(accepted, stream, Protocol::Http2, caller).await;
        }
        Ok(Ok(Handshake::Other(stream, protocol))) => {
            serve(accepted, stream, protocol, caller).await;
        }
        Ok(Ok(Handshake::Refused)) => tracing::debug!("a caller negotiated HTTP/2 and sent something else"),
        Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake of a caller failed"),
        Err(_) => tracing::debug!("the TLS handshake of a caller took too long"),
    }
}

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    /// Detected from the first bytes.
    Either,
}

/// A connection after its TLS handshake.
enum Handshake {
    /// ALPN agreed on HTTP/2, and the caller sent its preface.
    Http2(Prefaced<TlsStream<TcpStream>>),
    /// ALPN agreed on HTTP/1.1 or on nothing.
    Other(TlsStream<TcpStream>, Protocol),
    /// ALPN agreed on HTTP/2, but the caller sent something else; GOAWAY was sent.
    Refused,
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> std::io::Result<Handshake> {
    let stream = acceptor.accept(stream).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(h2_preface::read(stream).await?.map_or(Handshake::Refused, Handshake::Http2)),
        Some(_) => Ok(Handshake::Other(stream, Protocol::Http1)),
        None => Ok(Handshake::Other(stream, Protocol::Either)),
    }
}

/// Serves a connection until it ends. Once the server stops, finishes the requests under way.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: Accepted,
    stream: S,
    protocol: Protocol,
    caller: Caller,
) {
    let Accepted { host, listener, settings, own, stopping } = accepted;
    let settings = &*settings;
    let request_seen = Arc::new(RequestSeen::default());
    let (first_request, served) = (Arc::clone(&request_seen), Arc::clone(&own));
    let head_bytes = settings.max_header_bytes.max(8192);
    let (stream, buffered) = Metered::new(stream, &host.shared.memory, head_bytes, &own);
    let max_fields = settings.max_header_fields;
    let handover = Handover::default();
    let response_handover = handover.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (host, own) = (host.clone(), Arc::clone(&served));
        let stream = (request.version() == http::Version::HTTP_2).then(|| response_handover.stream());
        let caller = caller.clone().with_handover(stream.as_ref().unwrap_or(&response_handover).clone());
        first_request.record();
        let open = own.open();
        buffered.taken();
        let buffered = Arc::clone(&buffered);
        async move {
            let response = match request_check::refusal(&request, max_fields) {
                Some(problem) => host.refuse(problem),
                None => {
                    let request = request.map(|body| {
                        let body = Taking { body, buffered };
                        body.map_err(|error| Box::new(error) as BoxError).boxed()
                    });
                    host.handle_on(request, &caller, listener, Some(&own)).await
                }
            };
            Ok::<_, Infallible>(Watched::answer(response, open, &host.shared.memory, stream))
        }
    });
    let builder = auto::Builder::new(StreamExecutor { write_timeout: settings.write_timeout });
    let mut builder = match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Either => builder,
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_read_timeout)
        .max_buf_size(head_bytes)
        .max_headers(request_check::PARSED_FIELDS)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(u32::try_from(settings.max_streams).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Confirming::new(stream, handover)), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = request_seen.last_call(&stopping) => None,
        () = request_seen.without_request(settings.header_read_timeout) => {
            return tracing::debug!("a connection without any request was closed");
        }
        why = quiet(&own, settings) => match why {
            // A request may be on its way, so close gracefully.
            Quiet::Idle => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(FIRST_REQUEST_TIMEOUT, connection).await;
                return tracing::debug!("an idle connection was closed");
            }
            Quiet::Unread => return tracing::debug!("a connection was closed: its caller did not read the answer"),
            Quiet::Reclaimed => return tracing::debug!("an idle connection was closed to admit another one"),
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        // A request that outlasts the drain ends with its worker, which then reports that not all requests were finished.
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Why a connection that waits for its caller is closed.
enum Quiet {
    /// It has no request.
    Idle,
    /// Its caller does not read a response.
    Unread,
    /// Another caller needs its connection permit.
    Reclaimed,
}

/// Resolves when a connection has waited for its caller for too long. HTTP/2 ping replies do not count as activity.
async fn quiet(own: &Connection, settings: &settings::Server) -> Quiet {
    let mut wait = settings.write_timeout.min(settings.idle_timeout);
    loop {
        tokio::select! {
            () = sleep(wait) => {}
            () = own.reclaimed() => return Quiet::Reclaimed,
        }
        let (quiet, limit, why) = match own.activity() {
            Activity::Idle(quiet) => (quiet, settings.idle_timeout, Quiet::Idle),
            Activity::Unread(quiet) => (quiet, settings.write_timeout, Quiet::Unread),
            Activity::Working => {
                wait = settings.write_timeout.min(settings.idle_timeout);
                continue;
            }
        };
        if quiet >= limit {
            return why;
        }
        wait = limit.saturating_sub(quiet).min(settings.write_timeout.min(settings.idle_timeout));
    }
}

#[cfg(test)]
#[path = "connection/tests.rs"]
mod tests;
