//! Errors of shared state: at start, and of a script call.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::{io, path::PathBuf, time::Duration};

/// An error in the configuration of shared state.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The client rejects the address or the certificates.
    #[error("the client of `state.url` cannot be created")]
    Client(#[source] RedisError),
    /// A configured file cannot be read.
    #[error("{key} {} cannot be read", path.display())]
    File {
        /// The configuration key that names the file.
        key: &'static str,
        /// The path as configured.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// The encryption key for stored responses is invalid.
    #[error("`state.key_file` or TRIAGE_STATE_KEY cannot be used")]
    Key(#[source] KeyError),
    /// The thread `triage-state` cannot be started.
    #[error("the thread that monitors shared state could not be started")]
    Thread(#[source] io::Error),
}

/// Why the text of a key file is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is blank.
    #[error(
        "the file holds no key; put 32 random bytes there in hexadecimal or base64, such as the output of `openssl \
         rand -hex 32`"
    )]
    Empty,
    /// A line is no key.
    #[error(
        "line {line} is not a key; a key is 32 bytes in hexadecimal or base64, one per line, such as the output of \
         `openssl rand -hex 32`"
    )]
    Malformed {
        /// The line's number, from 1.
        line: usize,
    },
}

/// An error of a script call.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection now; one is being made in the background. Nothing was sent, and the call did not wait.
    #[error("shared state cannot be reached now")]
    Down,
    /// No reply in time. The script may have run.
    #[error("shared state did not answer within {}", crate::units::write_duration(*.0))]
    TimedOut(Duration),
    /// The connection broke. The script may have run.
    #[error("the connection to shared state broke")]
    Broke(#[source] RedisError),
    /// The server replies, but cannot serve: it is loading, a replica, or without its master. The script did not run.
    #[error("shared state is not ready: {0}")]
    NotServing(&'static str),
    /// The server refused the script: its memory is full, or this host lacks a permission. The script did not run.
    #[error("shared state refused the call")]
    Refused(#[source] RedisError),
    /// The reply has an unexpected form. The script may have run.
    #[error(
        "shared state sent an unexpected answer to script {script}; a program other than Triage writes below its prefix"
    )]
    Nonsense {
        /// Name of the script.
        script: &'static str,
    },
}

impl LinkError {
    pub(crate) fn of(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                Self::NotServing("the server is a replica and accepts no writes")
            }
            ErrorKind::Server(ServerErrorKind::BusyLoading) => Self::NotServing("the server is loading its data"),
            ErrorKind::Server(ServerErrorKind::MasterDown) => Self::NotServing(
                "the server has lost the connection to \
                                                                                its master",
            ),
            ErrorKind::Server(ServerErrorKind::ClusterDown) => Self::NotServing("the Cluster is down"),
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Refused(error),
            _ => Self::Broke(error),
        }
    }

    /// Whether the server rejects the user name or the password.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Broke(error) | Self::Refused(error) if error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS")))
    }

    /// Whether the script may have run in spite of the error.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Broke(_) | Self::Nonsense { .. })
    }
}
