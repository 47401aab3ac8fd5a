//! `triage limits`: the rate limits, pauses and concurrency limits of a running host, and the end of a pause.

use super::{
    answer::{duration, group, items, text},
    output::{Output, print},
    remote::{Remote, segment},
    table::Table,
};
use anyhow::Result;
use clap::Subcommand;
use console::Style;
use serde_json::Value;
use std::process::ExitCode;
use triage_admin::Shape;

const MEMBERS: &[&str] = &["upstream", "group", "limits", "paused_ms", "concurrency", "adaptive_rate"];

/// The options of `triage limits`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    output: Output,
}

/// What `triage limits` does besides listing.
#[derive(Debug, Subcommand)]
enum Command {
    /// End the pause of an endpoint's group; the host sends requests again within its limits
    LiftPause {
        /// The upstream
        upstream: String,
        /// An endpoint of the group
        endpoint: String,
        #[command(flatten)]
        remote: Remote,
    },
}

/// Lists the limits, or lifts a pause.
pub fn run(options: &Options) -> Result<ExitCode> {
    match &options.command {
        None => {
            options.output.show("/api/v1/limits", Shape::List(MEMBERS), table)?;
        }
        Some(Command::LiftPause { upstream, endpoint, remote }) => {
            let path = format!("/api/v1/limits/{}/{}/pause", segment(upstream), segment(endpoint));
            let limits = remote.delete(&path, Shape::Object(MEMBERS))?;
            print(&format!("the pause of {} is lifted\n", group(&limits)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(groups: &Value) -> String {
    let mut table = Table::new(&["GROUP", "LIMIT", "NOW"]);
    let mut sorted: Vec<&Value> = items(groups).iter().collect();
    sorted.sort_by_key(|limits| limits["paused_ms"].is_null());
    for limits in sorted {
        let name = group(limits);
        let mut row = |style: Style, limit: String, now: String| table.row(style, [name.clone(), limit, now]);
        if !limits["paused_ms"].is_null() {
            let left = format!("{} left", duration(&limits["paused_ms"]));
            row(Style::new().red(), "pause, asked for by the upstream".to_owned(), left);
        }
        for limit in items(&limits["limits"]) {
            let of =
                limit["endpoint"].as_str().map_or_else(String::new, |_| format!(" to {}", text(&limit["endpoint"])));
            let (taken, burst) = (&limit["taken"], &limit["burst"]);
            let plural = if limit["requests"] == 1 { "" } else { "s" };
            let quota = format!("{} request{plural} per {}{of}", limit["requests"], duration(&limit["period_ms"]));
            row(used(taken, burst), quota, format!("{taken} of {burst} permits taken"));
        }
        for own in items(&limits["concurrency"]) {
            let (taken, most) = (&own["taken"], &own["places"]);
            let most_text = format!("{most} requests at once to {}", text(&own["endpoint"]));
            row(used(taken, most), most_text, format!("{taken} under way"));
        }
        let adaptive = &limits["adaptive_rate"];
        if !adaptive.is_null() {
            let rate = adaptive["per_minute"].as_f64();
            let style = if rate.is_some() { Style::new().yellow() } else { Style::new() };
            let now = rate.map_or_else(|| "no limit known".to_owned(), |rate| format!("{rate:.0} requests per 1 min"));
            row(style, "adaptive rate of this host".to_owned(), now);
        }
    }
    table.lines("no limit")
}

/// A limit that is used up stands out.
fn used(taken: &Value, most: &Value) -> Style {
    if taken.as_u64() >= most.as_u64() { Style::new().yellow() } else { Style::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_limit_has_its_use_and_a_pause_comes_first() {
        let groups = json!([
            {
                "upstream": "api", "group": "any", "paused_ms": null, "adaptive_rate": { "per_minute": null },
                "limits": [{ "endpoint": null, "requests": 60, "period_ms": 60_000, "burst": 10, "taken": 4 }],
                "concurrency": [{ "endpoint": "list", "places": 3, "taken": 3 }],
            },
            {
                "upstream": "api", "group": "new", "paused_ms": 61_857, "adaptive_rate": null, "concurrency": [],
                "limits": [{ "endpoint": "create", "requests": 1, "period_ms": 500, "burst": 1, "taken": 0 }],
            },
        ]);
        let expected = "\
            GROUP    LIMIT                             NOW\n\
            api/new  pause, asked for by the upstream  1 min 2 s left\n\
            api/new  1 request per 500 ms to create    0 of 1 permits taken\n\
            api/any  60 requests per 1 min             4 of 10 permits taken\n\
            api/any  3 requests at once to list        3 under way\n\
            api/any  adaptive rate of this host        no limit known\n";
        assert_eq!(table(&groups), expected);
        assert_eq!(table(&json!([])), "no limit\n");
    }
}
