//! Keeps compiled code between starts, so that a restart loads a policy in milliseconds.
//!
//! The cache holds native code, so the host trusts an entry only if a host of the same user wrote it: only this user has access to the
//! folder and to each entry, an entry carries a MAC whose key is in another folder, and the host loads the same bytes that it checked.
//! Every other entry counts as a miss, and the component is compiled again. The cache of `wasmtime` has no MAC, so the host does not use it.

use super::Digest;
use ring::hmac;
use rustix::{
    fs::{CWD, Mode, OFlags, fstat, openat},
    process::geteuid,
};
use std::{
    fs::{self, DirBuilder, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};
use wasmtime::component::Component;

/// The maximum size of an entry. An 18 MB Python component compiles to about 80 MB.
const MAX_ENTRY_BYTES: u64 = 256 << 20;
/// The maximum size of the folder. Above it, the oldest entries are removed first.
const MAX_FOLDER_BYTES: u64 = 1 << 30;
const MAC_BYTES: usize = 32;

/// The paths of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePaths {
    /// The folder of the entries.
    pub dir: PathBuf,
    /// The file of the key for the entries' MACs, in another folder.
    pub key: PathBuf,
}

impl CachePaths {
    /// The paths of a user, the same for `serve` and for the commands: `triage/compiled` in the user's folder for caches, or `dir`, and the
    /// key in the user's folder for state. None if the environment names no such folder. `variable` reads a variable of the environment.
    pub fn of_user(dir: Option<PathBuf>, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Self> {
        let below = |own: &str, usual: &str| variable(own).or_else(|| variable("HOME").map(|home| home.join(usual)));
        let dir = dir.or_else(|| below("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("triage/compiled")))?;
        let key = below("XDG_STATE_HOME", ".local/state")?.join("triage/cache.key");
        Some(Self { dir, key })
    }
}

/// A cache of compiled components.
pub struct Cache {
    dir: PathBuf,
    key: [u8; 32],
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Why there is no cache. The host then compiles at each start.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A folder or the key cannot be created or read.
    #[error("{} cannot be used as the cache of compiled policies", .path.display())]
    File {
        /// The folder or the key file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another user owns this path, or other users have access to it.
    #[error("{} must belong to the user that runs triage, without access for other users: chmod 700 the folder, 600 \
             the key", .0.display())]
    Shared(PathBuf),
}

impl Cache {
    /// Opens the cache. Creates the folders and the key if they do not exist.
    ///
    /// # Errors
    /// [`CacheError`] if a path cannot be used, or other users have access to it.
    pub fn open(paths: &CachePaths) -> Result<Self, CacheError> {
        let parent = paths.key.parent().unwrap_or(Path::new("."));
        for folder in [paths.dir.as_path(), parent] {
            own_folder(folder)?;
        }
        let failed = |source| CacheError::File { path: paths.key.clone(), source };
        let mut key = [0; 32];
        let Some(mut file) = private(&paths.key, OFlags::RDONLY).map_err(failed)? else {
            return Ok(Self { dir: paths.dir.clone(), key: new_key(&paths.key).map_err(failed)? });
        };
        file.read_exact(&mut key).map_err(failed)?;
        Ok(Self { dir: paths.dir.clone(), key })
    }

    /// The component's code, if this engine compiled it before.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let name = name(engine, digest);
        let sealed = self.read(&name)?;
        let (mac, code) = sealed.split_at_checked(MAC_BYTES)?;
        if hmac::verify(&self.seal(&name), code, mac).is_err() {
            tracing::warn!(entry = %name, "an entry in the cache of compiled policies was modified; the policy is \
                                           compiled again");
            return None;
        }
        // SAFETY: the MAC proves that a host of this user wrote these bytes for this component's digest and this engine, because no other
        // user can read the key. wasmtime also checks its own version and settings.
        #[allow(unsafe_code)]
        let component = unsafe { Component::deserialize(engine, code) };
        component.ok()
    }

    /// Stores compiled code. A failure only costs the next start a compilation, so it is only logged.
    pub(super) fn store(&self, engine: &wasmtime::Engine, digest: &Digest, component: &Component) {
        let kept = component.serialize().map_err(io::Error::other).and_then(|code| {
            let name = name(engine, digest);
            let mac = hmac::sign(&self.seal(&name), &code);
            self.write(&name, &[mac.as_ref(), &code])?;
            self.make_room()
        });
        if let Err(error) = kept {
            tracing::warn!(%error, folder = %self.dir.display(), "compiled code could not be cached");
        }
    }

    /// The MAC key of one entry. It depends on the entry's name, so that an entry renamed to another component's name is a miss.
    fn seal(&self, name: &str) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, name.as_bytes()).as_ref())
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let file = private(&self.dir.join(name), OFlags::RDONLY).ok()??;
        let size = file.metadata().ok()?.len();
        if size > MAX_ENTRY_BYTES {
            return None;
        }
        let mut sealed = Vec::with_capacity(usize::try_from(size).ok()?);
        file.take(MAX_ENTRY_BYTES).read_to_end(&mut sealed).ok()?;
        Some(sealed)
    }

    /// Writes a temporary file and renames it, so that another host that starts now reads a whole entry or none.
    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.dir)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.persist(self.dir.join(name)).map_err(|error| error.error)?;
        Ok(())
    }

    fn make_room(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // The folder may hold other files: the fleet's state, or whatever else is in a folder that a command names.
            if !is_entry_name(&entry.file_name()) {
                continue;
            }
            let found = match entry.metadata() {
                // Another process that shares the folder was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            entries.push((found.mtime(), found.len(), entry.path()));
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total <= MAX_FOLDER_BYTES {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            total = total.saturating_sub(bytes);
        }
        Ok(())
    }
}

/// Whether [`name`] makes such names.
fn is_entry_name(file: &std::ffi::OsStr) -> bool {
    let is_hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    file.to_str()
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(digest, engine)| is_hex(digest, 64) && is_hex(engine, 16))
}

/// The name of an entry, from component and engine: another version or other settings of wasmtime use another entry.
fn name(engine: &wasmtime::Engine, digest: &Digest) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{digest}-{:016x}", hasher.finish())
}

/// Creates a folder, if it does not exist, to which only this user has access.
///
/// # Errors
/// [`CacheError`] if the folder cannot be created, or other users have access to it.
pub fn own_folder(folder: &Path) -> Result<(), CacheError> {
    let failed = |source| CacheError::File { path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let found = fs::symlink_metadata(folder).map_err(failed)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(CacheError::Shared(folder.to_owned()));
    }
    Ok(())
}

/// Opens a file to which only this user has access. Follows no symbolic link, and does not wait for the writer of a pipe. None if the
/// file does not exist.
///
/// # Errors
/// Those of the file system, and `InvalidInput` for a file of another kind or user.
pub fn private(path: &Path, flags: OFlags) -> io::Result<Option<File>> {
    let opened = openat(CWD, path, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = match opened {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = fstat(&file)?;
    let regular = rustix::fs::FileType::from_raw_mode(found.st_mode).is_file();
    if !regular || found.st_uid != geteuid().as_raw() || found.st_mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the path is not a regular file that only this \
                                                                    user can access",
        ));
    }
    Ok(Some(File::from(file)))
}

/// Creates the key. If two hosts start at once, both use the key of the first.
fn new_key(path: &Path) -> io::Result<[u8; 32]> {
    let key: [u8; 32] = rand::random();
    let mut file = tempfile::Builder::new().tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(&key)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            let mut key = [0; 32];
            let mut file = private(path, OFlags::RDONLY)?.ok_or(io::ErrorKind::NotFound)?;
            file.read_exact(&mut key)?;
            Ok(key)
        }
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Engine, LoadOptions, Policy, prebuilt};
    use super::*;
    use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

    struct Folders(tempfile::TempDir);

    impl Folders {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn paths(&self) -> CachePaths {
            CachePaths { dir: self.0.path().join("cache/compiled"), key: self.0.path().join("state/cache.key") }
        }

        fn load(&self) -> Arc<Policy> {
            let engine = Engine::start().unwrap().caching(Cache::open(&self.paths()).unwrap());
            Policy::load(&engine, prebuilt::embedded("http-standard").unwrap(), &LoadOptions::default()).unwrap()
        }

        fn entry(&self) -> PathBuf {
            let mut entries = fs::read_dir(self.paths().dir).unwrap();
            entries.next().unwrap().unwrap().path()
        }

        fn hits(&self) -> bool {
            let engine = Engine::start().unwrap();
            let digest = Digest::of(prebuilt::embedded("http-standard").unwrap());
            Cache::open(&self.paths()).unwrap().load(engine.sync_engine(), &digest).is_some()
        }
    }

    #[test]
    fn compiled_code_is_found_again() {
        let paths = Folders::new();
        assert!(!paths.hits(), "a new cache is empty");
        let compiled = paths.load();
        assert!(paths.hits());
        assert_eq!(paths.load().description(), compiled.description());
        assert_eq!(fs::read_dir(paths.paths().dir).unwrap().count(), 1, "one entry for one component");
    }

    /// Tripwire: fails if loads do not use the cache.
    #[test]
    fn a_second_load_compiles_nothing() {
        let folders = Folders::new();
        let component = prebuilt::embedded("http-standard").unwrap();
        let engine = || Engine::start().unwrap().caching(Cache::open(&folders.paths()).unwrap());
        let only_cached = engine().only_cached();
        let missing = Policy::load(&only_cached, component, &LoadOptions::default()).map(drop).unwrap_err();
        assert_eq!(missing.to_string(), "the component is not compiled yet");
        let compilations = |engine: Engine| {
            Policy::load(&engine, component, &LoadOptions::default()).unwrap();
            engine.compilations()
        };
        assert_eq!(compilations(engine()), 1);
        assert_eq!(compilations(engine()), 0);
        assert_eq!(compilations(only_cached), 0);
    }

    #[test]
    fn the_paths_of_a_user_follow_the_variables_of_xdg() {
        let paths = |dir: Option<&str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.into());
            CachePaths::of_user(dir.map(PathBuf::from), variable)
        };
        let expected = |dir: &str, key: &str| Some(CachePaths { dir: dir.into(), key: key.into() });
        let home = ("HOME", "/h");
        assert_eq!(paths(None, &[home]), expected("/h/.cache/triage/compiled", "/h/.local/state/triage/cache.key"));
        let both = [home, ("XDG_CACHE_HOME", "/c"), ("XDG_STATE_HOME", "/s")];
        assert_eq!(paths(None, &both), expected("/c/triage/compiled", "/s/triage/cache.key"));
        assert_eq!(paths(Some("/d"), &both), expected("/d", "/s/triage/cache.key"));
        assert_eq!(paths(Some("/d"), &[]), None, "no folder for the key");
    }

    #[test]
    fn a_changed_entry_is_a_miss_and_is_replaced() {
        let paths = Folders::new();
        paths.load();
        let entry = paths.entry();
        let mut bytes = fs::read(&entry).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&entry, &bytes).unwrap();
        assert!(!paths.hits(), "one bit differs");
        paths.load();
        assert!(paths.hits(), "compiled and kept again");
        fs::write(&entry, b"short").unwrap();
        assert!(!paths.hits(), "shorter than a seal");
    }

    #[test]
    fn an_entry_sealed_with_another_key_is_a_miss() {
        let paths = Folders::new();
        paths.load();
        fs::remove_file(paths.paths().key).unwrap();
        assert!(!paths.hits());
    }

    #[test]
    fn an_entry_under_another_name_is_a_miss() {
        let paths = Folders::new();
        paths.load();
        let engine = Engine::start().unwrap();
        let other = Digest::of(b"another component");
        fs::rename(paths.entry(), paths.paths().dir.join(name(engine.sync_engine(), &other))).unwrap();
        assert!(Cache::open(&paths.paths()).unwrap().load(engine.sync_engine(), &other).is_none());
    }

    #[test]
    fn links_and_files_of_others_are_misses() {
        let paths = Folders::new();
        paths.load();
        let entry = paths.entry();
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!paths.hits(), "readable by others");
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).unwrap();
        let elsewhere = paths.0.path().join("elsewhere");
        fs::rename(&entry, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &entry).unwrap();
        assert!(!paths.hits(), "a link");
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        let paths = Folders::new();
        paths.load();
        let dir = paths.paths().dir;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Cache::open(&paths.paths()).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "{} must belong to the user that runs triage, without access for other users: chmod 700 the folder, \
                 600 the key",
                dir.display()
            )
        );
    }
}
