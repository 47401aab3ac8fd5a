//! Fault rules of the command line, such as `create=reset-after@3`.

use super::{Call, Fault, Faults, When};
use http::StatusCode;
use std::{str::FromStr, time::Duration};

/// A rule for [`Faults`], parsed from text.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The call it applies to; none for every call.
    call: Option<Call>,
    when: When,
    /// The fault; none to refuse the connection.
    fault: Option<Fault>,
}

const CALLS: [(&str, Call); 9] = [
    ("health", Call::Health),
    ("create", Call::Create),
    ("list", Call::List),
    ("get", Call::Get),
    ("update", Call::Update),
    ("delete", Call::Delete),
    ("list-batch", Call::ListBatch),
    ("activate", Call::Activate),
    ("delete-batch", Call::DeleteBatch),
];

impl Rule {
    /// The syntax, as the command line's help shows it.
    pub const SYNTAX: &str =
        "Fault to inject, as CALL=FAULT[@WHEN]; may be given several times, the first rule that applies counts.

CALL   any, health, create, list, get, update, delete, list-batch, activate, delete-batch
FAULT  status:503    nothing done, answered 503        status-after:500  done, then answered 500
       reset         nothing done, connection reset    reset-after       done, then reset
       stall         nothing done, nothing answered    stall-after       done, nothing answered
       unreadable    done, 200 with half of the JSON   cut-short         done, half an answer, reset
       late:60       reset; a create is done up to that many seconds later
       limited[:5]   429, with Retry-After if given    refuse            closed at once (any only)
WHEN   @3 every third call, @first:2 the first two, @10% one in ten by chance; without it, every call

Example: --fault create=reset-after@3 --fault any=status:503@5%";
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (call, rest) = text.split_once('=').ok_or("it must be CALL=FAULT[@WHEN], such as create=reset-after@3")?;
        let (fault, when) = rest.split_once('@').map_or((rest, None), |(fault, when)| (fault, Some(when)));
        let call = if call == "any" { None } else { Some(read_call(call)?) };
        let when = when.map_or(Ok(When::Always), read_when)?;
        if fault == "refuse" {
            return match call {
                None => Ok(Self { call, when, fault: None }),
                Some(_) => {
                    Err("refuse applies to connections, before their calls are known: write any=refuse".to_owned())
                }
            };
        }
        Ok(Self { call, when, fault: Some(read_fault(fault)?) })
    }
}

fn read_call(text: &str) -> Result<Call, String> {
    let known = CALLS.iter().find(|(name, _)| *name == text).map(|(_, call)| *call);
    known.ok_or_else(|| {
        let names: Vec<&str> = CALLS.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is not a call; the calls are any, {}", names.join(", "))
    })
}

fn read_when(text: &str) -> Result<When, String> {
    let count = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0);
    let chance = |text: &str| text.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    let read = if let Some(first) = text.strip_prefix("first:") {
        count(first).map(When::First)
    } else if let Some(percent) = text.strip_suffix('%') {
        chance(percent).map(|percent| When::Chance(percent / 100.0))
    } else {
        count(text).map(When::every)
    };
    read.ok_or_else(|| format!("@{text} is not valid; write @3 (every third), @first:2 or @10%"))
}

fn read_fault(text: &str) -> Result<Fault, String> {
    let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
    let status = || {
        let code = value.and_then(|value| StatusCode::from_bytes(value.as_bytes()).ok());
        code.filter(|code| code.as_u16() >= 400)
            .ok_or_else(|| format!("{name} needs a status from 400, such as {name}:503"))
    };
    let seconds = |value: &str| {
        value.parse().map(Duration::from_secs).map_err(|_| {
            format!(
                "{value:?} must be a whole number of \
                                                                                  seconds"
            )
        })
    };
    if value.is_some() && !matches!(name, "status" | "status-after" | "late" | "limited") {
        return Err(format!("{name} takes no value"));
    }
    Ok(match name {
        "status" => Fault::FailBefore(status()?),
        "status-after" => Fault::FailAfter(status()?),
        "reset" => Fault::ResetBefore,
        "reset-after" => Fault::ResetAfter,
        "stall" => Fault::StallBefore,
        "stall-after" => Fault::StallAfter,
        "unreadable" => Fault::Unreadable,
        "cut-short" => Fault::CutShort,
        "late" => Fault::ResetThenCommit(Duration::ZERO..=value.map_or(Ok(Duration::from_mins(1)), seconds)?),
        "limited" => Fault::RateLimited(value.map(seconds).transpose()?),
        _ => return Err(format!("{name:?} is not a fault; `triage emulator --help` lists the faults")),
    })
}

impl FromIterator<Rule> for Faults {
    fn from_iter<T: IntoIterator<Item = Rule>>(rules: T) -> Self {
        rules.into_iter().fold(Self::none(), |faults, rule| match (rule.call, rule.fault) {
            (_, None) => faults.refuse(rule.when),
            (None, Some(fault)) => faults.anywhere(rule.when, fault),
            (Some(call), Some(fault)) => faults.on(call, rule.when, fault),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_are_read_as_written() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse::<Rule>().unwrap()).collect::<Faults>();
        let meant = Faults::none()
            .on(Call::Create, When::every(3), Fault::ResetAfter)
            .anywhere(When::Chance(0.05), Fault::FailBefore(StatusCode::SERVICE_UNAVAILABLE))
            .on(Call::ListBatch, When::First(2), Fault::RateLimited(Some(Duration::from_secs(5))))
            .refuse(When::Always);
        let texts = ["create=reset-after@3", "any=status:503@5%", "list-batch=limited:5@first:2", "any=refuse"];
        assert_eq!(read(&texts), meant);
    }

    #[test]
    fn the_error_for_an_invalid_rule_says_why() {
        for (text, why) in [
            ("create", "it must be CALL=FAULT[@WHEN], such as create=reset-after@3"),
            (
                "post=reset",
                "\"post\" is not a call; the calls are any, health, create, list, get, update, delete, list-batch, activate, delete-batch",
            ),
            ("create=explode", "\"explode\" is not a fault; `triage emulator --help` lists the faults"),
            ("create=status:200", "status needs a status from 400, such as status:503"),
            ("create=reset:5", "reset takes no value"),
            ("create=limited:soon", "\"soon\" must be a whole number of seconds"),
            ("create=reset@0", "@0 is not valid; write @3 (every third), @first:2 or @10%"),
            ("create=reset@101%", "@101% is not valid; write @3 (every third), @first:2 or @10%"),
            ("create=refuse", "refuse applies to connections, before their calls are known: write any=refuse"),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap_err(), why, "{text}");
        }
    }
}
