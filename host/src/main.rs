//! The `triage` command: arguments, logging, and what the process answers to its caller.
//!
//! Exit codes: 0 for done, 1 for what went wrong or was not finished, 2 for arguments or a configuration that cannot be used:
//! then nothing was started.

mod command;

use clap::Parser;
use command::Command;
use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;
use triage::config::Problems;

/// A WebAssembly policy host in front of an HTTP API.
#[derive(Debug, Parser)]
#[command(name = "triage", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What the operator got wrong, against 1 for what went wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // Standard output is for what was asked for; the log goes to standard error.
    let filter = EnvFilter::try_from_env("TRIAGE_LOG").unwrap_or_else(|_| EnvFilter::new(command.log_level()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match command.run() {
        Ok(code) => code,
        Err(error) => match error.downcast::<Problems>() {
            Ok(problems) => {
                eprint!("{}", triage::config::verdict(&Err(problems)));
                ExitCode::from(USAGE)
            }
            Err(error) => {
                eprintln!("triage: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
