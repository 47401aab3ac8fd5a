//! Why shared state cannot be used, and why a step was not done.

use crate::store::redis::records::KeyError;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::{io, path::PathBuf, time::Duration};

/// Why shared state cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address or the certificates.
    #[error("the client of `state.url` cannot be made")]
    Client(#[source] RedisError),
    /// A file that is named.
    #[error("{key} {} cannot be read", path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The key that seals answers.
    #[error("`state.key_file` or TRIAGE_STATE_KEY cannot be used")]
    Key(#[source] KeyError),
    /// The thread beside.
    #[error("the thread that watches shared state could not be started")]
    Thread(#[source] io::Error),
}

/// Why a step was not done, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection now; it is being made in the background. Nothing was sent, and nothing was waited for.
    #[error("shared state cannot be reached now")]
    Down,
    /// No answer in time. The step may have been done.
    #[error("shared state did not answer within {}", crate::units::write_duration(*.0))]
    TimedOut(Duration),
    /// The connection broke. The step may have been done.
    #[error("the connection to shared state broke")]
    Broke(#[source] RedisError),
    /// The server answers, but cannot serve: it is loading, a replica, or without its master. Nothing was done.
    #[error("shared state cannot serve now: {0}")]
    NotServing(&'static str),
    /// The server refused the step: its memory is full, or we lack the right. Nothing was done.
    #[error("shared state refused")]
    Refused(#[source] RedisError),
    /// The answer is none of ours.
    #[error(
        "shared state answered script {script} with something else; something other than Triage writes below its prefix"
    )]
    Nonsense {
        /// The script.
        script: &'static str,
    },
}

impl LinkError {
    pub(in crate::store::redis) fn of(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                Self::NotServing("the server is a replica and takes no writes")
            }
            ErrorKind::Server(ServerErrorKind::BusyLoading) => Self::NotServing("the server is loading its data"),
            ErrorKind::Server(ServerErrorKind::MasterDown) => Self::NotServing("the server has lost its master"),
            ErrorKind::Server(ServerErrorKind::ClusterDown) => Self::NotServing("the Cluster is down"),
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Refused(error),
            _ => Self::Broke(error),
        }
    }

    /// Whether the server refuses the name or the password.
    pub(in crate::store::redis) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Broke(error) | Self::Refused(error) if error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS")))
    }

    /// Whether the step may have been done although this came back.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Broke(_) | Self::Nonsense { .. })
    }
}
