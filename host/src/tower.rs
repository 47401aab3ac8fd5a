//! The host as a tower middleware: [`HostLayer`] puts it before a service that calls the upstream.
//!
//! The inner service replaces the host's own HTTP client. Breakers, limits and idempotency records belong to the [`Host`], so all services
//! of one layer share them. The inner service must send a request at most once: a retry or a hedge in it would repeat writes that the host
//! knows nothing of.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering::Relaxed}};
//! use tower::{Layer as _, ServiceExt as _, service_fn};
//! use triage::{Clock, Host, HostLayer, Rng, config, transport::{Body, full}};
//!
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // An upstream that fails once.
//!     let upstream = service_fn(|_: Request<Body>| async {
//!         let status = if CALLS.fetch_add(1, Relaxed) == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
//!         let mut response = Response::new(full(Bytes::new()));
//!         *response.status_mut() = status;
//!         Ok::<_, Infallible>(response)
//!     });
//!     let settings = config::for_upstream("http://hospital.invalid", "http-standard")?;
//!     let host = Host::new(&settings, Clock::system(), Rng::system())?;
//!     let service = HostLayer::new(host).layer(upstream);
//!     let response = service.oneshot(Request::get("/rooms").body(full(Bytes::new()))?).await?;
//!     assert_eq!(response.status(), StatusCode::OK);
//!     assert_eq!(response.headers()["triage-attempts"], "2");
//!     Ok(())
//! }
//! ```

use crate::transport::{Body, BoxError, Inbound, Outbound, OutboundBody, Transport, full};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    net::Ipv4Addr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;
use triage_core::contract::{Failure, FailureKind};
use triage_gateway::Host;
use triage_upstream::{headers::Caller, url};

/// Puts a [`Host`] before a service that calls the upstream.
#[derive(Debug, Clone)]
pub struct HostLayer(Host);

impl HostLayer {
    /// A layer whose services share the breakers, limits and records of this host. The host's own HTTP clients are not used.
    pub fn new(host: Host) -> Self {
        Self(host)
    }
}

impl<S, B> Layer<S> for HostLayer
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError>,
{
    type Service = HostService;

    fn layer(&self, inner: S) -> HostService {
        let transport = |settings: &triage_upstream::Settings| {
            let (base_url, ready_timeout) = (settings.base_url.clone(), settings.connect_timeout);
            Arc::new(ServiceTransport { inner: inner.clone(), base_url, ready_timeout }) as Arc<dyn Transport>
        };
        HostService(self.0.with_each_transport(transport))
    }
}

/// A [`Host`] as a service: it answers each request, with a refusal if need be, so it has no error of its own.
///
/// It is always ready: if the host is overloaded, it answers 503 at once instead of holding the caller back. Dropping the future of a safe
/// request cancels the request; another request continues in the background once it may have been sent, on the runtime that called.
#[derive(Debug, Clone)]
pub struct HostService(Host);

impl HostService {
    /// A service that calls the upstreams with the host's own HTTP clients.
    pub fn new(host: Host) -> Self {
        Self(host)
    }
}

impl<B> Service<Request<B>> for HostService
where
    B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let host = self.0.clone();
        Box::pin(async move {
            let caller = Caller::new(Ipv4Addr::LOCALHOST.into(), "http");
            let request = request.map(|body| body.map_err(Into::into).boxed());
            Ok(host.handle(request, &caller, None).await)
        })
    }
}

/// Sends requests through an inner service.
struct ServiceTransport<S> {
    inner: S,
    base_url: Uri,
    /// The longest wait until the inner service is ready: as long as a connection may take.
    ready_timeout: Duration,
}

impl<S> fmt::Debug for ServiceTransport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceTransport").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

impl<S, B> Transport for ServiceTransport<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError>,
{
    fn send(&self, outbound: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let Some(uri) = url::uri_below(&self.base_url, &outbound.path_and_query) else {
                return Err(Failure::new(FailureKind::Protocol, false));
            };
            let body = match outbound.body {
                OutboundBody::Bytes(bytes) => full(bytes),
                OutboundBody::Stream(stream) => stream,
            };
            let mut request = Request::new(body);
            *request.method_mut() = outbound.method;
            *request.uri_mut() = uri;
            *request.headers_mut() = outbound.headers;
            // A service that is not ready has sent nothing. After the call began, the host does not know whether a byte has left.
            match timeout(self.ready_timeout, poll_fn(|context| inner.poll_ready(context))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed(error, FailureKind::Connect, false)),
                Err(_) => return Err(Failure::new(FailureKind::ConnectTimeout, false)),
            }
            let call: BoxFuture<'_, _> = Box::pin(inner.call(request));
            let response = match call.await {
                Ok(response) => response,
                Err(error) => return Err(failed(error, FailureKind::Reset, true)),
            };
            let (head, body) = response.into_parts();
            Ok(Inbound { status: head.status, headers: head.headers, body: body.map_err(Into::into).boxed() })
        })
    }
}

fn failed(error: impl Into<BoxError>, kind: FailureKind, sent: bool) -> Failure {
    let error: BoxError = error.into();
    tracing::debug!(%error, sent, "the inner service failed");
    Failure::new(kind, sent)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Clock, Rng, config};
    use http::StatusCode;
    use parking_lot::Mutex;
    use tower::{ServiceExt as _, service_fn};

    /// A host before an upstream that gives these results in turn, and the requests that reached the upstream.
    fn service(results: Vec<Result<u16, &'static str>>) -> (HostService, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let results = Arc::new(Mutex::new(results));
        let own = Arc::clone(&seen);
        let upstream = service_fn(move |request: Request<Body>| {
            own.lock().push(format!("{} {}", request.method(), request.uri()));
            let result = results.lock().remove(0);
            async move {
                let mut response = Response::new(full(Bytes::from_static(b"x")));
                *response.status_mut() = StatusCode::from_u16(result?).unwrap();
                Ok::<_, BoxError>(response)
            }
        });
        let settings = config::for_upstream("http://hospital.invalid/api", "http-standard").unwrap();
        let host = Host::new(&settings, Clock::system(), Rng::seeded(1)).unwrap();
        (HostLayer::new(host).layer(upstream), seen)
    }

    fn request(method: &str) -> Request<Body> {
        Request::builder().method(method).uri("/rooms?name=a").body(full(Bytes::new())).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_is_retried_below_the_base_url() {
        let (service, seen) = service(vec![Err("reset"), Ok(503), Ok(200)]);
        let response = service.oneshot(request("GET")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(*seen.lock(), ["GET http://hospital.invalid/api/rooms?name=a"; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_call_failed_is_not_sent_again() {
        let (service, seen) = service(vec![Err("reset"), Ok(201)]);
        let response = service.oneshot(request("POST")).await.unwrap();
        assert_eq!(seen.lock().len(), 1, "{response:?}");
        assert_eq!(response.headers()["triage-sent"], "maybe", "{response:?}");
    }

    /// Never ready: a load balancer without a member, or a full queue.
    #[derive(Clone)]
    struct Unready {
        fails: bool,
    }

    impl Service<Request<Body>> for Unready {
        type Response = Response<Body>;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Response<Body>, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            if self.fails { Poll::Ready(Err("no member".into())) } else { Poll::Pending }
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::ready(Err("called without being ready".into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_not_sent_if_the_service_is_not_ready() {
        for fails in [true, false] {
            let settings = config::for_upstream("http://hospital.invalid", "http-standard").unwrap();
            let host = Host::new(&settings, Clock::system(), Rng::seeded(1)).unwrap();
            let response = HostLayer::new(host).layer(Unready { fails }).oneshot(request("POST")).await.unwrap();
            assert_eq!(response.headers()["triage-sent"], "no", "{fails} {response:?}");
        }
    }
}
