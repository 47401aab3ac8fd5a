//! `triage explain`: the timeline of one request.

use super::remote::Remote;
use anyhow::Result;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode, time::Duration};
use triage_core::rounded::Rounded;

/// The request to explain.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The request's id, from its answer's triage-request-id header; without it, the latest requests are listed
    id: Option<String>,
    /// Only requests with an incident: a retry, a refusal, a failure
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
    let response = options.remote.get(&path)?;
    if options.json {
        println!("{response:#}");
    } else if options.id.is_some() {
        print!("{}", timeline(&response));
    } else {
        print!("{}", list(&response));
    }
    Ok(ExitCode::SUCCESS)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn time(us: &Value) -> String {
    Rounded(Duration::from_micros(us.as_u64().unwrap_or_default())).to_string()
}

fn outcome(request: &Value) -> String {
    request["status"]
        .as_u64()
        .map_or_else(|| "no answer: the caller disconnected".to_owned(), |status| status.to_string())
}

fn endpoint_name(request: &Value) -> String {
    match (text(request, "upstream"), text(request, "endpoint")) {
        ("", "") => "no endpoint".to_owned(),
        (upstream, endpoint) => format!("{} {upstream}/{endpoint}", text(request, "method")),
    }
}

fn timeline(request: &Value) -> String {
    let mut out = format!("{}: {} in {}\n", endpoint_name(request), outcome(request), time(&request["took_us"]));
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:10}{value}");
        }
    };
    line("request", text(request, "id"));
    line(
        "policy",
        &match text(request, "policy") {
            "" => String::new(),
            policy => format!("{policy}, generation {}", request["generation"]),
        },
    );
    line("trace", text(request, "trace"));
    for step in request["steps"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{:>12}  {}", time(&step["at_us"]), text(step, "text"));
    }
    if let Some(omitted) = request["omitted"].as_u64().filter(|omitted| *omitted > 0) {
        let _ = writeln!(out, "{:>12}  {omitted} more events were not kept", "");
    }
    out
}

fn list(requests: &Value) -> String {
    let mut out = String::new();
    for request in requests.as_array().into_iter().flatten() {
        let (id, took) = (text(request, "id"), time(&request["took_us"]));
        let _ = writeln!(out, "{id}  {:>12}  {}: {}", took, endpoint_name(request), outcome(request));
    }
    if out.is_empty() {
        out.push_str("no request is kept\n");
    }
    out
}
