//! Operators' commands against a running host.

use super::child::{Ended, Triage, get, run, triage};
use crate::proxy::tls;
use rcgen::date_time_ymd;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

/// An upstream that responds 503 to every request.
fn failing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    url
}

struct Host {
    process: Triage,
    address: SocketAddr,
    admin: String,
}

fn host(arguments: &[&str]) -> Host {
    host_with(arguments, &[])
}

fn host_with(arguments: &[&str], environment: &[(&str, &str)]) -> Host {
    let (mut process, address) = Triage::serve_with(arguments, environment);
    let line = process.says("admin: ");
    let admin = line.trim().trim_start_matches("admin: ").to_owned();
    Host { process, address, admin }
}

fn asked(host: &Host, arguments: &[&str]) -> Ended {
    let all: Vec<&str> = arguments.iter().chain(&["--admin", &host.admin]).copied().collect();
    run(&all)
}

const QUICK: [&str; 4] =
    ["--set", "upstreams.default.defaults.retry.min_wait=0s", "--set", "upstreams.default.defaults.retry.max_wait=0s"];

#[test]
fn a_request_is_explained_by_its_id() {
    let upstream = failing();
    let host = host(&[&["--upstream", &upstream][..], &QUICK].concat());
    let text = get(host.address, "/s3cret");
    let id = text.lines().find_map(|line| line.strip_prefix("triage-request-id: ")).unwrap_or_else(|| panic!("{text}"));
    let ended = asked(&host, &["explain", id]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.out.lines().collect();
    assert!(lines[0].starts_with("GET default/any: 503 in "), "{ended:?}");
    assert_eq!(lines[1], format!("  request   {id}"));
    assert!(
        lines[2].starts_with("  policy    http-standard;digest=") && lines[2].ends_with(", generation 1"),
        "{ended:?}"
    );
    let events: Vec<&str> = lines[3..].iter().map(|line| line.trim_start().split_once("  ").unwrap().1).collect();
    assert_eq!((events[0], events[1]), ("permit", "attempt 1 begins"), "{ended:?}");
    assert!(events[2].starts_with("answered 503 after "), "{ended:?}");
    assert!(events[3].starts_with("policy: ") && events[3].contains(", retry"), "{ended:?}");
    assert!(
        events.contains(&"attempt 3 begins")
            && events.contains(&"the host does not follow the verdict: no attempt is left"),
        "{ended:?}"
    );
    assert!(!ended.out.contains("s3cret"));
    let list = asked(&host, &["explain", "--rough"]);
    let row = list.out.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with(id) && row.ends_with("GET default/any  503"), "{list:?}");
    let gone = asked(&host, &["explain", "0123456789abcdef"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.starts_with("triage: the host does not keep this request"), "{gone:?}");
    let none = asked(&host, &["explain", "../status"]);
    assert!(none.err.starts_with("triage: a request id must have 16 hexadecimal digits"), "{none:?}");
}

#[test]
fn the_policies_of_a_running_host_are_listed_and_acted_on() {
    let upstream = failing();
    let host = host(&["--upstream", &upstream]);
    let list = asked(&host, &["policy", "list"]);
    assert_eq!(list.code, Some(0), "{list:?}");
    assert!(
        list.out.starts_with("default: http-standard ") && list.out.ends_with("), generation 1, good\n"),
        "{list:?}"
    );
    let back = asked(&host, &["policy", "rollback", "default"]);
    assert_eq!(back.code, Some(1), "{back:?}");
    let message = "triage: no other generation has passed its probation; copy a better component into the folder\n";
    assert_eq!(back.err, message, "{back:?}");
    let promote = asked(&host, &["policy", "promote", "default"]);
    assert!(promote.err.contains("has already passed its probation"), "{promote:?}");
    assert_eq!(asked(&host, &["policy", "history", "default"]).out, "");
    let wrong = asked(&host, &["policy", "history", "gone"]);
    assert!(wrong.err.starts_with("triage: there is no such upstream; /api/v1/policies lists them"), "{wrong:?}");
}

#[test]
fn a_command_reports_a_missing_host_and_a_missing_token() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = run(&["policy", "list", "--admin", &format!("http://{free}")]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    let message = format!(
        "triage: no answer from http://{free} (connect); start the host with an admin listener there, or give its address with \
         --admin URL\n"
    );
    assert_eq!(nobody.err, message);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token").display().to_string();
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let upstream = failing();
    let host = host(&["--upstream", &upstream, "--set", &format!("admin.write_token_file={file}")]);
    let without = asked(&host, &["policy", "list"]);
    assert_eq!(without.err, "triage: the host requires a token; give it by TRIAGE_ADMIN_TOKEN or --token-file FILE\n");
    let with = asked(&host, &["policy", "list", "--token-file", &file]);
    assert_eq!((with.code, with.err.as_str()), (Some(0), ""), "{with:?}");
    drop(host.process);
}

#[test]
fn a_weak_token_is_the_operators_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token").display().to_string();
    std::fs::write(&file, "short\n").unwrap();
    let all = ["serve", "--upstream", "http://a.example", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--set"];
    let ended = run(&[&all[..], &[&format!("admin.read_token_file={file}")]].concat());
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.err.contains("\n  admin: the token of admin.read_token_file must be one word"), "{ended:?}");
}

fn id(answer: &str) -> &str {
    answer.lines().find_map(|line| line.strip_prefix("triage-request-id: ")).unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn the_log_tells_of_retries_and_of_a_breaker_that_opens() {
    let upstream = failing();
    let mut host = host(&[&["--upstream", &upstream][..], &QUICK].concat());
    let text = get(host.address, "/x");
    let line = host.process.logs("Retrying");
    for part in [
        " INFO ",
        &format!("request={}", id(&text)),
        "upstream=default endpoint=any attempt=2 wait_ms=0 class=\"unknown\" reason=",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(host.process.logs("Retrying").contains("attempt=3"));
    get(host.address, "/x");
    let line = host.process.logs("Circuit breaker state changed");
    let state = "group=default/any (reads) state=\"open\" why=5 failures in a row";
    assert!(line.contains(" WARN ") && line.contains(state), "{line}");
}

#[test]
fn the_log_says_why_a_handshake_failed() {
    // This upstream has no TLS.
    let upstream = failing().replace("http://", "https://");
    let mut host = host(&[&["--upstream", &upstream][..], &QUICK].concat());
    get(host.address, "/x");
    let line = host.process.logs("an attempt failed");
    for part in [" WARN ", "failure=\"tls\" reason=\"not-tls\"", "write http:// in base_url"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_explanations_say_when_a_certificate_expired() {
    let (issuer, folder) = (tls::authority(), tempfile::tempdir().unwrap());
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, issuer.pem()).unwrap();
    let mut params = tls::params("localhost");
    (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let address = tls::serve(tls::shows(&issuer, params), &[b"http/1.1"]).await;
    let set = format!("upstreams.default.ca_file={}", ca.display());
    let upstream = format!("https://localhost:{}", address.port());
    tokio::task::spawn_blocking(move || {
        let mut host = host(&[&["--upstream", &upstream, "--set", &set][..], &QUICK].concat());
        let answer = get(host.address, "/x");
        let date = "(the certificate expired on Tue, 01 Jan 2002 00:00:00 GMT)";
        let line = host.process.logs("an attempt failed");
        assert!(line.contains("reason=\"expired\"") && line.contains(date), "{line}");
        let ended = asked(&host, &["explain", id(&answer)]);
        assert!(ended.out.contains("the upstream's certificate has expired") && ended.out.contains(date), "{ended:?}");
    })
    .await
    .unwrap();
}

#[test]
fn a_log_line_is_a_json_object_where_that_is_wanted() {
    let upstream = failing();
    let flags = [&["--upstream", &upstream][..], &QUICK, &["--log-format", "json"]].concat();
    for (arguments, environment) in
        [(&flags[..], &[][..]), (&flags[..flags.len() - 2], &[("TRIAGE_LOG_FORMAT", "json")])]
    {
        let mut host = host_with(arguments, environment);
        let text = get(host.address, "/x");
        let line = host.process.logs("Retrying");
        let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!((&json["level"], &json["message"]), (&"INFO".into(), &"Retrying".into()), "{line}");
        assert_eq!((&json["request"], &json["attempt"]), (&id(&text).into(), &2.into()), "{line}");
    }
}

#[test]
fn each_action_is_a_line_of_the_audit() {
    let upstream = failing();
    let mut host = host(&["--upstream", &upstream]);
    let admin: SocketAddr = host.admin.trim_end_matches('/').rsplit('/').next().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(admin).unwrap();
    let path = "/api/v1/breakers/default/any/open";
    write!(stream, "POST {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").unwrap();
    let line = host.process.logs("triage::audit");
    let peer = format!("peer={}", stream.local_addr().unwrap());
    let message = "role=\"write\" action=\"breaker-open\" subject=\"default/any\"";
    assert!(line.contains(&peer) && line.contains(message), "{line}");
    assert!(line.contains("an operator forces the breaker open for 10 min"), "{line}");
}

/// Hospital data is confidential: even debug log lines contain no request data.
#[test]
fn the_log_holds_nothing_that_was_sent() {
    let upstream = failing();
    let flags = [&["--upstream", &upstream][..], &QUICK].concat();
    let host = host_with(&flags, &[("TRIAGE_LOG", "triage=trace")]);
    for method in ["GET", "POST"] {
        let mut stream = TcpStream::connect(host.address).unwrap();
        let body = "{\"name\": \"s3cret-body\"}";
        write!(
            stream,
            "{method} /s3cret-path?q=s3cret-query HTTP/1.1\r\nhost: s3cret-host.example\r\nx-patient: s3cret-header\r\n\
             authorization: Bearer s3cret-token\r\nidempotency-key: \"s3cret-key\"\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 50"), "{text}");
    }
    host.process.terminate();
    let ended = host.process.ended();
    assert!(ended.err.contains("request{request=") && ended.err.contains("Retrying"), "{ended:?}");
    assert!(!ended.err.contains("s3cret") && !ended.out.contains("s3cret"), "{ended:?}");
}

/// The commands of the book's page on operation that act on a breaker or a limit, with the names of the quick start's host.
#[test]
fn the_books_commands_for_breakers_and_limits_work_as_printed() {
    let page = include_str!("../../host/docs/src/operation/admin.md");
    let begins = ["triage breakers ", "triage limits "];
    let lines =
        page.lines().filter(|line| begins.iter().any(|begin| line.starts_with(begin)) && !line.contains("--watch"));
    let host = host(&["--upstream", &failing(), "--policy", "hospital-directory"]);
    let mut played = 0;
    for line in lines {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(format!("triage() {{ \"$PROGRAM\" \"$@\"; }}\n{line}"));
        let output = shell.env("PROGRAM", env!("CARGO_BIN_EXE_triage")).env("TRIAGE_ADMIN_URL", &host.admin).output();
        let output = output.unwrap();
        // Nothing is paused here: the host knows the endpoint and says so.
        let is_idle = String::from_utf8_lossy(&output.stderr).contains("there is nothing to lift");
        assert!(output.status.success() || is_idle, "{line}: {output:?}");
        played += 1;
    }
    assert!(played >= 3, "only {played} commands were found");
}

/// As described in the book: recorded from a running host, replayed through another policy.
#[test]
fn decisions_are_recorded_and_replayed() {
    use std::os::unix::fs::PermissionsExt as _;
    let upstream = failing();
    let no_breaker = ["--set", "upstreams.default.defaults.breaker.enabled=false"];
    let host = host(&[&["--upstream", &upstream][..], &QUICK, &no_breaker].concat());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let record = |out: &str, more: &[&str]| {
        let fixed = ["record", "default", "-o", out, "-n", "3", "--for", "5m", "--admin", &host.admin];
        let mut recording = Triage::start(&mut triage(&[&fixed[..], more].concat()));
        recording.logs("recording default; Ctrl-C ends it");
        let _ = get(host.address, "/s3cret");
        recording.ended()
    };
    let trace = file("trace.jsonl");
    let ended = record(&trace, &[]);
    assert_eq!((ended.code, ended.out), (Some(0), format!("3 decisions in {trace}\n")), "{}", ended.err);
    assert!(!std::fs::read_to_string(&trace).unwrap().contains("s3cret"));
    let contents = file("contents.jsonl");
    assert_eq!(record(&contents, &["--contents"]).code, Some(0));
    assert!(std::fs::read_to_string(&contents).unwrap().contains("/s3cret"));
    assert_eq!(std::fs::metadata(&contents).unwrap().permissions().mode() & 0o777, 0o600);
    let there = asked(&host, &["record", "default", "-o", &trace]);
    assert!(there.err.contains("cannot be created; name a file that does not exist: File exists"), "{there:?}");
    let none = asked(&host, &["record", "gone", "-o", &file("none.jsonl")]);
    assert_eq!((none.code, std::path::Path::new(&file("none.jsonl")).exists()), (Some(1), false), "{none:?}");
    assert!(none.err.starts_with("triage: there is no such upstream; /api/v1/traces lists them"), "{none:?}");

    let replay = |policy: &str| run(&["policy", "replay", &trace, "--policy", policy, "--fail-on-difference"]);
    let same = replay("http-standard");
    assert_eq!((same.code, same.err.as_str()), (Some(0), ""), "{same:?}");
    assert!(
        same.out.contains("\n3 of 3 decisions replayed in ") && same.out.ends_with("no verdict differs\n"),
        "{same:?}"
    );
    let other = replay(concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-policies/prebuilt/always-retry.wasm"));
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.out.contains("\n3 verdicts differ:\n"), "{other:?}");
    // This policy reads header values, which the recording without contents lacks.
    let nothing = run(&["policy", "replay", &trace, "--policy", "hospital-directory"]);
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(
        nothing.out.contains("\n0 of 3 decisions replayed in ") && nothing.out.ends_with("no verdict was compared\n"),
        "{nothing:?}"
    );
    assert_eq!(
        nothing.err,
        "triage: none of the 3 decisions could be compared, so this replay shows nothing about the candidate\n"
    );
    let broken = file("broken.jsonl");
    std::fs::write(&broken, "{}\n").unwrap();
    let broken = run(&["policy", "replay", &broken, "--policy", "fhir"]);
    assert!(
        broken.err.contains("cannot be replayed: line 1 is not a line of a trace; name a file that `triage record` wrote: the line is not valid"),
        "{broken:?}"
    );
}
