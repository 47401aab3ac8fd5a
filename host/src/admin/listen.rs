//! The listener: few connections, each with little time, on a thread that gives way to the workers.

use axum::Router;
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
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Connections at once: a few scrapers, probes and people.
const CONNECTIONS: usize = 256;
/// How long a head may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(5);
/// No connection lives longer, so that none keeps its place for good.
const LIFE: Duration = Duration::from_secs(300);
/// After accept failed for want of file descriptors.
const OUT_OF_FILES: Duration = Duration::from_millis(50);
/// How far the thread steps back behind the workers: it gets what they leave, and a tenth of a busy core.
const NICE: i32 = 10;

pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Serves until it is stopped, with some work beside it. Blocks.
pub(super) fn run(socket: TcpListener, router: Router, beside: impl Future<Output = ()>, stop: CancellationToken) {
    // On Linux, this thread alone.
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!(%error, "the admin thread keeps the workers' priority");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                () = accept(socket, router) => {}
                () = beside => {}
                () = stop.cancelled() => {}
            }
        }),
        Err(error) => tracing::error!(%error, "the admin listener's runtime could not be started"),
    }
}

async fn accept(socket: TcpListener, router: Router) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, "the admin listener could not be used"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends with this function, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match socket.accept().await {
            Ok((stream, peer)) => {
                let router = router.clone();
                connections.spawn(async move {
                    let _ = timeout(LIFE, serve(stream, peer, router)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                sleep(OUT_OF_FILES).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router.layer(axum::Extension(Peer(peer))));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(16 << 10);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);
