//! Default < policy < operator's defaults < operator's override, and which values are adjusted to fit others.

use super::*;
use crate::{breaker, rate_limit::Quota, settings};
use std::num::NonZeroU32;

fn upstream(text: &str) -> settings::Upstream {
    from_toml(&format!("{LEAST}policy = \"hospital-directory\"\n{text}")).unwrap().upstreams.remove(0)
}

#[test]
fn the_tables_defaults_are_the_types_own() {
    let upstream = from_toml(LEAST).unwrap().upstreams.remove(0);
    let plain = Endpoint { defaults: Defaults::default(), ..create() };
    assert_eq!(effective_endpoint(&upstream, &plain), settings::Endpoint::default());
    assert_eq!(upstream.idempotency, crate::idempotency::Settings::default());
    assert_eq!(upstream.connection, crate::upstream::Settings::new(http::Uri::from_static("http://a.example")));
}

#[test]
fn every_field_is_merged_by_itself() {
    let upstream = upstream("defaults.retry.min_wait = \"1s\"\nendpoints.create-hospital.retry.max_wait = \"4s\"");
    let effective = effective_endpoint(&upstream, &create());
    assert_eq!(effective.retry.max_attempts, 4, "the policy's");
    assert_eq!(effective.retry.min_wait, Duration::from_secs(1), "the defaults'");
    assert_eq!(effective.retry.max_wait, Duration::from_secs(4), "the override's");
    assert_eq!(effective.concurrency, Some(20), "the policy's");
    assert_eq!(effective.limits.len(), 1, "the policy's");
    assert_eq!(effective.breaker.unwrap().minimum_calls, breaker::Settings::default().minimum_calls, "the default");
}

#[test]
fn an_operator_takes_away_what_a_policy_proposes() {
    let effective = effective_endpoint(
        &upstream("defaults = { limits = [], concurrency = \"off\", breaker.enabled = false }"),
        &create(),
    );
    assert_eq!((effective.limits.len(), effective.concurrency, effective.breaker), (0, None, None));
}

#[test]
fn a_default_gives_way_to_a_value_that_is_set() {
    let seconds = Duration::from_secs;
    let plain = Endpoint { defaults: Defaults::default(), ..create() };
    let cases = [
        ("a policy's long attempts: the lease grows", "", create(), (30, 120, 35)),
        ("longer still", "defaults.attempt_timeout = \"60s\"", create(), (60, 120, 65)),
        ("longer than the policy's deadline", "defaults.attempt_timeout = \"200s\"", create(), (200, 200, 205)),
        ("a default deadline frees space", "defaults.attempt_timeout = \"20s\"", plain.clone(), (20, 30, 35)),
        ("an operator's deadline shortens attempts", "defaults.deadline = \"2s\"", plain.clone(), (2, 2, 35)),
        ("the policy's too", "defaults.deadline = \"10s\"", create(), (10, 10, 35)),
    ];
    for (name, text, described, (attempt, deadline, lease)) in cases {
        let effective = effective_endpoint(&upstream(text), &described);
        let lease_is = effective.breaker.unwrap().probe_lease;
        let is = (effective.attempt_timeout, effective.deadline, lease_is);
        assert_eq!(is, (seconds(attempt), seconds(deadline), seconds(lease)), "{name}");
    }
    let waits = effective_endpoint(&upstream("defaults.retry.min_wait = \"1m\""), &plain).retry;
    assert_eq!((waits.min_wait, waits.max_wait), (seconds(60), seconds(60)));
    let waits = effective_endpoint(&upstream("defaults.retry.max_wait = \"1s\""), &plain).retry;
    assert_eq!((waits.min_wait, waits.max_wait), (seconds(1), seconds(1)));
}

#[test]
fn a_lock_outlasts_every_deadline_unless_it_is_set() {
    let lock = |text: &str| idempotency(&upstream(text), &description()).lock;
    assert_eq!(lock(""), Duration::from_secs(150));
    assert_eq!(lock("endpoints.create-hospital.deadline = \"10m\""), Duration::from_secs(630));
    assert_eq!(lock("idempotency.lock = \"130s\""), Duration::from_secs(130));
    let upstream = upstream("defaults.deadline = \"10m\"");
    assert_eq!(upstream.idempotency.lock, Duration::from_secs(630), "known without the policy");
}

#[test]
fn the_configuration_adds_endpoints() {
    let upstream = upstream(
        "endpoints.report = { method = \"PUT\", path = \"/reports/{id}\", deadline = \"1m\" }\n\
         endpoints.any = { method = \"*\", path = \"/{*rest}\" }",
    );
    let all = endpoints(&upstream, &description()).unwrap();
    let names: Vec<&str> = all.iter().map(|(endpoint, _)| endpoint.name.as_str()).collect();
    assert_eq!(names, ["create-hospital", "list-hospitals", "any", "report"]);
    let (any, report) = (&all[2], &all[3]);
    assert_eq!((any.0.method.clone(), any.0.effect), (None, Effect::Unsafe));
    assert_eq!((report.0.method.clone(), report.0.effect), (Some(http::Method::PUT), Effect::Idempotent));
    assert_eq!((report.1.deadline, any.1.deadline), (Duration::from_secs(60), Duration::from_secs(15)));
}

#[test]
fn absurd_proposals_are_passed_over() {
    let limits = vec![ProposedLimit { requests: 0, period: Duration::ZERO, burst: 0 }];
    let defaults = Defaults {
        attempt_timeout: Some(Duration::ZERO),
        deadline: Some(Duration::MAX),
        max_attempts: Some(0),
        limits,
        concurrency: Some(0),
    };
    let effective = effective_endpoint(&upstream(""), &Endpoint { defaults, ..create() });
    let expected = settings::Endpoint { deadline: Duration::MAX, ..settings::Endpoint::default() };
    assert_eq!(effective, expected);
}

#[test]
fn limits_of_a_group_stand_beside_those_that_the_policy_proposes() {
    let proposed =
        Quota { requests: NonZeroU32::MIN, period: Duration::from_millis(6_500), burst: NonZeroU32::new(20).unwrap() };
    let limits = |text: &str| {
        let all = endpoints(&upstream(text), &description()).unwrap();
        let of = |index: usize| (all[index].1.limits.len(), all[index].1.own_limits.clone());
        (of(0), of(1))
    };
    let group = "group = \"all\", limits = [{ requests = 10, period = \"1s\" }]";
    assert_eq!(limits(&format!("defaults = {{ {group} }}")), ((1, vec![proposed]), (1, Vec::new())));
    assert_eq!(limits("defaults.group = \"all\""), ((0, vec![proposed]), (0, Vec::new())), "the group has none");
    let replaced = format!("defaults = {{ {group}, limits_replace = true }}");
    assert_eq!(limits(&replaced), ((1, Vec::new()), (1, Vec::new())));
    let one = format!("defaults = {{ {group} }}\nendpoints.create-hospital.limits_replace = true");
    assert_eq!(limits(&one), ((1, Vec::new()), (1, Vec::new())), "for one endpoint alone");
    let alone = "defaults.limits = [{ requests = 10, period = \"1s\" }]";
    assert_eq!(limits(alone), ((1, Vec::new()), (1, Vec::new())), "outside a group they take the policy's place");
}
