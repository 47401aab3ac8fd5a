//! `triage policy replay`: replays recorded decisions through a candidate.

use super::component::{CacheOptions, load, read};
use anyhow::{Context as _, Result, ensure};
use std::{fs::File, path::PathBuf, process::ExitCode, thread};
use triage_decision_log as decision_log;
use triage_engine::{LoadOptions, prebuilt};

/// The recording and the candidate.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The trace, as `triage record` wrote it
    trace: PathBuf,
    /// The candidate: a component, or the name of an embedded policy
    #[arg(long, value_name = "NEW.wasm")]
    policy: PathBuf,
    /// A JSON table for the candidate's `configure`
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Exit with 1 if a verdict differs; without this option only if no decision could be compared
    #[arg(long)]
    fail_on_difference: bool,
    /// Threads [default: one per core]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    cache: CacheOptions,
}

/// Replays and prints the differences.
pub fn run(options: &Options) -> Result<ExitCode> {
    let component = component(options)?;
    let loading = LoadOptions { settings: options.settings.clone(), reuse_instances: true };
    let policy = load(&options.cache.engine()?, &options.policy, &component, &loading)?;
    let file = File::open(&options.trace).with_context(|| format!("{} cannot be read", options.trace.display()))?;
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or_else(cores, usize::from);
    let replayed = decision_log::replay(file, &policy, &options.settings, threads);
    let report = replayed.with_context(|| format!("{} cannot be replayed", options.trace.display()))?;
    print!("{report}");
    ensure!(
        report.replayed() > 0,
        "none of the {} decisions could be compared, so this replay shows nothing about the candidate",
        report.decisions
    );
    Ok(if options.fail_on_difference && !report.agrees() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn component(options: &Options) -> Result<Vec<u8>> {
    let embedded = options.policy.to_str().and_then(prebuilt::embedded);
    match embedded {
        Some(component) => Ok(component.to_vec()),
        None => read(&options.policy),
    }
}
