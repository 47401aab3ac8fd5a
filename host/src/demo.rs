//! `triage demo`: an emulator of the hospital directory, a host in front of it, and four scenes for a newcomer.
//!
//! Everything runs in this process, over real sockets of this machine, with real policies; only the times are scaled down, and
//! the demo says so. Every number that it prints was counted by the emulator or read from an answer's headers.

mod caller;
mod fixture;
mod scenarios;
#[cfg(test)]
mod tests;

use crate::{import::ImportError, policy::contract::Failure, server::ServerError, upstream::TransportError};
use std::{io, time::Duration};

/// All times are divided by this: a create takes 0.5 s in place of 5 s.
pub const TIMES_SCALED_DOWN: u32 = 10;

/// What `triage demo` can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// Do not pause between the scenes.
    #[arg(long)]
    pub no_pause: bool,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A socket, a file or the screen.
    #[error("the demo could not use {what}")]
    Io {
        /// What it was.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host did not start.
    #[error("the host did not start")]
    Server(#[from] ServerError),
    /// The host's settings are wrong.
    #[error("the demo's settings are wrong")]
    Settings(#[from] crate::config::Problems),
    /// The import did not begin.
    #[error("the import did not begin")]
    Import(#[from] ImportError),
    /// The host could not be called.
    #[error("the host cannot be called")]
    Transport(#[from] TransportError),
    /// The host gave no answer.
    #[error("the host gave no answer ({})", .0.kind.name())]
    NoAnswer(Failure),
}

/// What the demo showed, as the emulator counted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Rows of the file, and creates asked for beside it.
    pub asked: usize,
    /// Hospitals that the directory holds at the end.
    pub hospitals: usize,
    /// Of these, those beyond the first of each (batch, name, address, phone).
    pub duplicates: usize,
    /// Creates that reached the directory; the difference to `asked` was sent again, with proof that it could be.
    pub creates_sent: usize,
    /// All requests that reached the directory, looks and probes too.
    pub requests_sent: usize,
    /// Requests that a fault struck.
    pub faults: u64,
    /// Requests that the open breaker refused.
    pub refused: usize,
    /// Requests that reached the directory while the breaker was open.
    pub sent_while_open: usize,
    /// From the start to the end.
    pub elapsed: Duration,
}

/// Runs the demo and writes what happens to `screen`.
///
/// # Errors
/// [`DemoError`] where something of this machine is missing; what the emulator does to the host is no error.
pub async fn run(options: &Options, screen: &mut (impl io::Write + Send)) -> Result<Shown, DemoError> {
    let stage = fixture::Fixture::set(screen).await?;
    let shown = scenarios::play(&stage, options, screen).await;
    stage.strike().await;
    shown
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::Io { what, source }
}
