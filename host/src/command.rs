//! The subcommands.

mod answer;
mod breakers;
pub mod color;
mod config;
mod emulator;
mod events;
mod explain;
mod limits;
mod output;
mod policy;
mod record;
mod records;
mod remote;
mod requests;
mod serve;
mod status;
mod table;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use std::{io, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use triage::demo;
use triage_config::Flags;
use triage_hospital::import;

/// The subcommands of `triage`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the host in front of an API until SIGTERM or Ctrl-C
    Serve(Flags),
    /// Show the host at work in under a minute: an emulated hospital API, faults, an import, a breaker, a replay
    Demo(demo::Options),
    /// Send a CSV file (name,address,phone) through a running host, each row exactly once
    Import {
        #[command(flatten)]
        options: import::Options,
        /// Check the file and its journal and print the rows that would be sent; send nothing, write nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Emulate the hospital directory API, to test without the real one
    Emulator(emulator::Options),
    /// Show what is wrong at a running host, the worst first, and its upstreams. Exits with 1 if a condition is critical
    Status(status::Options),
    /// List the breakers of a running host, the worst first; open, close, reset or clear one
    Breakers(breakers::Options),
    /// List the rate limits and pauses of a running host; lift a pause
    Limits(limits::Options),
    /// List the recent events of a running host
    Events(events::Options),
    /// List the recent requests of a running host
    Requests(requests::Options),
    /// Show a request's timeline at a running host: permits, waits, attempts, verdicts, clamps
    Explain(explain::Options),
    /// List writes whose effect is unknown at a running host, and settle them by hand
    Records(records::Options),
    /// Record an upstream's decisions from a running host, for `triage policy replay`
    Record(record::Options),
    /// Compile a component from standard input; `triage serve` starts this as a child process
    #[command(name = triage_engine::compiler::ARGUMENT, hide = true)]
    Compile {
        /// The tier to compile for
        tier: String,
    },
    /// Check or show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Create, build, test and inspect policies; list the policies of a running host, and roll back
    #[command(subcommand)]
    Policy(policy::Command),
}

impl Command {
    /// The default log level, if `TRIAGE_LOG` is unset. The demo prints its own narration.
    pub fn log_level(&self) -> &'static str {
        if matches!(self, Self::Demo(_)) { "error" } else { "info" }
    }

    /// Runs the subcommand.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serve(flags) => serve::run(&flags),
            Self::Demo(options) => {
                let shown = runtime()?.block_on(demo::run(&options, &mut io::stdout()))?;
                Ok(code(shown.duplicates == 0 && shown.hospitals == shown.asked))
            }
            Self::Import { options, dry_run: true } => {
                println!("{}", import::preview(&options)?);
                Ok(code(true))
            }
            Self::Import { options, dry_run: false } => {
                let summary = runtime()?.block_on(import::run(&options, &mut import::Terminal::new()))?;
                println!("{summary}");
                Ok(code(summary.complete()))
            }
            Self::Emulator(options) => runtime()?.block_on(emulator::run(&options)),
            Self::Status(options) => status::run(&options),
            Self::Breakers(options) => breakers::run(&options),
            Self::Limits(options) => limits::run(&options),
            Self::Events(options) => events::run(&options),
            Self::Requests(options) => requests::run(&options),
            Self::Explain(options) => explain::run(&options),
            Self::Record(options) => runtime()?.block_on(record::run(&options)),
            Self::Records(options) => records::run(&options),
            Self::Compile { tier } => {
                triage_engine::compiler::compile_child(&tier)?;
                Ok(code(true))
            }
            Self::Config(command) => command.run(),
            Self::Policy(command) => command.run(),
        }
    }
}

/// A variable of the environment; an empty one counts as unset.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn code(done: bool) -> ExitCode {
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime could not be started")
}

/// SIGTERM and Ctrl-C, caught from the creation of this value on.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn listen() -> Result<Self> {
        let on = |kind| signal(kind).context("SIGTERM and Ctrl-C cannot be listened for");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    async fn next(&mut self) -> Result<()> {
        let received = tokio::select! {
            received = self.terminate.recv() => received,
            received = self.interrupt.recv() => received,
        };
        if received.is_none() {
            bail!("SIGTERM and Ctrl-C can no longer be received");
        }
        Ok(())
    }
}
