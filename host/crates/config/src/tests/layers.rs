//! The precedence of the layers, and the source of each value.

use super::*;
use crate::settings::PolicySource;

fn drain(loaded: &Loaded) -> (Duration, String) {
    (loaded.settings.server.drain, loaded.settings.stated.get("server.drain").unwrap().source.to_string())
}

#[test]
fn each_layer_goes_over_the_one_before() {
    let file = format!("server.drain = \"1s\"\n{LEAST}");
    let env = [("TRIAGE__SERVER__DRAIN", "2s")];
    let cases = [
        ("default", loaded(LEAST, &[], Flags::default()), 30, "default"),
        ("file", loaded(&file, &[], Flags::default()), 1, "file triage.toml:1"),
        ("env", loaded(&file, &env, Flags::default()), 2, "env TRIAGE__SERVER__DRAIN"),
        ("flag", loaded(&file, &env, sets(&["server.drain=3s"])), 3, "flag --set"),
    ];
    for (name, loaded, seconds, source) in cases {
        assert_eq!(drain(&loaded), (Duration::from_secs(seconds), source.to_owned()), "{name}");
    }
}

#[test]
fn a_base_url_alone_is_enough() {
    let embedded = |name: &str| PolicySource::Embedded(name.to_owned());
    let flags = Flags { upstream: Some("http://u:1".to_owned()), ..Flags::default() };
    for (name, loaded, upstream, policy) in [
        ("flag", loaded("", &[], flags.clone()), "default", "http-standard"),
        ("variable", loaded("", &[("TRIAGE_UPSTREAM", "http://u:1")], Flags::default()), "default", "http-standard"),
        (
            "seed",
            loaded("", &[("HOSPITAL_API_BASE_URL", "http://u:1")], Flags::default()),
            "hospital",
            "hospital-directory",
        ),
        (
            "flag over seed",
            loaded("", &[("HOSPITAL_API_BASE_URL", "http://x")], flags.clone()),
            "hospital",
            "hospital-directory",
        ),
        ("policy by variable", loaded("", &[("TRIAGE_POLICY", "fhir")], flags.clone()), "default", "fhir"),
        (
            "policy by flag",
            loaded("", &[("TRIAGE_POLICY", "fhir")], Flags { policy: Some("./p.wasm".to_owned()), ..flags.clone() }),
            "default",
            "./p.wasm",
        ),
        (
            "empty variables are unset",
            loaded("", &[("TRIAGE_POLICY", ""), ("HOSPITAL_API_BASE_URL", " ")], flags),
            "default",
            "http-standard",
        ),
    ] {
        let [only] = loaded.settings.upstreams.as_slice() else { panic!("{name}: not one upstream") };
        let policy = if policy.contains('/') { PolicySource::File(policy.into()) } else { embedded(policy) };
        assert_eq!((only.name.as_str(), &only.policy), (upstream, &policy), "{name}");
        assert_eq!(only.connection.base_url, "http://u:1/", "{name}");
    }
}

#[test]
fn the_seeds_names_hold_everywhere_over_policy_and_file() {
    let env = [
        ("RETRY_MAX_ATTEMPTS", "7"),
        ("RETRY_MIN_WAIT", "0.5"),
        ("RETRY_MAX_WAIT", "20"),
        ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "9"),
        ("CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "400"),
        ("RATE_LIMIT_REQUESTS", "12"),
        ("RATE_LIMIT_PERIOD", "1.5"),
        ("HOSPITAL_API_TIMEOUT", "31.5"),
        ("IDEMPOTENCY_CACHE_TTL", "3600"),
        ("PATH", "/bin"),
        ("TRIAGE_LOG", "debug"),
    ];
    let file = format!("{LEAST}defaults.retry.max_attempts = 2\n[upstreams.b]\nbase_url = \"http://b\"\nhost = \"b\"");
    let loaded = loaded(&file, &env, Flags::default());
    for upstream in &loaded.settings.upstreams {
        let effective = effective_endpoint(upstream, &create());
        assert_eq!(effective.retry.max_attempts, 7, "{}", upstream.name);
        assert_eq!(effective.attempt_timeout, Duration::from_millis(31_500));
        assert!(effective.deadline >= Duration::from_secs(40), "the deadline leaves space for it");
        assert_eq!(upstream.idempotency.keep, Duration::from_hours(1));
        assert_eq!(effective.retry.min_wait, Duration::from_millis(500));
        assert_eq!(effective.retry.max_wait, Duration::from_secs(20));
        let breaker = effective.breaker.unwrap();
        assert_eq!(breaker.consecutive_failures, Some(9));
        assert_eq!((breaker.open_for, breaker.open_for_max), (Duration::from_secs(400), Duration::from_secs(400)));
        let [limit] = effective.limits.as_slice() else { panic!("not one limit") };
        assert_eq!((limit.requests.get(), limit.burst.get(), limit.period), (12, 12, Duration::from_millis(1_500)));
    }
}

/// A load test sets the limit to any number that fits, or to none.
#[test]
fn the_seeds_limit_may_be_as_high_as_it_can_be_counted_or_off() {
    for (requests, expected) in [("100000000", Some(100_000_000)), ("4294967295", Some(u32::MAX)), ("off", None)] {
        let loaded = loaded(LEAST, &[("RATE_LIMIT_REQUESTS", requests)], Flags::default());
        let effective = effective_endpoint(&loaded.settings.upstreams[0], &create());
        let limits: Vec<u32> = effective.limits.iter().map(|limit| limit.requests.get()).collect();
        assert_eq!(limits, expected.into_iter().collect::<Vec<_>>(), "{requests}: over the policy's own too");
    }
}

#[test]
fn a_general_variable_reaches_names_with_dashes() {
    let env = [("TRIAGE__UPSTREAMS__A__ENDPOINTS__CREATE_HOSPITAL__LIMITS", r#"[{"requests": 2, "period": "1s"}]"#)];
    let loaded = loaded(LEAST, &env, Flags::default());
    let [own] = loaded.settings.upstreams[0].endpoints.as_slice() else { panic!("not one override") };
    assert_eq!(own.name, "create-hospital");
    assert_eq!(effective_endpoint(&loaded.settings.upstreams[0], &create()).limits[0].requests.get(), 2);
}

#[test]
fn the_more_exact_key_goes_before_the_less_exact_one() {
    let file = format!("{LEAST}endpoints.create-hospital.retry.max_attempts = 2");
    let loaded = loaded(&file, &[("RETRY_MAX_ATTEMPTS", "7")], sets(&["upstreams.a.defaults.retry.max_attempts=8"]));
    assert_eq!(effective_endpoint(&loaded.settings.upstreams[0], &create()).retry.max_attempts, 2);
}

#[test]
fn paths_start_at_the_files_folder() {
    let text = format!("{LEAST}policy = \"./mine.wasm\"\nca_file = \"/etc/ca.pem\"");
    let inputs = Inputs { file: Some(("etc/triage.toml".to_owned(), text)), ..Inputs::default() };
    let upstream = load(&inputs).unwrap().settings.upstreams.remove(0);
    assert_eq!(upstream.policy, PolicySource::File("etc/./mine.wasm".into()));
    assert_eq!(upstream.connection.ca_file, Some("/etc/ca.pem".into()));
}

#[test]
fn a_policys_settings_are_handed_on_as_json() {
    let text = format!("{LEAST}policy_settings = {{ retries = 2, codes = [429], deep.on = true }}");
    let upstream = from_toml(&text).unwrap().upstreams.remove(0);
    let json: serde_json::Value = serde_json::from_str(&upstream.policy_settings).unwrap();
    assert_eq!(json, serde_json::json!({"retries": 2, "codes": [429], "deep": {"on": true}}));
}
