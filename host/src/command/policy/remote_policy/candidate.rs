//! The lines of `policy list` about an upstream's candidate.

use crate::command::answer::{moment, text};
use serde_json::Value;
use std::fmt::Write as _;

/// A line about the trial, and one for each group of differences; none without a candidate.
pub(super) fn lines(candidate: &Value) -> Vec<String> {
    if candidate.is_null() {
        return Vec::new();
    }
    let mode = match &candidate["share_percent"] {
        Value::Null => text(&candidate["mode"]),
        share => format!("canary for {share} % of the requests"),
    };
    if candidate["state"] == "missing" {
        return vec![format!("candidate {}, {mode}: there is no component yet", text(&candidate["source"]))];
    }
    let digest = text(&candidate["digest"]);
    let mut line = format!(
        "candidate {} {} ({}), {mode}, {}: {} decisions",
        text(&candidate["name"]),
        text(&candidate["version"]),
        digest.get(..12).unwrap_or(&digest),
        text(&candidate["state"]).replace('-', " "),
        candidate["decisions"],
    );
    if candidate["share_percent"].is_null() {
        let (compared, differed) = (&candidate["compared"], &candidate["differed"]);
        let _ = write!(line, ", {compared} compared, {differed} differed, {} skipped", candidate["skipped"]);
    }
    let _ = write!(line, ", {} faults", candidate["faults"]);
    let differences = candidate["differences"].as_array().into_iter().flatten().map(difference);
    let mut lines: Vec<String> = std::iter::once(line).chain(differences).collect();
    if candidate["ungrouped"] != 0 {
        lines.push(format!("  and {} more in further groups", candidate["ungrouped"]));
    }
    lines
}

fn difference(group: &Value) -> String {
    format!(
        "  {} {}: {}; candidate: {} ({} x, latest {} UTC)",
        text(&group["endpoint"]),
        text(&group["outcome"]),
        text(&group["live"]),
        text(&group["candidate"]),
        group["count"],
        moment(&group["latest_unix_ms"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_shadow_candidate_is_listed_with_its_differences_and_without_control_characters() {
        let listed = lines(&json!({
            "source": "next.wasm", "mode": "shadow", "share_percent": null, "state": "on-trial", "name": "ne\u{1b}xt",
            "version": "1.2", "digest": "0123456789abcdef", "decisions": 40, "compared": 40, "differed": 3, "skipped": 1,
            "faults": 0, "ungrouped": 2, "differences": [{
                "endpoint": "any", "outcome": "503", "live": "unknown, failure, retry", "candidate": "trap", "count": 1,
                "latest_unix_ms": 0,
            }],
        }));
        assert_eq!(
            listed,
            [
                "candidate ne?xt 1.2 (0123456789ab), shadow, on trial: 40 decisions, 40 compared, 3 differed, 1 skipped, 0 faults",
                "  any 503: unknown, failure, retry; candidate: trap (1 x, latest 01 Jan 1970 00:00:00 UTC)",
                "  and 2 more in further groups",
            ]
        );
    }

    #[test]
    fn a_canary_is_listed_without_comparisons_a_missing_component_with_its_source_and_no_candidate_not_at_all() {
        let mut canary = json!({
            "source": "next.wasm", "mode": "canary", "share_percent": 10, "state": "given-up", "name": "next", "version": "1",
            "digest": null, "decisions": 3, "compared": 0, "differed": 0, "skipped": 0, "faults": 3, "ungrouped": 0,
            "differences": [],
        });
        assert_eq!(
            lines(&canary),
            ["candidate next 1 (-), canary for 10 % of the requests, given up: 3 decisions, 3 faults"]
        );
        canary["state"] = json!("missing");
        assert_eq!(lines(&canary), ["candidate next.wasm, canary for 10 % of the requests: there is no component yet"]);
        assert!(lines(&Value::Null).is_empty());
    }
}
