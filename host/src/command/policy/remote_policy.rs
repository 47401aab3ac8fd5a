//! The policies of a running host: list, history, rollback and promotion.

mod candidate;

use super::announce;
use crate::command::{
    answer::{self, text},
    events,
    remote::{Remote, segment},
};
use anyhow::Result;
use clap::Subcommand;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode};
use triage_admin::Shape;

/// The members of an upstream's policy that are read here.
const MEMBERS: &[&str] = &["upstream", "serving", "fallback", "fleet"];
const POLICIES: Shape = Shape::List(MEMBERS);
pub(super) const POLICY: Shape = Shape::Object(MEMBERS);

/// The subcommands that need a running host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the policy of each upstream of a running host, and its state
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the events of an upstream's policy
    History {
        /// The upstream
        upstream: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Roll back to the last good generation; the host does not load the present component again
    Rollback {
        /// The upstream
        upstream: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// End the probation of the present generation: it counts as good from now on
    Promote {
        /// The upstream
        upstream: String,
        /// Announce this component (sha256:...) to the fleet, although it was rolled back before
        digest: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Command {
    /// Runs the subcommand.
    pub fn run(&self) -> Result<ExitCode> {
        match self {
            Self::List { remote } => {
                for policy in remote.get("/api/v1/policies", POLICIES)?.as_array().into_iter().flatten() {
                    println!("{}", line(policy));
                    if let Some(line) = fleet(&policy["fleet"]) {
                        println!("  {line}");
                    }
                    for line in candidate::lines(&policy["candidate"]) {
                        println!("  {line}");
                    }
                }
            }
            Self::History { upstream, remote } => {
                // Check that the upstream exists: otherwise a misspelt name would get the same empty list as an upstream without events.
                remote.get(&path(upstream, ""), POLICY)?;
                let events = remote.get(events::PATH, events::SHAPE)?;
                let about = |event: &&Value| {
                    let kind = event["kind"].as_str().unwrap_or_default();
                    let is_policy = kind.starts_with("policy-") || kind.starts_with("candidate-") || kind == "action";
                    event["subject"] == *upstream && is_policy
                };
                for event in events.as_array().into_iter().flatten().filter(about) {
                    println!("{} UTC  {}", answer::moment(&event["unix_ms"]), text(&event["text"]));
                }
            }
            Self::Rollback { upstream, remote } => {
                println!("{}", line(&remote.act(&path(upstream, "/rollback"), POLICY)?));
            }
            Self::Promote { upstream, digest: None, remote } => {
                println!("{}", line(&remote.act(&path(upstream, "/promote"), POLICY)?));
            }
            Self::Promote { upstream, digest: Some(digest), remote } => {
                let digits = digest.rsplit_once("sha256:").map_or(digest.as_str(), |(_, digits)| digits);
                return announce::run(remote, upstream, "promote", digits.parse()?);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn path(upstream: &str, verb: &str) -> String {
    format!("/api/v1/policies/{}{verb}", segment(upstream))
}

fn line(policy: &Value) -> String {
    let serving = &policy["serving"];
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
        let _ = write!(line, "; previous generation {}", policy["fallback"]["generation"]);
    }
    line
}

/// A line on the fleet's choice, if the upstream follows the fleet: generation, proposal, and the hosts that are behind.
fn fleet(fleet: &Value) -> Option<String> {
    let short = |value: &Value| text(value).chars().take(12).collect::<String>();
    let hosts = fleet.get("hosts")?.as_array()?;
    let mut line = format!("fleet: generation {}", fleet["generation"]);
    if !fleet["digest"].is_null() {
        let _ = write!(line, " ({})", short(&fleet["digest"]));
    }
    let _ = write!(line, ", {}, {} hosts", text(&fleet["phase"]), hosts.len());
    if !fleet["proposal"].is_null() {
        let staged = hosts.iter().filter(|host| host["staged"] == true).count();
        let _ = write!(line, "; {} is proposed, {staged} hosts have staged it", short(&fleet["proposal"]["digest"]));
    }
    let behind: Vec<String> =
        hosts.iter().filter(|host| host["behind"] == true).map(|host| text(&host["name"])).collect();
    if !behind.is_empty() {
        let _ = write!(line, "; behind: {}", behind.join(", "));
    }
    if !fleet["why_behind"].is_null() {
        let _ = write!(line, "; this host is behind, {}", text(&fleet["why_behind"]));
    }
    Some(line)
}
