//! The `triage` command: arguments, tracing, load, run.

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;
use triage::{
    config::{self, Inputs, Loaded, Problems},
    demo, import,
    policy::{self, Engine},
    server::Server,
    service::Service,
};

/// A WebAssembly policy host in front of an HTTP API.
#[derive(Debug, Parser)]
#[command(name = "triage", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: stand in front of an API until SIGTERM or Ctrl-C.
    Serve(config::Flags),
    /// Watch it work: an emulated hospital API, faults, an import, a breaker, a replay. Under a minute.
    Demo(demo::Options),
    /// Send a CSV file (name,address,phone) through a running host, each row exactly once.
    Import(import::Options),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Build policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Report every problem, start nothing.
    Check(config::Flags),
    /// Print the effective values and where each came from.
    Show(config::Flags),
    /// Print every key with its default and its meaning, as README has them.
    Reference,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Build the policy in a folder into a component.
    Build {
        /// The policy's folder, with its Cargo.toml.
        dir: PathBuf,
        /// Where the component goes; default: the folder's name with .wasm, beside it.
        #[arg(short, long)]
        out: Option<PathBuf>,
    },
    /// Build every policy of guest-policies/ into its prebuilt/ folder.
    RebuildPrebuilt {
        /// The guest-policies folder.
        #[arg(default_value = "guest-policies")]
        dir: PathBuf,
        /// Where the components go; default: DIR/prebuilt.
        #[arg(short, long)]
        out: Option<PathBuf>,
    },
}

/// What the operator got wrong, against 1 for what went wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("TRIAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            if let Some(problems) = error.downcast_ref::<Problems>() {
                eprintln!("{problems}");
                return ExitCode::from(USAGE);
            }
            eprintln!("triage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(flags) => serve(&flags),
        Command::Demo(options) => {
            let mut screen = std::io::stdout();
            let shown = runtime()?.block_on(demo::run(&options, &mut screen))?;
            Ok(if shown.duplicates == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Import(options) => {
            let summary = runtime()?.block_on(import::run(&options, &mut import::Terminal::new()))?;
            println!("{summary}");
            Ok(if summary.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Config(ConfigCommand::Check(flags)) => {
            let loaded = load(&flags)?;
            describe(&loaded)?;
            println!("the configuration is valid");
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Show(flags)) => {
            let loaded = load(&flags)?;
            print!("{}", config::show(&loaded, &describe(&loaded)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Reference) => {
            print!("{}", config::reference());
            Ok(ExitCode::SUCCESS)
        }
        Command::Policy(PolicyCommand::Build { dir, out }) => {
            println!("{}", policy::build::build(&dir, out.as_deref())?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Policy(PolicyCommand::RebuildPrebuilt { dir, out }) => {
            let out = out.unwrap_or_else(|| dir.join("prebuilt"));
            for built in policy::build::rebuild(&dir, &out)? {
                println!("{built}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime could not be started")
}

fn load(flags: &config::Flags) -> Result<Loaded> {
    let file = match &flags.config {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some((path.display().to_string(), text))
        }
    };
    let inputs = Inputs { file, environment: std::env::vars().collect(), flags: flags.clone() };
    Ok(config::load(&inputs)?)
}

/// Loads every policy as `serve` would, and says what each describes.
fn describe(loaded: &Loaded) -> Result<Vec<policy::contract::Description>> {
    let engine = Engine::start()?;
    let mut descriptions = Vec::new();
    for upstream in &loaded.settings.upstreams {
        let described = Service::describe(upstream, &engine)?;
        config::endpoints(upstream, &described)?;
        descriptions.push(described);
    }
    Ok(descriptions)
}

fn serve(flags: &config::Flags) -> Result<ExitCode> {
    let loaded = load(flags)?;
    describe(&loaded)?;
    let server = Server::start(&loaded.settings)?;
    for address in server.addresses() {
        tracing::info!(%address, "listening");
    }
    runtime()?.block_on(stopped())?;
    tracing::info!("stopping: no new connections, finishing what is under way");
    server.stop();
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM or Ctrl-C.
async fn stopped() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot listen for Ctrl-C")?,
        received = terminated.recv() => if received.is_none() { bail!("SIGTERM can no longer be received") },
    }
    Ok(())
}
