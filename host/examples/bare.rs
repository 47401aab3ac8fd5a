//! A bare proxy: hyper in, reqwest out, one thread with its own socket and connections per core. It is the baseline for every figure of
//! Triage: any additional time is Triage's own.
//!
//! `cargo run --release --example bare -- 127.0.0.1:18099 http://127.0.0.1:18080`

use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use std::{error::Error, net::SocketAddr, thread};
use tokio::{net::TcpListener, task::LocalSet};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bare LISTEN UPSTREAM".into());
    };
    let (listen, upstream): (SocketAddr, reqwest::Url) = (listen.parse()?, upstream.parse()?);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cores = thread::available_parallelism()?.get();
    let workers: Vec<_> = (0..cores)
        .map(|_| {
            let upstream = upstream.clone();
            thread::spawn(move || work(listen, upstream))
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }
    Ok(())
}

fn work(listen: SocketAddr, upstream: reqwest::Url) -> Result<(), Failure> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(1024)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            let (stream, _) = listener.accept().await?;
            let _ = stream.set_nodelay(true);
            let (client, upstream) = (client.clone(), upstream.clone());
            let service = service_fn(move |request| pass(client.clone(), upstream.clone(), request));
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::task::spawn_local(served);
        }
    })
}

async fn pass(
    client: reqwest::Client,
    mut url: reqwest::Url,
    request: http::Request<Incoming>,
) -> Result<http::Response<reqwest::Body>, Failure> {
    let (head, body) = request.into_parts();
    url.set_path(head.uri.path());
    let mut outbound = reqwest::Request::new(head.method, url);
    *outbound.headers_mut() = head.headers;
    if !hyper::body::Body::is_end_stream(&body) {
        *outbound.body_mut() = Some(reqwest::Body::wrap(body.boxed()));
    }
    Ok(client.execute(outbound).await?.into())
}
