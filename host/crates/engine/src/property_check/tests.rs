#![allow(clippy::unwrap_used)]
use super::*;
use crate::{Engine, LoadOptions, prebuilt};
use std::sync::Arc;

fn policy(name: &str) -> Arc<Policy> {
    let component = prebuilt::embedded(name).unwrap();
    let reused = LoadOptions { reuse_instances: true, ..LoadOptions::default() };
    Policy::load(&Engine::start().unwrap(), component, &reused).unwrap()
}

/// A create that names its batch, so that it can be verified.
const CREATE: &str = "method,path,condition,request_body\nPOST,/hospitals/,200,\"{\"\"name\"\":\"\"A\"\",\"\"address\"\":\"\"B\"\",\
    \"\"creation_batch_id\"\":\"\"7d3c5a52-0000-4000-8000-000000000001\"\"}\"\n";

fn lines(report: &Report) -> Vec<String> {
    report.findings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_policies_at_hand_free_no_key_and_repeat_no_write_without_proof() {
    for (name, policy) in [
        ("builtin", Policy::builtin()),
        ("http-standard", policy("http-standard")),
        ("hospital-directory", policy("hospital-directory")),
    ] {
        let report = check(&policy, None, true).unwrap();
        assert!(report.passes(), "{name}: {report}");
        assert!(report.decisions >= 20_000, "{name}: {}", report.decisions);
    }
}

/// Tripwire: a policy that believes a 500 was not applied is found.
#[test]
fn a_policy_that_repeats_or_frees_without_proof_is_found() {
    let mut groups = Groups::default();
    let variant = Variant::of_requests().next().unwrap();
    for status in [500, 501, 502] {
        let came = Came::Status(http::StatusCode::from_u16(status).unwrap());
        let is_proven = is_proof(came, &variant, Purpose::Request, None);
        assert_eq!(is_proven, status == 501, "{status}");
        let key = grouping::Key {
            kind: Kind::FreesKey,
            endpoint: 0,
            effect: Effect::Unsafe,
            purpose: Purpose::Request,
            says: "rejected, deliver".to_owned(),
            reason: None,
            host: Some("the caller gets the upstream's answer".to_owned()),
        };
        groups.add(key, "any", came, &variant);
    }
    let report = Report {
        policy: "a".to_owned(),
        version: "1".to_owned(),
        settle: false,
        decisions: 3,
        findings: groups.findings(),
    };
    assert!(!report.passes());
    assert_eq!(
        report.to_string(),
        "a 1: 3 decisions tried, without `settle = true`\n\
         with `settle = true` the host would free a write's idempotency key without proof that it was not applied:\n  \
         any, unsafe: 500-502 [first attempt, without a key, nothing unknown before, without hints]: rejected, deliver; \
         the caller gets the upstream's answer\n"
    );
}

#[test]
fn a_verification_proves_absence_only_by_an_answer_after_the_commit_time() {
    let within = Some(Duration::from_secs(75));
    let late = Variant::of_verifications(within).find(|variant| variant.is_late == Some(true)).unwrap();
    let early = Variant::of_verifications(within).find(|variant| variant.is_late == Some(false)).unwrap();
    let came = |status| Came::Status(http::StatusCode::from_u16(status).unwrap());
    assert!(is_proof(came(404), &late, Purpose::Probe, within));
    assert!(!is_proof(came(404), &early, Purpose::Probe, within));
    assert!(!is_proof(came(503), &late, Purpose::Probe, within));
    assert!(!is_proof(came(404), &late, Purpose::Probe, None), "without a commit time");
}

#[test]
fn what_the_host_would_not_follow_is_shown_and_does_not_fail() {
    // Without a grant, the directory's policy may not verify.
    let report = check(&policy("hospital-directory"), Some(CREATE), false).unwrap();
    assert!(report.passes(), "{report}");
    let refused = lines(&report);
    assert!(refused.iter().any(|line| line.contains("unknown, verify; grant; ")), "{refused:#?}");
    let trusted = lines(&check(&policy("hospital-directory"), Some(CREATE), true).unwrap());
    assert!(trusted.iter().all(|line| !line.contains("; grant; ")), "{trusted:#?}");
}
