//! TLS on the host's own listeners. Certificate, key and the callers' authorities are read again on a reload.

use crate::{bounded_file, config::settings};
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::TlsAcceptor;

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates.
    #[error("{} cannot be read; it must be a PEM file with at least one certificate", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// The cause; none for a file without a certificate.
        #[source]
        source: Option<rustls::pki_types::pem::Error>,
    },
    /// The key's file.
    #[error("{} cannot be read; it must be a PEM file with a private key", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate and the key.
    #[error("the certificate {} and the key {} cannot be used; the key must belong to the certificate", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// The callers' authorities.
    #[error("the authorities of {} cannot be used", .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: VerifierBuilderError,
    },
    /// The library.
    #[error("TLS cannot be set up")]
    Library(#[source] rustls::Error),
}

/// A listener's TLS, as its files have it now.
#[derive(Debug)]
pub struct Tls {
    settings: settings::Tls,
    protocols: Vec<Vec<u8>>,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files. `protocols`: the protocols of the listener, the preferred one first.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn open(settings: &settings::Tls, protocols: &[&str]) -> Result<Self, TlsError> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let current = ArcSwap::new(Arc::new(config(settings, &protocols)?));
        Ok(Self { settings: settings.clone(), protocols, current })
    }

    /// Reads the files again: connections that come from now on see what they hold. On an error the old ones go on.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(config(&self.settings, &self.protocols)?));
        Ok(())
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let settings::Tls { certificate, key, client_ca } = &self.settings;
        [Some(certificate), Some(key), client_ca.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Certificates { path: path.to_owned(), source };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(Some(error)))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unreadable(Some(error)))?;
    if all.is_empty() { Err(unreadable(None)) } else { Ok(all) }
}

fn config(settings: &settings::Tls, protocols: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let settings::Tls { certificate, key, client_ca } = settings;
    let chain = certificates(certificate)?;
    bounded_file::check_secret(key);
    let own = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Key { path: key.clone(), source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Library)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(TlsError::Library)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|source| TlsError::Authorities { path: path.clone(), source })?,
            )
        }
    };
    let mut config = builder.with_single_cert(chain, own).map_err(|source| TlsError::Pair {
        certificate: certificate.clone(),
        key: key.clone(),
        source,
    })?;
    config.alpn_protocols = protocols.to_vec();
    Ok(config)
}
