//! `triage config`: check, show, reference.

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;
use triage::preflight;
use triage_bounded_file as bounded_file;
use triage_config::{self as config, Flags, Inputs, Loaded, Problem, Problems, Source};

/// The subcommands of `triage config`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report every problem, start nothing; exit code 2 if there is a problem
    Check(Flags),
    /// Print the effective values and the source of each
    Show(Flags),
    /// Print every key with its default and its meaning, as a Markdown table
    Reference,
}

impl Command {
    /// Runs the subcommand.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Check(flags) => {
                let loaded = load(&flags)?;
                preflight::check(&loaded.settings)?;
                print!("{}", config::verdict(&Ok(loaded)));
            }
            Self::Show(flags) => {
                let loaded = load(&flags)?;
                let descriptions = preflight::check(&loaded.settings)?;
                print!("{}", config::show(&loaded.settings, &descriptions));
            }
            Self::Reference => print!("{}", config::reference()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Maximum size of a configuration file; one with a thousand upstreams is smaller.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Loads the configuration of this process from its file, environment and flags.
pub fn load(flags: &Flags) -> Result<Loaded, Problems> {
    let file = match &flags.config {
        None => None,
        Some(path) => match bounded_file::read_text(path, MAX_CONFIG_BYTES) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) => {
                let why = format!("{} cannot be read: {error}", path.display());
                return Err(Problem::refused("--config", why).from(&Source::Flag("--config")).into());
            }
        },
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect();
    config::load(&Inputs { file, environment, flags: flags.clone() })
}
