//! `triage requests`: the recent requests of a running host, the latest first.

use super::{
    answer::{items, millis, moment, text},
    output::Output,
    remote::segment,
    table::Table,
};
use anyhow::Result;
use console::Style;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode, time::Duration};
use triage_admin::Shape;
use triage_core::rounded::Rounded;

const SHAPE: Shape = Shape::List(&["id", "upstream", "endpoint", "status", "took_us"]);

/// Which requests are listed.
#[derive(Debug, Default, clap::Args)]
pub struct Filters {
    /// Only requests to this upstream
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Only requests to endpoints of this name
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Only answers with this status, such as 503, or of this class, such as 5xx
    #[arg(long)]
    status: Option<String>,
    /// Only requests that the host answered itself for this reason, such as breaker-open
    #[arg(long)]
    reason: Option<String>,
    /// At most this number of rows, from 1 to 500 [default: 100]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Only requests with an incident: a retry, a refusal, a failure
    #[arg(long)]
    rough: bool,
}

/// The options of `triage requests`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    output: Output,
}

/// Lists the requests.
pub fn run(options: &Options) -> Result<ExitCode> {
    list(&options.filters, &options.output)
}

/// Lists the requests that pass the filters; `triage explain` without an id does the same.
pub fn list(filters: &Filters, output: &Output) -> Result<ExitCode> {
    output.show(&filters.path(), SHAPE, table)?;
    Ok(ExitCode::SUCCESS)
}

impl Filters {
    /// The path of the list. The host checks the values and says which ones it takes.
    fn path(&self) -> String {
        let Self { upstream, endpoint, status, reason, limit, rough } = self;
        let mut path = format!("/api/v1/requests?rough={rough}");
        for (name, value) in [("upstream", upstream), ("endpoint", endpoint), ("status", status), ("reason", reason)] {
            if let Some(value) = value {
                let _ = write!(path, "&{name}={}", segment(value));
            }
        }
        if let Some(limit) = limit {
            let _ = write!(path, "&limit={limit}");
        }
        path
    }
}

/// A time in microseconds.
pub fn micros(us: &Value) -> String {
    Rounded(Duration::from_micros(us.as_u64().unwrap_or_default())).to_string()
}

/// The answer to a request, as a status.
pub fn answer(request: &Value) -> String {
    let status = request["status"].as_u64();
    status.map_or_else(|| "no answer: the caller disconnected".to_owned(), |status| status.to_string())
}

/// The answer, the host's own reason for it, and the number of requests that the row stands for.
fn folded(row: &Value) -> String {
    let mut text = answer(row);
    if row["reason"].is_string() {
        let _ = write!(text, " {}", self::text(&row["reason"]));
    }
    if let Some(count) = row["count"].as_u64().filter(|count| *count > 1) {
        let _ = write!(text, " x {count}");
        let times = millis(&row["unix_ms"]).zip(millis(&row["first_unix_ms"]));
        // The host derives the two times from their ages, so that their difference is not exact.
        let seconds = times.map_or(0, |(latest, first)| latest.saturating_sub(first).as_secs_f64().round() as u64);
        if seconds > 0 {
            let _ = write!(text, " within {}", Rounded(Duration::from_secs(seconds)));
        }
    }
    text
}

/// Method, upstream and endpoint of a request.
pub fn target(request: &Value) -> String {
    let part = |name: &str| request[name].as_str().unwrap_or_default();
    match (part("upstream"), part("endpoint")) {
        ("", "") => "no endpoint".to_owned(),
        _ => format!("{} {}/{}", text(&request["method"]), text(&request["upstream"]), text(&request["endpoint"])),
    }
}

fn table(requests: &Value) -> String {
    let mut table = Table::new(&["ID", "TIME (UTC)", "TOOK", "REQUEST", "ANSWER"]);
    for request in items(requests) {
        let style = match request["status"].as_u64() {
            None | Some(500..) => Style::new().red(),
            Some(429) => Style::new().yellow(),
            Some(_) => Style::new(),
        };
        let cells = [
            text(&request["id"]),
            moment(&request["unix_ms"]),
            micros(&request["took_us"]),
            target(request),
            folded(request),
        ];
        table.row(style, cells);
    }
    table.lines("no request is kept that passes these filters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_are_parameters_and_no_value_turns_into_another_parameter() {
        assert_eq!(Filters::default().path(), "/api/v1/requests?rough=false");
        let filters = Filters {
            upstream: Some("api".to_owned()),
            endpoint: Some("a&limit=1".to_owned()),
            status: Some("5xx".to_owned()),
            reason: Some("breaker-open".to_owned()),
            limit: Some(7),
            rough: true,
        };
        assert_eq!(
            filters.path(),
            "/api/v1/requests?rough=true&upstream=api&endpoint=a~limit~1&status=5xx&reason=breaker-open&limit=7"
        );
    }

    #[test]
    fn a_request_is_a_row() {
        let request = |endpoint: &str, status: Value| {
            json!({
                "id": "c50613cb42e56e0c", "upstream": "api", "endpoint": endpoint, "method": "GET", "unix_ms": 60_000,
                "took_us": 61_857_000, "status": status,
            })
        };
        let mut none = request("", json!(404));
        none["upstream"] = json!("");
        let mut folded = request("list", json!(503));
        (folded["reason"], folded["count"], folded["first_unix_ms"]) =
            (json!("breaker-open"), json!(1412), json!(27_000));
        let expected = "\
            ID                TIME (UTC)            TOOK       REQUEST       ANSWER\n\
            c50613cb42e56e0c  01 Jan 1970 00:01:00  1 min 2 s  GET api/list  no answer: the caller disconnected\n\
            c50613cb42e56e0c  01 Jan 1970 00:01:00  1 min 2 s  no endpoint   404\n\
            c50613cb42e56e0c  01 Jan 1970 00:01:00  1 min 2 s  GET api/list  503 breaker-open x 1412 within 33 s\n";
        assert_eq!(table(&json!([request("list", Value::Null), none, folded])), expected);
    }
}
