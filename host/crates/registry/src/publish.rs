//! Publishes a component in a registry.

use super::{
    Artifact, RegistryError, Target,
    artifact::{CASES, CONFIG, LAYER, MANIFEST, SIGNATURE},
    credentials::Credentials,
    session::{Asked, Session},
};
use crate::digest::Digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::json;

/// A component to publish.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The repository. The registry keeps only tagged artifacts, so a tag is always set.
    pub target: Target,
    /// The component's bytes.
    pub component: Vec<u8>,
    /// The component's minisign signature, if any.
    pub signature: Option<String>,
    /// The policy's golden tests, which every host runs before the policy serves.
    pub cases: Option<String>,
    /// The policy's name, for the manifest.
    pub name: String,
    /// The policy's version. It is also the tag if the target has none.
    pub version: String,
}

/// A published component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The name for the configuration.
    pub artifact: Artifact,
    /// The tag under which it was published.
    pub tag: String,
}

/// The two documents of an artifact.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Publication {
    /// The target's tag or the version, with invalid characters replaced.
    fn tag(&self) -> String {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let version = || self.version.chars().map(|c| if fits(c) { c } else { '-' }).take(128).collect::<String>();
        let tag = self.target.tag().map_or_else(version, str::to_owned);
        if tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') { tag } else { format!("v{tag}") }
    }

    /// Builds the documents. They contain no timestamp, so that equal components have equal digests.
    fn documents(&self) -> Documents {
        let layer = format!("sha256:{}", Digest::of(&self.component));
        let config = json!({
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [layer],
        });
        let config = config.to_string().into_bytes();
        let mut annotations = json!({
            "org.opencontainers.image.title": self.name,
            "org.opencontainers.image.version": self.version,
        });
        if let Some(signature) = &self.signature {
            annotations[SIGNATURE] = json!(signature);
        }
        if let Some(cases) = &self.cases {
            annotations[CASES] = json!(cases);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": CONFIG,
                "digest": format!("sha256:{}", Digest::of(&config)),
                "size": config.len(),
            },
            "layers": [{ "mediaType": LAYER, "digest": layer, "size": self.component.len() }],
            "annotations": annotations,
        });
        Documents { config, manifest: manifest.to_string().into_bytes() }
    }
}

const WHAT: &str = "take the component";

/// Pushes a component and its config, and then the manifest, which refers to both.
pub(super) async fn push(publication: &Publication, credentials: &Credentials) -> Result<Published, RegistryError> {
    let Publication { target, component, .. } = publication;
    let tag = publication.tag();
    let Documents { config, manifest } = publication.documents();
    let mut session = Session::open(target, credentials, "pull,push")?;
    for blob in [component, &config] {
        upload(&mut session, blob).await?;
    }
    let digest = Digest::of(&manifest);
    let url = session.url(&format!("manifests/{tag}"))?;
    put(&mut session, url, MANIFEST, manifest.into()).await?;
    Ok(Published { artifact: target.at(digest), tag })
}

/// Uploads a blob in one request, unless the registry has it.
async fn upload(session: &mut Session<'_>, blob: &[u8]) -> Result<(), RegistryError> {
    let digest = format!("sha256:{}", Digest::of(blob));
    let empty = |method, url, expected| Asked {
        method,
        url,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        what: WHAT,
        expected,
    };
    let there = session.url(&format!("blobs/{digest}"))?;
    // Some registries redirect to the blob's location: then it exists.
    if session.ask(empty(Method::HEAD, there, &[200, 302, 307, 404])).await?.status() != 404 {
        return Ok(());
    }
    let begin = session.url("blobs/uploads/")?;
    let begun = session.ask(empty(Method::POST, begin.clone(), &[202])).await?;
    let location = begun.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.and_then(|location| begin.join(location).ok());
    let mut location = location.ok_or_else(|| session.refused(WHAT, "it gives no URL for the upload"))?;
    location.query_pairs_mut().append_pair("digest", &digest);
    put(session, location, "application/octet-stream", Bytes::copy_from_slice(blob)).await
}

async fn put(
    session: &mut Session<'_>,
    url: reqwest::Url,
    kind: &'static str,
    body: Bytes,
) -> Result<(), RegistryError> {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
    session.ask(Asked { method: Method::PUT, url, headers, body, what: WHAT, expected: &[201] }).await.map(drop)
}
