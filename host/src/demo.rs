//! `triage demo`: an emulated hospital directory, a host in front of it, and four scenarios for a newcomer.
//!
//! Everything runs in this process, with real local sockets and real policies. Only the times are scaled down, and the demo says so. Every
//! printed number was counted by the emulator or read from a response header.

mod caller;
mod fixture;
mod scenarios;
#[cfg(test)]
mod tests;

use crate::{import::ImportError, policy::contract::Failure, server::ServerError, upstream::TransportError};
use std::{io, time::Duration};

/// The divisor of all times: a create takes 0.5 s instead of 5 s.
pub const TIMES_SCALED_DOWN: u32 = 10;

/// The options of `triage demo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// Do not pause between the scenes.
    #[arg(long)]
    pub no_pause: bool,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A socket, a file or standard output failed.
    #[error("the demo could not use {what}")]
    Io {
        /// The resource that failed.
        what: &'static str,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The host did not start.
    #[error("the host did not start")]
    Server(#[from] ServerError),
    /// The host's settings are wrong.
    #[error("the demo's settings are not valid")]
    Settings(#[from] crate::config::Problems),
    /// The import did not begin.
    #[error("the import did not begin")]
    Import(#[from] ImportError),
    /// The host could not be called.
    #[error("the host cannot be called")]
    Transport(#[from] TransportError),
    /// The host sent no response.
    #[error("the host gave no answer ({})", .0.kind.name())]
    NoAnswer(Failure),
}

/// The result of the demo, as the emulator counted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Rows of the file, plus further creates.
    pub asked: usize,
    /// Hospitals in the directory at the end.
    pub hospitals: usize,
    /// Hospitals that repeat an earlier one's (batch, name, address, phone).
    pub duplicates: usize,
    /// Creates that reached the directory. Those beyond `asked` are retries, each proven safe.
    pub creates_sent: usize,
    /// All requests that reached the directory, including verifications and probes.
    pub requests_sent: usize,
    /// Requests that got a fault.
    pub faults: u64,
    /// Requests that the open breaker refused.
    pub refused: usize,
    /// Requests that reached the directory while the breaker was open.
    pub sent_while_open: usize,
    /// The duration of the whole demo.
    pub elapsed: Duration,
}

/// Runs the demo and writes its narration to `screen`.
///
/// # Errors
/// [`DemoError`] if a local resource fails. Faults that the emulator injects are no error.
pub async fn run(options: &Options, screen: &mut (impl io::Write + Send)) -> Result<Shown, DemoError> {
    let stage = fixture::Fixture::set(screen).await?;
    let shown = scenarios::play(&stage, options, screen).await;
    stage.shut_down().await;
    shown
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::Io { what, source }
}
