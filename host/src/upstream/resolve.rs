//! Name resolution that leaves a mark on its failures, so that they are told apart from refused connections.

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{io, net::SocketAddr, sync::Arc};

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's name could not be resolved")]
pub(super) struct Unresolved(#[source] io::Error);

/// Tells the addresses of a name.
pub trait Resolver: Send + Sync + std::fmt::Debug {
    /// The addresses, the best first; their ports do not count.
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

/// A resolver as the client wants it.
pub(super) struct Marked(pub(super) Arc<dyn Resolver>);

impl Resolve for Marked {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.0.resolve(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(found.await.map_err(Unresolved)?.into_iter()) as Addrs) })
    }
}
