//! `triage status`: what is wrong at a running host, the worst first.

use super::{
    answer::{duration, items, millis, text},
    code,
    output::Output,
    table::Table,
};
use anyhow::Result;
use console::{Style, style};
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode};
use triage_admin::Shape;
use triage_core::rounded::Rounded;

const SHAPE: Shape = Shape::Object(&["version", "ready", "upstreams", "uptime_ms"]);

/// The options of `triage status`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    output: Output,
}

/// Prints the conditions and the upstreams. The exit code says whether a condition is critical.
pub fn run(options: &Options) -> Result<ExitCode> {
    let status = options.output.show("/api/v1/status", SHAPE, table)?;
    Ok(code(!status.is_some_and(|status| is_critical(&status))))
}

fn is_critical(status: &Value) -> bool {
    items(&status["conditions"]).iter().any(|condition| condition["severity"] == "critical")
}

fn table(status: &Value) -> String {
    let ready = match status["unready"].as_str() {
        None => "ready".to_owned(),
        Some(_) => style(format!("not ready: {}", text(&status["unready"]))).red().to_string(),
    };
    let state = text(&status["state"]);
    let up = duration(&status["uptime_ms"]);
    let mut out = format!("triage {}, up {up}, state {state}: {ready}\n\n", text(&status["version"]));
    conditions(status, &mut out);
    let mut upstreams = Table::new(&["UPSTREAM", "POLICY", "GENERATION", "ENDPOINTS", "BREAKERS OPEN"]);
    for upstream in items(&status["upstreams"]) {
        let is_open = upstream["breakers_open"].as_u64().is_some_and(|open| open > 0);
        let cells = [
            text(&upstream["name"]),
            text(&upstream["policy"]),
            upstream["generation"].to_string(),
            upstream["endpoints"].to_string(),
            upstream["breakers_open"].to_string(),
        ];
        upstreams.row(if is_open { Style::new().red() } else { Style::new() }, cells);
    }
    out.push('\n');
    out + &upstreams.lines("no upstream")
}

fn conditions(status: &Value, out: &mut String) {
    let Some(conditions) = status["conditions"].as_array() else {
        out.push_str("this host is older and lists no conditions\n");
        return;
    };
    if conditions.is_empty() {
        let _ = writeln!(out, "{}", style("no condition: nothing needs attention").green());
    }
    for condition in conditions {
        let since = millis(&condition["since_unix_ms"]);
        let age = millis(&status["unix_ms"]).zip(since).map(|(now, since)| now.saturating_sub(since));
        let age = age.map_or_else(String::new, |age| format!(", for {}", Rounded(age)));
        let severity = match condition["severity"].as_str() {
            Some("critical") => style("critical".to_owned()).red().bold(),
            _ => style(text(&condition["severity"])).yellow(),
        };
        let _ = writeln!(out, "{severity}  {}{age}: {}", text(&condition["subject"]), text(&condition["text"]));
        let _ = writeln!(out, "  remedy: {}", text(&condition["remedy"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(conditions: &Value) -> Value {
        let mut status = json!({
            "version": "0.2.0", "ready": true, "unready": null, "uptime_ms": 61_857, "unix_ms": 1_764_300_075_000_u64,
            "state": "memory",
            "upstreams": [{
                "name": "api", "policy": "http-standard", "generation": 2, "endpoints": 3, "breakers_open": 1,
            }],
        });
        if !conditions.is_null() {
            status["conditions"] = conditions.clone();
        }
        status
    }

    #[test]
    fn each_condition_has_its_age_and_its_remedy() {
        let critical = json!({
            "id": "state-down", "severity": "critical", "subject": "host", "since_unix_ms": 1_764_300_000_000_u64,
            "text": "Shared state cannot be reached", "remedy": "Check Redis",
        });
        let warning = json!({
            "id": "x", "severity": "warning", "subject": "api/any", "since_unix_ms": 1_764_300_074_000_u64, "text": "T",
            "remedy": "R",
        });
        let expected = "triage 0.2.0, up 1 min 2 s, state memory: ready\n\n\
            critical  host, for 1 min 15 s: Shared state cannot be reached\n  remedy: Check Redis\n\
            warning  api/any, for 1 s: T\n  remedy: R\n\n\
            UPSTREAM  POLICY         GENERATION  ENDPOINTS  BREAKERS OPEN\n\
            api       http-standard  2           3          1\n";
        assert_eq!(table(&status(&json!([critical, warning]))), expected);
        assert!(is_critical(&status(&json!([warning, critical]))));
        assert!(!is_critical(&status(&json!([warning]))));
    }

    #[test]
    fn no_condition_and_no_list_of_conditions_are_told_apart() {
        assert!(table(&status(&json!([]))).contains("\nno condition: nothing needs attention\n"));
        assert!(table(&status(&Value::Null)).contains("\nthis host is older and lists no conditions\n"));
        assert!(!is_critical(&status(&Value::Null)));
    }
}
