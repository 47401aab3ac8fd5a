//! The commands that show a running host: what they print, when they end, and what another server's answer means to them.

use super::child::{Ended, Triage, run, triage};
use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, ok, status},
};
use serde_json::{Value, json};
use std::process::Command;

/// Runs a command while the host in this process continues.
async fn ran(admin: &str, arguments: &[&str]) -> Ended {
    let all: Vec<String> = arguments.iter().chain(&["--admin", admin]).map(|own| (*own).to_owned()).collect();
    let ended = tokio::task::spawn_blocking(move || run(&all.iter().map(String::as_str).collect::<Vec<_>>()));
    ended.await.unwrap()
}

async fn printed(admin: &str, arguments: &[&str]) -> String {
    let ended = ran(admin, arguments).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{arguments:?}: {ended:?}");
    ended.out
}

/// A host whose upstream answers everything with the head.
async fn stage(head: &'static str) -> (Front, Scripted, String) {
    let upstream = Scripted::start(move |_| Reply::Bytes(format!("{head}\r\ncontent-length: 0\r\n\r\n").into())).await;
    let toml = format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url());
    let front = Front::with_admin("", &format!("{toml}[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n"));
    let admin = format!("http://{}", front.admin_address());
    (front, upstream, admin)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test]
async fn breakers_are_listed_and_forced() {
    let (front, _upstream, admin) = stage("HTTP/1.1 503 Down").await;
    for _ in 0..5 {
        front.ask("GET", "/a", "").await;
    }
    let listed = printed(&admin, &["breakers"]).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(words(lines[0])[..3] == ["BREAKER", "STATE", "SINCE"] && lines.len() == 4, "{listed}");
    assert_eq!(words(lines[1])[..3], ["api/any", "(reads)", "open"], "{listed}");
    assert!(lines[1].contains("5 failures in a row"), "{listed}");
    assert_eq!(words(lines[2])[..2], ["api/any", "closed"], "{listed}");
    assert_eq!(words(lines[3]), ["api/delete", "closed", "-", "-", "0", "-", "-"], "{listed}");
    let json: Value = serde_json::from_str(&printed(&admin, &["breakers", "--json"]).await).unwrap();
    assert_eq!(
        (&json[1]["state"], &json[1]["why"]),
        (&json!("open"), &json!("5 failures in a row: answered 503")),
        "{json}"
    );
    let closed = printed(&admin, &["breakers", "close", "api", "any", "--for", "1h"]).await;
    assert_eq!(closed, "api/any is closed (forced), for 1 h\n");
    assert!(printed(&admin, &["breakers"]).await.contains("closed (forced)"));
    let opened = printed(&admin, &["breakers", "open", "api", "any"]).await;
    assert_eq!(opened, "api/any is open (forced), for 10 min\n");
    assert_eq!(front.ask("GET", "/a", "").await.status(), "503");
    printed(&admin, &["breakers", "clear", "api", "any"]).await;
    assert_eq!(printed(&admin, &["breakers", "reset", "api", "any"]).await, "api/any is closed\n");
    let again = ran(&admin, &["breakers", "clear", "api", "any"]).await;
    let nothing = "triage: no operator has forced this breaker; there is nothing to clear\n";
    assert_eq!((again.code, again.err.as_str()), (Some(1), nothing), "{again:?}");
    let long = ran(&admin, &["breakers", "open", "api", "any", "--for", "25h"]).await;
    assert!(long.code == Some(1) && long.err.contains("for_ms must be from 1 to 86400000"), "{long:?}");
    let gone = ran(&admin, &["breakers", "open", "api", "../any"]).await;
    assert!(gone.code == Some(1) && gone.err.contains("no such upstream or endpoint"), "{gone:?}");
    assert_eq!(ran(&admin, &["breakers", "open", "api"]).await.code, Some(2));
}

#[tokio::test]
async fn a_pause_is_listed_and_lifted() {
    let (front, _upstream, admin) = stage("HTTP/1.1 429 Slow\r\nretry-after: 90").await;
    front.ask("GET", "/a", "").await;
    let listed = printed(&admin, &["limits"]).await;
    assert!(listed.contains("\napi/any  pause, asked for by the upstream") && listed.contains("1 min "), "{listed}");
    assert!(printed(&admin, &["limits", "--json"]).await.contains("\"paused_ms\":8"));
    assert_eq!(printed(&admin, &["limits", "lift-pause", "api", "any"]).await, "the pause of api/any is lifted\n");
    assert!(!printed(&admin, &["limits"]).await.contains("pause"));
    let again = ran(&admin, &["limits", "lift-pause", "api", "any"]).await;
    assert!(again.code == Some(1) && again.err.contains("is not paused; there is nothing to lift"), "{again:?}");
}

#[tokio::test]
async fn events_and_requests_are_listed() {
    let (front, _upstream, admin) = stage("HTTP/1.1 503 Down").await;
    let got = front.ask("GET", "/a", "").await;
    let id = got.header("triage-request-id").unwrap();
    printed(&admin, &["breakers", "open", "api", "any", "--for", "90s"]).await;
    let listed = printed(&admin, &["events"]).await;
    let last = listed.lines().last().unwrap();
    assert!(
        last.contains("api/any") && last.contains("an operator forces the breaker open for 1 min 30 s"),
        "{listed}"
    );
    let events: Vec<Value> = serde_json::from_str(&printed(&admin, &["events", "--json"]).await).unwrap();
    let newest = events.last().unwrap()["number"].as_u64().unwrap();
    assert_eq!(printed(&admin, &["events", "--after", &newest.to_string()]).await, "no event\n");
    let listed = printed(&admin, &["requests", "--rough"]).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines.len() == 2 && lines[1].starts_with(id) && lines[1].ends_with("GET api/any  503"), "{listed}");
    assert_eq!(printed(&admin, &["explain", "--rough"]).await, listed, "without an id");
    front.ask("GET", "/a", "").await;
    front.ask("GET", "/a", "").await;
    let refused =
        printed(&admin, &["requests", "--endpoint", "any", "--status", "5xx", "--reason", "breaker-open"]).await;
    let row = refused.lines().nth(1).unwrap_or_default();
    assert!(row.ends_with("GET api/any  503 breaker-open x 2") && refused.lines().count() == 2, "{refused}");
    assert_eq!(printed(&admin, &["explain", "--reason", "breaker-open"]).await, refused);
    let none = printed(&admin, &["requests", "--status", "404"]).await;
    assert_eq!(none, "no request is kept that passes these filters\n");
    let wrong = ran(&admin, &["requests", "--status", "6xx"]).await;
    assert!(wrong.code == Some(1) && wrong.err.contains("a class such as 5xx"), "{wrong:?}");
    let both = ran(&admin, &["explain", id, "--rough"]).await;
    assert_eq!(both.code, Some(2), "{both:?}");
}

/// A host that answers its status with these conditions; without the member if there are none.
async fn host_with(conditions: Option<Value>) -> Scripted {
    let mut status = json!({
        "version": "9.9.9", "ready": true, "unready": null, "uptime_ms": 5, "state": "memory", "unix_ms": 61_857,
        "upstreams": [{ "name": "api", "policy": "p", "generation": 1, "endpoints": 2, "breakers_open": 0 }],
    });
    if let Some(conditions) = conditions {
        status["conditions"] = conditions;
    }
    Scripted::start(move |_| ok("", &status.to_string())).await
}

#[tokio::test]
async fn the_exit_code_of_status_says_whether_a_condition_is_critical() {
    let condition = |severity: &str| {
        json!({
            "id": "state-down", "severity": severity, "subject": "host", "since_unix_ms": 0,
            "text": "Shared state cannot be reached", "remedy": "Check Redis",
        })
    };
    for (conditions, code, line) in [
        (Some(json!([condition("critical")])), 1, "critical  host, for 1 min 2 s: Shared state cannot be reached"),
        (Some(json!([condition("warning")])), 0, "warning  host, for 1 min 2 s: Shared state cannot be reached"),
        (Some(json!([])), 0, "no condition: nothing needs attention"),
        (None, 0, "this host is older and lists no conditions"),
    ] {
        let host = host_with(conditions).await;
        let shown = ran(&host.url(), &["status"]).await;
        assert_eq!((shown.code, shown.err.as_str()), (Some(code), ""), "{shown:?}");
        assert!(shown.out.lines().any(|own| own == line), "{line}: {}", shown.out);
        assert_eq!(shown.out.contains("  remedy: Check Redis\n"), line.contains("host,"), "{}", shown.out);
        assert!(shown.out.ends_with("api       p       1           2          0\n"), "{}", shown.out);
        assert_eq!(ran(&host.url(), &["status", "--json"]).await.code, Some(code));
    }
    assert_eq!(run(&["status", "--gone"]).code, Some(2));
    let (_front, _upstream, admin) = stage("HTTP/1.1 200 OK").await;
    assert!(printed(&admin, &["status"]).await.contains(": ready\n"), "a real host");
}

/// Another server's 200 must not read like a host where nothing is wrong.
#[tokio::test]
async fn the_answer_of_another_server_is_no_good_news() {
    let commands: [&[&str]; 13] = [
        &["status"],
        &["breakers"],
        &["breakers", "reset", "api", "any"],
        &["limits"],
        &["limits", "lift-pause", "api", "any"],
        &["events"],
        &["requests"],
        &["explain", "0123456789abcdef"],
        &["records"],
        &["records", "list"],
        &["records", "resolve", "ab", "applied"],
        &["policy", "list"],
        &["policy", "rollback", "api"],
    ];
    for body in ["{}", "[{}]", "null", "\"ok\"", "<html></html>"] {
        let other = Scripted::start(move |_| ok("", body)).await;
        for arguments in commands {
            let ended = ran(&other.url(), arguments).await;
            assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{arguments:?} {body}: {ended:?}");
            let strange = "answered 200, but the answer is not from a Triage host; give the address";
            assert!(ended.err.contains(strange), "{arguments:?} {body}: {ended:?}");
        }
    }
    let problem = "{\"type\":\"urn:other\",\"detail\":\"Not Found\"}";
    let head = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{problem}", problem.len());
    let other = Scripted::start(move |_| Reply::Bytes(head.clone().into())).await;
    let ended = ran(&other.url(), &["records"]).await;
    assert!(ended.err.contains("answered 404, but the answer is not from a Triage host"), "{ended:?}");
}

/// The watch of a server that fails once and comes back.
#[tokio::test]
async fn a_watch_appends_without_a_terminal_and_goes_on_after_a_failure() {
    let mut asked = 0;
    let host = Scripted::start(move |_| {
        asked += 1;
        if asked == 2 { status(503) } else { ok("", &json!([{ "number": asked }]).to_string()) }
    })
    .await;
    // The list's members are checked in a watch too.
    let ended = ran(&host.url(), &["breakers", "--watch"]).await;
    assert_eq!(ended.code, Some(1), "an error of the first poll ends it: {ended:?}");
    let (mut asked, body) =
        (0, json!([{ "upstream": "a", "group": "b", "state": "open", "forced": false, "enabled": true }]));
    let host = Scripted::start(move |_| {
        asked += 1;
        if asked == 2 { status(503) } else { ok("", &body.to_string()) }
    })
    .await;
    for json in [false, true] {
        let url = host.url();
        let more: &[&str] = if json { &["--json"] } else { &[] };
        let arguments = [&["breakers", "--watch", "--interval", "100ms", "--admin", &url], more].concat();
        let mut watch = Triage::start(&mut triage(&arguments));
        let ended = tokio::task::spawn_blocking(move || {
            for _ in 0..3 {
                let line = watch.says("open");
                assert_eq!(serde_json::from_str::<Value>(&line).is_ok(), json, "{line}");
                assert!(!line.contains('\u{1b}'), "{line}");
            }
            watch.signal("INT");
            watch.ended()
        });
        let ended = ended.await.unwrap();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert_eq!(ended.err.contains("a poll failed, and the watch continues: "), !json, "{}", ended.err);
    }
}

/// A watch of events prints new ones only, and notices that the host counts from 1 again.
#[tokio::test]
async fn a_watch_of_events_follows_new_ones_over_a_restart() {
    let event = |number: u64, unix_ms: u64| json!({ "number": number, "unix_ms": unix_ms, "kind": "action", "subject": "api", "text": format!("at {unix_ms}") });
    let mut asked = 0;
    let host = Scripted::start(move |seen| {
        asked += 1;
        let (mut all, restarted) = (vec![event(1, 100), event(2, 200)], asked > 3);
        if asked > 1 {
            all.push(event(3, 300));
        }
        if restarted {
            all = vec![event(1, 900)];
        }
        let after: u64 = seen.line().split("after=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        all.retain(|event| event["number"].as_u64() > Some(after));
        ok("", &Value::from(all).to_string())
    })
    .await;
    let url = host.url();
    let mut watch = Triage::start(&mut triage(&["events", "--watch", "--interval", "100ms", "--admin", &url]));
    let ended = tokio::task::spawn_blocking(move || {
        let lines = [watch.says("at "), watch.says("at ")];
        let told = watch.logs("the host has started again");
        watch.signal("INT");
        (lines, told, watch.ended())
    });
    let (lines, _, ended) = ended.await.unwrap();
    assert!(lines[0].ends_with("at 300") && lines[1].ends_with("at 900"), "{lines:?}");
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{ended:?}");
}

#[tokio::test]
async fn a_reader_that_has_gone_ends_a_watch() {
    let host = host_with(None).await;
    let program = env!("CARGO_BIN_EXE_triage");
    let piped = format!("'{program}' status --watch --interval 100ms --admin {} | head -n 1", host.url());
    let mut command = Command::new("sh");
    command.args(["-c", &piped]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || Triage::start(&mut command).ended()).await.unwrap();
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
}

/// Colours and a redraw need a terminal, and the environment or an option can refuse the colours.
#[tokio::test]
async fn colours_are_for_terminals_and_only_where_they_are_wanted() {
    let host = host_with(Some(json!([]))).await;
    let url = host.url();
    let colored = |arguments: &[&str], environment: &[(&str, &str)], in_terminal: bool| {
        let own = triage(&[&["status", "--admin", &url], arguments].concat());
        let mut command = if in_terminal {
            let mut command = Command::new("python3");
            command
                .args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"])
                .arg(own.get_program())
                .args(own.get_args());
            command.stdin(std::process::Stdio::null());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command
        } else {
            own
        };
        command.env_remove("NO_COLOR").env("TERM", "xterm").envs(environment.iter().copied());
        tokio::task::spawn_blocking(move || {
            let ended = Triage::start(&mut command).ended();
            assert!(ended.out.contains("nothing needs attention"), "{ended:?}");
            ended.out.contains("\u{1b}[")
        })
    };
    for (arguments, environment, in_terminal, expected) in [
        (&[][..], &[][..], true, true),
        (&[], &[("NO_COLOR", "1")], true, false),
        (&[], &[("NO_COLOR", "")], true, true),
        (&[], &[("TERM", "dumb")], true, false),
        (&["--color", "never"], &[], true, false),
        (&["--color", "always"], &[("NO_COLOR", "1")], true, true),
        (&[], &[], false, false),
        (&["--color", "always"], &[], false, true),
    ] {
        let found = colored(arguments, environment, in_terminal).await.unwrap();
        assert_eq!(found, expected, "{arguments:?} {environment:?} terminal: {in_terminal}");
    }
}

#[tokio::test]
async fn a_terminal_is_redrawn() {
    let host = host_with(Some(json!([]))).await;
    let own = triage(&["status", "--watch", "--interval", "100ms", "--admin", &host.url()]);
    let mut command = Command::new("python3");
    command.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"]).arg(own.get_program()).args(own.get_args());
    command.env("TERM", "xterm").env("NO_COLOR", "1").stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut watch = Triage::start(&mut command);
    tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            let line = watch.says("triage 9.9.9, up 5 ms");
            assert!(line.contains("\u{1b}[Htriage"), "the cursor goes home before each frame: {line:?}");
        }
    })
    .await
    .unwrap();
}
