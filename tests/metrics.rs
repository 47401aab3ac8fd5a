//! Metrics: the values after known traffic, and no time series from request data.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, ok, status},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    time::Duration,
};
use triage_telemetry::METRICS;

/// Values by name and labels, as written in the page.
type Samples = BTreeMap<String, f64>;

async fn page(front: &Front) -> String {
    let got = front.admin("GET", "/metrics", "", "").await;
    assert_eq!(got.status(), "200", "{}", got.text());
    let kind = got.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    got.text()
}

async fn scrape(front: &Front) -> Samples {
    let text = page(front).await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn value(samples: &Samples, name: &str) -> f64 {
    *samples.get(name).unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
}

/// An upstream that responds by path: `/NNN` with that status, `/flaky` with 503 every second time, `/lost` with nothing.
async fn upstream() -> Scripted {
    let mut flaky = 0;
    Scripted::start(move |seen| {
        let path = seen.line().split(' ').nth(1).unwrap_or_default().trim_start_matches("/v1").to_owned();
        match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
            "flaky" => {
                flaky += 1;
                if flaky % 2 == 1 { status(503) } else { ok("", "done") }
            }
            "lost" => Reply::Close,
            code => code.parse().map_or_else(|_| ok("", "done"), status),
        }
    })
    .await
}

const DEFAULTS: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 2, min_wait = \"0s\", max_wait = \"0s\" }\n\
                        breaker = { failure_threshold = 3, failure_rate = \"off\", jitter = 0 }\n\
                        limits = [{ requests = 1000, period = \"1h\", burst = 1000 }]\nconcurrency = 50\n";

#[tokio::test]
async fn known_traffic_is_counted() {
    let upstream = upstream().await;
    let front = Front::with_admin(
        "",
        &format!("[upstreams.api]\nbase_url = \"{}\"\npath_prefix = \"/v1\"\n{DEFAULTS}", upstream.url()),
    );
    for (method, path, headers, expected) in [
        ("GET", "/v1/200", "", "200"),
        ("GET", "/v1/404", "", "404"),
        ("GET", "/v1/flaky", "", "200"),
        ("GET", "/elsewhere", "", "404"),
        ("GET", "/v1/200", "triage-deadline-ms: soon\r\n", "400"),
        ("POST", "/v1/201", "idempotency-key: \"a\"\r\n", "201"),
        ("POST", "/v1/201", "idempotency-key: \"a\"\r\n", "201"),
        ("POST", "/v1/200", "idempotency-key: \"a\"\r\n", "422"),
        ("POST", "/v1/lost", "", "504"),
    ] {
        let got = front.ask(method, path, headers).await;
        assert_eq!(got.status(), expected, "{method} {path}: {}", got.text());
    }
    let samples = scrape(&front).await;
    let any = "upstream=\"api\",endpoint=\"any\"";
    for (name, expected) in [
        (format!("triage_requests_total{{{any},status=\"2xx\"}}"), 4.0),
        (format!("triage_requests_total{{{any},status=\"4xx\"}}"), 3.0),
        (format!("triage_requests_total{{{any},status=\"5xx\"}}"), 1.0),
        ("triage_requests_total{upstream=\"\",endpoint=\"\",status=\"4xx\"}".to_owned(), 1.0),
        ("triage_refusals_total{upstream=\"\",endpoint=\"\",reason=\"no-upstream\"}".to_owned(), 1.0),
        (format!("triage_refusals_total{{{any},reason=\"deadline-malformed\"}}"), 1.0),
        (format!("triage_refusals_total{{{any},reason=\"key-reused\"}}"), 1.0),
        (format!("triage_refusals_total{{{any},reason=\"effect-unknown\"}}"), 1.0),
        (format!("triage_refusals_total{{{any},reason=\"rate-limited\"}}"), 0.0),
        (format!("triage_requests_abandoned_total{{{any}}}"), 0.0),
        (format!("triage_requests_in_flight{{{any}}}"), 0.0),
        (format!("triage_request_duration_seconds_count{{{any}}}"), 8.0),
        (format!("triage_request_duration_seconds_bucket{{le=\"+Inf\",{any}}}"), 8.0),
        (format!("triage_attempts_total{{{any},outcome=\"2xx\"}}"), 3.0),
        (format!("triage_attempts_total{{{any},outcome=\"4xx\"}}"), 1.0),
        (format!("triage_attempts_total{{{any},outcome=\"5xx\"}}"), 1.0),
        (format!("triage_attempts_total{{{any},outcome=\"reset\"}}"), 1.0),
        (format!("triage_attempt_duration_seconds_count{{{any}}}"), 6.0),
        (format!("triage_retries_total{{{any},class=\"unknown\"}}"), 1.0),
        (format!("triage_verdicts_total{{{any},class=\"applied\"}}"), 3.0),
        (format!("triage_verdicts_total{{{any},class=\"unknown\"}}"), 2.0),
        (format!("triage_verdicts_total{{{any},class=\"rejected\"}}"), 1.0),
        (format!("triage_limit_wait_duration_seconds_count{{{any}}}"), 6.0),
        (format!("triage_idempotency_total{{{any},result=\"new\"}}"), 1.0),
        (format!("triage_idempotency_total{{{any},result=\"replay\"}}"), 1.0),
        (format!("triage_idempotency_total{{{any},result=\"mismatch\"}}"), 1.0),
        ("triage_breaker_state{upstream=\"api\",group=\"any\",state=\"closed\"}".to_owned(), 1.0),
        ("triage_breaker_state{upstream=\"api\",group=\"any\",state=\"open\"}".to_owned(), 0.0),
        ("triage_limit_taken_ratio{upstream=\"api\",group=\"any\",limit=\"0\"}".to_owned(), 0.006),
        (format!("triage_concurrency_limit{{{any}}}"), 50.0),
        (format!("triage_concurrency_taken{{{any}}}"), 0.0),
        ("triage_policy_generation{upstream=\"api\"}".to_owned(), 1.0),
        ("triage_records_unsettled".to_owned(), 1.0),
        ("triage_ready".to_owned(), 1.0),
    ] {
        let got = value(&samples, &name);
        assert!((got - expected).abs() < 1e-9, "{name}: {got}, not {expected}");
    }
    assert!(value(&samples, "triage_resident_memory_bytes") > 1e6);
    assert!(value(&samples, "triage_start_time_seconds") > 1.7e9);
    assert!(value(&samples, &format!("triage_decision_duration_seconds_sum{{{any}}}")) > 0.0);
}

#[tokio::test]
async fn a_tripped_breaker_and_its_refusals_are_counted() {
    let upstream = upstream().await;
    let toml = format!("[upstreams.api]\nbase_url = \"{}\"\ncandidate.policy = \"fhir\"\n{DEFAULTS}", upstream.url());
    let front = Front::with_admin("", &toml);
    for _ in 0..3 {
        front.ask("POST", "/500", "").await;
    }
    assert_eq!(front.ask("PUT", "/200", "").await.status(), "503");
    let samples = scrape(&front).await;
    for (name, expected) in [
        ("triage_breaker_state{upstream=\"api\",group=\"any\",state=\"open\"}", 1.0),
        ("triage_breaker_state{upstream=\"api\",group=\"any\",state=\"closed\"}", 0.0),
        ("triage_breaker_transitions_total{upstream=\"api\",group=\"any\",to=\"opened\"}", 1.0),
        ("triage_breaker_forced{upstream=\"api\",group=\"any\"}", 0.0),
        ("triage_refusals_total{upstream=\"api\",endpoint=\"any\",reason=\"breaker-open\"}", 1.0),
        ("triage_events_total{kind=\"breaker-opened\"}", 1.0),
    ] {
        assert!((value(&samples, name) - expected).abs() < f64::EPSILON, "{name}");
    }
    front.admin("POST", "/api/v1/breakers/api/any/close", "", "").await;
    let samples = scrape(&front).await;
    assert!((value(&samples, "triage_breaker_forced{upstream=\"api\",group=\"any\"}") - 1.0).abs() < f64::EPSILON);
}

/// The number of time series is the same after the first requests and after many with unusual data.
#[tokio::test]
async fn callers_make_no_time_series() {
    let upstream = upstream().await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n{DEFAULTS}", upstream.url()));
    front.ask("GET", "/200", "").await;
    front.ask("GET", "/../x", "").await;
    let names = |samples: &Samples| samples.keys().cloned().collect::<BTreeSet<_>>();
    let before = scrape(&front).await;
    for number in 0..150 {
        let method = ["GET", "POST", "BREW", "M-1"][number % 4];
        let status = 200 + (number * 7) % 300;
        let path = format!("/{status}/hospital-{number}?name=s3cret-{number}");
        let headers = format!("Host: tenant-{number}.example\r\nx-{number}: v\r\nidempotency-key: \"k-{number}\"\r\n");
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}\r\n");
        front.raw(&request).await;
    }
    let after = scrape(&front).await;
    let more: Vec<_> = names(&after).difference(&names(&before)).cloned().collect();
    assert!(more.is_empty(), "{more:#?}");
    let text = page(&front).await;
    for secret in ["s3cret", "hospital-", "tenant-", "BREW", "k-1"] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert!(after.len() < 700, "{} time series for two endpoints", after.len());
}

/// Metrics that exist only after traffic was learned.
const FOLLOWS: [&str; 3] =
    ["triage_breaker_usual_failure_ratio", "triage_adaptive_rate_per_second", "triage_adaptive_rate_decreases"];

/// Learned values appear in metrics, the API, timelines and events.
#[tokio::test]
async fn metrics_api_and_events_show_the_learned_values() {
    let upstream = upstream().await;
    let front = Front::with_admin(
        "",
        &format!(
            "[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n\
             breaker = {{ baseline = 5, window = \"5ms\" }}\n\
             adaptive_rate = {{ enabled = true, floor_per_minute = 300, rise_per_minute = 1 }}\n",
            upstream.url()
        ),
    );
    let group = "{upstream=\"api\",group=\"any\"}";
    let reads = "{upstream=\"api\",group=\"any (reads)\"}";
    for _ in 0..300 {
        front.ask("GET", "/200", "").await;
    }
    let samples = scrape(&front).await;
    assert!(!samples.contains_key(&format!("triage_adaptive_rate_per_second{group}")), "it begins open");
    assert!(value(&samples, &format!("triage_adaptive_rate_decreases_total{group}")).abs() < f64::EPSILON);
    let usual = value(&samples, &format!("triage_breaker_usual_failure_ratio{reads}"));
    assert!((usual - 0.001).abs() < f64::EPSILON, "{usual}");
    assert_eq!(front.get_json("/api/v1/breakers").await[1]["usual_failures"], 0.001);
    assert!(front.get_json("/api/v1/limits").await[0]["adaptive_rate"]["per_minute"].is_null());
    let throttled = front.ask("GET", "/429", "").await;
    let samples = scrape(&front).await;
    let rate = value(&samples, &format!("triage_adaptive_rate_per_second{group}"));
    assert!(rate >= 5.0, "{rate}");
    let shown = &front.get_json("/api/v1/limits").await[0]["adaptive_rate"];
    assert_eq!((&shown["floor_per_minute"], &shown["decreases"]), (&300.into(), &1.into()), "{shown}");
    let course = async |got: &crate::support::front::Got| {
        let id = got.header("triage-request-id").unwrap();
        front.get_json(&format!("/api/v1/requests/{id}")).await.to_string()
    };
    let message = course(&throttled).await;
    assert!(message.contains("requests a minute from now on"), "{message}");
    let waited = {
        let all =
            tokio::join!(front.ask("GET", "/200", ""), front.ask("GET", "/200", ""), front.ask("GET", "/200", ""));
        [course(&all.0).await, course(&all.1).await, course(&all.2).await]
    };
    assert!(waited.iter().any(|message| message.contains("the upstream throttles: ")), "{waited:?}");
    let events = front.get_json("/api/v1/events").await.to_string();
    assert!(
        events.contains("\"slowed\"") && events.contains("the upstream throttles: the host sends at most"),
        "{events}"
    );
}

/// Each metric of the table is on the page with its type, help and labels, and there are no others.
#[tokio::test]
async fn the_page_is_the_table() {
    let upstream = upstream().await;
    let toml = format!("[upstreams.api]\nbase_url = \"{}\"\ncandidate.policy = \"fhir\"\n{DEFAULTS}", upstream.url());
    let front = Front::with_admin("", &toml);
    for _ in 0..3 {
        front.ask("POST", "/500", "").await;
    }
    let text = page(&front).await;
    let families: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let table: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name.trim_end_matches("_total")).collect();
    assert_eq!(families, table);
    for metric in METRICS {
        let family = metric.name.trim_end_matches("_total");
        assert!(text.contains(&format!("# HELP {family} {}\n", metric.help)), "{family}");
        assert!(text.contains(&format!("# TYPE {family} {}\n", metric.kind.as_str())), "{family}");
        let of_family = |line: &&str| {
            let name = line.split(['{', ' ']).next().unwrap();
            [family, metric.name].contains(&name)
                || ["_bucket", "_sum", "_count"].iter().any(|end| *name == format!("{family}{end}"))
        };
        let lines: Vec<&str> = text.lines().filter(of_family).collect();
        // Metrics of shared state are checked in `fleet`.
        let elsewhere = ["triage_state_", "triage_policy_fleet_"].iter().any(|begin| family.starts_with(begin))
            || FOLLOWS.contains(&family);
        assert!(!lines.is_empty() || elsewhere, "{family} has no sample");
        for line in lines {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let own: Vec<&str> = labels
                .split(',')
                .filter_map(|label| label.split('=').next())
                .filter(|name| !["", "le"].contains(name))
                .collect();
            assert_eq!(own, metric.labels, "{line}");
        }
    }
}

/// Prometheus from the path or `TRIAGE_TEST_PROMETHEUS`. Without it, the test prints that it is skipped, and passes.
fn prometheus() -> Option<String> {
    let named = std::env::var("TRIAGE_TEST_PROMETHEUS").unwrap_or_else(|_| "prometheus".to_owned());
    let found = Command::new(&named).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Some(named);
    }
    println!("skipped: {named} does not run; install Debian's package `prometheus`, or set TRIAGE_TEST_PROMETHEUS");
    None
}

/// Prometheus runs the shipped example: it shows the read token, takes the page, and loads the alert rules.
#[tokio::test]
async fn a_real_prometheus_takes_the_page() {
    let Some(program) = prometheus() else { return };
    let upstream = upstream().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-read-token-for-prometheus\n").unwrap();
    let front = Front::with_admin(
        &format!("read_token_file = \"{}\"\n", token.display()),
        &format!("[upstreams.api]\nbase_url = \"{}\"\n{DEFAULTS}", upstream.url()),
    );
    for _ in 0..5 {
        front.ask("GET", "/200", "").await;
    }
    let shipped =
        |name: &str| std::fs::read_to_string(format!("{}/deploy/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = shipped("prometheus.yml")
        .replace("interval: 15s", "interval: 1s")
        .replace("/etc/prometheus/triage-read-token", token.to_str().unwrap())
        .replace("127.0.0.1:9464", &front.admin_address().to_string());
    let config = folder.path().join("prometheus.yml");
    std::fs::write(&config, text).unwrap();
    std::fs::write(folder.path().join("prometheus-rules.yml"), shipped("prometheus-rules.yml")).unwrap();
    // Prometheus does not report a port that the system chose, so use one that was free a moment ago.
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut child = Command::new(program)
        .args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={listen}"),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = |query: &str| {
        let url = format!("http://{listen}/api/v1/query?query={query}");
        let client = client.clone();
        async move {
            let answer = client.get(url).send().await.ok()?.text().await.ok()?;
            let json: serde_json::Value = serde_json::from_str(&answer).ok()?;
            json["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
        }
    };
    let mut found = None;
    for _ in 0..300 {
        found = ask("triage_requests_total%7Bstatus=%222xx%22%7D").await;
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let count = ask("triage_request_duration_seconds_count").await;
    let up = ask("up").await;
    let rules = client.get(format!("http://{listen}/api/v1/rules")).send().await.unwrap().text().await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((found.as_deref(), count.as_deref(), up.as_deref()), (Some("5"), Some("5"), Some("1")));
    assert!(rules.contains("TriageNotReady") && rules.contains("runbook_url"), "{rules}");
}

/// The shipped rules and dashboard refer only to existing metrics, and Prometheus accepts them.
#[test]
fn rules_and_dashboard_ask_for_metrics_that_exist() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let (rules, dashboard) = (read("prometheus-rules.yml"), read("grafana-dashboard.json"));
    let _: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    for text in [&rules, &dashboard] {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut asked = 0;
        for word in text.split(|c| !is_name(c)).filter(|word| word.starts_with("triage_")) {
            let known = METRICS.iter().any(|metric| {
                word == metric.name
                    || ["_bucket", "_sum", "_count"].iter().any(|end| word.strip_suffix(end) == Some(metric.name))
            });
            assert!(known, "{word}");
            asked += 1;
        }
        assert!(asked > 10, "{asked}");
    }
    for reason in rules.split("reason=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(triage_problem::REASONS.contains(&reason), "{reason}");
    }
    for kind in rules.split("kind=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(triage_telemetry::KINDS.contains(&kind), "{kind}");
    }
    let Some(program) = prometheus() else { return };
    let promtool = program.replace("prometheus", "promtool").replace("/promtool/", "/prometheus/");
    let checked = Command::new(promtool).args(["check", "rules", &format!("{folder}/prometheus-rules.yml")]).output();
    let Ok(checked) = checked else { return };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
