//! What operators do from the command line, against a host that runs.

use super::child::{Ended, Triage, get, run};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

/// An upstream that answers every request with 503.
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
    address: std::net::SocketAddr,
    admin: String,
}

fn host(arguments: &[&str]) -> Host {
    let (mut process, address) = Triage::serve(arguments);
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
    let told: Vec<&str> = lines[3..].iter().map(|line| line.trim_start().split_once("  ").unwrap().1).collect();
    assert_eq!((told[0], told[1]), ("permit", "attempt 1 sent"), "{ended:?}");
    assert!(told[2].starts_with("answered 503 after "), "{ended:?}");
    assert!(told[3].starts_with("policy: ") && told[3].contains(", retry"), "{ended:?}");
    assert!(told.contains(&"attempt 3 sent") && told.contains(&"not followed: attempts"), "{ended:?}");
    assert!(!ended.out.contains("s3cret"));
    let list = asked(&host, &["explain", "--rough"]);
    assert!(list.out.starts_with(id) && list.out.ends_with("GET default/any: 503\n"), "{list:?}");
    let gone = asked(&host, &["explain", "0123456789abcdef"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.starts_with("triage: this request is not kept any more, or never was here"), "{gone:?}");
    let none = asked(&host, &["explain", "../status"]);
    assert!(none.err.starts_with("triage: a request id has 16 hexadecimal digits"), "{none:?}");
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
    let told = "triage: no other generation has proven itself; drop in a component that serves better\n";
    assert_eq!(back.err, told, "{back:?}");
    let promote = asked(&host, &["policy", "promote", "default"]);
    assert!(promote.err.contains("has proven itself already"), "{promote:?}");
    assert_eq!(asked(&host, &["policy", "history", "default"]).out, "");
    let wrong = asked(&host, &["policy", "history", "gone"]);
    assert!(wrong.err.starts_with("triage: there is no such upstream; /api/v1/policies lists them"), "{wrong:?}");
}

#[test]
fn a_host_that_is_not_there_or_wants_a_token_is_told() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = run(&["policy", "list", "--admin", &format!("http://{free}")]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    let told = format!(
        "triage: no answer from http://{free} (connect); start the host with an admin listener there, or give its address with \
         --admin URL\n"
    );
    assert_eq!(nobody.err, told);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token").display().to_string();
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let upstream = failing();
    let host = host(&["--upstream", &upstream, "--set", &format!("admin.write_token_file={file}")]);
    let without = asked(&host, &["policy", "list"]);
    assert_eq!(without.err, "triage: the host wants a token; give it by TRIAGE_ADMIN_TOKEN or --token-file FILE\n");
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
