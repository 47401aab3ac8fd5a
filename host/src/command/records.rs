//! `triage records`: lists writes of unknown effect and settles them manually.

use super::{
    Stops,
    remote::{Remote, segment, with_hint},
    runtime,
};
use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};
use tokio::time::sleep;
use triage_admin::{Client, ClientError};
use triage_bounded_file as bounded_file;

/// Poll interval of `--watch`, chosen because a host limits the requests to its admin listener.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Records that one poll queries one by one; the next poll queries further ones.
const MAX_ASKED: usize = 5;
/// A host counts no further than this number.
const MAX_TOTAL: u64 = 10_000;
/// Maximum bytes of a body file; a host accepts less.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// The subcommands of `triage records`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the writes whose effect is unknown, the next to expire first
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        /// Continue, and print every write that appears or disappears, until Ctrl-C
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        remote: Remote,
    },
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

impl Command {
    /// Runs the subcommand.
    pub fn run(&self) -> Result<ExitCode> {
        match self {
            Self::List { json, watch: false, remote } => {
                let (records, total) = remote.list("/api/v1/records")?;
                let more = more(&records, total);
                if *json {
                    println!("{records}");
                    // A script expects nothing but the array on standard output.
                    if let Some(more) = more {
                        eprintln!("{more}");
                    }
                } else {
                    list(&records, more.as_deref());
                }
            }
            Self::List { json, watch: true, remote } => return runtime()?.block_on(watch(remote, *json)),
            Self::Show { id, json, remote } => {
                let record = remote.get(&path(id, ""))?;
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
                let settled = remote.act_with(&path(id, verb), &Value::Object(given))?;
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

/// Prints records that appear or disappear, until Ctrl-C. An error of the first poll ends it; a later error is printed and the poll
/// repeated.
async fn watch(remote: &Remote, as_json: bool) -> Result<ExitCode> {
    let mut stops = Stops::listen()?;
    let client = remote.client()?;
    let mut known: Option<Vec<Value>> = None;
    let mut is_failing = false;
    loop {
        let polled = tokio::select! {
            polled = poll(&client, known.as_deref().unwrap_or_default()) => polled.map_err(with_hint),
            stopped = stops.next() => return stopped.map(|()| ExitCode::SUCCESS),
        };
        match polled {
            Ok((changes, now)) => {
                for (change, record) in &changes {
                    print_change(change, record, as_json);
                }
                known = Some(now);
                is_failing = false;
            }
            Err(error) if known.is_none() => return Err(error.into()),
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    eprintln!("a poll failed, and the watch continues: {error}");
                }
            }
        }
        // Flush, so that the reader of a pipe gets whole lines at once.
        std::io::stdout().flush()?;
        tokio::select! {
            () = sleep(WATCH_INTERVAL) => {}
            stopped = stops.next() => return stopped.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// The kind of change, and the record.
type Change = (&'static str, Value);

/// Returns the changes since the `known` records, and the records that are unsettled now. The list may be incomplete, so a missing record
/// is queried by id before it is reported as gone.
async fn poll(client: &Client, known: &[Value]) -> Result<(Vec<Change>, Vec<Value>), ClientError> {
    let listed = client.get("/api/v1/records").await?;
    let mut now = listed.as_array().cloned().unwrap_or_default();
    let has = |list: &[Value], record: &Value| list.iter().any(|own| own["id"] == record["id"]);
    let come = now.iter().filter(|record| !has(known, record));
    let mut changes: Vec<Change> = come.map(|record| ("unknown", record.clone())).collect();
    let missing: Vec<&Value> = known.iter().filter(|record| !has(&now, record)).collect();
    for (asked, record) in missing.into_iter().enumerate() {
        if asked >= MAX_ASKED {
            now.push(record.clone());
            continue;
        }
        match client.get(&path(record["id"].as_str().unwrap_or_default(), "")).await {
            Ok(record) => now.push(record),
            Err(ClientError::Refused { status: 404, .. }) => changes.push(("gone", record.clone())),
            Err(error) => return Err(error),
        }
    }
    Ok((changes, now))
}

fn print_change(change: &str, record: &Value, as_json: bool) {
    if as_json {
        println!("{}", json!({ "change": change, "record": record }));
    } else {
        println!("{change:<8}{}", line(record));
    }
}

/// A line about records that the list omits.
fn more(records: &Value, total: Option<u64>) -> Option<String> {
    let total = total?;
    let more = total.checked_sub(records.as_array()?.len() as u64).filter(|more| *more > 0)?;
    Some(if total < MAX_TOTAL { format!("and {more} more") } else { format!("and {more} more at least") })
}

fn list(records: &Value, more: Option<&str>) {
    let records = records.as_array().map_or(&[][..], Vec::as_slice);
    if records.is_empty() {
        println!("no write has an unknown effect");
    }
    for record in records {
        println!("{}", line(record));
    }
    if let Some(more) = more {
        println!("{more}");
    }
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
        "record    {}\nupstream  {}\nendpoint  {}\nsent      {}\nnow       {who}",
        text(&record["id"]),
        text(&record["upstream"]),
        text(&record["endpoint"]),
        times(record)
    )
}

/// The time since the send, and the time until the verification.
fn times(record: &Value) -> String {
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let sent = seconds(record["sent_ms_ago"].as_u64().unwrap_or_default());
    match record["verified_in_ms"].as_u64() {
        Some(0) => format!("{sent} ago, verified now"),
        Some(ms) => format!("{sent} ago, verified in {}", seconds(ms)),
        None => format!("{sent} ago, not verified"),
    }
}

/// Text from a host, safe for a terminal: without control characters.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").replace(char::is_control, "?")
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
        assert_eq!(line(&record), "ab  hospital/create?hospital  61.2 s ago, not verified");
        let mut verified = record;
        verified["verified_in_ms"] = json!(1_900);
        assert!(line(&verified).ends_with("61.2 s ago, verified in 1.9 s"), "{}", line(&verified));
        assert!(shown(&verified).contains("the host verifies the write by itself"));
    }
}
