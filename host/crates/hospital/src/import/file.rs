//! The journal file: locked during an import, readable only by its owner, and synced before anything is sent.

use super::{
    ImportError,
    journal::{self, Entry, Past},
};
use parking_lot::Mutex;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Far more than 10,000 rows with many resumed runs produce.
const MAX_BYTES: u64 = 64 << 20;

/// An open journal. Dropping the last clone releases the file lock.
#[derive(Debug, Clone)]
pub struct JournalFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Lines to write with the next flush.
    pending: Mutex<Vec<u8>>,
    /// After a failed write the end of the file is unknown, so nothing more is written.
    file: Mutex<Result<File, io::ErrorKind>>,
}

impl JournalFile {
    /// Opens or creates the journal, locks it, reads it, and removes an incomplete last line.
    ///
    /// # Errors
    /// [`ImportError`] if another import has locked the file, or it is no journal.
    pub fn open(path: &Path) -> Result<(Self, Past), ImportError> {
        let failed = |source| ImportError::Journal { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ImportError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let (past, whole, length) = read(&mut file, path)?;
        if whole < length {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        sync_folder(path).map_err(failed)?;
        let inner = Inner { path: path.to_owned(), pending: Mutex::default(), file: Mutex::new(Ok(file)) };
        Ok((Self(Arc::new(inner)), past))
    }

    /// Reads a journal without creating or changing it. A missing file counts as empty.
    ///
    /// # Errors
    /// As [`JournalFile::open`].
    pub fn read_only(path: &Path) -> Result<Past, ImportError> {
        let failed = |source| ImportError::Journal { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Past::default()),
            opened => opened.map_err(failed)?,
        };
        match file.try_lock_shared() {
            Ok(()) => read(&mut file, path).map(|(past, ..)| past),
            Err(TryLockError::WouldBlock) => Err(ImportError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Appends lines and returns after they are synced to disk. Concurrent calls share one sync.
    ///
    /// # Errors
    /// [`ImportError::Journal`]; the caller must then not send anything.
    pub async fn append(&self, entries: &[Entry]) -> Result<(), ImportError> {
        self.0.pending.lock().extend_from_slice(&journal::lines(entries));
        let inner = Arc::clone(&self.0);
        let written = tokio::task::spawn_blocking(move || inner.flush()).await.map_err(io::Error::other);
        written.flatten().map_err(|source| ImportError::Journal { path: self.0.path.clone(), source })
    }
}

impl Inner {
    /// The first caller to lock the file writes all pending lines. The others find nothing left to write, or the first one's failure.
    fn flush(&self) -> io::Result<()> {
        let mut file = self.file.lock();
        let open = file.as_mut().map_err(|kind| io::Error::from(*kind))?;
        let lines = std::mem::take(&mut *self.pending.lock());
        if lines.is_empty() {
            return Ok(());
        }
        let written = open.write_all(&lines).and_then(|()| open.sync_data());
        if let Err(error) = &written {
            *file = Err(error.kind());
        }
        written
    }
}

/// Reads the journal, and returns its contents, the bytes of its complete lines, and its total bytes.
fn read(file: &mut File, path: &Path) -> Result<(Past, usize, usize), ImportError> {
    let failed = |source| ImportError::Journal { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(io::Error::other(format!("the file has more than {MAX_BYTES} bytes"))));
    }
    let (past, whole) =
        journal::read(&bytes).map_err(|source| ImportError::BadJournal { path: path.to_owned(), source })?;
    Ok((past, whole, bytes.len()))
}

/// Syncs the folder, so that a new file's name survives a power failure too.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
