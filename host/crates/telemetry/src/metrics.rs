//! All metrics. Times are in seconds, sizes in bytes. Label values come from closed sets or the configuration, never from a request.

use prometheus_client::metrics::MetricType;

/// Description of a metric.
#[derive(Debug)]
pub struct Metric {
    /// The name in queries; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// Counter, gauge, histogram or info.
    pub kind: MetricType,
    /// Meaning of the value.
    pub help: &'static str,
    /// Names of the labels.
    pub labels: &'static [&'static str],
}

const fn metric(name: &'static str, kind: MetricType, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, help, labels }
}

use MetricType::{Counter, Gauge, Histogram};

const ENDPOINT: &[&str] = &["upstream", "endpoint"];
const GROUP: &[&str] = &["upstream", "group"];

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:expr, $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = metric($name, $kind, $labels, $help);
        )*

        /// Every metric, in the order of a scrape.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    REQUESTS = "triage_requests_total", Counter, &["upstream", "endpoint", "status"],
        "Requests answered, by the answer's status class; upstream and endpoint are empty for requests that match no \
         endpoint";
    REFUSALS = "triage_refusals_total", Counter, &["upstream", "endpoint", "reason"],
        "Requests that the host answered itself, by the reason in the problem's type";
    ABANDONED = "triage_requests_abandoned_total", Counter, ENDPOINT,
        "Requests whose caller disconnected before the answer";
    IN_FLIGHT = "triage_requests_in_flight", Gauge, ENDPOINT,
        "Requests under way";
    REQUEST_TIME = "triage_request_duration_seconds", Histogram, ENDPOINT,
        "Time from a request to the head of its answer";
    ATTEMPTS = "triage_attempts_total", Counter, &["upstream", "endpoint", "outcome"],
        "Attempts sent, by status class or kind of failure";
    ATTEMPT_TIME = "triage_attempt_duration_seconds", Histogram, ENDPOINT,
        "Time from an attempt's send to the head of its answer or its failure";
    RETRIES = "triage_retries_total", Counter, &["upstream", "endpoint", "class"],
        "Retries, by the class of the outcome that led to them";
    VERIFICATIONS = "triage_verifications_total", Counter, ENDPOINT,
        "Requests that verified a write whose effect was unknown";
    LOOKS = "triage_looks_total", Counter, ENDPOINT,
        "Old name of `triage_verifications_total`; version 0.3 removes it";
    VERDICTS = "triage_verdicts_total", Counter, &["upstream", "endpoint", "class"],
        "Outcomes judged, by class; settled statuses count as applied";
    DECISION_TIME = "triage_decision_duration_seconds", Histogram, ENDPOINT,
        "Time that a policy took for a verdict";
    CLAMPS = "triage_clamps_total", Counter, &["upstream", "endpoint", "limit"],
        "Verdicts that the host changed or did not follow, by reason";
    FAULTS = "triage_policy_faults_total", Counter, &["upstream", "endpoint", "fault"],
        "Failures of a policy, after which the built-in policy decided";
    WAIT_TIME = "triage_limit_wait_duration_seconds", Histogram, ENDPOINT,
        "Time that attempts waited for their permit";
    KEYED = "triage_idempotency_total", Counter, &["upstream", "endpoint", "result"],
        "Requests with an idempotency key, by what the host did with the key";
    ORPHANS = "triage_orphans_total", Counter, &["upstream", "endpoint", "result"],
        "Writes without a key whose caller disconnected before the answer (left), and what the next equal request got \
         from them";
    BREAKER = "triage_breaker_state", Gauge, &["upstream", "group", "state"],
        "1 for the present state of the breaker, 0 for the others";
    BREAKER_FORCED = "triage_breaker_forced", Gauge, GROUP,
        "1 while an operator holds the breaker open or closed";
    BREAKER_USUAL = "triage_breaker_usual_failure_ratio", Gauge, GROUP,
        "The usual share of failed calls; missing if the breaker has no baseline, or does not know it yet";
    TRANSITIONS = "triage_breaker_transitions_total", Counter, &["upstream", "group", "to"],
        "Transitions of the breaker: opened, closed, or held closed by an operator";
    LIMIT_TAKEN = "triage_limit_taken_ratio", Gauge, &["upstream", "group", "limit"],
        "Used share of a rate limit's burst; above 1 if some permits are reserved for later";
    PAUSED = "triage_paused_seconds", Gauge, GROUP,
        "Remaining time of the pause that the upstream asked for";
    ADAPTIVE_RATE = "triage_adaptive_rate_per_second", Gauge, GROUP,
        "Maximum of requests a second that this host sends because the upstream throttles; missing while no limit is \
         known";
    ADAPTIVE_DECREASES = "triage_adaptive_rate_decreases_total", Counter, GROUP,
        "How often an adaptive rate was lowered; missing if it is switched off";
    PLACES_TAKEN = "triage_concurrency_taken", Gauge, ENDPOINT,
        "Attempts under way, for endpoints with a `concurrency` limit";
    PLACES = "triage_concurrency_limit", Gauge, ENDPOINT,
        "Maximum of attempts under way (`concurrency`)";
    LOAD_TAKEN = "triage_overload_taken", Gauge, &["upstream"],
        "Attempts under way at the upstream, for endpoints without a `concurrency` limit";
    LOAD_LIMIT = "triage_overload_limit", Gauge, &["upstream"],
        "Limit on these attempts, derived from response times; 10000 while nothing requires less";
    LOAD_WAITING = "triage_overload_waiting", Gauge, &["upstream"],
        "Requests that wait while the upstream is overloaded";
    SHED = "triage_overload_shed_total", Counter, &["upstream", "priority"],
        "Requests refused because the upstream was overloaded";
    BUDGET = "triage_retry_budget_tokens", Gauge, GROUP,
        "Retries that the budget allows now";
    RECORDS_UNSETTLED = "triage_records_unsettled", Gauge, &[],
        "Writes whose effect is unknown, up to 1000; without those that a request or a host is settling now";
    RECORD_AGE = "triage_record_oldest_unsettled_seconds", Gauge, &[],
        "Time since the last byte of the oldest unknown write; 0 if there is none";
    SETTLEMENTS = "triage_settlements_total", Counter, &["class"],
        "Writes that this host settled in the background, by result; unknown: writes that the host no longer verifies";
    NOTICES = "triage_settlement_notices_total", Counter, &["result"],
        "Notices of settled writes, by result: the receiver accepted the notice, did not accept it, or the queue was \
         full";
    STATE_UP = "triage_state_up", Gauge, &[],
        "1 while shared state can be reached; this metric and the next two are missing if state is in this process";
    STATE_EVICTS = "triage_state_evicts", Gauge, &[],
        "1 if shared state evicts data when its memory is full: idempotency keys may be lost";
    STATE_LOST = "triage_state_lost_seconds", Gauge, &[],
        "Time since shared state last lost data; missing if it never did";
    STATE_TIME = "triage_state_step_seconds", Histogram, &[],
        "Time of calls to shared state that were answered";
    STATE_FAILURES = "triage_state_failures_total", Counter, &["why"],
        "Calls to shared state that failed or had an unknown result: this host continued without shared state";
    GENERATION = "triage_policy_generation", Gauge, &["upstream"],
        "The generation of the present policy";
    POLICY = "triage_policy_serving", Gauge, &["upstream", "policy", "digest"],
        "1 for the present policy";
    FLEET_GENERATION = "triage_policy_fleet_generation", Gauge, &["upstream"],
        "The fleet's generation of the policy, if the upstream follows the fleet; 0 while the fleet has chosen none";
    FLEET_BEHIND = "triage_policy_fleet_behind", Gauge, &["upstream"],
        "1 while this host's policy differs from the fleet's";
    CANDIDATE_COMPARED = "triage_candidate_compared_total", Counter, &["upstream"],
        "Decisions of shadow candidates that were compared with the live policy's";
    CANDIDATE_DIFFERED = "triage_candidate_differed_total", Counter, &["upstream"],
        "Compared decisions in which the candidate differed";
    CANDIDATE_SKIPPED = "triage_candidate_skipped_total", Counter, &["upstream"],
        "Outcomes that no candidate saw: its queue was full, or it wants more of the body than was read";
    CANDIDATE_DECISIONS = "triage_candidate_decisions_total", Counter, &["upstream"],
        "Decisions of candidates, in shadow or as a canary; these five metrics are missing without a candidate";
    CANDIDATE_FAULTS = "triage_candidate_faults_total", Counter, &["upstream"],
        "Decisions of candidates that failed: traps, overruns and invalid verdicts";
    EVENTS = "triage_events_total", Counter, &["kind"],
        "Events for operators, by kind";
    TRACES = "triage_traces_total", Counter, &["result"],
        "Requests whose traces the collector accepted, or did not";
    CONDITION = "triage_condition", Gauge, &["condition", "severity"],
        "Subjects for which this condition holds now: an upstream, a breaker or the host. The status API, the page and \
         `triage status` show the same list";
    READY = "triage_ready", Gauge, &[],
        "1 while the host is ready for requests";
    STARTED = "triage_start_time_seconds", Gauge, &[],
        "Start time of the host, in seconds since 1970";
    MEMORY = "triage_resident_memory_bytes", Gauge, &[],
        "Resident memory of the process";
    CPU = "triage_cpu_seconds_total", Counter, &[],
        "Processor time of the process";
    MEMORY_LIMIT = "triage_memory_limit_bytes", Gauge, &[],
        "Memory above which the host refuses requests; 0 if there is no limit";
    HELD = "triage_held_body_bytes", Gauge, &[],
        "Bytes of request bodies in memory";
    FILES = "triage_open_files", Gauge, &[],
        "Open file descriptors of the process";
    BUILD = "triage_build", Gauge, &["version"],
        "1 for the version of the host";
}

/// The table in the book's reference of metrics.
pub fn reference() -> String {
    let row = |metric: &Metric| {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind.as_str(), metric.help)
    };
    let rows: String = METRICS.iter().map(row).collect();
    format!("| metric | kind | labels | meaning |\n|---|---|---|---|\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("triage_"), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(metric.kind, Counter), "{name}");
            assert!(!matches!(metric.kind, Histogram) || name.ends_with("_seconds"), "{name}");
            assert!(!metric.help.ends_with('.'), "{name}");
        }
    }
}
