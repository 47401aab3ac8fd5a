//! The store of pulled components: a restart neither waits for the registry nor depends on it.

use super::{
    Artifact, Pulled,
    artifact::{Contents, MAX_COMPONENT_BYTES},
    pull::MAX_MANIFEST_BYTES,
};
use crate::digest::Digest;
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// Maximum stored components; those written longest ago are removed first.
const MAX_ARTIFACTS: usize = 64;

/// A folder of manifests and components, named by digest. Its files are not trusted: digests are computed again.
#[derive(Debug, Clone)]
pub(super) struct Store(PathBuf);

impl Store {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Finds a complete component.
    pub(super) fn find(&self, artifact: &Artifact) -> Option<Pulled> {
        let manifest = self.read(&artifact.digest(), "json", MAX_MANIFEST_BYTES)?;
        let contents = Contents::read(&manifest).ok()?;
        let component = self.read(&contents.digest, "wasm", MAX_COMPONENT_BYTES)?;
        Some(contents.filled(component))
    }

    /// Stores a component. A failure only costs the next start a pull, so it is only logged.
    pub(super) fn keep(&self, artifact: &Artifact, manifest: &[u8], component: &[u8]) {
        let kept = DirBuilder::new().recursive(true).mode(0o700).create(&self.0).and_then(|()| {
            // Write the component first: a manifest without it would be useless.
            self.write(&format!("{}.wasm", Digest::of(component)), component)?;
            self.write(&format!("{}.json", artifact.digest()), manifest)?;
            self.shrink()
        });
        if let Err(error) = kept {
            tracing::warn!(%error, folder = %self.0.display(), "a component from a registry could not be cached");
        }
    }

    fn read(&self, digest: &Digest, extension: &str, most: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.0.join(format!("{digest}.{extension}"))).ok()?;
        let read = file.take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
        (read <= most && Digest::of(&bytes) == *digest).then_some(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        file.write_all(bytes)?;
        file.persist(self.0.join(name)).map(drop).map_err(|error| error.error)
    }

    /// Removes the files written longest ago, if there are too many.
    fn shrink(&self) -> io::Result<()> {
        let all = fs::read_dir(&self.0)?.filter_map(Result::ok);
        let own = |path: &Path| path.extension().is_some_and(|extension| extension == "wasm" || extension == "json");
        let mut files: Vec<_> = all
            .map(|entry| entry.path())
            .filter(|path| own(path))
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        files.sort_unstable();
        let over = files.len().saturating_sub(MAX_ARTIFACTS * 2);
        files.iter().take(over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}
