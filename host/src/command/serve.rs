//! `triage serve`: the host, from its first listener to its last answer.

use super::{Stops, code, config, runtime};
use anyhow::{Context as _, Result};
use std::{
    io::{self, Write as _},
    process::ExitCode,
    thread,
};
use tokio::sync::oneshot;
use triage::{
    admin::AdminError,
    config::{Flags, settings::Settings},
    pipeline,
    server::{Server, ServerError},
};

/// Serves until a signal, then drains; a second signal ends it at once.
pub fn run(flags: &Flags) -> Result<ExitCode> {
    let settings = config::load(flags)?.settings;
    let runtime = runtime()?;
    let mut stops = {
        let _inside = runtime.enter();
        Stops::listen()?
    };
    let server = match Server::start(&settings) {
        Ok(server) => server,
        Err(error) => {
            if let ServerError::Host(_) | ServerError::Admin(AdminError::Token(_)) = error {
                // The start ends at the first problem; the operator gets them all.
                pipeline::check(&settings)?;
            }
            return Err(error.into());
        }
    };
    announce(&server, &settings).context("standard output cannot be written")?;
    runtime.block_on(stops.next())?;
    tracing::info!(limit = ?settings.server.drain, "stopping: no new connections; finishing what is under way");
    let (stopped, drained) = oneshot::channel();
    // On a thread of its own: a second signal does not wait for it.
    let _ = thread::Builder::new().name("triage-drain".to_owned()).spawn(move || stopped.send(server.stop()));
    let finished = runtime.block_on(async {
        tokio::select! {
            finished = drained => finished.unwrap_or(false),
            second = stops.next() => {
                tracing::warn!("a second signal: what was still under way is abandoned");
                second.is_err()
            }
        }
    });
    if finished {
        tracing::info!("stopped: everything under way was finished");
    }
    Ok(code(finished))
}

/// On standard output, for people and for scripts that asked for port 0.
fn announce(server: &Server, settings: &Settings) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for address in server.addresses() {
        writeln!(out, "listening on http://{address}")?;
    }
    if let Some(address) = server.admin() {
        writeln!(out, "  admin: http://{address}/")?;
    }
    for upstream in &settings.upstreams {
        writeln!(out, "  {}: {}, policy {}", upstream.name, upstream.connection.base_url, upstream.policy)?;
    }
    out.flush()
}
