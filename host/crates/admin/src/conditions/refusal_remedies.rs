//! What to do about a reason for which the host refuses requests.

/// The remedy for the most frequent reason of refusals.
pub(super) fn remedy(reason: &str) -> &'static str {
    match reason {
        "breaker-open" => "The breaker closes by itself when a probe succeeds; its condition names the cause.",
        "rate-limited" => {
            "Callers ask for more than `limits` allow: slow them down, or raise the limit if the upstream allows it."
        }
        "budget-exhausted" => {
            "Too many attempts fail to be retried: mend the upstream; retries come back with successes."
        }
        "overloaded" => {
            "The upstream is slower than usual, or a limit of this host is reached: look at the upstream's load, then at `server` limits."
        }
        "store-unavailable" => "Writes need shared state: bring Redis back.",
        "keys-full" => {
            "The store of idempotency keys is full: raise `idempotency.max_records`, or keep keys for a shorter time."
        }
        "in-flight" => "Callers repeat requests whose first try still runs: let them wait for the time in Retry-After.",
        "deadline-before-send" => "Deadlines end while requests wait: raise `deadline`, or lower the load.",
        "upstream-asleep" => {
            "The upstream does not wake up before the deadline: raise `deadline`, or look at the upstream's health."
        }
        _ => "See the reference of problems for this reason, and `triage explain --reason` for a request.",
    }
}
