//! No input makes the loader panic, and every rejection has a message.

use super::*;
use proptest::prelude::*;

/// Values of every type, many of them nearly valid.
const VALUES: [&str; 24] = [
    "0",
    "-1",
    "9223372036854775807",
    "99999999999999999999",
    "1e400",
    "nan",
    "0x10",
    "true",
    "\"\"",
    "\"off\"",
    "\"5s\"",
    "\"99999999999d\"",
    "\"1.0000000000000001s\"",
    "\"é\"",
    "\"-5s\"",
    "[]",
    "[1]",
    "[{}]",
    "{}",
    "{ a = 1 }",
    "2020-01-01",
    "[{ requests = 1, period = \"1s\" }]",
    "\"http://[::1\"",
    "\"\\u0000\"",
];

fn path() -> impl Strategy<Value = String> {
    let known = prop::sample::select(schema::KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    let before =
        prop::sample::select(vec!["", "upstreams.a.", "upstreams.a.defaults.", "upstreams.a.endpoints.b.", "x."]);
    prop_oneof![4 => (before, known).prop_map(|(before, name)| format!("{before}{name}")), 1 => "[a-z_.\"-]{0,20}"]
}

fn check(inputs: &Inputs) -> Result<(), TestCaseError> {
    match load(inputs) {
        Err(problems) => prop_assert!(problems.iter().all(|problem| !problem.to_string().is_empty())),
        Ok(loaded) => {
            let shown = show(&loaded.settings, &[description()]);
            prop_assert!(shown.parse::<toml::Table>().is_ok(), "not TOML:\n{shown}");
            for upstream in &loaded.settings.upstreams {
                let Ok(all) = endpoints(upstream, &description()) else { continue };
                for (_, endpoint) in all {
                    prop_assert!(endpoint.attempt_timeout <= endpoint.deadline);
                    prop_assert!(endpoint.retry.min_wait <= endpoint.retry.max_wait);
                    prop_assert!(endpoint.breaker.is_none_or(|b| b.probe_lease > endpoint.attempt_timeout));
                    prop_assert!(endpoint.deadline <= idempotency(upstream, &description()).lock);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_a_file(text in "\\PC{0,200}") {
        check(&inputs(&text, &[], Flags::default()))?;
    }

    #[test]
    fn any_keys_have_any_values(
        lines in prop::collection::vec((path(), prop::sample::select(VALUES.to_vec())), 0..6),
    ) {
        let lines: Vec<String> = lines.iter().map(|(path, value)| format!("{path} = {value}")).collect();
        check(&inputs(&format!("upstreams.a.base_url = \"http://a\"\n{}", lines.join("\n")), &[], Flags::default()))?;
    }

    #[test]
    fn durations_of_all_lengths_contradict_each_other_or_fit(
        pairs in prop::collection::btree_map(
            prop::sample::select(vec![
                "attempt_timeout", "deadline", "retry.min_wait", "retry.max_wait", "breaker.open_for",
                "breaker.open_for_max", "breaker.probe_lease",
            ]),
            1_u64..300, 0..6,
        ),
        lock in prop::option::of(1_u64..300),
        scope in prop::sample::select(vec!["defaults", "endpoints.create-hospital"]),
    ) {
        let mut set: Vec<String> =
            pairs.iter().map(|(key, seconds)| format!("upstreams.a.{scope}.{key}={seconds}s")).collect();
        set.extend(lock.map(|lock| format!("upstreams.a.idempotency.lock={lock}s")));
        check(&inputs(LEAST, &[], Flags { set, ..Flags::default() }))?;
    }

    #[test]
    fn any_variable_and_any_flag(
        name in prop_oneof![
            "TRIAGE__[A-Z_]{0,30}", "TRIAGE_[A-Z]{0,8}", "RETRY_MIN_WAIT", "RATE_LIMIT_PERIOD", "RATE_LIMIT_REQUESTS",
            "OTEL_EXPORTER_OTLP_(TRACES_)?ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES",
            "HOSPITAL_API_BASE_URL", "HOSPITAL_API_TIMEOUT", "IDEMPOTENCY_CACHE_TTL", "\\PC{0,10}",
        ],
        value in "\\PC{0,30}",
        path in path(),
    ) {
        let flags = Flags {
            set: vec![format!("{path}={value}"), value.clone()],
            listen: Some(value.clone()),
            admin: Some(value.clone()),
            policy: Some(value.clone()),
            upstream: Some(value.clone()),
            ..Flags::default()
        };
        check(&inputs(LEAST, &[(&name, &value)], flags))?;
        check(&inputs("", &[(&name, &value)], Flags::default()))?;
    }

    #[test]
    fn durations_and_sizes_come_back_as_they_were_written(micros in 0_u64..=u64::MAX / 2, bytes: u64) {
        let duration = Duration::from_micros(micros);
        prop_assert_eq!(units::duration(&units::write_duration(duration)), Some(duration));
        prop_assert_eq!(units::size(&units::write_size(bytes)), Some(bytes));
    }
}
