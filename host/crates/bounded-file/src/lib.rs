//! Reads files that an operator names, up to a maximum size.
//!
//! An operator may name the wrong path: a pipe without a writer would block the start forever, and `/dev/zero` or a disk image would fill
//! the memory. So only regular files are read, and a file that exceeds its kind's maximum size is refused.

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// The maximum size of a secret's file: a token, a password, a key, or registry credentials.
const SECRET_BYTES: u64 = 1 << 20;

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// Errors of the file system, [`io::ErrorKind::InvalidInput`] if the path names no regular file, and [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    contents(&mut file, max_bytes)
}

/// Reads a text file of at most `max_bytes`.
///
/// # Errors
/// As for [`read`], and [`io::ErrorKind::InvalidData`] if the text is not UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    text(read(path, max_bytes)?)
}

/// Reads a secret of at most 1 MiB. Warns if other users can read or change its file.
///
/// # Errors
/// As for [`read_text`].
pub fn read_secret(path: &Path) -> io::Result<String> {
    let mut file = open(path)?;
    if is_open_to_others(fstat(&file)?.st_mode) {
        warn(path);
    }
    text(contents(&mut file, SECRET_BYTES)?)
}

/// Warns if other users can read or change a secret's file. For secrets that a library reads by itself.
pub fn check_secret(path: &Path) {
    if open(path).is_ok_and(|file| fstat(&file).is_ok_and(|found| is_open_to_others(found.st_mode))) {
        warn(path);
    }
}

fn warn(path: &Path) {
    tracing::warn!(file = %path.display(), "every user of this machine can read or change this secret file; run chmod \
                                            600, or chmod 640 with a group of its own");
}

/// Whether users other than the owner and the group have any access.
fn is_open_to_others(mode: rustix::fs::RawMode) -> bool {
    mode & 0o007 != 0
}

/// Opens a regular file. `NONBLOCK`: opening a pipe must not wait for its other end.
fn open(path: &Path) -> io::Result<File> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    if !FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is not a regular file; name the file itself",
        ));
    }
    Ok(File::from(file))
}

fn contents(file: &mut File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let too_large = || {
        let text = format!("the file has more than {max_bytes} bytes; files of at most that size are read");
        io::Error::new(io::ErrorKind::FileTooLarge, text)
    };
    if file.metadata()?.len() > max_bytes {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes { Err(too_large()) } else { Ok(bytes) }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // A sparse file: 3 GiB that take no disk space.
        let sparse = File::create(folder.path().join("sparse")).unwrap();
        sparse.set_len(3 << 30).unwrap();
        assert_eq!(read(&folder.path().join("sparse"), 1 << 20).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
            assert_eq!(read(path, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
        assert_eq!(read(&folder.path().join("none"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_mode_that_gives_others_access_is_open_to_others() {
        for (mode, expected) in [(0o100_600, false), (0o100_640, false), (0o100_644, true), (0o100_666, true)] {
            assert_eq!(is_open_to_others(mode), expected, "{mode:o}");
        }
    }
}
