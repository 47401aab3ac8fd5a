//! What a host knows of its fleet's policy beyond its own end: it starts with it where shared state cannot be reached, and
//! writes it back where that was lost while no host ran.

use super::Standing;
use sha2::{Digest as _, Sha256};
use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
};

/// The largest file that is read: a standing with all that was ever rolled back has some 2,500 bytes.
const MOST: u64 = 8 << 10;

/// A file of this user alone; none where nothing is kept.
#[derive(Debug)]
pub(super) struct Memory(Option<PathBuf>);

impl Memory {
    /// In a folder; `fleet` tells this fleet from others whose hosts have the same folder.
    pub(super) fn of(folder: Option<PathBuf>, fleet: &str) -> Self {
        let name = Sha256::digest(fleet).iter().take(16).fold(String::new(), |mut name, byte| {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        });
        Self(folder.map(|folder| folder.join(name)))
    }

    /// What was kept; nothing where that cannot be read.
    pub(super) fn recall(&self) -> Standing {
        let read = |path: &PathBuf| {
            let mut text = String::new();
            File::open(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
            Standing::read(&text.lines().collect::<Vec<_>>())
        };
        self.0.as_ref().and_then(read).unwrap_or_default()
    }

    /// Keeps it. A failure is only logged: the fleet knows it.
    pub(super) fn keep(&self, standing: &Standing) {
        let Some(path) = &self.0 else { return };
        let kept = path.parent().map_or(Ok(()), |folder| {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(standing.words().join("\n").as_bytes())?;
            fs::rename(file.into_temp_path().keep().map_err(io::Error::other)?, path)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, file = %path.display(), "the fleet's policy could not be kept for the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        policy::Digest,
        rollout::fleet::{Chosen, Why},
    };

    #[test]
    fn what_is_kept_is_recalled_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let memory = |fleet| Memory::of(Some(folder.path().join("a/b")), fleet);
        assert_eq!(memory("x").recall(), Standing::default());
        let standing = Standing {
            generation: 7,
            chosen: Chosen::Artifact(Digest::of(b"a")),
            before: Some(Chosen::Configured),
            why: Why::Promoted,
            by: "host-1".to_owned(),
            quarantined: vec![Digest::of(b"b"), Digest::of(b"c")],
        };
        memory("x").keep(&standing);
        assert_eq!(memory("x").recall(), standing);
        assert_eq!(memory("y").recall(), Standing::default(), "another fleet's");
        for text in ["", "7", "7\n\n-", "-7\n\n-\na\n\n", "7\ngarbage\n-\na\n\n", "9999999999999999\n\n-\na\n\n"] {
            fs::write(memory("x").0.unwrap(), text).unwrap();
            assert_eq!(memory("x").recall(), Standing::default(), "{text:?}");
        }
        Memory::of(None, "x").keep(&standing);
    }
}
