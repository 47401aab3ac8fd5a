//! `triage records`: lists writes of unknown effect and settles them manually.

use super::{
    answer::{duration, items, text},
    output::{Output, PollError, Screen, print, repeat},
    remote::{Remote, segment, with_hint},
    runtime,
};
use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::{path::PathBuf, process::ExitCode};
use triage_admin::{Client, ClientError, Shape};
use triage_bounded_file as bounded_file;

const MEMBERS: &[&str] = &["id", "upstream", "endpoint", "sent_ms_ago", "verified_in_ms"];
const RECORDS: Shape = Shape::List(MEMBERS);
const RECORD: Shape = Shape::Object(MEMBERS);

/// Records that one poll queries one by one; the next poll queries further ones.
const MAX_ASKED: usize = 5;
/// A host counts no further than this number.
const MAX_TOTAL: u64 = 10_000;
/// Maximum bytes of a body file; a host accepts less.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// The options of `triage records`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    output: Output,
}

/// The subcommands of `triage records`.
#[derive(Debug, Subcommand)]
enum Command {
    /// List the writes whose effect is unknown, the next to expire first; with --watch, print each that comes or goes
    List(Output),
    /// Show one write
    Show {
        /// The record's id, as `triage records list` prints it
        id: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Settle a write by hand, after a check at the API itself
    Resolve {
        /// The record's id
        id: String,
        /// Whether the write took effect
        outcome: Outcome,
        /// The status of the answer that repetitions get [default: 200]; with `applied` only
        #[arg(long, value_name = "STATUS")]
        status: Option<u16>,
        /// The content type of that answer [default: application/json]; with `applied` only
        #[arg(long, value_name = "TYPE")]
        content_type: Option<String>,
        /// A file with that answer's body [default: a sentence that the write was settled by hand]; with `applied` only
        #[arg(long, value_name = "FILE")]
        body: Option<PathBuf>,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Outcome {
    /// The write took effect: repetitions get an answer, and the host never sends it again
    Applied,
    /// The write did not and will not take effect: its key is free, and the host sends the next request with it
    NotApplied,
}

/// Lists, shows or settles records.
pub fn run(options: &Options) -> Result<ExitCode> {
    options.command.as_ref().map_or_else(|| list(&options.output), Command::run)
}

fn list(output: &Output) -> Result<ExitCode> {
    if output.watch {
        return watch(output);
    }
    let (records, total) = output.remote.list("/api/v1/records", RECORDS)?;
    let more = more(&records, total);
    if output.json {
        print(&format!("{records}\n"))?;
        // A script expects nothing but the array on standard output.
        if let Some(more) = more {
            eprintln!("{more}");
        }
    } else {
        print(&listed(&records, more.as_deref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Command {
    fn run(&self) -> Result<ExitCode> {
        match self {
            Self::List(output) => return list(output),
            Self::Show { id, json, remote } => {
                let record = remote.get(&path(id, ""), RECORD)?;
                println!("{}", if *json { record.to_string() } else { shown(&record) });
            }
            Self::Resolve { id, outcome, status, content_type, body, remote } => {
                let given = answer(*status, content_type.as_deref(), body.as_ref())?;
                anyhow::ensure!(
                    *outcome == Outcome::Applied || given.is_empty(),
                    "--status, --content-type and --body need `applied`: a write that did not take effect has no answer"
                );
                let verb = match outcome {
                    Outcome::Applied => "/applied",
                    Outcome::NotApplied => "/not-applied",
                };
                let settled =
                    remote.act_with(&path(id, verb), &Value::Object(given), Shape::Object(&["id", "settled"]))?;
                println!("{} is settled: {}", text(&settled["id"]), text(&settled["settled"]));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn path(id: &str, verb: &str) -> String {
    format!("/api/v1/records/{}{verb}", segment(id))
}

fn answer(status: Option<u16>, content_type: Option<&str>, body: Option<&PathBuf>) -> Result<Map<String, Value>> {
    let mut given = Map::new();
    given.extend(status.map(|status| ("status".to_owned(), json!(status))));
    given.extend(content_type.map(|kind| ("content_type".to_owned(), json!(kind))));
    if let Some(file) = body {
        let text = bounded_file::read_text(file, MAX_BODY_BYTES);
        let text = text.with_context(|| format!("{} cannot be read as text", file.display()))?;
        given.insert("body".to_owned(), json!(text));
    }
    Ok(given)
}

/// Prints records that appear or disappear, until Ctrl-C.
fn watch(output: &Output) -> Result<ExitCode> {
    let client = output.remote.client()?;
    let mut known = Vec::new();
    let poll = async |screen: &mut Screen| {
        let (changes, now) = poll(&client, &known).await.map_err(with_hint)?;
        known = now;
        Ok::<(), PollError>(
            screen.show(&changes.iter().map(|change| changed(change, output.json)).collect::<String>())?,
        )
    };
    runtime()?.block_on(repeat(output.interval, &mut Screen::new(false), poll))?;
    Ok(ExitCode::SUCCESS)
}

/// The kind of change, and the record.
type Change = (&'static str, Value);

/// Returns the changes since the `known` records, and the records that are unsettled now. The list may be incomplete, so a missing record
/// is queried by id before it is reported as gone.
async fn poll(client: &Client, known: &[Value]) -> Result<(Vec<Change>, Vec<Value>), ClientError> {
    let mut now = items(&client.get("/api/v1/records", RECORDS).await?).to_vec();
    let has = |list: &[Value], record: &Value| list.iter().any(|own| own["id"] == record["id"]);
    let come = now.iter().filter(|record| !has(known, record));
    let mut changes: Vec<Change> = come.map(|record| ("unknown", record.clone())).collect();
    let missing: Vec<&Value> = known.iter().filter(|record| !has(&now, record)).collect();
    for (asked, record) in missing.into_iter().enumerate() {
        if asked >= MAX_ASKED {
            now.push(record.clone());
            continue;
        }
        match client.get(&path(record["id"].as_str().unwrap_or_default(), ""), RECORD).await {
            Ok(record) => now.push(record),
            Err(ClientError::Refused { status: 404, .. }) => changes.push(("gone", record.clone())),
            Err(error) => return Err(error),
        }
    }
    Ok((changes, now))
}

fn changed((change, record): &Change, as_json: bool) -> String {
    if as_json {
        format!("{}\n", json!({ "change": change, "record": record }))
    } else {
        format!("{change:<8}{}\n", line(record))
    }
}

/// A line about records that the list omits.
fn more(records: &Value, total: Option<u64>) -> Option<String> {
    let total = total?;
    let more = total.checked_sub(records.as_array()?.len() as u64).filter(|more| *more > 0)?;
    Some(if total < MAX_TOTAL { format!("and {more} more") } else { format!("and {more} more at least") })
}

fn listed(records: &Value, more: Option<&str>) -> String {
    let records = items(records);
    if records.is_empty() {
        return "no write has an unknown effect\n".to_owned();
    }
    records.iter().map(line).chain(more.map(str::to_owned)).map(|line| line + "\n").collect()
}

fn line(record: &Value) -> String {
    format!("{}  {}/{}  {}", text(&record["id"]), text(&record["upstream"]), text(&record["endpoint"]), times(record))
}

fn shown(record: &Value) -> String {
    let who = match record["verified_in_ms"].as_u64() {
        Some(_) => "the host verifies the write by itself, and settles it once the effect is known",
        None => "no host verifies the write; its caller's next try settles it, or `triage records resolve`",
    };
    format!(
        "record    {}\nupstream  {}\nendpoint  {}\nwrite     {}\nnow       {who}",
        text(&record["id"]),
        text(&record["upstream"]),
        text(&record["endpoint"]),
        times(record)
    )
}

/// The time since the send, and the time until the verification.
fn times(record: &Value) -> String {
    let sent = duration(&record["sent_ms_ago"]);
    match record["verified_in_ms"].as_u64() {
        Some(0) => format!("sent {sent} ago, verified now"),
        Some(_) => format!("sent {sent} ago, verified in {}", duration(&record["verified_in_ms"])),
        None => format!("sent {sent} ago, not verified"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_how_many_records_it_leaves_out() {
        let of = |count: usize, total| more(&Value::Array(vec![Value::Null; count]), total);
        assert_eq!(of(2, Some(2)), None);
        assert_eq!(of(1000, Some(1001)).as_deref(), Some("and 1 more"));
        assert_eq!(of(1000, Some(10_000)).as_deref(), Some("and 9000 more at least"));
        assert_eq!(of(2, None), None, "a host of an earlier version");
    }

    #[test]
    fn a_record_is_shown_on_one_line() {
        let record = json!({
            "id": "ab", "upstream": "hospital", "endpoint": "create\nhospital", "sent_ms_ago": 61_250, "verified_in_ms": null,
        });
        assert_eq!(line(&record), "ab  hospital/create?hospital  sent 1 min 1 s ago, not verified");
        let mut verified = record;
        verified["verified_in_ms"] = json!(1_900);
        assert!(line(&verified).ends_with("sent 1 min 1 s ago, verified in 1.9 s"), "{}", line(&verified));
        assert!(shown(&verified).contains("the host verifies the write by itself"));
    }
}
