//! Announces a component to a fleet and waits for the result.

use super::remote_policy::{POLICY, path};
use crate::command::{answer::text, remote::Remote};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::{process::ExitCode, thread, time::Duration};
use triage_engine::Digest;

/// Time between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Slightly longer than hosts wait for each other.
const MAX_POLLS: u32 = 600;
/// Polls after the switch until every host has reported it, which takes each less than a second.
const MAX_REPORT_POLLS: u32 = 30;

/// Announces the component (`announce`, or `promote` for one that was rolled back) and waits until the fleet switches or aborts.
pub fn run(remote: &Remote, upstream: &str, verb: &str, digest: Digest) -> Result<ExitCode> {
    let digest = digest.to_string();
    let own = path(upstream, "");
    let before = remote.get(&own, POLICY)?;
    let mut policy = remote.act_with(&path(upstream, &format!("/{verb}")), &json!({ "digest": digest }), POLICY)?;
    let mut since = 0;
    for _ in 0..MAX_POLLS {
        match announce_outcome(&before["fleet"], &policy["fleet"], &digest) {
            AnnounceOutcome::Switched => {
                since += 1;
                if since > MAX_REPORT_POLLS || behind(&policy["fleet"]) == 0 {
                    println!("{}", done(upstream, &policy["fleet"]));
                    return Ok(ExitCode::SUCCESS);
                }
            }
            AnnounceOutcome::ToNothing(why) => bail!(why),
            AnnounceOutcome::NotYet => {}
        }
        thread::sleep(POLL_INTERVAL);
        policy = remote.get(&own, POLICY)?;
    }
    bail!("the fleet has not switched yet; `triage policy list` shows which hosts are behind")
}

/// The result of an announcement so far.
#[derive(Debug, PartialEq, Eq)]
enum AnnounceOutcome {
    NotYet,
    Switched,
    ToNothing(String),
}

/// Determines the result. `before` is the fleet's state before the announcement.
fn announce_outcome(before: &Value, fleet: &Value, digest: &str) -> AnnounceOutcome {
    if fleet["digest"] == *digest {
        return AnnounceOutcome::Switched;
    }
    if !fleet["proposal"].is_null() {
        return AnnounceOutcome::NotYet;
    }
    let aborted = &fleet["aborted"];
    if aborted["digest"] == *digest && aborted["id"] != before["aborted"]["id"] {
        let (by, step, reason) = (text(&aborted["by"]), text(&aborted["step"]), text(&aborted["reason"]));
        return AnnounceOutcome::ToNothing(format!(
            "host {by} refused it at step {step}: {reason}; the fleet keeps its policy"
        ));
    }
    if fleet["generation"].as_u64() <= before["generation"].as_u64() {
        return AnnounceOutcome::NotYet;
    }
    let (generation, by) = (&fleet["generation"], text(&fleet["by"]));
    let is_bad = fleet["quarantined"].as_array().is_some_and(|all| all.iter().any(|own| own == digest));
    AnnounceOutcome::ToNothing(match fleet["why"].as_str() {
        Some("fault") if is_bad => format!(
            "the fleet switched to it and back, to generation {generation}: it failed at host {by}; run `triage \
             policy history` there"
        ),
        Some("operator") if is_bad => {
            format!("the fleet switched to it, and an operator rolled back to generation {generation} at host {by}")
        }
        _ => format!("another component serves the fleet now, as generation {generation}, announced by host {by}"),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(generation: u64, digest: &str, why: &str, aborted: &str, quarantined: &[&str]) -> Value {
        let aborted = json!({ "id": aborted, "digest": "x", "by": "b", "step": "load", "reason": "no" });
        json!({ "generation": generation, "digest": digest, "why": why, "by": "a", "proposal": null, "aborted": aborted,
                "quarantined": quarantined })
    }

    #[test]
    fn the_outcome_of_an_announcement_follows_from_the_fleet() {
        let before = fleet(1, "o", "announced", "1", &[]);
        let nothing = |words: &str, outcome: AnnounceOutcome| match outcome {
            AnnounceOutcome::ToNothing(why) => assert!(why.contains(words), "{why}"),
            other => assert_eq!(other, AnnounceOutcome::ToNothing(words.to_owned())),
        };
        assert_eq!(
            announce_outcome(&before, &before, "x"),
            AnnounceOutcome::NotYet,
            "an abort of before is none of this one"
        );
        nothing("b refused it at step load: no", announce_outcome(&before, &fleet(1, "o", "announced", "2", &[]), "x"));
        assert_eq!(announce_outcome(&before, &fleet(2, "x", "announced", "1", &[]), "x"), AnnounceOutcome::Switched);
        nothing("it failed at host a", announce_outcome(&before, &fleet(3, "o", "fault", "1", &["x"]), "x"));
        nothing(
            "an operator rolled back to generation 3",
            announce_outcome(&before, &fleet(3, "o", "operator", "1", &["x"]), "x"),
        );
        nothing("another component serves", announce_outcome(&before, &fleet(3, "y", "announced", "1", &[]), "x"));
        let mut staging = fleet(1, "o", "announced", "2", &["x"]);
        staging["proposal"] = json!({ "digest": "x" });
        assert_eq!(announce_outcome(&before, &staging, "x"), AnnounceOutcome::NotYet);
    }
}
