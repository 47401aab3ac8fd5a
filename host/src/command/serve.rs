//! `triage serve`: runs the host.

use super::{Stops, code, config, runtime};
use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use std::{
    io::{self, Write as _},
    process::ExitCode,
    thread,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use triage::{
    preflight,
    server::{Inherited, Missing, Server, ServerError, raise_descriptors},
};
use triage_admin::AdminError;
use triage_config::{Flags, settings::Settings};
use triage_core::rounded::Rounded;
use triage_engine::compiler;

/// Serves until a signal, then drains; a second signal ends it at once.
pub fn run(flags: &Flags) -> Result<ExitCode> {
    let mut settings = config::load(flags)?.settings;
    match compiler::own_program() {
        Ok(program) => settings.compile_with(program),
        Err(error) => tracing::warn!(%error, "policies are compiled in this process, because triage cannot find its \
                                              own executable"),
    }
    if let Some(Missing { limit, needed }) = raise_descriptors(&settings) {
        tracing::warn!(
            limit,
            needed,
            "the process may open fewer files than server.max_connections and server.max_requests need, and it \
             refuses requests once no descriptor is left: raise the hard limit (LimitNOFILE, ulimit -Hn), or lower \
             these keys"
        );
    }
    let runtime = runtime()?;
    let mut stops = {
        let _inside = runtime.enter();
        Stops::listen()?
    };
    let mut hangups = {
        let _inside = runtime.enter();
        signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?
    };
    let server = match Server::start_with(&settings, Inherited::take()) {
        Ok(server) => server,
        Err(error) => {
            if let ServerError::Host(_) | ServerError::Admin(AdminError::Token(_)) = error {
                // The start fails at the first problem. Check everything, so that the operator sees all problems at once.
                preflight::check(&settings)?;
            }
            return Err(error.into());
        }
    };
    announce(&server, &settings).context("standard output cannot be written")?;
    tell_system(NotifyState::Ready);
    runtime.block_on(async {
        loop {
            tokio::select! {
                stopped = stops.next() => break stopped,
                Some(()) = hangups.recv() => reload(&server, flags),
            }
        }
    })?;
    tell_system(NotifyState::Stopping);
    tracing::info!(limit = %Rounded(settings.server.drain), "stopping: no new connections; requests under way may finish");
    let (stopped, drained) = oneshot::channel();
    // A separate thread drains, so that a second signal can still end the process.
    let _ = thread::Builder::new().name("triage-drain".to_owned()).spawn(move || stopped.send(server.stop()));
    let finished = runtime.block_on(async {
        tokio::select! {
            finished = drained => finished.unwrap_or(false),
            second = stops.next() => {
                tracing::warn!("a second signal: requests still under way are abandoned");
                second.is_err()
            }
        }
    });
    if finished {
        tracing::info!("stopped: all requests under way were finished");
    }
    Ok(code(finished))
}

/// Reloads the configuration on SIGHUP. If it has problems, they are logged and the current configuration stays in force.
fn reload(server: &Server, flags: &Flags) {
    match config::load(flags) {
        // The reload logs its result and adds it to the recent events.
        Ok(loaded) => drop(server.reload(&loaded.settings)),
        Err(error) => server.reload_refused(&error),
    }
}

/// Notifies systemd, if it asks for that (`Type=notify`).
fn tell_system(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}

/// Prints the addresses on standard output, for operators, and for scripts that use port 0.
fn announce(server: &Server, settings: &Settings) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let scheme = if settings.server.tls.is_some() { "https" } else { "http" };
    for address in server.addresses() {
        writeln!(out, "listening on {scheme}://{address}")?;
    }
    if let Some(address) = server.admin() {
        let scheme = if settings.admin.tls.is_some() { "https" } else { "http" };
        writeln!(out, "  admin: {scheme}://{address}/")?;
    }
    for upstream in &settings.upstreams {
        writeln!(out, "  {}: {}, policy {}", upstream.name, upstream.connection.base_url, upstream.policy)?;
    }
    out.flush()
}
