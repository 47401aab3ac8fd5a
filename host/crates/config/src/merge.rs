//! Merges the layers of an endpoint's values: default < policy < operator's defaults < operator's override.

use super::{
    layers::Raw,
    problem::Source,
    schema::{KEYS, Scope},
    value::{Value, Values},
};
use std::time::Duration;

/// The limits of one endpoint inside a group. Not a configuration key: only the policy proposes them.
pub(super) const OWN_LIMITS: &str = "own_limits";
/// Added to the attempt timeout when it extends the deadline: the gap between the defaults 15 s and 5 s, which leaves time to wait and
/// retry.
const RETRY_RESERVE: Duration = Duration::from_secs(10);
/// Added to the attempt timeout when it extends a probe's lease: the time to report the result.
const REPORT_RESERVE: Duration = Duration::from_secs(5);

/// Merges the layers, then adjusts defaults and proposals to fit the operator's values.
pub(super) fn merged(proposed: &Values, defaults: &Values, own: Option<&Values>) -> Values {
    let mut values = table_defaults(Scope::Endpoint);
    values.cover(proposed);
    values.cover(defaults);
    if let Some(own) = own {
        values.cover(own);
    }
    keep_own_limits(&mut values, proposed);
    adapt(&mut values);
    values
}

/// In a group, `limits` are the group's. Limits that the policy proposes remain each endpoint's own limits, unless the operator replaces
/// them (`limits_replace`).
fn keep_own_limits(values: &mut Values, proposed: &Values) {
    if values.read::<String>("group").is_none() {
        return;
    }
    let replaced = values.read("limits_replace") == Some(true);
    if let Some(own) = proposed.get("limits").filter(|_| !replaced) {
        values.set(OWN_LIMITS, own.value.clone(), own.source.clone());
    }
    if !values.is_operators("limits") {
        values.set("limits", Value::Limits(Vec::new()), Source::Default);
    }
}

/// The defaults of [`KEYS`].
pub(super) fn table_defaults(scope: Scope) -> Values {
    let mut values = Values::default();
    for key in KEYS.iter().filter(|key| key.scope == scope) {
        let Some(text) = key.default else { continue };
        // An invalid default is a bug; a test finds it.
        let read = key.kind.read(key.name, &Raw::Word(text.to_owned()), key.may_be_off(), &mut Vec::new());
        if let Some(value) = read {
            values.set(key.name, value, Source::Default);
        }
    }
    values
}

/// Adjusts a default or proposal to fit a related value that the operator set.
fn adapt(values: &mut Values) {
    // A deadline that the operator set shortens attempts; otherwise the deadline grows to fit the attempts.
    at_most(values, "attempt_timeout", "deadline", Duration::ZERO);
    let margin = if values.source("deadline") == Some(Source::Default) { RETRY_RESERVE } else { Duration::ZERO };
    at_least(values, "deadline", "attempt_timeout", margin);
    at_most(values, "retry.min_wait", "retry.max_wait", Duration::ZERO);
    at_least(values, "retry.max_wait", "retry.min_wait", Duration::ZERO);
    at_most(values, "breaker.open_for", "breaker.open_for_max", Duration::ZERO);
    at_least(values, "breaker.open_for_max", "breaker.open_for", Duration::ZERO);
    at_least(values, "breaker.probe_lease", "attempt_timeout", REPORT_RESERVE);
}

/// Raises the key to the other one and `space`, unless the operator set it.
fn at_least(values: &mut Values, key: &'static str, other: &'static str, margin: Duration) {
    let (Some(own), Some(wanted)) = (values.read::<Duration>(key), values.read::<Duration>(other)) else { return };
    let wanted = wanted.saturating_add(margin);
    if own < wanted && !values.is_operators(key) {
        values.set(key, Value::Duration(wanted), Source::Adapted(other));
    }
}

/// Lowers the key only if the operator set the other one. Between two defaults, [`at_least`] raises the greater one instead.
fn at_most(values: &mut Values, key: &'static str, other: &'static str, margin: Duration) {
    let (Some(own), Some(wanted)) = (values.read::<Duration>(key), values.read::<Duration>(other)) else { return };
    let wanted = wanted.saturating_sub(margin);
    if own > wanted && values.is_operators(other) && !values.is_operators(key) {
        values.set(key, Value::Duration(wanted), Source::Adapted(other));
    }
}
