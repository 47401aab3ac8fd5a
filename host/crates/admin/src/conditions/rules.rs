//! Which conditions hold, given the facts. Pure.
//!
//! A text contains no value that changes from second to second: the page announces each new text to screen readers.

use super::{
    ConditionId, Finding, HOST, Severity,
    facts::{Facts, Reach, StateFacts, UpstreamFacts},
    failure_remedies, refusal_remedies,
};
use crate::{
    clock::millis,
    dto::{Breaker, BreakerState, FleetPhase, Requests, Standing},
    telemetry::{Event, FailureCause, Traffic},
};

/// Events of a policy's life stay conditions for this long: an operator on call may look an hour later.
const EVENT_LIFETIME_MS: u64 = 3_600_000;
/// The share of failed requests from which an upstream counts as failing, in percent. Below it, a failure is an incident.
const FAILING_PERCENT: f64 = 1.0;
/// The share of refused or failed requests from which the condition is critical, in percent.
const CRITICAL_PERCENT: f64 = 5.0;
/// Fewer requests than this in ten seconds are no critical condition: at a quiet upstream one failure would be all of them.
const CRITICAL_MIN_REQUESTS: u64 = 5;
/// Reasons that a text names.
const MAX_REASONS: usize = 3;

/// All conditions, in no order.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    host(facts, &mut findings);
    if let Some(state) = &facts.state {
        shared_state(state, facts.now_unix_ms, &mut findings);
    }
    for upstream in &facts.upstreams {
        findings.extend(upstream.breakers.iter().filter_map(|(breaker, cause)| breaker_condition(breaker, *cause)));
        limits(upstream, &mut findings);
        policy(upstream, facts.now_unix_ms, &mut findings);
    }
    for traffic in &facts.traffic {
        let upstream = facts.upstreams.iter().find(|upstream| upstream.name == traffic.upstream);
        findings.extend(refused(traffic));
        findings.extend(failing(traffic, upstream));
    }
    findings
}

fn host(facts: &Facts, findings: &mut Vec<Finding>) {
    if let Some(unready) = facts.unready {
        let remedy = "A load balancer sends no requests here meanwhile; look at the host's log if this lasts.";
        let text = format!("Not ready: {unready}.");
        findings.push(Finding::new(ConditionId::NotReady, Severity::Critical, HOST, text, remedy.to_owned()));
    }
    if facts.is_memory_full {
        findings.push(Finding::new(
            ConditionId::MemoryFull,
            Severity::Critical,
            HOST,
            "The host has reached its memory limit: it refuses requests and connections.".to_owned(),
            "Give the process more memory (server.memory_limit), or lower the number and size of concurrent requests."
                .to_owned(),
        ));
    }
    let unsettled = facts.unsettled;
    if unsettled.count > 0 {
        let (severity, rest) = match unsettled.unverified {
            0 => (Severity::Warning, "the host verifies them by itself".to_owned()),
            count if count == unsettled.count => (Severity::Critical, "no host verifies them".to_owned()),
            count => (Severity::Critical, format!("no host verifies {count} of them")),
        };
        let writes = if unsettled.count == 1 { "1 write has" } else { &format!("{} writes have", unsettled.count) };
        let text = format!("{writes} an unknown effect: {rest}.");
        let remedy = "List them with `triage records list`, look at the upstream, and settle each with `triage records resolve`.";
        let finding = Finding::new(ConditionId::WritesUnsettled, severity, HOST, text, remedy.to_owned());
        findings.push(finding.since(unsettled.oldest_unix_ms));
    }
    if let Some(event) = &facts.reload_refused {
        let text = format!("The configuration was refused at the last reload: {}", ended(&event.text));
        let remedy =
            "Correct the file (`triage config check`), and send SIGHUP again. The settings before stay in force.";
        let finding = Finding::new(ConditionId::ReloadRefused, Severity::Warning, HOST, text, remedy.to_owned());
        findings.push(finding.since(event.unix_ms));
    }
    for event in &facts.refused_connections {
        let (id, severity, text, remedy) = if event.kind == "exhausted" {
            (
                ConditionId::DescriptorsExhausted,
                Severity::Critical,
                format!("Requests to {} get 503 overloaded: {}", event.subject, ended(&event.text)),
                "Raise the limit of open files (LimitNOFILE, ulimit -n), or lower server.max_connections.",
            )
        } else {
            (
                ConditionId::PeerLimited,
                Severity::Warning,
                format!("The host closes connections of {}: {}", event.subject, ended(&event.text)),
                "If this peer is yours, let it use fewer connections, or raise server.peer_share or server.max_connections.",
            )
        };
        let finding = Finding::new(id, severity, HOST, text, remedy.to_owned());
        findings.push(finding.since(event.unix_ms));
    }
    if facts.traces_dropped > 0 {
        findings.push(Finding::new(
            ConditionId::TracesDropped,
            Severity::Warning,
            HOST,
            "Traces are lost: the collector does not accept them, or accepts them too slowly.".to_owned(),
            "Check the collector at telemetry.otlp.endpoint, or export fewer traces.".to_owned(),
        ));
    }
}

fn shared_state(state: &StateFacts, now_unix_ms: u64, findings: &mut Vec<Finding>) {
    let mut add = |id, severity, text: &str, remedy: &str| {
        findings.push(Finding::new(id, severity, HOST, text.to_owned(), remedy.to_owned()));
    };
    let effect = if state.writes_alone {
        "Writes are sent without it, and another host may repeat one. Reads go on with this host's own breakers and its share of the limits."
    } else {
        "Writes that need it get 503 store-unavailable. Reads go on with this host's own breakers and its share of the limits."
    };
    match state.reach {
        Reach::Up => {}
        Reach::Down => add(
            ConditionId::StateDown,
            Severity::Critical,
            &format!("Shared state cannot be reached. {effect}"),
            "Check Redis at state.url, and the network to it; the host's log has the error. The host connects again by itself.",
        ),
        Reach::Unauthorized => add(
            ConditionId::StateUnauthorized,
            Severity::Critical,
            &format!("Shared state refuses this host's name or password. {effect}"),
            "Correct state.password_file, TRIAGE_STATE_PASSWORD or state.url.",
        ),
    }
    match state.refused.as_deref() {
        Some("OOM") => add(
            ConditionId::StateRefuses,
            Severity::Critical,
            &format!("Shared state is full and refuses calls (OOM). {effect}"),
            "Raise Redis's maxmemory, or keep keys for a shorter time (idempotency.keep).",
        ),
        Some(code) => add(
            ConditionId::StateRefuses,
            Severity::Critical,
            &format!("Shared state refuses calls ({code}). {effect}"),
            "Look at Redis's log and at the permissions of this host's user.",
        ),
        None => {}
    }
    if state.timed_out > 0 && state.reach == Reach::Up {
        add(
            ConditionId::StateSlow,
            Severity::Warning,
            "Calls to shared state get no answer in time; the requests go on as if it could not be reached.",
            "Look at Redis's load and at the network to it, or raise state.timeout.",
        );
    }
    if state.may_evict {
        add(
            ConditionId::StateEvicts,
            Severity::Warning,
            "Shared state deletes data when its memory is full: idempotency keys may be lost, and writes repeated.",
            "Set Redis's maxmemory-policy to noeviction.",
        );
    }
    if let Some(ago) = state.lost_ago {
        let text = "Shared state has lost data. A write whose key is unknown may have been sent before: a policy that cannot \
                    verify it answers 504 effect-unknown, and nothing is sent.";
        let remedy = format!(
            "Once no such write can be under way, end the doubt: redis-cli HDEL {}:census lost. By itself it ends when the \
             keys of before the loss have expired.",
            state.prefix
        );
        let finding = Finding::new(ConditionId::StateLostData, Severity::Warning, HOST, text.to_owned(), remedy);
        findings.push(finding.since(now_unix_ms.saturating_sub(millis(ago))));
    }
}

fn breaker_condition(breaker: &Breaker, cause: Option<FailureCause>) -> Option<Finding> {
    if !breaker.enabled {
        return None;
    }
    let subject = format!("{}/{}", breaker.upstream, breaker.group);
    let of_endpoints = match breaker.requests {
        Requests::All => breaker.endpoints.join(", "),
        Requests::Reads => format!("{} that only read", breaker.endpoints.join(", ")),
        Requests::Writes => format!("{} that write", breaker.endpoints.join(", ")),
    };
    if breaker.forced {
        let effect = match breaker.state {
            BreakerState::Closed => format!("sends requests to {of_endpoints} however many fail"),
            BreakerState::Open | BreakerState::HalfOpen => format!("refuses every request to {of_endpoints}"),
        };
        let state = if breaker.state == BreakerState::Closed { "closed" } else { "open" };
        let severity = if breaker.state == BreakerState::Closed { Severity::Warning } else { Severity::Critical };
        let text = format!("Breaker {subject} is forced {state} by an operator: the host {effect}.");
        let remedy = format!(
            "It ends by itself; end it now with `triage breakers clear {} {}`.",
            breaker.upstream, breaker.endpoints[0]
        );
        return Some(Finding::new(ConditionId::BreakerForced, severity, &subject, text, remedy));
    }
    let why = breaker.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    let cause = cause.map_or_else(String::new, |cause| sentence(failure_remedies::remedy(cause)));
    let explain = breaker
        .latest_failure
        .as_ref()
        .map_or_else(String::new, |failure| format!("`triage explain {}` shows a failure.", failure.request));
    let remedy = |rest: &str| [cause.as_str(), explain.as_str(), rest].map(str::trim).join(" ").trim().to_owned();
    match breaker.state {
        BreakerState::Closed => None,
        BreakerState::Open => Some(Finding::new(
            ConditionId::BreakerOpen,
            Severity::Critical,
            &subject,
            format!("Breaker {subject} is open{why}. Requests to {of_endpoints} get 503 breaker-open."),
            remedy("The host probes by itself and closes the breaker when the upstream is back."),
        )),
        BreakerState::HalfOpen => Some(Finding::new(
            ConditionId::BreakerHalfOpen,
            Severity::Warning,
            &subject,
            format!("Breaker {subject} is half-open{why}. Probes decide; other requests to {of_endpoints} get 503."),
            remedy(""),
        )),
    }
}

fn limits(upstream: &UpstreamFacts, findings: &mut Vec<Finding>) {
    for group in &upstream.limits {
        let subject = format!("{}/{}", group.upstream, group.group);
        if group.paused_ms.is_some() {
            findings.push(Finding::new(
                ConditionId::UpstreamPaused,
                Severity::Warning,
                &subject,
                format!("{subject} is paused: the upstream, or its policy, asked the host to wait."),
                format!(
                    "It ends by itself; end it now with `triage limits lift-pause {} {}`.",
                    group.upstream, group.endpoints[0]
                ),
            ));
        }
        if group.adaptive_rate.as_ref().is_some_and(|rate| rate.per_minute.is_some()) {
            findings.push(Finding::new(
                ConditionId::UpstreamThrottles,
                Severity::Warning,
                &subject,
                format!("The upstream throttles {subject}: the host sends fewer requests than `limits` allow."),
                "The rate rises by itself. If it does not, set `limits` to what the upstream allows.".to_owned(),
            ));
        }
    }
    if upstream.shed > 0 {
        let name = &upstream.name;
        findings.push(Finding::new(
            ConditionId::UpstreamOverloaded,
            Severity::Critical,
            name,
            format!("Upstream {name} is overloaded: the host refuses requests, those of the lowest priority first."),
            "Answers take far longer than usual: look at the upstream's load. Fewer callers or a faster upstream end it.".to_owned(),
        ));
    }
}

fn policy(upstream: &UpstreamFacts, now_unix_ms: u64, findings: &mut Vec<Finding>) {
    let name = &upstream.name;
    let mut add = |id, severity, text: String, remedy: &str, since: Option<u64>| {
        let finding = Finding::new(id, severity, name, text, remedy.to_owned());
        findings.push(Finding { since_unix_ms: since, ..finding });
    };
    if upstream.policy.serving.standing == Standing::Suspended {
        add(
            ConditionId::PolicySuspended,
            Severity::Critical,
            format!("The policy of {name} no longer serves: it failed too often, and the built-in policy decides."),
            "Copy a fixed component into the folder, or announce one.",
            None,
        );
    }
    for event in upstream.events.iter().filter(|event| now_unix_ms.saturating_sub(event.unix_ms) < EVENT_LIFETIME_MS) {
        let Some((id, severity, what, remedy)) = event_condition(event) else { continue };
        add(id, severity, format!("{what} {name}: {}", ended(&event.text)), remedy, Some(event.unix_ms));
    }
    if let Some(fleet) = &upstream.policy.fleet {
        let behind = fleet.hosts.iter().filter(|host| host.behind && host.name != fleet.host);
        let names: Vec<&str> = behind.map(|host| host.name.as_str()).collect();
        if fleet.behind {
            let why =
                fleet.why_behind.as_deref().map_or_else(String::new, |why| format!(": {}", why.trim_end_matches('.')));
            add(
                ConditionId::FleetBehind,
                Severity::Critical,
                format!("This host serves another policy of {name} than its fleet{why}."),
                "Mend the cause, and announce the policy again, or roll the fleet back.",
                None,
            );
        } else if !names.is_empty() && fleet.phase == FleetPhase::Agreed {
            add(
                ConditionId::FleetHostBehind,
                Severity::Warning,
                format!("Hosts that serve another policy of {name} than the fleet: {}.", names.join(", ")),
                "Run `triage status` against each of these hosts: it names the cause.",
                None,
            );
        }
    }
}

fn event_condition(event: &Event) -> Option<(ConditionId, Severity, &'static str, &'static str)> {
    let fix = "Fix the component and copy it into the folder again, or push and announce a fixed one.";
    Some(match event.kind {
        "policy-rolled-back" => (ConditionId::PolicyRolledBack, Severity::Warning, "Policy of", fix),
        "policy-withdrawn" => (
            ConditionId::PolicyWithdrawn,
            Severity::Warning,
            "Policy of",
            "Nothing, if this was wanted. The component serves again after `triage policy promote`.",
        ),
        "policy-refused" => (ConditionId::PolicyRefused, Severity::Warning, "Policy of", fix),
        "candidate-given-up" => (ConditionId::CandidateGivenUp, Severity::Warning, "Candidate of", fix),
        _ => return None,
    })
}

fn refused(traffic: &Traffic) -> Option<Finding> {
    let total: u64 = traffic.refused.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return None;
    }
    let mut reasons = traffic.refused.clone();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let percent = percent(total, traffic.requests);
    let names: Vec<&str> = reasons.iter().take(MAX_REASONS).map(|(reason, _)| *reason).collect();
    let (subject, of) = subject(traffic);
    // A repetition of a request under way is held back for the caller's own good.
    let counted: u64 = reasons.iter().filter(|(reason, _)| *reason != "in-flight").map(|(_, count)| count).sum();
    let severity = severity(counted, traffic.requests);
    let text = format!("The host refuses {} of the requests{of}: {}.", rounded(percent), names.join(", "));
    let remedy = refusal_remedies::remedy(reasons[0].0).to_owned();
    Some(Finding::new(ConditionId::RequestsRefused, severity, subject, text, remedy))
}

fn failing(traffic: &Traffic, upstream: Option<&UpstreamFacts>) -> Option<Finding> {
    let percent = percent(traffic.failed, traffic.requests);
    if traffic.failed == 0 || percent < FAILING_PERCENT {
        return None;
    }
    let latest = upstream.and_then(|upstream| upstream.latest_failure);
    let cause = latest.map_or_else(String::new, |failure| format!(": {}", failure.cause));
    let remedy = latest.map_or("Look at a failed request: `triage requests --rough`.", |failure| {
        failure_remedies::remedy(failure.cause)
    });
    let (subject, of) = subject(traffic);
    let severity = severity(traffic.failed, traffic.requests);
    let text = format!("{} of the requests{of} fail{cause}.", capital(&rounded(percent)));
    Some(Finding::new(ConditionId::RequestsFailing, severity, subject, text, sentence(remedy)))
}

fn subject(traffic: &Traffic) -> (&str, String) {
    if traffic.upstream.is_empty() {
        (HOST, " that match no upstream or endpoint".to_owned())
    } else {
        (&traffic.upstream, format!(" to {}", traffic.upstream))
    }
}

fn severity(part: u64, of: u64) -> Severity {
    let is_critical = part >= CRITICAL_MIN_REQUESTS && percent(part, of) >= CRITICAL_PERCENT;
    if is_critical { Severity::Critical } else { Severity::Warning }
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of.max(part).max(1) as f64
}

/// A share in words that stay the same while it moves a little.
fn rounded(percent: f64) -> String {
    match percent {
        _ if percent < 1.0 => "less than 1 %".to_owned(),
        _ if percent >= 97.5 => "nearly all".to_owned(),
        _ if percent < 10.0 => "up to 10 %".to_owned(),
        _ => format!("about {:.0} %", (percent / 10.0).round() * 10.0),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A text with a capital and a full stop.
fn sentence(text: &str) -> String {
    ended(&capital(text))
}

/// A text that ends with a full stop.
fn ended(text: &str) -> String {
    format!("{}.", text.trim_end_matches('.'))
}
