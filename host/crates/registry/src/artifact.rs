//! The contents of an artifact by the Wasm OCI conventions (CNCF TAG Runtime, "Wasm OCI artifact").

use super::Pulled;
use crate::digest::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The media type of the manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of the config.
pub(super) const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The media type of the only layer.
pub(super) const LAYER: &str = "application/wasm";
/// The annotation that holds a minisign signature of the component.
pub(super) const SIGNATURE: &str = "dev.triage.policy.minisig";

/// The annotation that holds the policy's golden tests.
pub(super) const CASES: &str = "dev.triage.policy.cases";

/// Maximum bytes of a component, the same as for files.
pub(super) const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// Why an artifact is no policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPolicy {
    /// The manifest is not that of an image.
    #[error("its manifest is not an image manifest: {0}")]
    Manifest(String),
    /// The artifact has several layers, or one of another type.
    #[error("it must have one layer of {LAYER}, as `triage policy push` creates it; it has {0}")]
    Layers(String),
    /// The component is too large; its bytes.
    #[error("its component has {0} bytes; at most {MAX_COMPONENT_BYTES} are allowed: strip it")]
    TooLarge(u64),
    /// The layer's digest is not SHA-256.
    #[error("its layer's digest must be sha256: and 64 hexadecimal digits")]
    Digest,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

/// The only layer of an artifact, and its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) digest: Digest,
    pub(super) size: usize,
    pub(super) signature: Option<String>,
    pub(super) cases: Option<String>,
}

impl Contents {
    /// Parses a manifest.
    ///
    /// # Errors
    /// [`NotAPolicy`]
    pub(super) fn read(manifest: &[u8]) -> Result<Self, NotAPolicy> {
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
        let Manifest { layers, annotations } =
            serde_json::from_slice(manifest).map_err(|error| NotAPolicy::Manifest(short(&error.to_string())))?;
        let layer = match layers.as_slice() {
            [layer] if layer.media_type == LAYER => layer,
            [other] => return Err(NotAPolicy::Layers(format!("one of {:?}", short(&other.media_type)))),
            all => return Err(NotAPolicy::Layers(all.len().to_string())),
        };
        let size = usize::try_from(layer.size).ok().filter(|size| *size <= MAX_COMPONENT_BYTES);
        Ok(Self {
            digest: layer
                .digest
                .strip_prefix("sha256:")
                .and_then(|digits| digits.parse().ok())
                .ok_or(NotAPolicy::Digest)?,
            size: size.ok_or(NotAPolicy::TooLarge(layer.size))?,
            signature: annotations.get(SIGNATURE).cloned(),
            cases: annotations.get(CASES).cloned(),
        })
    }

    /// Adds the component's bytes.
    pub(super) fn filled(self, component: Vec<u8>) -> Pulled {
        Pulled { component, signature: self.signature, cases: self.cases }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_error_for_an_artifact_that_is_no_policy_says_why() {
        let layer = |kind: &str, digest: &str, size: u64| {
            format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":{size}}}")
        };
        let digest = format!("sha256:{}", "ab".repeat(32));
        let manifest = |layers: &str| format!("{{\"schemaVersion\":2,\"layers\":[{layers}]}}");
        let good = Contents::read(manifest(&layer(LAYER, &digest, 5)).as_bytes()).unwrap();
        assert_eq!((good.size, good.signature), (5, None));
        let two = format!("{0},{0}", layer(LAYER, &digest, 5));
        let tar = layer("application/vnd.oci.image.layer.v1.tar+gzip", &digest, 5);
        for (what, text, expected) in [
            ("no JSON", "no".to_owned(), "its manifest is not an image manifest: "),
            ("an index", "{\"manifests\":[]}".to_owned(), "it has 0"),
            ("two layers", manifest(&two), "it has 2"),
            ("a container", manifest(&tar), "it has one of \"application/vnd.oci.image.layer.v1.tar+gzip\""),
            ("large", manifest(&layer(LAYER, &digest, 1 << 40)), "its component has 1099511627776 bytes"),
            ("SHA-512", manifest(&layer(LAYER, "sha512:00", 5)), "its layer's digest must be sha256:"),
        ] {
            let error = Contents::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
    }
}
