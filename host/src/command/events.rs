//! `triage events`: the recent events of a running host, and new ones as they happen.

use super::{
    answer::{items, moment, text},
    output::{Output, PollError, Screen, repeat},
    remote::with_hint,
    runtime,
    table::{self, Table},
};
use anyhow::Result;
use console::Style;
use serde_json::Value;
use std::process::ExitCode;
use triage_admin::{Client, Shape};

/// The path of the events.
pub const PATH: &str = "/api/v1/events";
/// The form of the events.
pub const SHAPE: Shape = Shape::List(&["number", "unix_ms", "kind", "subject", "text"]);

/// Widths of the columns that a watch prints, since it does not know what comes: number, time, kind, subject.
const WIDTHS: [usize; 4] = [6, 20, 18, 24];

/// The options of `triage events`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only events after this number; with --watch, these first
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(0..=i64::MAX.unsigned_abs()))]
    after: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Lists the events, or prints new ones until Ctrl-C.
pub fn run(options: &Options) -> Result<ExitCode> {
    let output = &options.output;
    if !output.watch {
        output.show(&path(options.after.unwrap_or_default()), SHAPE, listed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = output.remote.client()?;
    let mut follower = Follower { after: options.after, last: None };
    let poll = async |screen: &mut Screen| {
        let news = follower.poll(&client).await?;
        Ok(screen.show(&news.iter().map(|event| printed(event, output.json)).collect::<String>())?)
    };
    runtime()?.block_on(repeat(output.interval, &mut Screen::new(false), poll))?;
    Ok(ExitCode::SUCCESS)
}

fn path(after: u64) -> String {
    format!("{PATH}?after={after}")
}

/// What a watch has seen.
struct Follower {
    /// The number after which events are wanted, until one has come; none: only those after the first answer.
    after: Option<u64>,
    /// The last event that the host answered.
    last: Option<Value>,
}

/// What an answer holds for a watch.
#[derive(Debug, PartialEq)]
enum News {
    /// These events are new; the first number says how many were lost between two polls.
    Events(u64, Vec<Value>),
    /// The last event is gone: the host has started again, and its numbers began anew.
    Restarted,
}

impl Follower {
    async fn poll(&mut self, client: &Client) -> Result<Vec<Value>, PollError> {
        let get = async |after| client.get(&path(after), SHAPE).await.map_err(with_hint);
        // Include the last event: only it shows whether this is still the host that numbered it.
        let from = self.last.as_ref().map_or(self.after.unwrap_or_default(), |last| number(last).saturating_sub(1));
        let answer = get(from).await?;
        let begins_after_the_latest = self.last.is_none() && self.after.is_none();
        let events = match news(self.last.as_ref(), &answer) {
            News::Events(lost, events) => {
                if lost > 0 {
                    eprintln!("{lost} events came too fast for this watch; a shorter --interval misses fewer");
                }
                events
            }
            News::Restarted => {
                eprintln!("the host has started again, and counts its events from 1");
                (self.last, self.after) = (None, Some(0));
                items(&get(0).await?).to_vec()
            }
        };
        self.after = self.after.or(Some(0));
        if let Some(last) = events.last() {
            self.last = Some(last.clone());
        }
        Ok(if begins_after_the_latest { Vec::new() } else { events })
    }
}

fn number(event: &Value) -> u64 {
    event["number"].as_u64().unwrap_or_default()
}

/// Compares an answer, which begins with the last event of the answer before, if the host still keeps it.
fn news(last: Option<&Value>, answer: &Value) -> News {
    let events = items(answer);
    let Some(last) = last else { return News::Events(0, events.to_vec()) };
    match events.first() {
        Some(first) if number(first) == number(last) && first["unix_ms"] == last["unix_ms"] => {
            News::Events(0, events[1..].to_vec())
        }
        Some(first) if number(first) > number(last) => News::Events(number(first) - number(last) - 1, events.to_vec()),
        _ => News::Restarted,
    }
}

fn style(event: &Value) -> Style {
    match event["kind"].as_str() {
        Some("breaker-opened" | "policy-rolled-back" | "state-lost" | "write-unrecorded") => Style::new().red(),
        Some("breaker-closed" | "policy-good" | "state-back") => Style::new().green(),
        _ => Style::new(),
    }
}

fn cells(event: &Value) -> [String; 5] {
    [
        number(event).to_string(),
        moment(&event["unix_ms"]),
        text(&event["kind"]),
        text(&event["subject"]),
        text(&event["text"]),
    ]
}

fn listed(events: &Value) -> String {
    let mut table = Table::new(&["NUMBER", "TIME (UTC)", "KIND", "SUBJECT", "EVENT"]);
    for event in items(events) {
        table.row(style(event), cells(event));
    }
    table.lines("no event")
}

fn printed(event: &Value, as_json: bool) -> String {
    if as_json { format!("{event}\n") } else { table::line(&style(event), &cells(event), &WIDTHS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(number: u64, unix_ms: u64) -> Value {
        json!({ "number": number, "unix_ms": unix_ms, "kind": "action", "subject": "api/any", "text": "an operator ..." })
    }

    #[test]
    fn a_watch_finds_news_gaps_and_a_restart() {
        let last = event(7, 50);
        let of = |events: &[Value]| news(Some(&last), &json!(events));
        assert_eq!(of(&[event(7, 50)]), News::Events(0, vec![]));
        assert_eq!(of(&[event(7, 50), event(8, 60)]), News::Events(0, vec![event(8, 60)]));
        assert_eq!(of(&[event(10, 60)]), News::Events(2, vec![event(10, 60)]), "the ring of the host is bounded");
        assert_eq!(of(&[]), News::Restarted, "fewer events than before");
        assert_eq!(of(&[event(7, 90), event(8, 91)]), News::Restarted, "as many events as before, but others");
        assert_eq!(news(None, &json!([event(3, 1)])), News::Events(0, vec![event(3, 1)]));
    }

    #[test]
    fn an_event_is_a_row() {
        let expected = "NUMBER  TIME (UTC)            KIND    SUBJECT  EVENT\n\
                        7       01 Jan 1970 00:01:00  action  api/any  an operator ...\n";
        assert_eq!(listed(&json!([event(7, 60_000)])), expected);
        assert_eq!(
            printed(&event(7, 60_000), false),
            "7       01 Jan 1970 00:01:00  action              api/any                   an operator ...\n"
        );
    }
}
