//! Components from an OCI registry: pulled by the digest that the configuration names, verified, and kept for the next start.
//!
//! An artifact is what the Wasm OCI conventions say: an image manifest with a `vnd.wasm.config` and one `application/wasm`
//! layer. The name is a digest, so that whoever holds the registry cannot exchange the component; every answer of a registry
//! is capped in size and time besides, which is why this speaks to them itself: clients at hand read manifests and tokens as
//! long as they come, and send a password wherever a registry says. Compiled code is never taken from there: a component goes through the same checks as
//! a file.

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

use crate::policy::Digest;
use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};
use store::Store;

/// How long a pull or a push may take in all: an 18 MB component over 2 Mbit/s.
const PATIENCE: Duration = Duration::from_mins(2);

/// Why a registry did not give or take a component.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It does not answer, or refuses.
    #[error(
        "registry {registry} did not {what}: {why}; check the name, and the credentials in policies.registry_auth_file"
    )]
    Refused {
        /// Which.
        registry: String,
        /// What was asked.
        what: &'static str,
        /// What it says.
        why: String,
    },
    /// It took too long.
    #[error("registry {registry} did not answer in full within {} s; try again, or take a nearer one", patience.as_secs_f64())]
    Slow {
        /// Which.
        registry: String,
        /// The cap.
        patience: Duration,
    },
    /// What came is too large.
    #[error("registry {registry} sends a {what} of more than {most} bytes, the most that are read")]
    TooLarge {
        /// Which.
        registry: String,
        /// What.
        what: &'static str,
        /// The cap.
        most: usize,
    },
    /// What came is not what its digest names.
    #[error(
        "registry {registry} sends a {what} whose digest is sha256:{found}, not the one asked for; do not trust it"
    )]
    Forged {
        /// Which.
        registry: String,
        /// What.
        what: &'static str,
        /// What it has.
        found: Digest,
    },
    /// It is something else.
    #[error("{name} is no policy")]
    NotAPolicy {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: NotAPolicy,
    },
    /// No thread, no client.
    #[error("no client of registries could be made")]
    Client(#[source] io::Error),
}

/// A component as it came from a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its bytes.
    pub component: Vec<u8>,
    /// A minisign signature of them, where the artifact has one.
    pub signature: Option<String>,
    /// Its golden cases, where the artifact has some.
    pub cases: Option<String>,
}

/// The way to registries.
#[derive(Debug, Clone)]
pub struct Registry {
    credentials: Arc<Credentials>,
    store: Option<Store>,
    patience: Duration,
}

impl Registry {
    /// With these credentials; what was pulled is kept in a folder, if there is one.
    pub fn new(credentials: Credentials, store: Option<PathBuf>) -> Self {
        Self { credentials: Arc::new(credentials), store: store.map(Store::new), patience: PATIENCE }
    }

    /// The same with another limit on a whole pull or push. Default: two minutes.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// A component: from the folder, or pulled now and kept there. Blocks; not for request threads.
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

    /// Runs to the end on a thread of its own: whoever asks may be in a runtime already.
    fn run<T: Send>(
        &self,
        registry: &str,
        work: impl Future<Output = Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(RegistryError::Client)?;
            let slow = || RegistryError::Slow { registry: registry.to_owned(), patience: self.patience };
            runtime.block_on(async { tokio::time::timeout(self.patience, work).await }).unwrap_or_else(|_| Err(slow()))
        };
        let ended = thread::scope(|scope| scope.spawn(run).join());
        ended.unwrap_or_else(|_| Err(RegistryError::Client(io::Error::other("the client failed"))))
    }
}
