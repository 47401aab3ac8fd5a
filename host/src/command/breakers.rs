//! `triage breakers`: the breakers of a running host, the worst first, and what an operator forces.

use super::{
    answer::{duration, group, items, text},
    output::{Output, print},
    remote::{Remote, segment},
    table::Table,
};
use anyhow::Result;
use clap::Subcommand;
use console::Style;
use serde_json::{Value, json};
use std::{process::ExitCode, time::Duration};
use triage_admin::Shape;
use triage_core::{clock, rounded::Rounded};

const MEMBERS: &[&str] = &["upstream", "group", "state", "forced", "enabled"];
const BREAKER: Shape = Shape::Object(MEMBERS);

/// The options of `triage breakers`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    output: Output,
}

/// What `triage breakers` does besides listing.
#[derive(Debug, Subcommand)]
enum Command {
    /// Refuse all requests for a time; then probes decide
    Open(Forced),
    /// Admit all requests for a time; then the breaker is reset
    Close(Forced),
    /// Reset the breaker: closed, with empty counts
    Reset(Named),
    /// Clear what an operator has forced: the breaker decides by itself again
    Clear(Named),
}

/// The breaker of an endpoint.
#[derive(Debug, clap::Args)]
struct Named {
    /// The upstream
    upstream: String,
    /// An endpoint of the breaker's group
    endpoint: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
struct Forced {
    #[command(flatten)]
    breaker: Named,
    /// How long the forced state lasts, at most 24h [default: 10m]
    #[arg(long = "for", value_name = "TIME", value_parser = triage_config::duration)]
    time: Option<Duration>,
}

/// Lists the breakers, or forces one.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(command) = &options.command else {
        options.output.show("/api/v1/breakers", Shape::List(MEMBERS), table)?;
        return Ok(ExitCode::SUCCESS);
    };
    let force = |Forced { breaker, time }: &Forced, verb: &str| {
        let body = time.map_or_else(|| json!({}), |time| json!({ "for_ms": clock::millis(time) }));
        breaker.remote.act_with(&breaker.path(verb), &body, BREAKER)
    };
    let breaker = match command {
        Command::Open(forced) => force(forced, "open")?,
        Command::Close(forced) => force(forced, "close")?,
        Command::Reset(breaker) => breaker.remote.act(&breaker.path("reset"), BREAKER)?,
        Command::Clear(breaker) => breaker.remote.delete(&breaker.path("forced"), BREAKER)?,
    };
    let ends = breaker["remaining_ms"].as_u64().map(Duration::from_millis).filter(|_| breaker["forced"] == true);
    let ends = ends.map_or_else(String::new, |left| format!(", for {}", Rounded(left)));
    print(&format!("{} is {}{ends}\n", group(&breaker), state(&breaker)))?;
    Ok(ExitCode::SUCCESS)
}

impl Named {
    fn path(&self, verb: &str) -> String {
        format!("/api/v1/breakers/{}/{}/{verb}", segment(&self.upstream), segment(&self.endpoint))
    }
}

fn state(breaker: &Value) -> String {
    let state = if breaker["enabled"] == false { "off".to_owned() } else { text(&breaker["state"]) };
    if breaker["forced"] == true { format!("{state} (forced)") } else { state }
}

/// The order of the list: what refuses requests, what may soon, what fails, what an operator forced, the rest.
fn rank(breaker: &Value) -> u8 {
    match breaker["state"].as_str() {
        Some("open") => 0,
        Some("half-open") => 1,
        _ if breaker["failures_in_row"].as_u64().is_some_and(|count| count > 0) => 2,
        _ if breaker["forced"] == true => 3,
        _ => 4,
    }
}

fn table(breakers: &Value) -> String {
    let mut sorted: Vec<&Value> = items(breakers).iter().collect();
    sorted.sort_by_key(|breaker| rank(breaker));
    let mut table = Table::new(&["BREAKER", "STATE", "SINCE", "NEXT IN", "FAILED IN A ROW", "FAILED CALLS", "WHY"]);
    for breaker in sorted {
        let style = match rank(breaker) {
            0 => Style::new().red(),
            1..=3 => Style::new().yellow(),
            _ => Style::new(),
        };
        let window = &breaker["window"];
        let calls = window["failures"].as_f64().zip(window["calls"].as_f64().filter(|calls| *calls > 0.0));
        let cells = [
            group(breaker),
            state(breaker),
            duration(&breaker["open_since_ms"]),
            duration(&breaker["remaining_ms"]),
            breaker["failures_in_row"].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string()),
            calls.map_or_else(|| "-".to_owned(), |(failures, calls)| format!("{failures:.0} of {calls:.0}")),
            text(&breaker["why"]),
        ];
        table.row(style, cells);
    }
    table.lines("no breaker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refuses_requests_comes_first() {
        let breaker = |group: &str, state: &str, forced: bool, in_row: u32| {
            json!({
                "upstream": "api", "group": group, "state": state, "forced": forced, "enabled": true,
                "failures_in_row": in_row, "open_since_ms": null, "remaining_ms": null, "why": null, "window": null,
            })
        };
        let mut open = breaker("orders", "open", false, 5);
        open["why"] = json!("5 failures in a row");
        open["open_since_ms"] = json!(61_857);
        open["remaining_ms"] = json!(12_000);
        open["window"] = json!({ "calls": 11.9, "failures": 5.0, "slow": 0.0 });
        let all = json!([breaker("idle", "closed", false, 0), breaker("held", "closed", true, 0), open]);
        let expected = "\
            BREAKER     STATE            SINCE      NEXT IN  FAILED IN A ROW  FAILED CALLS  WHY\n\
            api/orders  open             1 min 2 s  12 s     5                5 of 12       5 failures in a row\n\
            api/held    closed (forced)  -          -        0                -             -\n\
            api/idle    closed           -          -        0                -             -\n";
        assert_eq!(table(&all), expected);
    }
}
