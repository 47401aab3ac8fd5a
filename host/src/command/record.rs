//! `triage record`: writes an upstream's decisions to a file until it is stopped.

use super::{
    Stops, code,
    remote::{Remote, segment, with_hint},
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::time::{Instant, sleep};
use triage_admin::{Client, Shape};
use triage_core::clock::millis;

/// Time between two fetches. The host buffers far more decisions than arrive in this time.
const FETCH_INTERVAL: Duration = Duration::from_millis(200);
/// The host ends the recording by itself after this additional time, in case this command is killed.
const EXTRA_TIME: Duration = Duration::from_secs(30);

/// The state of a recording.
const RECORDING: Shape = Shape::Object(&["recording", "decisions"]);

/// The options of a recording.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The upstream
    upstream: String,
    /// A new file for the trace
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Also record the contents that the policy read: paths, header values, bodies, claims, probes. The trace is
    /// confidential then, and only this user can read the file
    #[arg(long)]
    contents: bool,
    /// Length of the recording, such as 30s or 5m; Ctrl-C ends it earlier
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = lasting)]
    time: Duration,
    /// End after this number of decisions
    #[arg(short = 'n', long, value_name = "COUNT")]
    decisions: Option<u64>,
    #[command(flatten)]
    remote: Remote,
}

/// Maximum length of a recording; the host ends operators' actions after a day.
const MAX_RECORDING_TIME: Duration = Duration::from_hours(12);

fn lasting(text: &str) -> Result<Duration, String> {
    let time = triage_config::duration(text)?;
    if time.is_zero() || time > MAX_RECORDING_TIME {
        return Err(format!("{text} must be from 1ms to 12h"));
    }
    Ok(time)
}

/// Records decisions into the file.
pub async fn run(options: &Options) -> Result<ExitCode> {
    let mut stops = Stops::listen()?;
    let client = options.remote.client()?;
    let mut out = created(&options.out, options.contents)?;
    let path = |verb: &str| format!("/api/v1/traces/{}/{verb}", segment(&options.upstream));
    let time = millis(options.time.saturating_add(EXTRA_TIME));
    let wanted = json!({ "contents": options.contents, "for_ms": time });
    if let Err(error) = client.act_with(&path("start"), &wanted, RECORDING).await {
        // The file is still empty.
        let _ = std::fs::remove_file(&options.out);
        return Err(with_hint(error).into());
    }
    eprintln!("recording {}; Ctrl-C ends it", options.upstream);
    let recorded = tokio::select! {
        recorded = follow(&client, &path, options, &mut out) => recorded,
        stopped = stops.next() => stopped,
    };
    // Stop the host's recording in every case, also after an error.
    let view = client.act(&path("stop"), RECORDING).await.map_err(with_hint);
    recorded?;
    let view = view?;
    append(&client, &path("take"), &mut out).await?;
    out.sync_all().with_context(|| format!("{} cannot be written", options.out.display()))?;
    println!("{}", summary(&view, &options.out));
    Ok(code(view["decisions"] != 0))
}

/// Fetches lines until the time is over or there are enough decisions.
async fn follow(client: &Client, path: &impl Fn(&str) -> String, options: &Options, out: &mut File) -> Result<()> {
    let end = Instant::now() + options.time;
    while Instant::now() < end {
        sleep(FETCH_INTERVAL.min(end.saturating_duration_since(Instant::now()))).await;
        append(client, &path("take"), out).await?;
        let Some(most) = options.decisions else { continue };
        let view = client.get(path("").trim_end_matches('/'), RECORDING).await.map_err(with_hint)?;
        if view["decisions"].as_u64().unwrap_or_default() >= most {
            break;
        }
    }
    Ok(())
}

async fn append(client: &Client, path: &str, out: &mut File) -> Result<()> {
    let lines = client.take(path).await.map_err(with_hint)?;
    out.write_all(&lines).context("the trace cannot be written")
}

/// Creates a new file. An existing file may be readable by others, so it must not receive confidential contents.
fn created(path: &Path, contents: bool) -> Result<File> {
    let mode = if contents { 0o600 } else { 0o666 };
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    made.with_context(|| format!("{} cannot be created; name a file that does not exist", path.display()))
}

fn summary(view: &Value, out: &Path) -> String {
    let (decisions, dropped) = (&view["decisions"], view["dropped"].as_u64().unwrap_or_default());
    let lost = if dropped > 0 { format!(", {dropped} more arrived too fast and were dropped") } else { String::new() };
    format!("{decisions} decisions in {}{lost}", out.display())
}
