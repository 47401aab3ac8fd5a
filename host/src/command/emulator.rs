//! `triage emulator`: an emulated hospital directory on a local port.

use super::{Stops, code};
use anyhow::{Context as _, Result};
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use triage_hospital::emulator::{self, ColdStart, Emulator, Meanwhile, Rule};

/// The emulator's settings.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address to listen on; port 0 lets the system choose
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Divide all times by this number: a create takes 5 s, the limits count by the minute
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    faster: u32,
    /// Sleep at first, and again after 15 minutes without a request; waking takes 30 s, requests get 503 meanwhile
    #[arg(long)]
    cold_start: bool,
    /// Fault to inject, as CALL=FAULT[@WHEN]; may be given several times
    #[arg(long = "fault", value_name = "RULE", long_help = Rule::SYNTAX)]
    faults: Vec<Rule>,
}

/// Serves until a signal, then prints the directory's contents.
pub async fn run(options: &Options) -> Result<ExitCode> {
    let mut stops = Stops::listen()?;
    let listener = TcpListener::bind(options.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; it must be an address of this machine that no other program listens on",
            options.listen
        )
    })?;
    let cold_start = options.cold_start.then_some(ColdStart {
        idle: Duration::from_mins(15),
        waking: Duration::from_secs(30),
        meanwhile: Meanwhile::Answer(http::StatusCode::SERVICE_UNAVAILABLE),
        asleep: true,
    });
    let behaviour = emulator::Options { cold_start, ..emulator::Options::default() };
    let directory = Emulator::new(behaviour.scaled_down(options.faster));
    directory.set_faults(options.faults.iter().cloned().collect());
    say(&format!("the hospital directory (emulated) listens on http://{}", listener.local_addr()?))?;
    let stopped = async move { stops.next().await };
    let serving = Arc::clone(&directory).serve(listener, async move {
        // An error here means that no signal can arrive, so the emulator just stops.
        let _ = stopped.await;
    });
    serving.await;
    let duplicates = directory.duplicates();
    say(&format!(
        "requests: {}, with an injected fault: {}; hospitals: {}, duplicates: {duplicates}",
        directory.arrivals().len(),
        directory.faults_injected(),
        directory.hospitals().len(),
    ))?;
    Ok(code(true))
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("standard output cannot be written")
}
