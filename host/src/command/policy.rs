//! `triage policy`: create, build, inspect and test policies.

mod announce;
mod bench;
mod check;
mod component;
mod inspect;
mod push;
mod remote_policy;
mod replay;

use anyhow::{Result, anyhow};
use clap::Subcommand;
use component::{CacheOptions, read_cases};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use triage_engine::{LoadOptions, build, golden_tests, guest_language::Language, scaffold};

/// The guest languages, as named on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Lang {
    /// With the SDK: the smallest and fastest
    Rust,
    /// Built by componentize-js
    Js,
    /// Built by componentize-py
    Python,
}

impl From<Lang> for Language {
    fn from(lang: Lang) -> Self {
        match lang {
            Lang::Rust => Self::Rust,
            Lang::Js => Self::JavaScript,
            Lang::Python => Self::Python,
        }
    }
}

/// The subcommands of `triage policy`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a policy that builds, with its cases, in a new folder of that name
    New {
        /// Its name: a-z, 0-9 and '-'
        name: String,
        /// Its language
        #[arg(long, value_enum, default_value_t = Lang::Rust)]
        lang: Lang,
    },
    /// Run a component's cases (NAME.cases.csv beside it) and print verdicts that differ, or that the host would not follow
    Test {
        /// The component
        component: PathBuf,
        /// The cases [default: COMPONENT with .cases.csv in place of .wasm]
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
        /// A JSON table for the policy's `configure`
        #[arg(long, value_name = "JSON", default_value = "{}")]
        settings: String,
        /// Play the cases as if the operator trusted the policy to settle unknown writes (`settle = true`)
        #[arg(long)]
        settle: bool,
        #[command(flatten)]
        cache: CacheOptions,
    },
    /// Try a component with every status, failure and effect, and list the verdicts that the host would not follow, and those that
    /// would free a key or repeat a write without proof
    Check(check::Options),
    /// Show a component's digest, size, signature, contract, tier and imports, and its endpoints if it was compiled before
    Inspect(inspect::Options),
    /// Measure a component's decisions: fresh and reused instances, over its cases and usual answers
    Bench {
        /// The component
        component: PathBuf,
        /// Decisions of each kind
        #[arg(short = 'n', long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
        decisions: u32,
        #[command(flatten)]
        cache: CacheOptions,
    },
    /// Replay a trace of `triage record` through a component and print the verdicts that differ
    Replay(replay::Options),
    /// Publish a component in an OCI registry; hosts name it by its digest, or follow the fleet's announcements
    Push(push::Options),
    /// Build the policy in a folder into a component
    Build {
        /// The policy's folder, with its Cargo.toml, package.json or pyproject.toml
        dir: PathBuf,
        /// The output file [default: DIR/PACKAGE.wasm]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Build every policy of guest-policies/ into its prebuilt/ folder
    RebuildPrebuilt {
        /// The guest-policies folder
        #[arg(default_value = "guest-policies")]
        dir: PathBuf,
        /// The output folder [default: DIR/prebuilt]
        #[arg(short, long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    #[command(flatten)]
    Serving(remote_policy::Command),
}

impl Command {
    /// Runs the subcommand.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serving(command) => return command.run(),
            Self::New { name, lang } => begin(&name, lang.into())?,
            Self::Test { component, cases, settings, settle, cache } => {
                let cases = cases.unwrap_or_else(|| component.with_extension("cases.csv"));
                let policy = cache.load(&component, &LoadOptions { settings, ..LoadOptions::default() })?;
                let text = read_cases(&cases)?;
                let played = golden_tests::play_clamped(&policy, &text, settle)
                    .map_err(|error| anyhow!(error.in_file(&cases.display().to_string())))?;
                println!("{played} cases pass, and the host would follow each verdict");
            }
            Self::Check(options) => return check::run(&options),
            Self::Inspect(options) => inspect::run(&options)?,
            Self::Bench { component, decisions, cache } => print!("{}", bench::run(&component, decisions, &cache)?),
            Self::Push(options) => return push::run(&options),
            Self::Replay(options) => return replay::run(&options),
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

fn begin(name: &str, language: Language) -> Result<()> {
    let folder = scaffold::scaffold(Path::new(""), name, language)?;
    println!("{} holds a working policy; its decisions are in {}. Then:", folder.display(), language.source());
    if language == Language::Rust {
        println!("  (cd {name} && cargo test)");
    }
    println!("  triage policy build {name}");
    println!("  triage policy test {name}/{name}.wasm");
    println!("  triage serve --upstream URL --policy {name}/{name}.wasm");
    Ok(())
}
