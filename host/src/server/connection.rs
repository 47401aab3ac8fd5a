//! One connection: HTTP/1.1 or HTTP/2, told apart by the client's preface.

use super::{
    h2_preface::{self, Prefaced},
    metered::{Metered, Taking},
    request_check,
    streams::{StreamExecutor, Watched},
};
use crate::{
    config::settings,
    flush_notice::{Confirming, Handover},
    overload::peers::{Activity, Connection},
    pipeline::Host,
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

/// Bytes of answers that one HTTP/2 stream holds for its caller: with hyper's 400 kB, one connection could make the host hold 100 MB.
const MAX_SEND_BUFFER_BYTES: usize = 64 << 10;

/// Between two looks whether an HTTP/2 peer still lives, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// What a new connection has left for its first request once the server stops: one that was accepted a moment before has its
/// request on the way, and hyper closes a connection that nothing was read from yet.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Whether a connection has asked for anything yet.
#[derive(Default)]
struct Spoken {
    at_all: AtomicBool,
    told: Notify,
}

impl Spoken {
    fn tell(&self) {
        if !self.at_all.swap(true, Relaxed) {
            self.told.notify_one();
        }
    }

    /// Ends when a connection has asked for nothing for too long. The protocol is told apart before any other timer runs, so
    /// that one who sends nothing, or half a preface, would hold its place for ever. Twice the limit: a slow head has its own.
    async fn silence(&self, limit: Duration) {
        sleep(limit.saturating_mul(2)).await;
        if self.at_all.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when the server stops and the connection's first request is there, or has had its time.
    async fn last_call(&self, stopping: &CancellationToken) {
        stopping.cancelled().await;
        if !self.at_all.load(Relaxed) {
            let _ = timeout(FIRST_REQUEST, self.told.notified()).await;
        }
    }
}

/// What a connection is served with.
pub(super) struct Accepted {
    pub(super) host: Host,
    pub(super) listener: Option<SocketAddr>,
    pub(super) settings: Arc<settings::Server>,
    pub(super) own: Arc<Connection>,
    pub(super) stopping: CancellationToken,
}

/// Speaks TLS first, where the listener does; a caller that takes longer than for a request's head is left.
pub(super) async fn begin(accepted: Accepted, tls: Option<TlsAcceptor>, stream: TcpStream, peer: SocketAddr) {
    let Some(acceptor) = tls else {
        let caller = Caller::new(peer.ip(), "http");
        return serve(accepted, stream, Protocol::Either, caller).await;
    };
    let greeted = tokio::select! {
        greeted = timeout(accepted.settings.header_read_timeout, greet(acceptor, stream)) => greeted,
        () = async { accepted.stopping.cancelled().await; sleep(FIRST_REQUEST).await } => return,
        () = accepted.own.reclaimed() => return,
    };
    let caller = Caller::new(peer.ip(), "https");
    match greeted {
        Ok(Ok(Greeted::Http2(stream))) => {
            serve(accepted, stream, Protocol::Http2, caller).await;
        }
        Ok(Ok(Greeted::Other(stream, protocol))) => {
            serve(accepted, stream, protocol, caller).await;
        }
        Ok(Ok(Greeted::Refused)) => tracing::debug!("a caller agreed on HTTP/2 and spoke something else"),
        Ok(Err(error)) => tracing::debug!(%error, "a caller did not agree on TLS"),
        Err(_) => tracing::debug!("a caller took too long to agree on TLS"),
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    /// Its first bytes tell.
    Either,
}

/// A connection over TLS.
enum Greeted {
    /// ALPN has agreed on HTTP/2, and the caller begins with its preface.
    Http2(Prefaced<TlsStream<TcpStream>>),
    /// HTTP/1.1, or nothing was agreed on.
    Other(TlsStream<TcpStream>, Protocol),
    /// ALPN has agreed on HTTP/2, and the caller began with something else: it was told.
    Refused,
}

async fn greet(acceptor: TlsAcceptor, stream: TcpStream) -> std::io::Result<Greeted> {
    let stream = acceptor.accept(stream).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(h2_preface::read(stream).await?.map_or(Greeted::Refused, Greeted::Http2)),
        Some(_) => Ok(Greeted::Other(stream, Protocol::Http1)),
        None => Ok(Greeted::Other(stream, Protocol::Either)),
    }
}

/// Serves a connection until it ends, or finishes what is under way on it once the server stops.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: Accepted,
    stream: S,
    protocol: Protocol,
    caller: Caller,
) {
    let Accepted { host, listener, settings, own, stopping } = accepted;
    let settings = &*settings;
    let spoken = Arc::new(Spoken::default());
    let (spoke, served) = (Arc::clone(&spoken), Arc::clone(&own));
    let head_bytes = settings.max_header_bytes.max(8192);
    let (stream, buffered) = Metered::new(stream, &host.shared.memory, head_bytes, &own);
    let max_fields = settings.max_header_fields;
    let handover = Handover::default();
    let told = handover.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (host, own) = (host.clone(), Arc::clone(&served));
        let stream = (request.version() == http::Version::HTTP_2).then(|| told.stream());
        let caller = caller.clone().told_by(stream.as_ref().unwrap_or(&told).clone());
        spoke.tell();
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
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Confirming::new(stream, handover)), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = spoken.last_call(&stopping) => None,
        () = spoken.silence(settings.header_read_timeout) => {
            return tracing::debug!("a connection that asked for nothing was closed");
        }
        why = quiet(&own, settings) => match why {
            // A request may be on its way: the peer is told first.
            Quiet::Idle => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(FIRST_REQUEST, connection).await;
                return tracing::debug!("a connection without a request was closed");
            }
            Quiet::Unread => return tracing::debug!("a connection was closed: its caller did not read"),
            Quiet::Reclaimed => return tracing::debug!("a quiet connection was closed: its place was wanted"),
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        // What takes longer than the drain ends with its worker, which knows then that not everything was finished.
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
    /// It has answers that are not read.
    Unread,
    /// Another caller needs its place.
    Reclaimed,
}

/// Ends when a connection has waited for its caller for too long. What an HTTP/2 peer answers to pings does not count.
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
