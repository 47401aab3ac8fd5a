//! Compares a verdict with the expected one, and with what the host would do.

use super::{
    super::{
        contract::{Next, Verdict},
        host_view::HostView,
    },
    case::Expected,
};
use http::HeaderMap;
use std::time::Duration;

/// The parts of a verdict that differ from the expected ones.
pub(super) fn verdict(verdict: &Verdict, expected: &Expected) -> Vec<String> {
    let (next, delay) = match &verdict.next {
        Next::Deliver => ("deliver", None),
        Next::Retry(delay) => ("retry", Some(*delay)),
        Next::Verify(probe) => ("verify", Some(probe.delay)),
        Next::Replace(_) => ("replace", None),
    };
    let probe = if let Next::Verify(probe) = &verdict.next { Some(probe) } else { None };
    let answer = if let Next::Replace(answer) = &verdict.next { Some(answer) } else { None };
    let ms = |duration: Option<Duration>| duration.map_or_else(String::new, |d| d.as_millis().to_string());
    let number = |wanted: Option<u64>| wanted.map_or_else(String::new, |ms| ms.to_string());
    let text = |headers: Option<&HeaderMap>| headers.map_or_else(String::new, lines);
    let compared = [
        ("class", verdict.class.name().to_owned(), expected.class.clone()),
        ("next", next.to_owned(), expected.next.clone()),
        ("breaker", verdict.breaker.name().to_owned(), expected.breaker.clone()),
        ("delay_ms", ms(delay), number(expected.delay_ms)),
        ("pause_ms", ms(verdict.pause), number(expected.pause_ms)),
        ("claim", verdict.claim.clone().unwrap_or_default(), expected.claim.clone()),
        (
            "probe",
            probe.map_or_else(String::new, |probe| format!("{} {}", probe.method, probe.path_and_query)),
            expected.probe.clone(),
        ),
        ("probe_headers", text(probe.map(|probe| &probe.headers)), lines(&expected.probe_headers)),
        (
            "answer_status",
            number(answer.map(|answer| answer.status.as_u16().into())),
            number(expected.answer_status.map(Into::into)),
        ),
        ("answer_headers", text(answer.map(|answer| &answer.headers)), lines(&expected.answer_headers)),
        (
            "answer_body",
            answer.map_or_else(String::new, |answer| String::from_utf8_lossy(&answer.body).into_owned()),
            expected.answer_body.clone(),
        ),
    ];
    let wrong = compared.iter().filter(|(_, got, wanted)| !wanted.is_empty() && got != wanted);
    wrong.map(|(what, got, wanted)| format!("{what} {got:?}, not {wanted:?}")).collect()
}

/// Headers in one order, a line each.
fn lines(headers: &HeaderMap) -> String {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
    };
    let mut lines: Vec<String> = headers.iter().map(line).collect();
    lines.sort();
    lines.join("\n")
}

/// Whether the host would follow the verdict, or departs from it as the case expects.
pub(super) fn clamp(view: &HostView, expected: &Expected) -> Option<String> {
    let wanted = Some(expected.clamped.as_str()).filter(|name| !matches!(*name, "" | "no"));
    let departure = view.departure();
    if departure.map(super::super::host_view::Departure::name) == wanted {
        return None;
    }
    Some(match (departure, wanted) {
        (Some(departure), _) => format!(
            "the host would not follow this: {}: {}; instead {}",
            departure.name(),
            departure.text(),
            view.does()
        ),
        (None, wanted) => {
            format!(
                "clamped \"no\", not {:?}: the host would follow this, and {}",
                wanted.unwrap_or_default(),
                view.does()
            )
        }
    })
}
