//! Components from an OCI registry: pulled by the configured digest, verified, and stored for the next start.
//!
//! An artifact follows the Wasm OCI conventions: an image manifest with a `vnd.wasm.config` and one `application/wasm` layer. It is named
//! by digest, so that the registry's operator cannot exchange the component. Every response is limited in size and time. This module has
//! its own client because existing ones read manifests and tokens of any length, and send a password wherever a registry directs them.
//! Compiled code is never pulled: a component goes through the same checks as a file.

use triage_core::{digest, error_chain, rounded::Rounded};
use triage_upstream as upstream;

mod artifact;
mod credentials;
mod name;
mod publish;
mod pull;
mod session;
mod store;

pub use artifact::NotAPolicy;
pub use credentials::{Credentials, CredentialsError};
pub use name::{Artifact, InvalidName, Target};
pub use publish::{Publication, Published};

use crate::digest::Digest;
use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};
use store::Store;

/// Maximum time of a whole pull or push: enough for an 18 MB component at 2 Mbit/s.
const TRANSFER_TIMEOUT: Duration = Duration::from_mins(2);

/// Why a pull or push failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The registry does not respond, or refuses the request.
    #[error(
        "registry {registry} did not {what}: {why}; check the name, and the credentials in policies.registry_auth_file"
    )]
    Refused {
        /// Host and port of the registry.
        registry: String,
        /// The requested operation.
        what: &'static str,
        /// The registry's message, or the network error.
        why: String,
    },
    /// The operation took too long.
    #[error("registry {registry} did not send its whole answer within {}; try again, or use a nearer registry", Rounded(*time_limit))]
    Slow {
        /// Host and port of the registry.
        registry: String,
        /// The limit that was exceeded.
        time_limit: Duration,
    },
    /// A response is too large.
    #[error("registry {registry} sends a {what} of more than {most} bytes, the maximum")]
    TooLarge {
        /// Host and port of the registry.
        registry: String,
        /// The kind of document.
        what: &'static str,
        /// The limit in bytes.
        most: usize,
    },
    /// A document does not match its digest.
    #[error(
        "registry {registry} sends a {what} with the digest sha256:{found}, not the requested digest; do not trust it"
    )]
    Forged {
        /// Host and port of the registry.
        registry: String,
        /// The kind of document.
        what: &'static str,
        /// The document's actual digest.
        found: Digest,
    },
    /// The artifact is no policy.
    #[error("{name} is not a policy")]
    NotAPolicy {
        /// The artifact's name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: NotAPolicy,
    },
    /// The thread or the HTTP client could not be created.
    #[error("the registry client could not be created")]
    Client(#[source] io::Error),
}

/// A component pulled from a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The component's bytes.
    pub component: Vec<u8>,
    /// The component's minisign signature, if the artifact has one.
    pub signature: Option<String>,
    /// The policy's golden tests, if the artifact has any.
    pub cases: Option<String>,
}

/// A client for registries.
#[derive(Debug, Clone)]
pub struct Registry {
    credentials: Arc<Credentials>,
    store: Option<Store>,
    time_limit: Duration,
}

impl Registry {
    /// Creates a client with these credentials. Pulled components are stored in the folder, if given.
    pub fn new(credentials: Credentials, store: Option<PathBuf>) -> Self {
        Self { credentials: Arc::new(credentials), store: store.map(Store::new), time_limit: TRANSFER_TIMEOUT }
    }

    /// Changes the time limit of a whole pull or push. Default 2 min.
    #[must_use]
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Self { time_limit, ..self }
    }

    /// Gets a component from the folder, or pulls and stores it. Blocks, so it must not run on request threads.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn fetch(&self, artifact: &Artifact) -> Result<Pulled, RegistryError> {
        if let Some(kept) = self.store.as_ref().and_then(|store| store.find(artifact)) {
            return Ok(kept);
        }
        let (pulled, manifest) = self.run(artifact.registry(), pull::pull(artifact, &self.credentials))?;
        if let Some(store) = &self.store {
            store.keep(artifact, &manifest, &pulled.component);
        }
        Ok(pulled)
    }

    /// Publishes a component. Blocks.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        self.run(publication.target.registry(), publish::push(publication, &self.credentials))
    }

    /// Runs a future to its end on a new thread, since the caller's thread may already run a runtime.
    fn run<T: Send>(
        &self,
        registry: &str,
        work: impl Future<Output = Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(RegistryError::Client)?;
            let slow = || RegistryError::Slow { registry: registry.to_owned(), time_limit: self.time_limit };
            runtime
                .block_on(async { tokio::time::timeout(self.time_limit, work).await })
                .unwrap_or_else(|_| Err(slow()))
        };
        let ended = thread::scope(|scope| scope.spawn(run).join());
        ended.unwrap_or_else(|_| Err(RegistryError::Client(io::Error::other("the client failed"))))
    }
}
