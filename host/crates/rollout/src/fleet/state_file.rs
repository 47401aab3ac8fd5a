//! Keeps the fleet's state across restarts: a host starts with it if shared state cannot be reached, and restores it there if shared state
//! was lost while no host ran.
//!
//! Like the compiled code in the same cache, the file is trusted only if no other user has access.

use super::FleetState;
use crate::policy::{CacheError, Digest, own_folder, private};
use rustix::fs::OFlags;
use std::{
    io::{self, Read as _, Write as _},
    path::PathBuf,
};

/// The largest file that is read: a state with a full quarantine list has some 2,500 bytes.
const MAX_FILE_BYTES: u64 = 8 << 10;

/// The path of the state file; none without a cache folder.
#[derive(Debug)]
pub(super) struct Memory(Option<PathBuf>);

#[derive(Debug, thiserror::Error)]
enum MemoryError {
    #[error(transparent)]
    Folder(#[from] CacheError),
    #[error(transparent)]
    File(#[from] io::Error),
}

impl Memory {
    /// A file in this folder; `fleet` distinguishes fleets whose hosts share a folder.
    pub(super) fn of(folder: Option<PathBuf>, fleet: &str) -> Self {
        Self(folder.map(|folder| folder.join(Digest::of(fleet.as_bytes()).to_string())))
    }

    /// Reads the state; the default if the file cannot be read, or another user could have written it.
    pub(super) fn load(&self) -> FleetState {
        let Some(path) = &self.0 else { return FleetState::default() };
        let read = || {
            path.parent().map_or(Ok(()), own_folder)?;
            let mut text = String::new();
            if let Some(file) = private(path, OFlags::RDONLY)? {
                file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
            }
            Ok::<_, MemoryError>(text)
        };
        match read() {
            Ok(text) if text.len() as u64 <= MAX_FILE_BYTES => {
                FleetState::read(&text.lines().collect::<Vec<_>>()).unwrap_or_default()
            }
            Ok(_) => FleetState::default(),
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "the stored copy of the fleet's policy is not used");
                FleetState::default()
            }
        }
    }

    /// Writes the state. A failure is only logged, since the fleet knows the state.
    pub(super) fn keep(&self, state: &FleetState) {
        let Some((path, folder)) = self.0.as_ref().and_then(|path| Some((path, path.parent()?))) else { return };
        let keep = || {
            own_folder(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(state.words().join("\n").as_bytes())?;
            file.persist(path).map_err(io::Error::from)?;
            Ok::<_, MemoryError>(())
        };
        if let Err(error) = keep() {
            tracing::warn!(%error, file = %path.display(), "a copy of the fleet's policy could not be stored for the \
                                                            next start");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::rollout::{PolicyRef, Why};
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    #[test]
    fn a_host_recalls_only_a_valid_file_of_its_own_fleet() {
        let folder = tempfile::tempdir().unwrap();
        let memory = |fleet| Memory::of(Some(folder.path().join("a/b")), fleet);
        assert_eq!(memory("x").load(), FleetState::default());
        let state = FleetState {
            line: 3,
            generation: 7,
            chosen: PolicyRef::Artifact(Digest::of(b"a")),
            before: Some(PolicyRef::Configured),
            why: Why::Promoted,
            by: "host-1".to_owned(),
            quarantined: vec![Digest::of(b"b"), Digest::of(b"c")],
        };
        memory("x").keep(&state);
        assert_eq!(memory("x").load(), state);
        assert_eq!(memory("y").load(), FleetState::default(), "another fleet's");
        let path = memory("x").0.unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
        let line = "0000000000000003";
        for text in ["", line, "{}\n7\n\n-", "{}\n-7\n\n-\na\n\n", "{}\n7\ngarbage\n-\na\n\n", "7\n\n-\na\n\n\n"] {
            fs::write(&path, text.replace("{}", line)).unwrap();
            assert_eq!(memory("x").load(), FleetState::default(), "{text:?}");
        }
        Memory::of(None, "x").keep(&state);
    }

    /// Another user must be able neither to choose a policy nor to block a start.
    #[test]
    fn a_host_recalls_no_file_that_another_user_controls() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        let memory = || Memory::of(Some(own.clone()), "x");
        let state = FleetState { generation: 7, ..FleetState::default() };
        let path = memory().0.unwrap();
        let open = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        memory().keep(&state);
        open(&own, 0o777);
        assert_eq!(memory().load(), FleetState::default(), "an open folder");
        open(&own, 0o700);
        assert_eq!(memory().load(), state);
        open(&path, 0o666);
        assert_eq!(memory().load(), FleetState::default(), "an open file");
        open(&path, 0o600);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert_eq!(memory().load(), FleetState::default(), "a link");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(memory().load(), FleetState::default(), "a pipe that nobody writes to");
        fs::remove_file(&path).unwrap();
        fs::copy(&elsewhere, &path).unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(&" ".repeat(8 << 10));
        fs::write(&path, text).unwrap();
        assert_eq!(memory().load(), FleetState::default(), "a file with more than is read");
        memory().keep(&state);
        assert_eq!(memory().load(), state, "and it is kept again");
    }
}
