//! The emulator behind real sockets: HTTP/1.1, and HTTP/2 without TLS.

use super::{Emulator, Reply, Request};
use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::SockRef;
use std::{convert::Infallible, future::Future, io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
};

const MAX_CONNECTIONS: usize = 8_192;
const MAX_BODY_BYTES: usize = 1 << 20;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after a failed accept (usually for lack of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Emulator {
    /// Serves on `listener` until `shutdown` is ready, then drops the open connections.
    ///
    /// A reset closes the socket with zero linger time, so that the peer reads "connection reset". On HTTP/2 it also ends the connection's
    /// other streams, as a real reset does.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        let mut connections = JoinSet::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            let Ok((stream, client, slot)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if self.refuses() {
                reset(&stream);
                continue;
            }
            let emulator = Arc::clone(&self);
            connections.spawn(async move {
                emulator.serve_connection(stream, client).await;
                drop(slot);
            });
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, client: IpAddr) {
        let _ = stream.set_nodelay(true);
        let Ok(handle) = SockRef::from(&stream).try_clone() else { return };
        let to_reset = Arc::new(Notify::new());
        let service = service_fn(|request| {
            let (emulator, to_reset) = (Arc::clone(&self), Arc::clone(&to_reset));
            async move { Ok::<_, Infallible>(emulator.respond(request, client, &to_reset).await) }
        });
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        http.http2().timer(TokioTimer::new());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = to_reset.notified() => { let _ = handle.set_linger(Some(Duration::ZERO)); }
        }
    }

    async fn respond(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        client: IpAddr,
        to_reset: &Notify,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
            return whole(super::response::failure(StatusCode::PAYLOAD_TOO_LARGE));
        };
        let path_and_query = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let request =
            Request { method: head.method, path_and_query, headers: head.headers, body: body.to_bytes(), client };
        let asked = format!("{} {}", request.method, request.path_and_query.escape_debug());
        let reply = self.answer(request).await;
        match &reply {
            Reply::Answer(response) => tracing::info!("{asked}: {}", response.status().as_u16()),
            Reply::CutShort(..) => tracing::info!("{asked}: half an answer, then a reset"),
            Reply::Reset | Reply::Refused => tracing::info!("{asked}: connection reset"),
            Reply::Stall => tracing::info!("{asked}: no answer"),
        }
        match reply {
            Reply::Answer(response) => whole(response),
            Reply::CutShort(response, sent) => cut_short(response, sent),
            Reply::Reset | Reply::Refused => {
                to_reset.notify_one();
                std::future::pending().await
            }
            Reply::Stall => std::future::pending().await,
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address.ip(), slot))
}

fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn whole(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync())
}

/// Announces the full length and breaks the body off, so that hyper drops the connection.
fn cut_short(response: Response<Bytes>, sent: usize) -> Response<Body> {
    let announced = response.body().len();
    let mut response = response.map(|body| {
        let head = body.slice(..sent.min(body.len()));
        let frames = stream::unfold(Some(head), |head| async {
            match head {
                Some(head) if !head.is_empty() => Some((Ok(Frame::data(head)), Some(Bytes::new()))),
                Some(_) => {
                    // Give hyper time to flush before the error closes the connection.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Some((Err(io::ErrorKind::ConnectionReset.into()), None))
                }
                None => None,
            }
        });
        StreamBody::new(frames).boxed_unsync()
    });
    response.headers_mut().insert(header::CONTENT_LENGTH, announced.into());
    response
}
