//! The output of `config show` and of the reference.

use super::*;
use crate::schema::KEYS;

const FILE: &str = r#"
[server]
listen = "127.0.0.1:9090"
workers = 2
[upstreams.hospital]
base_url = "http://hospital.example/api"
policy = "hospital-directory"
policy_settings = { api_token = "s3cret", retries = 2 }
[upstreams.hospital.defaults.retry]
max_wait = "4s"
[upstreams.hospital.endpoints.create-hospital]
limits = [{ requests = 3, period = "1m" }]
[upstreams.hospital.endpoints.report]
method = "GET"
path = "/report"
"#;

#[test]
fn every_effective_value_is_shown_with_its_source() {
    let loaded =
        loaded(FILE, &[("RETRY_MAX_ATTEMPTS", "6")], Flags { workers: Some("3".to_owned()), ..Flags::default() });
    let shown = show(&loaded.settings, &[description()]);
    let lines: Vec<String> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "server.listen = \"127.0.0.1:9090\" # file triage.toml:3",
        "server.workers = 3 # flag --workers",
        "server.drain = \"30s\" # default",
        "state.url = \"memory:\" # default",
        "upstreams.hospital.base_url = \"http://hospital.example/api\" # file triage.toml:6",
        "upstreams.hospital.policy_settings = { api_token = \"(hidden)\", retries = 2 } # file triage.toml:8",
        "upstreams.hospital.idempotency.lock = \"150s\" # default",
        "upstreams.hospital.defaults.retry.max_attempts = 6 # env RETRY_MAX_ATTEMPTS",
        "upstreams.hospital.defaults.retry.max_wait = \"4s\" # file triage.toml:10",
        "# POST /hospitals/",
        "upstreams.hospital.endpoints.create-hospital.attempt_timeout = \"30s\" # policy hospital-directory",
        "upstreams.hospital.endpoints.create-hospital.limits = [{ requests = 3, period = \"1m\", burst = 3 }] # file triage.toml:12",
        "upstreams.hospital.endpoints.create-hospital.concurrency = 20 # policy hospital-directory",
        "upstreams.hospital.endpoints.report.method = \"GET\" # file triage.toml:14",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}\n\n{shown}");
    }
    assert!(!shown.contains("s3cret"));
    let columns: Vec<usize> = shown.lines().filter_map(|line| line.rfind("  # ")).collect();
    let aligned = columns.iter().filter(|column| Some(*column) == columns.iter().min()).count();
    assert!(aligned * 10 > columns.len() * 8, "not aligned:\n{shown}");
}

/// The output of `config show` loads to the same effective settings.
#[test]
fn the_output_of_config_show_loads_to_the_same_settings() {
    let file = FILE.replace("api_token = \"s3cret\", ", "");
    let before = loaded(&file, &[("RATE_LIMIT_REQUESTS", "5")], Flags::default());
    let after = loaded(&show(&before.settings, &[description()]), &[], Flags::default());
    assert_eq!(before.settings.server, after.settings.server);
    let (was, is) = (&before.settings.upstreams[0], &after.settings.upstreams[0]);
    assert_eq!(endpoints(was, &description()), endpoints(is, &description()));
    assert_eq!(idempotency(was, &description()), idempotency(is, &description()));
    assert_eq!((&was.connection, &was.policy_settings), (&is.connection, &is.policy_settings));
}

#[test]
fn shared_state_is_read_from_file_and_environment_and_shown_without_secrets() {
    let state = |text: &str, env: &[(&str, &str)]| match loaded(&format!("{text}\n{LEAST}"), env, Flags::default())
        .settings
        .state
    {
        settings::State::Shared(shared) => Some(*shared),
        settings::State::Memory => None,
    };
    assert_eq!(state("", &[]), None);
    let url = ("TRIAGE_STATE", "redis://:hush@broker:6379/0");
    assert_eq!(state("", &[url]).unwrap().address.to_string(), "redis://:***@broker:6379/0");
    let text = "state = { url = \"redis://a,b\", prefix = \"x:y\", timeout = \"5ms\", quorum = 3, required = true, password_file = \"p\" }";
    let shared = state(text, &[("TRIAGE_STATE_KEY", "hush")]).unwrap();
    let plain = (shared.prefix.as_str(), shared.timeout, shared.quorum, shared.required);
    assert_eq!(plain, ("x:y", Duration::from_millis(5), 3, true));
    assert!(matches!(&shared.password, Some(crate::secret::TokenSource::File(path)) if path.ends_with("p")));
    assert!(!format!("{shared:?}").contains("hush"));
    let shown = show(&loaded(LEAST, &[url, ("TRIAGE_STATE_PASSWORD", "hush")], Flags::default()).settings, &[]);
    assert!(shown.contains("redis://:***@broker:6379/0") && !shown.contains("hush"), "{shown}");
}

/// The seed's Redis was its queue; any other setting of `state.url` overrides it.
#[test]
fn the_seeds_broker_is_where_state_is_if_nothing_else_says_so() {
    let broker = |url| ("CELERY_BROKER_URL", url);
    let redis = broker("redis://:hush@queue:6379/1");
    let file = format!("state.url = \"redis://file\"\n{LEAST}");
    let set = sets(&["state.url=memory:"]);
    for (name, loaded, expected) in [
        ("alone", loaded(LEAST, &[redis], Flags::default()), "\"redis://:***@queue:6379/1\" # env CELERY_BROKER_URL"),
        (
            "a socket",
            loaded(LEAST, &[broker("redis+socket:///r.sock")], Flags::default()),
            "\"redis+unix:///r.sock\" # env CELERY_BROKER_URL",
        ),
        ("RabbitMQ", loaded(LEAST, &[broker("amqp://me:hush@queue//")], Flags::default()), "\"memory:\" # default"),
        ("empty", loaded(LEAST, &[broker(" ")], Flags::default()), "\"memory:\" # default"),
        ("a file", loaded(&file, &[redis], Flags::default()), "\"redis://file:6379/0\" # file triage.toml:1"),
        (
            "a variable",
            loaded(LEAST, &[redis, ("TRIAGE_STATE", "redis://own")], Flags::default()),
            "\"redis://own:6379/0\" # env TRIAGE_STATE",
        ),
        ("a flag", loaded(LEAST, &[redis], set), "\"memory:\" # flag --set"),
    ] {
        let shown = show(&loaded.settings, &[]);
        let line = shown.lines().find_map(|line| line.strip_prefix("state.url = "));
        let line = line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(line.as_deref(), Some(expected), "{name}");
        assert!(!shown.contains("hush"), "{name}");
    }
    let message = load(&inputs(LEAST, &[broker("redis://:hush@queue/x")], Flags::default())).unwrap_err().to_string();
    assert!(message.ends_with("(env CELERY_BROKER_URL)") && !message.contains("hush"), "{message}");
}

/// OpenTelemetry's own variables reach every container of a cluster; any setting of Triage overrides them.
#[test]
fn opentelemetrys_variables_hold_where_nothing_else_says_so() {
    const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/x/");
    const TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/own");
    const NAME: (&str, &str) = ("OTEL_SERVICE_NAME", "front desk");
    const ATTRIBUTES: (&str, &str) = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other, a=b%2Cc%20d,");
    const SHARE: (&str, &str) = ("OTEL_TRACES_SAMPLER_ARG", "0.07");
    let file = format!("telemetry.otlp = {{ endpoint = \"http://file\", share = 5, service_name = \"own\" }}\n{LEAST}");
    let resource = "{ a = \"b,c d\", \"service.name\" = \"other\" }";
    for (name, text, env, expected) in [
        ("unset", LEAST, &[NAME, ATTRIBUTES, SHARE][..], None),
        ("the base", LEAST, &[BASE], Some(("http://c:4318/x/v1/traces", 100, "triage", None))),
        ("traces alone", LEAST, &[BASE, TRACES], Some(("http://t:1/own", 100, "triage", None))),
        ("attributes", LEAST, &[BASE, ATTRIBUTES], Some(("http://c:4318/x/v1/traces", 100, "other", Some("b,c d")))),
        (
            "all",
            LEAST,
            &[BASE, NAME, ATTRIBUTES, SHARE],
            Some(("http://c:4318/x/v1/traces", 7, "front desk", Some("b,c d"))),
        ),
        ("a file", &file, &[BASE, TRACES, NAME, SHARE], Some(("http://file/v1/traces", 5, "own", None))),
        ("disabled", LEAST, &[BASE, ("OTEL_SDK_DISABLED", "TRUE")], None),
        ("no exporter", LEAST, &[BASE, ("OTEL_TRACES_EXPORTER", "none")], None),
        ("sampled never", LEAST, &[BASE, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")], None),
        ("grpc", LEAST, &[BASE, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None),
        ("not disabled", LEAST, &[TRACES, ("OTEL_SDK_DISABLED", "1")], Some(("http://t:1/own", 100, "triage", None))),
        (
            "another sampler",
            LEAST,
            &[TRACES, ("OTEL_TRACES_SAMPLER", "jaeger_remote"), ("OTEL_TRACES_SAMPLER_ARG", "endpoint=http://j")],
            Some(("http://t:1/own", 100, "triage", None)),
        ),
        (
            "a little",
            LEAST,
            &[TRACES, ("OTEL_TRACES_SAMPLER_ARG", "0.0001")],
            Some(("http://t:1/own", 1, "triage", None)),
        ),
        ("none", LEAST, &[TRACES, ("OTEL_TRACES_SAMPLER_ARG", "0")], Some(("http://t:1/own", 0, "triage", None))),
    ] {
        let traces = loaded(text, env, Flags::default()).settings.traces;
        let got = traces.as_ref().map(|target| {
            let resource = |key| target.resource.get(key).map(String::as_str);
            (target.endpoint.to_string(), target.share_percent, resource("service.name").unwrap(), resource("a"))
        });
        let expected = expected.map(|(url, share, service, own)| (url.to_owned(), share, service, own));
        assert_eq!(got, expected, "{name}");
    }
    let shown = show(&loaded(LEAST, &[BASE, NAME, ATTRIBUTES, SHARE], Flags::default()).settings, &[]);
    let shown: Vec<String> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "telemetry.otlp.endpoint = \"http://c:4318/x/\" # env OTEL_EXPORTER_OTLP_ENDPOINT",
        "telemetry.otlp.share = 7 # env OTEL_TRACES_SAMPLER_ARG",
        "telemetry.otlp.service_name = \"front desk\" # env OTEL_SERVICE_NAME",
        &format!("telemetry.otlp.resource_attributes = {resource} # env OTEL_RESOURCE_ATTRIBUTES"),
    ] {
        assert!(shown.iter().any(|own| own == line), "{line}: {shown:#?}");
    }
    let bad = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hush@c"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_RESOURCE_ATTRIBUTES", "hush"),
    ];
    let message = load(&inputs(&format!("telemetry.otlp.endpoint = \"http://c\"\n{LEAST}"), &bad, Flags::default()));
    let message = message.unwrap_err().to_string();
    for part in [
        "telemetry.otlp.share: got \"2\"; must be a ratio from 0 to 1, such as 0.25 (env OTEL_TRACES_SAMPLER_ARG)",
        "(env OTEL_RESOURCE_ATTRIBUTES)",
    ] {
        assert!(message.contains(part) && !message.contains("hush"), "{message}");
    }
    let message = load(&inputs(LEAST, &bad[..1], Flags::default())).unwrap_err().to_string();
    assert!(message.ends_with("(env OTEL_EXPORTER_OTLP_ENDPOINT)") && !message.contains("hush"), "{message}");
}

#[test]
fn every_default_of_the_table_fits_its_key() {
    for key in KEYS {
        let Some(default) = key.default else { continue };
        let (raw, mut problems) = (super::super::layers::Raw::Word(default.to_owned()), Vec::new());
        let read = key.kind.read(key.name, &raw, key.may_be_off(), &mut problems);
        assert!(read.is_some() && problems.is_empty(), "{}: {problems:?}", key.name);
    }
}

/// An endpoint's own limits inside a group are shown, and the output loads to the same settings.
#[test]
fn an_endpoints_own_limits_in_a_group_are_shown_beside_the_groups() {
    let file = "[upstreams.hospital]\nbase_url = \"http://hospital.example\"\npolicy = \"hospital-directory\"\n\
                defaults = { group = \"all\", limits = [{ requests = 10, period = \"1s\" }] }\n";
    let before = loaded(file, &[], Flags::default());
    let shown = show(&before.settings, &[description()]);
    let own = "# as its own limit also: limits = [{ requests = 1, period = \"6500ms\", burst = 20 }]";
    assert!(
        shown.lines().any(|line| line.starts_with(own) && line.ends_with("# policy hospital-directory")),
        "{shown}"
    );
    let after = loaded(&shown, &[], Flags::default());
    let all = |loaded: &Loaded| endpoints(&loaded.settings.upstreams[0], &description()).unwrap();
    assert_eq!(all(&before), all(&after));
}
