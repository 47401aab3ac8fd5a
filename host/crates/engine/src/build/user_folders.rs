//! The folders in a user's cache that builds share.

use std::path::PathBuf;

/// A folder in this user's cache: in `$XDG_CACHE_HOME/triage` or `~/.cache/triage`. None if the environment names neither.
pub(super) fn in_cache(name: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("triage").join(name))
}
