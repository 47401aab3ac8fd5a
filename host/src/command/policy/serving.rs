//! Policies of a running host: what serves, what happened, and going back.

use crate::command::remote::{Remote, segment};
use anyhow::Result;
use clap::Subcommand;
use serde_json::Value;
use std::fmt::Write as _;

/// What can be asked of a running host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which policy serves each upstream of a running host, and how it does
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show what happened to an upstream's policy
    History {
        /// The upstream
        upstream: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Go back to the last good generation; the component that serves now is not taken again
    Rollback {
        /// The upstream
        upstream: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// End the probation of the generation that serves: it counts as good from now on
    Promote {
        /// The upstream
        upstream: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Command {
    /// Does it.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::List { remote } => {
                for policy in remote.look("/api/v1/policies")?.as_array().into_iter().flatten() {
                    println!("{}", line(policy));
                }
            }
            Self::History { upstream, remote } => {
                // The upstream must exist, so that a wrong name is not taken for a quiet one.
                remote.look(&path(upstream, ""))?;
                let events = remote.look("/api/v1/events")?;
                let about = |event: &&Value| {
                    let kind = event["kind"].as_str().unwrap_or_default();
                    event["subject"] == *upstream && (kind.starts_with("policy-") || kind == "action")
                };
                for event in events.as_array().into_iter().flatten().filter(about) {
                    println!("{}  {}", moment(event), event["text"].as_str().unwrap_or_default());
                }
            }
            Self::Rollback { upstream, remote } => println!("{}", line(&remote.act(&path(upstream, "/rollback"))?)),
            Self::Promote { upstream, remote } => println!("{}", line(&remote.act(&path(upstream, "/promote"))?)),
        }
        Ok(())
    }
}

fn path(upstream: &str, verb: &str) -> String {
    format!("/api/v1/policies/{}{verb}", segment(upstream))
}

fn line(policy: &Value) -> String {
    let serving = &policy["serving"];
    // A policy's words on a terminal: no control characters.
    let text = |value: &Value| value.as_str().unwrap_or("-").replace(char::is_control, "?");
    let digest = text(&serving["digest"]);
    let mut line = format!(
        "{}: {} {} ({}), generation {}, {}",
        text(&policy["upstream"]),
        text(&serving["name"]),
        text(&serving["version"]),
        digest.get(..12).unwrap_or(&digest),
        serving["generation"],
        text(&serving["standing"]),
    );
    if serving["standing"] == "probation" {
        let _ = write!(line, ": {} faults in {} decisions", serving["faults"], serving["decisions"]);
    }
    if !policy["fallback"].is_null() {
        let _ = write!(line, "; before it generation {}", policy["fallback"]["generation"]);
    }
    line
}

/// When, as HTTP writes it.
fn moment(event: &Value) -> String {
    let ms = event["unix_ms"].as_u64().unwrap_or_default();
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms))
}
