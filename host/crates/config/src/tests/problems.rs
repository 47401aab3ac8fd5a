//! The exact messages for invalid configurations.

use super::*;

/// A case: its name, the file, and every line of the message.
type Case = (&'static str, &'static str, &'static [&'static str]);

const FILES: &[Case] = &[
    (
        "a key misspelt",
        "server.lisen = \"127.0.0.1:1\"",
        &["server.lisen: is not known; did you mean server.listen? (file triage.toml:3)"],
    ),
    (
        "a key that nothing resembles",
        "server.colour = 1",
        &["server.colour: is not known; remove it (file triage.toml:3)"],
    ),
    ("a section misspelt", "servers = 1", &["servers: is not known; did you mean server? (file triage.toml:3)"]),
    ("a section that is no table", "server = 5", &["server: got 5; must be a table of keys (file triage.toml:3)"]),
    (
        "an endpoint's key on the upstream",
        "upstreams.a.retry.max_attempts = 1",
        &["upstreams.a.retry: is not known; did you mean upstreams.a.defaults.retry? (file triage.toml:3)"],
    ),
    (
        "a key of an added endpoint in defaults",
        "upstreams.a.defaults.method = \"GET\"",
        &["upstreams.a.defaults.method: is not known; remove it (file triage.toml:3)"],
    ),
    (
        "an upstream's name",
        "upstreams.\"A b\".base_url = \"http://b\"",
        &[
            "upstreams.\"A b\": got the name \"A b\"; must be a name of 1 to 64 characters of a-z, 0-9 and - (file triage.toml:3)",
        ],
    ),
    (
        "a duration without a unit",
        "server.drain = 30",
        &[
            "server.drain: got 30; must be a duration with its unit: write \"30s\" for seconds, \"30ms\" for milliseconds (file triage.toml:3)",
        ],
    ),
    (
        "a duration as a bare text",
        "server.drain = \"30\"",
        &[
            "server.drain: got \"30\"; must be a duration with its unit: write \"30s\" for seconds, \"30ms\" for milliseconds (file triage.toml:3)",
        ],
    ),
    (
        "a duration in fortnights",
        "server.drain = \"2fortnights\"",
        &[
            "server.drain: got \"2fortnights\"; must be a duration from 0s to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (file triage.toml:3)",
        ],
    ),
    (
        "a duration of nothing",
        "server.header_read_timeout = \"0s\"",
        &[
            "server.header_read_timeout: got \"0s\"; must be a duration from 1ms to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (file triage.toml:3)",
        ],
    ),
    (
        "a size without a unit",
        "server.max_header_bytes = 65536",
        &[
            "server.max_header_bytes: got 65536; must be a size with its unit: write \"65536B\" for bytes, \"65536KiB\" for kibibytes (file triage.toml:3)",
        ],
    ),
    (
        "a size in another unit",
        "server.max_header_bytes = \"64KB\"",
        &[
            "server.max_header_bytes: got \"64KB\"; must be a size from 8KiB to 1GiB, such as \"64KiB\" or \"1MiB\" (file triage.toml:3)",
        ],
    ),
    (
        "a count of nothing",
        "server.workers = 0",
        &[
            "server.workers: got 0; must be a whole number from 1 to 1024, or \"auto\" for one per core (file triage.toml:3)",
        ],
    ),
    (
        "a negative count",
        "server.max_connections = -1",
        &["server.max_connections: got -1; must be a whole number from 1 to 1000000 (file triage.toml:3)"],
    ),
    (
        "an address without a port",
        "server.listen = \"127.0.0.1\"",
        &[
            "server.listen: got \"127.0.0.1\"; must be an IP address and a port, such as \"127.0.0.1:8080\" (file triage.toml:3)",
        ],
    ),
    (
        "an admin listener for everybody",
        "admin.listen = \"0.0.0.0:9464\"",
        &[
            "admin.listen: got \"0.0.0.0:9464\", but no token is set, and every caller of this address could control the host; must be a loopback address, such as \"127.0.0.1:9464\", or set admin.read_token_file, admin.write_token_file or admin.tls.client_ca (file triage.toml:3)",
        ],
    ),
    (
        "one port for callers and operators",
        "admin.listen = \"127.0.0.1:8080\"",
        &[
            "admin.listen: got \"127.0.0.1:8080\", but callers connect to the same address; must be an address of its own (file triage.toml:3)",
        ],
    ),
    (
        "state in a Redis, badly named, with a password that no message repeats",
        "state.url = \"redis://:hush@localhost/x\"",
        &[
            "state.url: got \"redis:...\"; must be a URL whose path is the number of a database, such as \"redis://host/0\" (file triage.toml:3)",
        ],
    ),
    (
        "state elsewhere",
        "state.url = \"disk:\"",
        &[
            "state.url: got \"disk:...\"; must be \"memory:\", or the URL of a Redis or Valkey: \"redis://host:6379/0\", \"rediss://host\" with TLS, \"unix:///path/of.sock\", \"redis://a:6379,b:6379\" for a Cluster, or \"redis+sentinel://a:26379,b:26379/master\" (file triage.toml:3)",
        ],
    ),
    (
        "a yes that is no boolean",
        "upstreams.a.reuse_instances = \"yes\"",
        &["upstreams.a.reuse_instances: got \"yes\"; must be true or false (file triage.toml:3)"],
    ),
    (
        "a policy misspelt",
        "upstreams.a.policy = \"hospital-directry\"",
        &[
            "upstreams.a.policy: got \"hospital-directry\"; must be an embedded policy (http-standard, hospital-directory, fhir), the path of a component that ends in .wasm, or one in a registry (oci://HOST/REPOSITORY@sha256:DIGEST); did you mean \"hospital-directory\"? (file triage.toml:3)",
        ],
    ),
    (
        "policy settings that are no table",
        "upstreams.a.policy_settings = 3",
        &["upstreams.a.policy_settings: got 3; must be a table (or its JSON text) without null (file triage.toml:3)"],
    ),
    (
        "a path prefix without its slash",
        "upstreams.a.path_prefix = \"api\"",
        &[
            "upstreams.a.path_prefix: got \"api\"; must be a path that starts with \"/\" and has no query, fragment, blank or dot segment, such as \"/api\" (file triage.toml:3)",
        ],
    ),
    (
        "a host with a port",
        "upstreams.a.host = \"a.example:80\"",
        &[
            "upstreams.a.host: got \"a.example:80\"; must be a host name without scheme, port and path, such as \"hospital.example\" (file triage.toml:3)",
        ],
    ),
    (
        "a header name with a blank",
        "upstreams.a.deadline_header = \"a b\"",
        &["upstreams.a.deadline_header: got \"a b\"; must be a header name, such as \"x-tenant\" (file triage.toml:3)"],
    ),
    (
        "an effect that there is not",
        "upstreams.a.endpoints.x.effect = \"harmless\"",
        &[
            "upstreams.a.endpoints.x.effect: got \"harmless\"; must be \"safe\", \"idempotent\" or \"unsafe\" (file triage.toml:3)",
        ],
    ),
    (
        "a method in lower case",
        "upstreams.a.endpoints.x.method = \"post\"",
        &[
            "upstreams.a.endpoints.x.method: got \"post\"; must be a method in upper case, such as \"POST\", or \"*\" for all (file triage.toml:3)",
        ],
    ),
    (
        "a template that cannot be routed",
        "upstreams.a.endpoints.x.path = \"/a/{b\"",
        &[
            "upstreams.a.endpoints.x.path: got \"/a/{b\"; must be a URI template that starts with \"/\", such as \"/hospitals/{id}\" (file triage.toml:3)",
        ],
    ),
    (
        "a budget above all",
        "upstreams.a.defaults.budget.percent = 120",
        &[
            "upstreams.a.defaults.budget.percent: got 120; must be a whole number of percent, from 0 to 100 (file triage.toml:3)",
        ],
    ),
    (
        "a rate of nothing",
        "upstreams.a.defaults.breaker.failure_rate = 0",
        &[
            "upstreams.a.defaults.breaker.failure_rate: got 0; must be a whole number of percent, from 1 to 100, or \"off\" (file triage.toml:3)",
        ],
    ),
    (
        "limits that are no list",
        "upstreams.a.defaults.limits = 10",
        &[
            "upstreams.a.defaults.limits: got 10; must be a list of limits, such as [{ requests = 10, period = \"1s\", burst = 10 }] (file triage.toml:3)",
        ],
    ),
    (
        "a limit with nothing right",
        "upstreams.a.defaults.limits = [{ requests = 0, burst = 0, perod = \"1s\" }]",
        &[
            "upstreams.a.defaults.limits[0].perod: is not known; did you mean period? (file triage.toml:3)",
            "upstreams.a.defaults.limits[0].requests: got 0; must be a whole number from 1 to 4294967295 (file triage.toml:3)",
            "upstreams.a.defaults.limits[0].period: got nothing; must be a duration from 1ms to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (file triage.toml:3)",
            "upstreams.a.defaults.limits[0].burst: got 0; must be a whole number from 1 to 4294967295 (file triage.toml:3)",
        ],
    ),
    (
        "an attempt as long as a probe's lease",
        "upstreams.a.defaults = { attempt_timeout = \"20s\", breaker.probe_lease = \"20s\" }",
        &[
            "upstreams.a.defaults.breaker.probe_lease: got \"20s\", but attempt_timeout is \"20s\" (file triage.toml:3); must be longer than that (file triage.toml:3)",
        ],
    ),
    (
        "a deadline shorter than an attempt",
        "upstreams.a.defaults = { attempt_timeout = \"5s\", deadline = \"2s\" }",
        &[
            "upstreams.a.defaults.deadline: got \"2s\", but attempt_timeout is \"5s\" (file triage.toml:3); must be at least as long (file triage.toml:3)",
        ],
    ),
    (
        "waits upside down",
        "upstreams.a.defaults.retry = { min_wait = \"3s\", max_wait = \"1s\" }",
        &[
            "upstreams.a.defaults.retry.max_wait: got \"1s\", but retry.min_wait is \"3s\" (file triage.toml:3); must be at least as long (file triage.toml:3)",
        ],
    ),
    (
        "a breaker's times upside down",
        "upstreams.a.defaults.breaker = { open_for = \"2m\", open_for_max = \"1m\" }",
        &[
            "upstreams.a.defaults.breaker.open_for_max: got \"1m\", but breaker.open_for is \"2m\" (file triage.toml:3); must be at least as long (file triage.toml:3)",
        ],
    ),
    (
        "an override against the defaults",
        "upstreams.a.defaults.attempt_timeout = \"5s\"\nupstreams.a.endpoints.x.deadline = \"2s\"",
        &[
            "upstreams.a.endpoints.x.deadline: got \"2s\", but attempt_timeout is \"5s\" (file triage.toml:3); must be at least as long (file triage.toml:4)",
        ],
    ),
    (
        "a breaker that nothing trips",
        "upstreams.a.defaults.breaker = { failure_threshold = \"off\", failure_rate = \"off\" }",
        &[
            "upstreams.a.defaults.breaker: got no criterion that trips the breaker; must be at least one of failure_threshold, failure_rate and slow_call_after, or enabled = false (file triage.toml:3)",
        ],
    ),
    (
        "a lock shorter than a deadline",
        "upstreams.a = { idempotency.lock = \"10s\" }",
        &[
            "upstreams.a.idempotency.lock: got \"10s\", but upstreams.a.defaults.deadline is \"15s\" (default); must be at least as long (file triage.toml:3)",
        ],
    ),
    (
        "a listener twice",
        "upstreams.a.listen = \"127.0.0.1:8080\"",
        &[
            "upstreams.a.listen: got \"127.0.0.1:8080\", but server.listen has the same address; must be an address of its own (file triage.toml:3)",
        ],
    ),
    (
        "a listener of two upstreams",
        "upstreams.a.listen = \"127.0.0.1:9\"\nupstreams.b = { base_url = \"http://b\", listen = \"127.0.0.1:9\" }",
        &[
            "upstreams.b.listen: got \"127.0.0.1:9\", but upstreams.a.listen has the same address; must be an address of its own (file triage.toml:4)",
        ],
    ),
    (
        "two upstreams for the same requests",
        "upstreams.b = { base_url = \"http://b\" }",
        &[
            "upstreams.b: got the same path_prefix, host and listen as upstreams.a; must be different in path_prefix, host or listen (file triage.toml:3)",
        ],
    ),
    (
        "the same prefix with and without a slash",
        "upstreams.a.path_prefix = \"/x\"\nupstreams.b = { base_url = \"http://b\", path_prefix = \"/x/\" }",
        &[
            "upstreams.b: got the same path_prefix, host and listen as upstreams.a; must be different in path_prefix, host or listen (file triage.toml:4)",
        ],
    ),
    (
        "an upstream without a base URL",
        "upstreams.b.host = \"b.example\"",
        &["upstreams.b.base_url: got nothing; must be the URL of the API, such as \"http://127.0.0.1:8000\""],
    ),
    (
        "everything at once",
        "server = { drain = 5, lisen = 1 }\nupstreams.a.defaults.deadline = true\nupstreams.a.endpoints.x.retry.max_attempts = 0",
        &[
            "server.drain: got 5; must be a duration with its unit: write \"5s\" for seconds, \"5ms\" for milliseconds (file triage.toml:3)",
            "server.lisen: is not known; did you mean server.listen? (file triage.toml:3)",
            "upstreams.a.defaults.deadline: got true; must be a duration from 1ms to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (file triage.toml:4)",
            "upstreams.a.endpoints.x.retry.max_attempts: got 0; must be a whole number from 1 to 100 (file triage.toml:5)",
        ],
    ),
];

/// Adaptive settings, and what they conflict with.
#[test]
fn the_problem_of_an_adaptive_setting_names_its_conflict() {
    let cases = [
        (
            "a baseline in a fleet",
            "state.url = \"redis://r\"\nupstreams.a.defaults.breaker.baseline = 5",
            "upstreams.a.defaults.breaker.baseline: got 5, but state.url names shared state, and the breaker of a fleet uses fixed limits only; must be \"off\", or have state.url be \"memory:\" (file triage.toml:4)",
        ),
        (
            "a baseline that is no nearer than the fixed limit",
            "upstreams.a.defaults.breaker = { baseline = 40, failure_rate = 40 }",
            "upstreams.a.defaults.breaker.baseline: got 40, but breaker.failure_rate is 40 (file triage.toml:3); must be less than that (file triage.toml:3)",
        ),
        (
            "a floor above a limit",
            "upstreams.a.defaults = { adaptive_rate = { enabled = true, floor_per_minute = 60 }, limits = [{ requests = 1, period = \"1s\" }] }",
            "upstreams.a.defaults.adaptive_rate.floor_per_minute: got 60, but limits admit 60 a minute (file triage.toml:3); must be below that (file triage.toml:3)",
        ),
        (
            "a floor above a limit of a few an hour",
            "upstreams.a.defaults = { adaptive_rate = { enabled = true, floor_per_minute = 1 }, limits = [{ requests = 20, period = \"1h\" }] }",
            "upstreams.a.defaults.adaptive_rate.floor_per_minute: got 1, but limits admit 0.33 a minute (file triage.toml:3); must be left out: the host then uses half of it (file triage.toml:3)",
        ),
        (
            "a rate that is no table",
            "upstreams.a.defaults.adaptive_rate = true",
            "upstreams.a.defaults.adaptive_rate: got true; must be a table of keys (file triage.toml:3)",
        ),
    ];
    for (name, text, expected) in cases {
        let file = format!("\nupstreams.a.base_url = \"http://a.example\"\n{text}");
        let message = load(&inputs(&file, &[], Flags::default())).map(|_| ()).expect_err(name).to_string();
        assert_eq!(message, expected, "{name}");
    }
    let file = "upstreams.a.base_url = \"http://a.example\"\n\
                upstreams.a.defaults = { breaker.baseline = 5, adaptive_rate.floor_per_minute = 60 }";
    let upstream = load(&inputs(file, &[], Flags::default())).unwrap().settings.upstreams.remove(0);
    for (described, own) in endpoints(&upstream, &description()).unwrap() {
        let baseline = own.breaker.unwrap().baseline_percent;
        assert_eq!(
            (baseline, own.adaptive_rate),
            (Some(5), None),
            "{}: a floor alone switches nothing on",
            described.name
        );
    }
}

/// A default floor is never a conflict: it is lowered to fit the limits.
#[test]
fn a_default_floor_gives_way_to_the_limits() {
    for (limit, expected) in [
        ("requests = 20, period = \"1h\"", 1),
        ("requests = 6, period = \"1m\"", 3),
        ("requests = 1, period = \"1s\"", 6),
    ] {
        let file = format!(
            "upstreams.a.base_url = \"http://a.example\"\n\
             upstreams.a.defaults = {{ adaptive_rate.enabled = true, limits = [{{ {limit} }}] }}"
        );
        let upstream = load(&inputs(&file, &[], Flags::default())).unwrap().settings.upstreams.remove(0);
        for (described, own) in endpoints(&upstream, &description()).unwrap() {
            let floor = own.adaptive_rate.map(|rate| rate.floor_per_minute);
            assert_eq!(floor, Some(expected), "{limit}: {}", described.name);
        }
    }
}

/// A breaker shared with Python workers, alone and in conflict with others.
#[test]
fn the_problem_of_an_interop_breaker_names_its_conflict() {
    const ON: &str = "breaker = { interop = \"pybreaker\" }";
    let cases = [
        (
            "in memory",
            format!("upstreams.a.defaults.{ON}"),
            "upstreams.a.defaults.breaker.interop: got \"pybreaker\", but state.url is \"memory:\"; must be \"off\", or have state.url name the Redis of the Python workers (file triage.toml:3)",
        ),
        (
            "without a breaker",
            "state.url = \"redis://r\"\nupstreams.a.endpoints.x.breaker = { enabled = false, interop = \"pybreaker\" }".to_owned(),
            "upstreams.a.endpoints.x.breaker.interop: got \"pybreaker\", but breaker.enabled is false (file triage.toml:4); must be \"off\" there (file triage.toml:4)",
        ),
        (
            "another library",
            "upstreams.a.defaults.breaker.interop = \"purgatory\"".to_owned(),
            "upstreams.a.defaults.breaker.interop: got \"purgatory\"; must be \"pybreaker\", or \"off\" (file triage.toml:3)",
        ),
        (
            "a namespace with a blank",
            "upstreams.a.defaults.breaker.interop_namespace = \"a b\"".to_owned(),
            "upstreams.a.defaults.breaker.interop_namespace: got \"a b\"; must be 1 to 128 visible ASCII characters, or \"off\" (file triage.toml:3)",
        ),
        (
            "a Cluster without a hash tag",
            "state.url = \"redis://r,s\"\nupstreams.a.defaults.breaker = { interop = \"pybreaker\", interop_namespace = \"a{}\" }".to_owned(),
            "upstreams.a.defaults.breaker.interop_namespace: got \"a{}\", but state.url is a Cluster, where all keys of a breaker must be in one slot; must be a namespace with a hash tag, such as \"{hospital}\", also for the Python workers (file triage.toml:4)",
        ),
        (
            "two upstreams",
            format!("state.url = \"redis://r\"\nupstreams.a.defaults.{ON}\nupstreams.b = {{ base_url = \"http://b\", host = \"b\", defaults.{ON} }}"),
            "upstreams.b.defaults.breaker.interop_namespace: got \"off\", but an endpoint of upstreams.a uses the same namespace, and each group needs its own breaker; must be a namespace of its own (default)",
        ),
    ];
    for (name, text, expected) in cases {
        let file = format!("\nupstreams.a.base_url = \"http://a.example\"\n{text}");
        let message = load(&inputs(&file, &[], Flags::default())).map(|_| ()).expect_err(name).to_string();
        assert_eq!(message, expected, "{name}");
    }
    let fits = |text: &str| {
        let file = format!("upstreams.a.base_url = \"http://a.example\"\n{text}");
        let upstream = load(&inputs(&file, &[], Flags::default())).unwrap().settings.upstreams.remove(0);
        check_against(&upstream, &description()).map_err(|problems| problems.to_string())
    };
    let cluster = "state.url = \"redis://r,s\"\nupstreams.a.defaults = { group = \"one\", limits = [], BREAKER }";
    let breaker = "breaker = { interop = \"pybreaker\", interop_namespace = \"{hospital}\" }";
    assert_eq!(fits(&cluster.replace("BREAKER", breaker)), Ok(()));
    let message = fits(&cluster.replace("BREAKER", breaker).replace("group = \"one\", ", "")).unwrap_err();
    assert_eq!(
        message,
        "upstreams.a.endpoints.list-hospitals.breaker.interop_namespace: got \"{hospital}\", but endpoints.create-hospital uses the same namespace, and each group needs its own breaker; must be a namespace of its own, or set the same `group` at all endpoints that share it (file triage.toml:3)"
    );
    // In `defaults`, interop applies to the endpoints that have a breaker.
    let some = "state.url = \"redis://r\"\nupstreams.a = { defaults.breaker.interop = \"pybreaker\", endpoints.list-hospitals.breaker.enabled = false }";
    let file = some.replace("upstreams.a = {", "upstreams.a = { base_url = \"http://a\",");
    let upstream = load(&inputs(&file, &[], Flags::default())).unwrap().settings.upstreams.remove(0);
    let shared: Vec<bool> =
        endpoints(&upstream, &description()).unwrap().iter().map(|(_, own)| own.pybreaker.is_some()).collect();
    assert_eq!(shared, [true, false]);
}

/// Prefixes the case with an upstream as dotted keys, so that the case is in line 3.
#[test]
fn loading_reports_every_problem_of_a_file() {
    for (name, text, expected) in FILES {
        let file = format!("\nupstreams.a.base_url = \"http://a.example\"\n{text}");
        // A case that writes upstream `a` or its defaults as an inline table needs its own base URL.
        let file = if text.starts_with("upstreams.a = {") {
            format!("\n\n{}", text.replacen('{', "{ base_url = \"http://a.example\",", 1))
        } else {
            file
        };
        let problems = load(&inputs(&file, &[], Flags::default())).map(|_| ()).expect_err(name);
        let message: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(message, *expected, "{name}");
    }
}

#[test]
fn each_bad_base_url_has_its_own_problem() {
    const FORM: &str = "an absolute http or https URL, such as \"http://127.0.0.1:8000\"";
    for (url, shown, must_be) in [
        ("a.example", "a.example", "a URL with its scheme: write \"http://a.example\" or \"https://a.example\""),
        (
            "localhost:80",
            "localhost:80",
            "a URL with its scheme: write \"http://localhost:80\" or \"https://localhost:80\"",
        ),
        ("ftp://a.example", "ftp://a.example", FORM),
        ("/path", "/path", FORM),
        ("http://", "http://", FORM),
        ("", "", FORM),
        ("http://a b", "http://a b", FORM),
        (
            "http://me:secret@a.example",
            "http://***@a.example",
            "a URL without user name and password; credentials belong in request headers",
        ),
        ("http://a.example/?q", "http://a.example/?q", "a URL without a query"),
        ("http://a.example/#f", "http://a.example/#f", "a URL without a fragment"),
    ] {
        let flags = Flags { upstream: Some(url.to_owned()), ..Flags::default() };
        let message = load(&inputs("", &[], flags)).expect_err(url).to_string();
        let expected = format!("upstreams.default.base_url: got {shown:?}; must be {must_be} (flag --upstream)");
        assert_eq!(message, expected, "{url}");
    }
}

#[test]
fn a_problem_names_its_variable_or_flag() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], Flags, &'static str);
    let none = Flags::default;
    let cases: [Case; 13] = [
        (
            "an unknown variable",
            &[("TRIAGE_LISTN", "x")],
            none(),
            "TRIAGE_LISTN: is not known; did you mean TRIAGE_LISTEN? (env TRIAGE_LISTN)",
        ),
        (
            "an unknown key in a variable",
            &[("TRIAGE__SERVER__DRAN", "5s")],
            none(),
            "server.dran: is not known; did you mean server.drain? (env TRIAGE__SERVER__DRAN)",
        ),
        (
            "a variable's value",
            &[("TRIAGE_WORKERS", "many")],
            none(),
            "server.workers: got \"many\"; must be a whole number from 1 to 1024, or \"auto\" for one per core (env TRIAGE_WORKERS)",
        ),
        (
            "seconds with a unit",
            &[("RETRY_MIN_WAIT", "2s")],
            none(),
            "upstreams.*.defaults.retry.min_wait: got \"2s\"; must be a number of seconds, such as 2 or 0.5 (env RETRY_MIN_WAIT)",
        ),
        (
            "a lifetime of answers with a unit",
            &[("IDEMPOTENCY_CACHE_TTL", "1h")],
            none(),
            "upstreams.*.idempotency.keep: got \"1h\"; must be a number of seconds, such as 2 or 0.5 (env IDEMPOTENCY_CACHE_TTL)",
        ),
        (
            "no attempts",
            &[("RETRY_MAX_ATTEMPTS", "0")],
            none(),
            "upstreams.*.defaults.retry.max_attempts: got \"0\"; must be a whole number from 1 to 100 (env RETRY_MAX_ATTEMPTS)",
        ),
        (
            "no requests",
            &[("RATE_LIMIT_REQUESTS", "0")],
            none(),
            "upstreams.*.defaults.limits[0].requests: got \"0\"; must be a whole number from 1 to 4294967295, or \"off\" (env RATE_LIMIT_REQUESTS)",
        ),
        (
            "no period",
            &[("RATE_LIMIT_PERIOD", "0")],
            none(),
            "upstreams.*.defaults.limits[0].period: got \"0s\"; must be a duration from 1ms to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (env RATE_LIMIT_PERIOD)",
        ),
        (
            "waits that contradict each other",
            &[("RETRY_MIN_WAIT", "5"), ("RETRY_MAX_WAIT", "1")],
            none(),
            "upstreams.a.defaults.retry.max_wait: got \"1s\", but retry.min_wait is \"5s\" (env RETRY_MIN_WAIT); must be at least as long (env RETRY_MAX_WAIT)",
        ),
        (
            "the seed's URL without its policy",
            &[("HOSPITAL_API_BASE_URL", "http://h")],
            none(),
            "upstreams.*.base_url: got a value, but no upstream has the policy hospital-directory; must be set by name: --set upstreams.NAME.base_url=... (env HOSPITAL_API_BASE_URL)",
        ),
        (
            "a flag without a value",
            &[],
            sets(&["server.drain"]),
            "--set: got \"server.drain\"; must be KEY=VALUE, such as server.drain=5s (flag --set)",
        ),
        ("a table in a flag", &[], sets(&["server=5"]), "server: got \"5\"; must be a table of keys (flag --set)"),
        (
            "limits in a flag",
            &[],
            sets(&["upstreams.a.defaults.limits=[{requests=1}]"]),
            "upstreams.a.defaults.limits[0].period: got nothing; must be a duration from 1ms to 366d, such as \"250ms\", \"5s\", \"1m\" or \"24h\" (flag --set)",
        ),
    ];
    for (name, environment, flags, expected) in cases {
        let message = load(&inputs(LEAST, environment, flags)).expect_err(name).to_string();
        assert_eq!(message, expected, "{name}");
    }
}

#[test]
fn a_flag_for_the_one_upstream_needs_one() {
    let two = format!("{LEAST}[upstreams.b]\nbase_url = \"http://b\"\nhost = \"b\"");
    let flags = Flags { upstream: Some("http://c".to_owned()), ..Flags::default() };
    let message = load(&inputs(&two, &[], flags)).unwrap_err().to_string();
    assert_eq!(
        message,
        "upstreams.*.base_url: got a value, but there are several upstreams; must be set by name: --set upstreams.NAME.base_url=... (flag --upstream)"
    );
    let message = load(&Inputs::default()).unwrap_err().to_string();
    assert_eq!(
        message,
        "upstreams: got none; must be at least one upstream: give --upstream URL, or base_url below [upstreams.NAME]"
    );
}

#[test]
fn the_problem_of_invalid_toml_names_its_line() {
    let message =
        load(&inputs("[server]\nlisten = \n[state\n", &[("TRIAGE_WORKERS", "0")], Flags::default())).unwrap_err();
    let message: Vec<String> = message.iter().map(ToString::to_string).collect();
    assert_eq!(
        message,
        [
            "not TOML: string values must be quoted, expected literal string (file triage.toml:2)",
            "not TOML: unclosed table, expected `]` (file triage.toml:3)",
            "server.workers: got \"0\"; must be a whole number from 1 to 1024, or \"auto\" for one per core (env TRIAGE_WORKERS)",
        ]
    );
}

#[test]
fn overrides_are_checked_against_the_policy() {
    let message = |text: &str| {
        let settings = from_toml(&format!("{LEAST}policy = \"hospital-directory\"\n{text}")).unwrap();
        endpoints(&settings.upstreams[0], &description()).map(|_| ()).expect_err(text).to_string()
    };
    for (text, expected) in [
        (
            "endpoints.create-hospitl.deadline = \"1m\"",
            "upstreams.a.endpoints.create-hospitl: got a name that the policy hospital-directory does not describe, without method and path; must be a described name, or have method and path; did you mean create-hospital?",
        ),
        (
            "endpoints.report.method = \"GET\"",
            "upstreams.a.endpoints.report: got a name that the policy hospital-directory does not describe, without path; must be a described name, or have method and path",
        ),
        (
            "endpoints.create-hospital.path = \"/x\"",
            "upstreams.a.endpoints.create-hospital.path: got \"/x\", but the policy already describes create-hospital as POST /hospitals/; must be left out, or a name that the policy does not describe (file triage.toml:4)",
        ),
        (
            "endpoints.twin = { method = \"POST\", path = \"/hospitals/\" }",
            "upstreams.a.endpoints.twin: got POST /hospitals/, but the policy already describes this operation as create-hospital; must be a different operation; override endpoints.create-hospital instead",
        ),
        (
            "defaults.breaker.probe_lease = \"20s\"",
            "upstreams.a.endpoints.create-hospital.breaker.probe_lease: got \"20s\", but attempt_timeout is \"30s\" (policy hospital-directory); must be longer than that (file triage.toml:4)",
        ),
        (
            "endpoints.create-hospital = { group = \"all\", limits = [{ requests = 10, period = \"1s\" }] }\nendpoints.list-hospitals.group = \"all\"",
            "upstreams.a.endpoints.list-hospitals.limits: got [], but endpoints.create-hospital.limits is [{ requests = 10, period = \"1s\", burst = 10 }] (file triage.toml:4), and both are in group all; must be the same value in the whole group (default)",
        ),
        (
            "defaults = { group = \"all\", limits = [], breaker = { probes = 2 } }\nendpoints.list-hospitals.breaker.probes = 3",
            "upstreams.a.endpoints.list-hospitals.breaker.probes: got 3, but endpoints.create-hospital.breaker.probes is 2 (file triage.toml:4), and both are in group all; must be the same value in the whole group (file triage.toml:5)",
        ),
        (
            "idempotency.lock = \"60s\"",
            "upstreams.a.idempotency.lock: got \"1m\", but upstreams.a.endpoints.create-hospital.deadline is \"2m\" (policy hospital-directory); must be at least as long (file triage.toml:4)",
        ),
    ] {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn a_verdict_counts_problems() {
    let bad = load(&inputs("server.drain = 1\nstate.url = \"x\"", &[], Flags::default()));
    assert_eq!(
        verdict(&bad),
        "the configuration has 3 problems:\n  \
         server.drain: got 1; must be a duration with its unit: write \"1s\" for seconds, \"1ms\" for milliseconds (file triage.toml:1)\n  \
         state.url: got \"x\"; must be \"memory:\", or the URL of a Redis or Valkey: \"redis://host:6379/0\", \"rediss://host\" with TLS, \
         \"unix:///path/of.sock\", \"redis://a:6379,b:6379\" for a Cluster, or \"redis+sentinel://a:26379,b:26379/master\" (file triage.toml:2)\n  \
         upstreams: got none; must be at least one upstream: give --upstream URL, or base_url below [upstreams.NAME]\n"
    );
    let good = load(&inputs(LEAST, &[], Flags::default()));
    assert_eq!(verdict(&good), "the configuration holds: a at http://a.example/\n");
}

#[test]
fn a_group_that_agrees_is_taken_and_its_probes_have_the_longest_lease() {
    let text = format!("{LEAST}policy = \"hospital-directory\"\ndefaults = {{ group = \"all\", limits = [] }}");
    let settings = from_toml(&text).unwrap();
    let endpoints = endpoints(&settings.upstreams[0], &description()).unwrap();
    for (described, endpoint) in endpoints {
        let lease = endpoint.breaker.unwrap().probe_lease;
        assert_eq!(lease, Duration::from_secs(35), "{}: create-hospital may take 30 s", described.name);
    }
}
