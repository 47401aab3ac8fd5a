//! One target folder for all Rust policies of a user, so that the standard library and the dependencies are compiled once.
//!
//! cargo names a policy's module by its package alone. So two policies of one name in two folders share a file: a lock keeps their builds
//! apart, and the module of the other one is removed first.

use super::{BuildError, toolchain::TARGET, user_folders};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// A compiler for cargo to call, which keeps the path of the policy's workspace out of the result. A flag in RUSTFLAGS would do the same,
/// but it would differ by workspace, and cargo compiles everything again for other flags.
const COMPILER: &str = "#!/bin/sh
# `triage policy build` wrote this file.
exec \"$TRIAGE_RUSTC\" \"$@\" --remap-path-prefix=\"$TRIAGE_WORKSPACE=policies\"
";

/// The target folder, locked until this value is dropped.
#[derive(Debug)]
pub(super) struct TargetFolder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl TargetFolder {
    /// Takes the user's target folder for a package of a workspace; without a folder for caches, that of the workspace. Waits while another
    /// process builds there.
    pub(super) fn take(workspace: &Path, package: &str) -> Result<Self, BuildError> {
        let path = user_folders::in_cache("target").unwrap_or_else(|| workspace.join("target"));
        Self::take_at(path, workspace, package)
    }

    fn take_at(path: PathBuf, workspace: &Path, package: &str) -> Result<Self, BuildError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| BuildError::File { path, source }
        };
        // cargo runs a file of this folder, so that no other user may write there.
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed(&path))?;
        let name = path.join("triage.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed(&name))?;
        if lock.try_lock().is_err() {
            tracing::info!("waiting for another build in {}", path.display());
            lock.lock().map_err(failed(&name))?;
        }
        let folder = Self { path, _lock: lock };
        let owner = folder.path.join(format!("{package}.owner"));
        folder.own(&owner, workspace, package).map_err(failed(&owner))?;
        let compiler = folder.compiler();
        if fs::read(&compiler).ok().as_deref() != Some(COMPILER.as_bytes()) {
            let write = || {
                fs::write(&compiler, COMPILER)
                    .and_then(|()| fs::set_permissions(&compiler, Permissions::from_mode(0o755)))
            };
            write().map_err(failed(&compiler))?;
        }
        Ok(folder)
    }

    /// Removes the module of a policy of the same name from another workspace: cargo would take it for this one's.
    fn own(&self, owner: &Path, workspace: &Path, package: &str) -> io::Result<()> {
        let workspace = workspace.display().to_string();
        if fs::read_to_string(owner).is_ok_and(|last| last == workspace) {
            return Ok(());
        }
        let module = self.module(package);
        let dependency = module.with_file_name("deps").join(module.file_name().unwrap_or_default());
        for file in [module, dependency] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::write(owner, workspace)
    }

    /// The compiler that cargo calls.
    pub(super) fn compiler(&self) -> PathBuf {
        self.path.join("rustc.sh")
    }

    /// The file to which cargo writes a package's module.
    pub(super) fn module(&self, package: &str) -> PathBuf {
        self.path.join(TARGET).join("release").join(format!("{}.wasm", package.replace('-', "_")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Tripwire: without it, a policy would be served with the code of another one of the same name.
    #[test]
    fn a_module_of_another_workspace_is_not_taken_for_this_ones() {
        let folder = tempfile::tempdir().unwrap();
        let take = |workspace: &str| {
            TargetFolder::take_at(folder.path().to_owned(), Path::new(workspace), "my-policy").unwrap()
        };
        let first = take("/a");
        let module = first.module("my-policy");
        let dependency = module.with_file_name("deps").join("my_policy.wasm");
        let neighbour = first.module("other");
        fs::create_dir_all(dependency.parent().unwrap()).unwrap();
        for file in [&module, &dependency, &neighbour] {
            fs::write(file, "module").unwrap();
        }
        drop(first);
        drop(take("/a"));
        assert!(module.exists() && dependency.exists(), "the same workspace again");
        drop(take("/b"));
        assert_eq!([&module, &dependency, &neighbour].map(|file| file.exists()), [false, false, true]);
    }

    #[test]
    fn a_second_build_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = TargetFolder::take_at(folder.path().to_owned(), Path::new("/a"), "a").unwrap();
        let lock = File::open(folder.path().join("triage.lock")).unwrap();
        assert!(lock.try_lock().is_err());
        drop(first);
        lock.try_lock().unwrap();
    }
}
