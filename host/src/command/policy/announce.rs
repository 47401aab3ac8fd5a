//! A component announced to a fleet, and what comes of it.

use super::serving::path;
use crate::command::remote::Remote;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::{process::ExitCode, thread, time::Duration};
use triage::policy::Digest;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// As long as hosts wait for each other, and some more.
const LOOKS: u32 = 600;
/// Once it has switched: until the hosts have said so, which each does within a second.
const SAY_SO: u32 = 30;

/// Announces (`announce`, or `promote` for one that was rolled back) and waits until the fleet has switched, or has not.
pub fn run(remote: &Remote, upstream: &str, verb: &str, digest: Digest) -> Result<ExitCode> {
    let digest = digest.to_string();
    let own = path(upstream, "");
    remote.act_with(&path(upstream, &format!("/{verb}")), &json!({ "digest": digest }))?;
    let mut since = 0;
    for _ in 0..LOOKS {
        let policy = remote.look(&own)?;
        let fleet = &policy["fleet"];
        let switched = fleet["digest"] == *digest;
        since += u32::from(switched);
        if switched && (since > SAY_SO || behind(fleet) == 0) {
            println!("{}", done(upstream, fleet));
            return Ok(ExitCode::SUCCESS);
        }
        if fleet["proposal"].is_null() && fleet["aborted"]["digest"] == *digest {
            let text = |name: &str| fleet["aborted"][name].as_str().unwrap_or("-").replace(char::is_control, "?");
            bail!(
                "host {} refused it at step {}: {}; the fleet stays as it is",
                text("by"),
                text("step"),
                text("reason")
            );
        }
        thread::sleep(LOOK);
    }
    bail!("the fleet has not switched yet; `triage policy list` shows which hosts are behind")
}

fn hosts(fleet: &Value) -> &[Value] {
    fleet["hosts"].as_array().map_or(&[][..], Vec::as_slice)
}

fn behind(fleet: &Value) -> usize {
    hosts(fleet).iter().filter(|host| host["behind"] == true).count()
}

fn done(upstream: &str, fleet: &Value) -> String {
    let all = hosts(fleet).len();
    format!(
        "{upstream}: the fleet's generation {} serves at {} of {all} hosts",
        fleet["generation"],
        all - behind(fleet)
    )
}
