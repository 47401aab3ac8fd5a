//! Name resolution that leaves a mark on its failures, so that they are told apart from refused connections.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's name could not be resolved")]
pub(super) struct Unresolved(#[source] std::io::Error);

/// The system's resolver (getaddrinfo on a blocking thread).
#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(Unresolved)?;
            let addresses: Vec<_> = found.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
