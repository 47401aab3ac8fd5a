//! The `triage` command: arguments, logging and exit codes.
//!
//! Exit codes: 0 for success; 1 if the command failed or was not finished; 2 if arguments or configuration are unusable, so that nothing
//! was started.

mod command;

use clap::{ColorChoice, Parser, ValueEnum as _};
use command::Command;
use std::{io, process::ExitCode};
use tracing_subscriber::EnvFilter;
use triage_config::Problems;

/// A request makes some hundred small allocations on one thread. Measured: mimalloc gives a tenth more throughput.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A WebAssembly policy host in front of an HTTP API.
#[derive(Debug, Parser)]
#[command(name = "triage", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        help = "Format of the log lines on standard error [default: TRIAGE_LOG_FORMAT, else text]"
    )]
    log_format: Option<LogFormat>,
    /// Colours of log lines and tables; auto: on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line, for collectors.
    Json,
}

impl LogFormat {
    fn of_environment() -> Option<Self> {
        let value = command::variable("TRIAGE_LOG_FORMAT")?;
        let known = Self::from_str(value.trim(), true);
        if known.is_err() {
            eprintln!(
                "triage: TRIAGE_LOG_FORMAT is {value:?}, which is not known; must be text or json; triage uses text"
            );
        }
        known.ok()
    }
}

/// The exit code for a usage error, as opposed to 1 for a failure.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let Arguments { command, log_format, color } = Arguments::parse();
    let log_is_colored = command::color::decide(color);
    // Standard output is for the command's result; the log goes to standard error.
    let filter = EnvFilter::try_from_env("TRIAGE_LOG").unwrap_or_else(|_| EnvFilter::new(command.log_level()));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log_format.or_else(LogFormat::of_environment).unwrap_or(LogFormat::Text) {
        LogFormat::Text => log.with_ansi(log_is_colored).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    match command.run() {
        Ok(code) => code,
        Err(error) => match error.downcast::<Problems>() {
            Ok(problems) => {
                eprint!("{}", triage_config::verdict(&Err(problems)));
                ExitCode::from(USAGE)
            }
            Err(error) => {
                eprintln!("triage: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
