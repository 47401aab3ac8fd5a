//! A digest of the prebuilt policies' sources. A test compares it, so that a source cannot change without its component.

use super::{BuildError, Digest};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The file beside the components that holds the digest.
pub const FILE: &str = "sources.sha256";

/// The digest of every source in `guest-policies/` and in `wit/` beside it: names and contents, in sorted order.
///
/// # Errors
/// [`BuildError::File`] if a file cannot be read.
pub fn digest(guest_policies: &Path) -> Result<Digest, BuildError> {
    let mut files = Vec::new();
    collect(guest_policies, &mut files)?;
    collect(&guest_policies.join("../wit"), &mut files)?;
    let mut hash = Sha256::new();
    for path in files {
        let content = fs::read(&path).map_err(|source| BuildError::File { path: path.clone(), source })?;
        let name = path.strip_prefix(guest_policies).unwrap_or(&path).to_string_lossy().into_owned();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    let failed = |source| BuildError::File { path: folder.to_owned(), source };
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).map_err(failed)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != "prebuilt" {
                collect(&path, files)?;
            }
        } else if name == "Cargo.lock"
            || path.extension().is_some_and(|ending| matches!(ending.to_str(), Some("rs" | "toml" | "wit")))
        {
            files.push(path);
        }
    }
    Ok(())
}
