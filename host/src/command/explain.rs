//! `triage explain`: the timeline of one request.

use super::{
    answer::{items, text},
    output::{Output, print},
    requests::{Filters, answer, list, micros, target},
};
use anyhow::Result;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode};
use triage_admin::Shape;

/// The request to explain.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The request's id, from its answer's triage-request-id header; without it, the latest requests are listed as `triage
    /// requests` does
    #[arg(conflicts_with_all = ["upstream", "endpoint", "status", "reason", "limit", "rough", "watch"])]
    id: Option<String>,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    output: Output,
}

/// Queries the host and prints the timeline.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(id) = &options.id else { return list(&options.filters, &options.output) };
    // An invalid id must not turn into another path.
    let path = format!("/api/v1/requests/{}", id.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let shape = Shape::Object(&["id", "status", "took_us", "steps"]);
    let response = options.output.remote.get(&path, shape)?;
    print(&if options.output.json { format!("{response}\n") } else { timeline(&response) })?;
    Ok(ExitCode::SUCCESS)
}

fn timeline(request: &Value) -> String {
    let mut out = format!("{}: {} in {}\n", target(request), answer(request), micros(&request["took_us"]));
    let mut line = |name: &str, value: &Value, more: &str| {
        if value.as_str().is_some_and(|value| !value.is_empty()) {
            let _ = writeln!(out, "  {name:10}{}{more}", text(value));
        }
    };
    line("request", &request["id"], "");
    line("policy", &request["policy"], &format!(", generation {}", request["generation"]));
    line("trace", &request["trace"], "");
    for step in items(&request["steps"]) {
        let _ = writeln!(out, "{:>12}  {}", micros(&step["at_us"]), text(&step["text"]));
    }
    if let Some(omitted) = request["omitted"].as_u64().filter(|omitted| *omitted > 0) {
        let _ = writeln!(out, "{:>12}  {omitted} more events were not kept", "");
    }
    out
}
