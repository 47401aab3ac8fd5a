//! `triage policy`: from sources to components.

use anyhow::Result;
use clap::Subcommand;
use std::{path::PathBuf, process::ExitCode};
use triage::policy::build;

/// What can be built.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the policy in a folder into a component
    Build {
        /// The policy's folder, with its Cargo.toml
        dir: PathBuf,
        /// Where the component goes [default: DIR/PACKAGE.wasm]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Build every policy of guest-policies/ into its prebuilt/ folder
    RebuildPrebuilt {
        /// The guest-policies folder
        #[arg(default_value = "guest-policies")]
        dir: PathBuf,
        /// Where the components go [default: DIR/prebuilt]
        #[arg(short, long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

impl Command {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Build { dir, out } => println!("{}", build::build(&dir, out.as_deref())?),
            Self::RebuildPrebuilt { dir, out } => {
                let out = out.unwrap_or_else(|| dir.join("prebuilt"));
                for built in build::rebuild(&dir, &out)? {
                    println!("{built}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
