//! The listener: few connections, each with little time, on a thread with a lower priority than the workers.

use super::{connection_limits::ConnectionLimits, response::Refusal};
use crate::tls::Tls;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::setpriority_process;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Maximum time for a request's head, and maximum idle time of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for a body: a token, or a little JSON.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum life of a connection that may only request health. A health check sends its request at once.
const MAX_HEALTH_LIFETIME: Duration = Duration::from_secs(2);
/// Maximum life of any other connection, so that none occupies a permit forever.
const MAX_LIFETIME: Duration = Duration::from_secs(300);
/// Wait after a failed accept, usually because the process has no free file descriptors.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);
/// The thread's nice value: it gets the processor time that the workers leave, and a tenth of a busy core.
const NICENESS: i32 = 10;

/// What a connection may request.
#[derive(Debug, Clone)]
pub(super) struct Routers {
    pub(super) all: Router,
    /// For a connection over the limits.
    pub(super) health: Router,
}

pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Serves until it is stopped, and polls `beside` in the same thread. Blocks.
pub(super) fn run(
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
    routers: Routers,
    beside: impl Future<Output = ()>,
    stop: CancellationToken,
) {
    // On Linux, this sets the priority of this thread only.
    if let Err(error) = setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "the admin thread could not raise its priority and runs with the workers' priority");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                () = accept(socket, tls, routers) => {}
                () = beside => {}
                () = stop.cancelled() => {}
            }
        }),
        Err(error) => tracing::error!(%error, "the admin listener's runtime could not be started"),
    }
}

async fn accept(socket: TcpListener, tls: Option<Arc<Tls>>, routers: Routers) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, "the admin listener could not be used"),
    };
    let mut limits = ConnectionLimits::new();
    // Dropping the set at the end of this function closes every connection.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match socket.accept().await {
            Ok((stream, peer)) => {
                let acceptor = tls.as_deref().map(Tls::acceptor);
                if let Some(permit) = limits.enter(peer.ip()) {
                    let router = routers.all.clone();
                    connections.spawn(async move {
                        let _ = timeout(MAX_LIFETIME, begin(stream, acceptor, peer, router)).await;
                        drop(permit);
                    });
                } else {
                    let served = begin(stream, acceptor, peer, routers.health.clone());
                    limits.health(connections.spawn(async move {
                        let _ = timeout(MAX_HEALTH_LIFETIME, served).await;
                    }));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                sleep(ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

async fn begin(stream: TcpStream, tls: Option<TlsAcceptor>, peer: SocketAddr, router: Router) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = tls else { return serve(stream, peer, router).await };
    match timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, peer, router).await,
        Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake of a caller of the admin listener failed"),
        Err(_) => {}
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, peer: SocketAddr, router: Router) {
    let service = TowerToHyperService::new(router.layer(axum::Extension(Peer(peer))));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 << 10);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// The address of the caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Reads a request's whole body before its handler runs, so that a slow body occupies a permit only for a short time.
pub(super) async fn whole_body(request: Request, next: Next, max_bytes: usize) -> Response {
    let (head, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, to_bytes(body, max_bytes)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(_)) => Refusal::TooLarge.into_response(),
        Err(_) => Refusal::Slow.into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::{middleware::from_fn, routing::post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    async fn answer(request: &[u8]) -> String {
        let router = Router::new().route("/session", post(|body: String| async move { body }));
        let router = router.layer(from_fn(|request, next| whole_body(request, next, 100)));
        let (mut caller, stream) = duplex(1024);
        tokio::spawn(serve(stream, ([127, 0, 0, 1], 9).into(), router));
        caller.write_all(request).await.unwrap();
        let mut read = String::new();
        // The server closes the connection when no further head arrives.
        timeout(MAX_LIFETIME, caller.read_to_string(&mut read)).await.unwrap().unwrap();
        read
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let head = "POST /session HTTP/1.1\r\nHost: x\r\nContent-Length: ";
        let slow = answer(format!("{head}10\r\n\r\ntok").as_bytes()).await;
        assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("urn:triage:admin:slow"), "{slow}");
        let whole = answer(format!("{head}5\r\n\r\ntoken").as_bytes()).await;
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("token"), "{whole}");
        let large = answer(format!("{head}101\r\n\r\n{}", "x".repeat(101)).as_bytes()).await;
        assert!(large.starts_with("HTTP/1.1 413"), "{large}");
    }
}
