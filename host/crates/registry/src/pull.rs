//! Pulls a component. Every received document is checked against its digest.

use super::{
    Artifact, Pulled, RegistryError,
    artifact::{Contents, MANIFEST},
    credentials::Credentials,
    session::{Asked, Session},
};
use crate::digest::Digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

/// Maximum bytes of a manifest, the usual limit of registries.
pub(super) const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Pulls a component. Also returns its manifest.
pub(super) async fn pull(artifact: &Artifact, credentials: &Credentials) -> Result<(Pulled, Vec<u8>), RegistryError> {
    let registry = artifact.registry();
    let mut session = Session::open(artifact.target(), credentials, "pull")?;
    let accept = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST))]);
    let path = format!("manifests/sha256:{}", artifact.digest());
    let manifest = got(&mut session, &path, accept, ("manifest", MAX_MANIFEST_BYTES), "send the manifest").await?;
    verified(registry, "manifest", &manifest, artifact.digest())?;
    let contents =
        Contents::read(&manifest).map_err(|source| RegistryError::NotAPolicy { name: artifact.to_string(), source })?;
    let path = format!("blobs/sha256:{}", contents.digest);
    let cap = ("component", contents.size);
    let component = got(&mut session, &path, HeaderMap::new(), cap, "send the component").await?;
    verified(registry, "component", &component, contents.digest)?;
    Ok((contents.filled(component), manifest))
}

async fn got(
    session: &mut Session<'_>,
    path: &str,
    headers: HeaderMap,
    (kind, most): (&'static str, usize),
    what: &'static str,
) -> Result<Vec<u8>, RegistryError> {
    let url = session.url(path)?;
    let asked = Asked { method: Method::GET, url, headers, body: Bytes::new(), what, expected: &[200] };
    let answer = session.ask(asked).await?;
    session.read(answer, kind, most, what).await
}

fn verified(registry: &str, what: &'static str, bytes: &[u8], digest: Digest) -> Result<(), RegistryError> {
    let found = Digest::of(bytes);
    if found == digest { Ok(()) } else { Err(RegistryError::Forged { registry: registry.to_owned(), what, found }) }
}
