//! An endpoint's table: the operator's word, every key optional.

use super::{
    section::Section,
    settings::{BreakerOverride, BudgetOverride, EndpointOverride, RetryOverride},
    value::{COUNT, DURATION, FLAG, NUMBER, PERCENT, TEXT},
};
use crate::{policy::contract::Effect, rate_limit::Quota};
use std::{num::NonZeroU32, time::Duration};

/// Reads `[...defaults]` or `[...endpoints.NAME]`.
pub(super) fn read(name: &str, section: &Section<'_>) -> EndpointOverride {
    let named = !name.is_empty();
    let read = EndpointOverride {
        name: name.to_owned(),
        method: named
            .then(|| section.parsed("method", "be an HTTP method in upper case, such as \"POST\"", method))
            .flatten(),
        path: named.then(|| section.parsed("path", "be a URI template such as \"/hospitals/{id}\"", path)).flatten(),
        group: named.then(|| section.get("group", TEXT)).flatten(),
        attempt_timeout: section.get("attempt_timeout", DURATION).filter(|_| positive(section, "attempt_timeout")),
        deadline: section.get("deadline", DURATION).filter(|_| positive(section, "deadline")),
        retry: retry(&section.section("retry")),
        budget: budget(&section.section("budget")),
        breaker: breaker(&section.section("breaker")),
        limits: limits(section),
        concurrency: section.get("concurrency", COUNT).map(|most| most as usize),
        settle: section.get("settle", FLAG),
        effect: section.parsed("effect", "be \"safe\", \"idempotent\" or \"unsafe\"", effect),
    };
    section.finish();
    read
}

fn method(text: &str) -> Option<http::Method> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_uppercase()))
}

fn path(text: &str) -> Option<String> {
    (text.starts_with('/') && text.len() <= 512).then(|| text.to_owned())
}

fn effect(text: &str) -> Option<Effect> {
    match text {
        "safe" => Some(Effect::Safe),
        "idempotent" => Some(Effect::Idempotent),
        "unsafe" => Some(Effect::Unsafe),
        _ => None,
    }
}

fn positive(section: &Section<'_>, name: &'static str) -> bool {
    let zero = section.raw(name).and_then(super::value::duration) == Some(Duration::ZERO);
    if zero {
        section.reading.wrong(&section.key(name), "0", "be longer than 0");
    }
    !zero
}

fn retry(section: &Section<'_>) -> RetryOverride {
    let read = RetryOverride {
        max_attempts: section.get("max_attempts", COUNT),
        min_wait: section.get("min_wait", DURATION),
        max_wait: section.get("max_wait", DURATION),
    };
    if let (Some(min), Some(max)) = (read.min_wait, read.max_wait)
        && min > max
    {
        let must = format!("not be longer than {}, which is {max:?}", section.key("max_wait"));
        section.reading.wrong(&section.key("min_wait"), format!("{min:?}"), must);
    }
    section.finish();
    read
}

fn budget(section: &Section<'_>) -> BudgetOverride {
    let read = BudgetOverride {
        percent: section.get("percent", PERCENT),
        floor_per_second: section.get("floor_per_second", NUMBER),
        capacity: section.get("capacity", COUNT),
    };
    section.finish();
    read
}

fn breaker(section: &Section<'_>) -> BreakerOverride {
    let read = BreakerOverride {
        enabled: section.get("enabled", FLAG),
        failure_threshold: section.get("failure_threshold", NUMBER),
        failure_rate: section.get("failure_rate", PERCENT),
        slow_call_after: section.get("slow_call_after", DURATION),
        slow_rate: section.get("slow_rate", PERCENT),
        window: section.get("window", DURATION).filter(|_| positive(section, "window")),
        minimum_calls: section.get("minimum_calls", COUNT),
        open_for: section.get("open_for", DURATION).filter(|_| positive(section, "open_for")),
        open_for_max: section.get("open_for_max", DURATION),
        jitter: section.get("jitter", PERCENT),
        probes: section.get("probes", COUNT),
        probe_lease: section.get("probe_lease", DURATION),
    };
    if read.failure_threshold == Some(0) && read.failure_rate == Some(0) && read.slow_call_after.is_none() {
        let must = "have a criterion that trips it, or be switched off by enabled = false";
        section.reading.wrong(&section.path, "a breaker without criteria", must);
    }
    section.finish();
    read
}

fn limits(section: &Section<'_>) -> Option<Vec<Quota>> {
    let mut quotas = Vec::new();
    for limit in section.list("limits")? {
        let requests = limit.get("requests", COUNT);
        let period = limit.get("period", DURATION).filter(|_| positive(&limit, "period"));
        let burst = limit.get("burst", COUNT);
        for (name, missing) in
            [("requests", limit.raw("requests").is_none()), ("period", limit.raw("period").is_none())]
        {
            if missing {
                limit.reading.wrong(&limit.key(name), "", "be given");
            }
        }
        limit.finish();
        let (Some(requests), Some(period)) = (requests.and_then(NonZeroU32::new), period) else { continue };
        let burst = burst.and_then(NonZeroU32::new).unwrap_or(requests);
        quotas.push(Quota { requests, period, burst });
    }
    Some(quotas)
}
