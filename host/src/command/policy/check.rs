//! `triage policy check`: tries a policy with every status, failure and effect.

use super::component::{CacheOptions, read_cases};
use anyhow::{Result, anyhow};
use std::{path::PathBuf, process::ExitCode};
use triage_engine::{LoadOptions, property_check};

/// The component, and the grant under which it is checked.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The component
    component: PathBuf,
    /// Cases whose requests are tried too [default: COMPONENT with .cases.csv in place of .wasm, if it exists]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// A JSON table for the policy's `configure`
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Show what the host would not follow although the operator trusts the policy to settle unknown writes (`settle = true`)
    #[arg(long)]
    settle: bool,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheOptions,
}

/// Prints the findings. Fails if one frees a key or repeats a write without proof, or if a decision fails.
pub fn run(options: &Options) -> Result<ExitCode> {
    // One instance for all decisions: there are ten thousands of them.
    let loading = LoadOptions { settings: options.settings.clone(), reuse_instances: true };
    let policy = options.cache.load(&options.component, &loading)?;
    let cases = options.cases.clone().unwrap_or_else(|| options.component.with_extension("cases.csv"));
    let is_needed = options.cases.is_some() || cases.exists();
    let text = is_needed.then(|| read_cases(&cases)).transpose()?;
    let report = property_check::check(&policy, text.as_deref(), options.settle)
        .map_err(|error| anyhow!(error.in_file(&cases.display().to_string())))?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(if report.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
