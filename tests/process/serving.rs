//! `triage serve`: its address, and its reaction to signals.

use super::child::{Triage, answer, ask, get, run, triage};
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

/// An upstream that delays each response until the test allows it.
struct Upstream {
    url: String,
    arrived: Receiver<()>,
    answer: Sender<()>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (arrive, arrived) = mpsc::channel();
        let (answer, go_ahead) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serve(stream, &arrive, &go_ahead).is_none() {
                    break;
                }
            }
        });
        Self { url, arrived, answer }
    }
}

/// Reads one head, responds when allowed, and closes.
fn serve(mut stream: TcpStream, arrive: &Sender<()>, go_ahead: &Receiver<()>) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    arrive.send(()).ok()?;
    go_ahead.recv().ok()?;
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ndone";
    stream.write_all(text.as_bytes()).ok()
}

#[test]
fn the_host_prints_the_port_it_got_for_port_0_and_answers() {
    let upstream = Upstream::start();
    let (mut host, address) = Triage::serve(&["--upstream", &upstream.url]);
    assert_ne!(address.port(), 0);
    assert_eq!(host.says("default:"), format!("  default: {}/, policy http-standard", upstream.url));
    upstream.answer.send(()).unwrap();
    let text = get(address, "/x");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\ndone"), "{text}");
    assert!(text.contains("\r\ntriage-attempts: 1\r\n"), "{text}");
}

#[test]
fn a_refusal_says_how_many_attempts_were_made() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_host, address) = Triage::serve(&[
        "--upstream",
        &format!("http://{nobody}"),
        "--set",
        "upstreams.default.defaults.retry.max_attempts=1",
    ]);
    let text = get(address, "/");
    assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{text}");
    assert!(text.contains("\r\ntriage-attempts: 1\r\n") && text.contains("\r\ntriage-sent: no\r\n"), "{text}");
    assert!(text.contains("urn:triage:problem:upstream-unreachable"), "{text}");
}

#[test]
fn sigterm_finishes_what_is_under_way_and_ends_with_0() {
    let upstream = Upstream::start();
    let (mut host, address) = Triage::serve(&["--upstream", &upstream.url]);
    let mut caller = ask(address, "/slow");
    upstream.arrived.recv().unwrap();
    host.terminate();
    host.logs("stopping");
    // Draining has begun when the listener is closed: new callers are refused at once.
    while TcpStream::connect(address).is_ok() {
        thread::yield_now();
    }
    upstream.answer.send(()).unwrap();
    let text = answer(&mut caller);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("done"), "{text}");
    let ended = host.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("stopped: all requests under way were finished"), "{ended:?}");
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let upstream = Upstream::start();
    let (mut host, address) = Triage::serve(&["--upstream", &upstream.url]);
    let _caller = ask(address, "/slow");
    upstream.arrived.recv().unwrap();
    host.terminate();
    host.logs("stopping");
    host.terminate();
    let ended = host.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("a second signal: requests still under way are abandoned"), "{ended:?}");
}

#[test]
fn the_drain_has_a_limit() {
    let upstream = Upstream::start();
    let (host, address) = Triage::serve(&["--upstream", &upstream.url, "--set", "server.drain=50ms"]);
    let _caller = ask(address, "/slow");
    upstream.arrived.recv().unwrap();
    host.terminate();
    let ended = host.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("requests were still under way at the end of the drain time"), "{ended:?}");
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let upstream = Upstream::start();
    let (host, address) = Triage::serve(&["--upstream", &upstream.url]);
    let mut idle = TcpStream::connect(address).unwrap();
    upstream.answer.send(()).unwrap();
    write!(idle, "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 12]).unwrap();
    host.terminate();
    assert_eq!(host.ended().code, Some(0));
}

#[test]
fn a_taken_port_is_refused_even_if_another_host_has_it() {
    let (_first, address) = Triage::serve(&["--upstream", "http://127.0.0.1:9"]);
    let second =
        run(&["serve", "--upstream", "http://127.0.0.1:9", "--listen", &address.to_string(), "--admin", "off"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    let message = format!(
        "triage: cannot listen on {address}; it must be an address of this machine that no other program listens on: "
    );
    // A machine with a low limit on open files logs a warning in an earlier line.
    let last = second.err.lines().last().unwrap_or_default();
    assert!(last.starts_with(&message), "{second:?}");
    assert_eq!(second.out, "");
}

#[test]
fn the_host_reports_each_problem_of_a_configuration_and_does_not_listen() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("triage.toml");
    let text = format!(
        "server = {{ listen = \"{free}\", drian = \"5s\" }}\n[upstreams.a]\nbase_url = \"ftp://x\"\ndefaults = {{ deadline = 5 }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command = triage(&["serve", "--config", "triage.toml", "--workers", "none"]);
    let ended = Triage::start(command.current_dir(folder.path()).env("RETRY_MAX_ATTEMPTS", "many")).ended();
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    let lines: Vec<&str> = ended.err.lines().collect();
    assert_eq!(lines[0], "the configuration has 5 problems:");
    for (key, source) in [
        ("server.drian: is not known; did you mean server.drain?", "(file triage.toml:1)"),
        ("upstreams.a.base_url: got \"ftp://x\"; must be", "(file triage.toml:3)"),
        ("upstreams.a.defaults.deadline: got 5; must be", "(file triage.toml:4)"),
        ("upstreams.*.defaults.retry.max_attempts: got \"many\"; must be", "(env RETRY_MAX_ATTEMPTS)"),
        ("server.workers: got \"none\"; must be", "(flag --workers)"),
    ] {
        let is_shown = |line: &&&str| line.trim_start().starts_with(key) && line.ends_with(source);
        assert_eq!(lines.iter().filter(is_shown).count(), 1, "{key} {source} in\n{}", ended.err);
    }
    assert!(TcpStream::connect(free).is_err(), "it listens");
}

#[test]
fn serve_and_config_report_all_unusable_policies_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.wasm"), "no component").unwrap();
    let text = "[upstreams.a]\nbase_url = \"http://a.example\"\npolicy = \"text.wasm\"\npath_prefix = \"/a\"\n\
                [upstreams.b]\nbase_url = \"https://b.example\"\npolicy = \"gone.wasm\"\nca_file = \"gone.pem\"\n\
                [upstreams.c]\nbase_url = \"http://c.example\"\npath_prefix = \"/c\"\n[upstreams.c.endpoints.x]\ndeadline = \"9s\"\n";
    std::fs::write(folder.path().join("triage.toml"), text).unwrap();
    for verb in [&["serve"][..], &["config", "check"], &["config", "show"]] {
        let arguments: Vec<&str> = verb.iter().chain(&["--config", "triage.toml"]).copied().collect();
        let ended = Triage::start(triage(&arguments).current_dir(folder.path())).ended();
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{verb:?}: {ended:?}");
        for message in [
            "upstreams.a.policy: the policy of upstream a was refused: the file is not a valid WebAssembly component",
            "upstreams.b.policy: policy file gone.wasm of upstream b cannot be read",
            "upstreams.b.ca_file: certificate authorities could not be read from gone.pem",
            "upstreams.c.endpoints.x",
        ] {
            assert!(ended.err.contains(&format!("\n  {message}")), "{verb:?}: {message} in\n{}", ended.err);
        }
    }
}
