//! `triage explain`: the timeline of one request.

use super::remote::Remote;
use anyhow::Result;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode, time::Duration};
use triage::telemetry::Rounded;

/// The request to explain.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The request's id, from its answer's triage-request-id header; without it, the latest requests are listed
    id: Option<String>,
    /// Only requests that did not go smoothly
    #[arg(long, conflicts_with = "id")]
    rough: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Queries the host and prints the timeline.
pub fn run(options: &Options) -> Result<ExitCode> {
    let path = match &options.id {
        // An invalid id must not turn into another path.
        Some(id) => format!("/api/v1/requests/{}", id.replace(|c: char| !c.is_ascii_alphanumeric(), "-")),
        None => format!("/api/v1/requests?rough={}", options.rough),
    };
    let told = options.remote.look(&path)?;
    if options.json {
        println!("{told:#}");
    } else if options.id.is_some() {
        print!("{}", story(&told));
    } else {
        print!("{}", list(&told));
    }
    Ok(ExitCode::SUCCESS)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn time(us: &Value) -> String {
    Rounded(Duration::from_micros(us.as_u64().unwrap_or_default())).to_string()
}

fn outcome(story: &Value) -> String {
    story["status"].as_u64().map_or_else(|| "no answer: the caller left".to_owned(), |status| status.to_string())
}

fn place(story: &Value) -> String {
    match (text(story, "upstream"), text(story, "endpoint")) {
        ("", "") => "no endpoint".to_owned(),
        (upstream, endpoint) => format!("{} {upstream}/{endpoint}", text(story, "method")),
    }
}

fn story(story: &Value) -> String {
    let mut out = format!("{}: {} in {}\n", place(story), outcome(story), time(&story["took_us"]));
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:10}{value}");
        }
    };
    line("request", text(story, "id"));
    line(
        "policy",
        &match text(story, "policy") {
            "" => String::new(),
            policy => format!("{policy}, generation {}", story["generation"]),
        },
    );
    line("trace", text(story, "trace"));
    for step in story["steps"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{:>12}  {}", time(&step["at_us"]), text(step, "text"));
    }
    if let Some(omitted) = story["omitted"].as_u64().filter(|omitted| *omitted > 0) {
        let _ = writeln!(out, "{:>12}  {omitted} more steps were not kept", "");
    }
    out
}

fn list(stories: &Value) -> String {
    let mut out = String::new();
    for story in stories.as_array().into_iter().flatten() {
        let (id, took) = (text(story, "id"), time(&story["took_us"]));
        let _ = writeln!(out, "{id}  {:>12}  {}: {}", took, place(story), outcome(story));
    }
    if out.is_empty() {
        out.push_str("no request is kept\n");
    }
    out
}
