//! Checks for conflicts between values that are valid alone.

use super::{
    problem::Problem,
    settings::{PolicySource, Settings, State},
    value::Values,
};
use crate::{policy::contract, rate_limit::Quota};
use std::time::Duration;

/// `low` must not be above `high` (or, if `strict`, must be below it).
struct Order {
    low: &'static str,
    high: &'static str,
    strict: bool,
}

const ORDERS: [Order; 4] = [
    Order { low: "attempt_timeout", high: "deadline", strict: false },
    Order { low: "retry.min_wait", high: "retry.max_wait", strict: false },
    Order { low: "breaker.open_for", high: "breaker.open_for_max", strict: false },
    Order { low: "attempt_timeout", high: "breaker.probe_lease", strict: true },
];
const BASELINE: &str = "breaker.baseline";
const CRITERIA: [&str; 3] = ["breaker.failure_threshold", "breaker.failure_rate", "breaker.slow_call_after"];

/// Checks an endpoint's merged values. With `own`, only conflicts that involve one of those: the others were reported for the layer below.
pub(super) fn endpoint(path: &str, values: &Values, own: Option<&Values>) -> Vec<Problem> {
    let concerns = |keys: &[&str]| own.is_none_or(|own| keys.iter().any(|key| own.get(key).is_some()));
    let has_breaker = values.read("breaker.enabled") != Some(false);
    let mut problems = Vec::new();
    for Order { low, high, strict } in ORDERS {
        if !concerns(&[low, high]) || (low.starts_with("breaker.") || high.starts_with("breaker.")) && !has_breaker {
            continue;
        }
        let (Some(least), Some(most)) = (values.read::<Duration>(low), values.read::<Duration>(high)) else { continue };
        let wrong = if strict { least >= most } else { least > most };
        if !wrong {
            continue;
        }
        // Report the value that the operator set, since that one can be changed.
        let (key, other, rule) = if values.is_operators(high) {
            (high, low, if strict { "longer than that" } else { "at least as long" })
        } else {
            (low, high, if strict { "shorter than that" } else { "at most as long" })
        };
        problems.extend(pair(path, values, key, other, rule));
    }
    let off = |key: &str| values.read::<Option<Anything>>(key).is_some_and(|value| value.is_none());
    if has_breaker && concerns(&CRITERIA) && CRITERIA.iter().all(|key| off(key)) {
        let must_be = "at least one of failure_threshold, failure_rate and slow_call_after, or enabled = false";
        let problem = Problem::value(format!("{path}.breaker"), "no criterion that trips the breaker", must_be);
        problems.push(with_source(problem, values, CRITERIA[0]));
    }
    if has_breaker && concerns(&[BASELINE, "breaker.failure_rate"]) {
        problems.extend(baseline(path, values));
    }
    if concerns(&["adaptive_rate.enabled", "adaptive_rate.floor_per_minute", "limits"]) {
        problems.extend(floor(path, values));
    }
    problems
}

/// A host learns a baseline from its own calls. In a fleet the shared state judges the breaker by fixed limits, without baselines.
pub(super) fn baselines(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    if settings.state == State::Memory {
        return problems;
    }
    for upstream in &settings.upstreams {
        let path = format!("upstreams.{}", upstream.name);
        let of_one = upstream.endpoints.iter().map(|own| (format!("{path}.endpoints.{}", own.name), &own.values));
        for (path, values) in std::iter::once((format!("{path}.defaults"), &upstream.defaults)).chain(of_one) {
            let Some(percent) = values.read::<Option<u32>>(BASELINE).flatten() else { continue };
            let because = "state.url names shared state, and the breaker of a fleet uses fixed limits only";
            let must_be = "\"off\", or have state.url be \"memory:\"";
            let problem = Problem::conflict(format!("{path}.{BASELINE}"), percent.to_string(), because, must_be);
            problems.push(with_source(problem, values, BASELINE));
        }
    }
    problems
}

/// The baseline must be below the fixed failure rate, which caps it; otherwise it has no effect.
fn baseline(path: &str, values: &Values) -> Option<Problem> {
    const RATE: &str = "breaker.failure_rate";
    let own: u32 = values.read::<Option<u32>>(BASELINE)??;
    let rate: u32 = values.read::<Option<u32>>(RATE)??;
    if own < rate { None } else { pair(path, values, BASELINE, RATE, "less than that") }
}

/// A floor at or above the fixed limits would make the adaptive rate ineffective. Only a floor set by the operator is a problem; the
/// default is lowered to fit.
fn floor(path: &str, values: &Values) -> Option<Problem> {
    const FLOOR: &str = "adaptive_rate.floor_per_minute";
    if values.read("adaptive_rate.enabled") != Some(true) || !values.is_operators(FLOOR) {
        return None;
    }
    let floor: u32 = values.read(FLOOR)?;
    let limits: Vec<Quota> = values.read("limits")?;
    let lowest = limits.iter().map(Quota::per_minute).fold(f64::INFINITY, f64::min);
    if f64::from(floor) < lowest {
        return None;
    }
    let rounded = (lowest * 100.0).round() / 100.0;
    let because = format!("limits admit {rounded} a minute ({})", values.source("limits")?);
    let must_be = if lowest > 1.0 { "below that" } else { "left out: the host then uses half of it" };
    let problem = Problem::conflict(format!("{path}.{FLOOR}"), floor.to_string(), because, must_be);
    Some(with_source(problem, values, FLOOR))
}

/// A field of any type, to distinguish a value from `off`.
struct Anything;

impl super::value::Field for Anything {
    fn of(_: &super::value::Value) -> Option<Self> {
        Some(Self)
    }
}

fn pair(path: &str, values: &Values, key: &str, other: &str, rule: &str) -> Option<Problem> {
    let (own, beside) = (values.get(key)?, values.get(other)?);
    let because = format!("{other} is {} ({})", beside.value, beside.source);
    let problem = Problem::conflict(format!("{path}.{key}"), own.value.to_string(), because, rule);
    Some(with_source(problem, values, key))
}

pub(super) fn with_source(problem: Problem, values: &Values, key: &str) -> Problem {
    match values.source(key) {
        Some(source) => problem.from(&source),
        None => problem,
    }
}

/// Members of a group share breaker, budget and limits, so their values for these must be equal.
pub(super) fn groups(upstream: &str, members: &[(contract::Endpoint, Values)]) -> Vec<Problem> {
    const SHARED: [&str; 3] = ["breaker.", "budget.", "adaptive_rate."];
    // Each member's lease grows with its attempt timeout; the group uses the longest.
    const LEASE: &str = "breaker.probe_lease";
    let group = |(endpoint, values): &(contract::Endpoint, Values)| {
        values.read::<String>("group").unwrap_or_else(|| endpoint.name.clone())
    };
    let mut problems = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let own = group(member);
        let Some((other, beside)) = members[..index].iter().find(|before| group(before) == own) else { continue };
        let (endpoint, values) = member;
        let (name, other) = (&endpoint.name, &other.name);
        for key in super::schema::KEYS.iter().map(|key| key.name) {
            let shared = key == "limits" || SHARED.iter().any(|prefix| key.starts_with(prefix)) && key != LEASE;
            let (Some(got), Some(theirs)) = (values.get(key), beside.get(key)) else { continue };
            if !shared || got.value == theirs.value {
                continue;
            }
            let because =
                format!("endpoints.{other}.{key} is {} ({}), and both are in group {own}", theirs.value, theirs.source);
            let path = format!("upstreams.{upstream}.endpoints.{name}.{key}");
            let problem = Problem::conflict(path, got.value.to_string(), because, "the same value in the whole group");
            problems.push(with_source(problem, values, key));
        }
    }
    problems
}

/// A record's lock must outlast every deadline; otherwise a second sender could take it while the first one still works.
pub(super) fn lock(upstream: &str, stated: &Values, endpoint: &str, values: &Values) -> Option<Problem> {
    const LOCK: &str = "idempotency.lock";
    let (lock, deadline) = (stated.read::<Duration>(LOCK)?, values.read::<Duration>("deadline")?);
    if lock >= deadline || !stated.is_operators(LOCK) {
        return None;
    }
    let (own, beside) = (stated.get(LOCK)?, values.get("deadline")?);
    let because = format!("{endpoint}.deadline is {} ({})", beside.value, beside.source);
    let key = format!("upstreams.{upstream}.{LOCK}");
    Some(Problem::conflict(key, own.value.to_string(), because, "at least as long").from(&own.source))
}

/// The admin listener must not be open to other machines without authentication, and needs its own port.
pub(super) fn admin(settings: &Settings) -> Option<Problem> {
    const KEY: &str = "admin.listen";
    let (admin, own) = (&settings.admin, settings.admin.listen?);
    let has_token = admin.read_token.is_some() || admin.write_token.is_some();
    let knows_callers = admin.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let others = settings.upstreams.iter().filter_map(|upstream| upstream.listen);
    let (because, must_be) = if !own.ip().is_loopback() && !has_token && !knows_callers {
        let must_be = "a loopback address, such as \"127.0.0.1:9464\", or set admin.read_token_file, \
                       admin.write_token_file or admin.tls.client_ca";
        ("no token is set, and every caller of this address could control the host", must_be)
    } else if own.port() != 0 && others.chain([settings.server.listen]).any(|other| other == own) {
        ("callers connect to the same address", "an address of its own")
    } else {
        return None;
    };
    Some(with_source(Problem::conflict(KEY, format!("\"{own}\""), because, must_be), &settings.stated, KEY))
}

/// Without tenants, a caller could guess another one's key and read its stored response. Without a secret, so could a caller who learns a
/// record's id.
pub(super) fn record_status(settings: &Settings) -> Vec<Problem> {
    const KEY: &str = "idempotency.record_status";
    let is_secretless = matches!(&settings.state, State::Shared(shared) if shared.key.is_none());
    let problem = |upstream: &super::settings::Upstream| {
        let (because, must_be) = if upstream.idempotency.tenant_headers.is_empty() {
            (
                "idempotency.tenant_header is \"off\", so every caller could read every record",
                "false, or have idempotency.tenant_header name a header that distinguishes callers",
            )
        } else if is_secretless {
            (
                "shared state has no key, and without that secret every caller could claim every record",
                "false, or set state.key_file or TRIAGE_STATE_KEY",
            )
        } else {
            return None;
        };
        let key = format!("upstreams.{}.{KEY}", upstream.name);
        Some(with_source(Problem::conflict(key, "true".to_owned(), because, must_be), &upstream.stated, KEY))
    };
    settings.upstreams.iter().filter(|own| own.idempotency.record_status).filter_map(problem).collect()
}

/// Certificate and key must be given together; a list of client authorities needs both.
pub(super) fn tls(stated: &Values) -> Vec<Problem> {
    const TABLES: [[&str; 3]; 2] = [
        ["server.tls.certificate", "server.tls.key", "server.tls.client_ca"],
        ["admin.tls.certificate", "admin.tls.key", "admin.tls.client_ca"],
    ];
    let missing = |keys: [&str; 3]| {
        let given = keys.into_iter().find(|key| stated.get(key).is_some())?;
        let lacking = keys.into_iter().take(2).find(|key| stated.get(key).is_none())?;
        let because = format!("{lacking} is not given");
        let got = stated.get(given)?.value.to_string();
        let problem = Problem::conflict(given, got, because, "set together with certificate and key");
        Some(with_source(problem, stated, given))
    };
    TABLES.into_iter().filter_map(missing).collect()
}

/// Without a signature, a receiver could not tell this host's notices from forged ones.
pub(super) fn settlement(settings: &Settings) -> Option<Problem> {
    const KEY: &str = "settlement.notify";
    let target = settings.settlement.notify.as_ref().filter(|target| target.key.is_none())?;
    let because = "neither settlement.notify_key_file nor TRIAGE_SETTLEMENT_KEY is given";
    let must_be = "left out, or set together with a key that signs the notices";
    let problem = Problem::conflict(KEY, format!("\"{}\"", target.url), because, must_be);
    Some(with_source(problem, &settings.stated, KEY))
}

/// `follow_fleet` needs shared state, and a registry from which every host can pull an announced policy.
pub(super) fn fleet(settings: &Settings) -> Vec<Problem> {
    const KEY: &str = "follow_fleet";
    let problem = |upstream: &super::settings::Upstream| {
        let has_repository = matches!(upstream.policy, PolicySource::Registry(_));
        let because = match &settings.state {
            State::Memory => "state.url is \"memory:\", which no other host shares".to_owned(),
            State::Shared(_) if !has_repository => {
                format!("policy is \"{}\", and the components of a fleet must be in a registry", upstream.policy)
            }
            State::Shared(_) => return None,
        };
        let must_be = "false, or set state.url to the URL of a Redis and policy to an oci:// name";
        let key = format!("upstreams.{}.{KEY}", upstream.name);
        Some(with_source(Problem::conflict(key, "true".to_owned(), because, must_be), &upstream.stated, KEY))
    };
    settings.upstreams.iter().filter(|upstream| upstream.follow_fleet).filter_map(problem).collect()
}

/// Reports listeners and request matches that two upstreams share.
pub(super) fn upstreams(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, upstream) in settings.upstreams.iter().enumerate() {
        let before = &settings.upstreams[..index];
        if let Some(listen) = upstream.listen {
            let twin = before.iter().find(|other| other.listen == upstream.listen);
            let taken = match twin {
                Some(twin) => Some(format!("upstreams.{}.listen has the same address", twin.name)),
                None if listen == settings.server.listen => Some("server.listen has the same address".to_owned()),
                None if listen.port() == 0 => Some("port 0 is a different port at each start".to_owned()),
                None => None,
            };
            if let Some(because) = taken {
                let key = format!("upstreams.{}.listen", upstream.name);
                let problem = Problem::conflict(key, format!("\"{listen}\""), because, "an address of its own");
                problems.push(with_source(problem, &upstream.stated, "listen"));
                continue;
            }
        }
        let takes = |other: &super::settings::Upstream| (other.listen, other.host.clone(), other.path_prefix.clone());
        if let Some(twin) = before.iter().find(|other| takes(other) == takes(upstream)) {
            let got = format!("the same path_prefix, host and listen as upstreams.{}", twin.name);
            let problem =
                Problem::value(format!("upstreams.{}", upstream.name), got, "different in path_prefix, host or listen");
            problems.push(with_source(problem, &upstream.stated, "base_url"));
        }
    }
    problems
}
