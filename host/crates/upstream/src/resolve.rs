//! Name resolution whose failures can be distinguished from refused connections.

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

/// The error of a failed name resolution.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's name could not be resolved")]
pub(super) struct Unresolved(#[source] pub(super) io::Error);

/// Resolves names to addresses.
pub trait Resolver: Send + Sync + std::fmt::Debug {
    /// Resolves a name. The best address comes first; ports are ignored.
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver (getaddrinfo on a blocking thread).
#[derive(Debug)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
    }
}

/// Adapts a [`Resolver`] to reqwest and hyper, and wraps its error in [`Unresolved`], so that it is classified as a DNS failure.
#[derive(Debug, Clone)]
pub(super) struct Marked(pub(super) Arc<dyn Resolver>);

impl tower_service::Service<dns::Name> for Marked {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Unresolved;
    type Future = BoxFuture<'static, Result<Self::Response, Unresolved>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unresolved>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let found = self.0.resolve(name.as_str().to_owned());
        Box::pin(async move { Ok(found.await.map_err(Unresolved)?.into_iter()) })
    }
}

impl Resolve for Marked {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.0.resolve(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(found.await.map_err(Unresolved)?.into_iter()) as Addrs) })
    }
}
