//! The admin page: access control, and its content in a real browser.

use crate::support::{
    front::{Front, Got, raw},
    scripted::{Reply, Scripted, ok, status},
};
use serde_json::Value;
use std::{fs, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

mod conditions;
mod layout;
mod seen;

const TOKENS: [(&str, &str); 2] = [("read", "the-readers-token-0"), ("write", "the-writers-token-0")];

/// A host with both tokens.
fn guarded(toml: &str) -> (Front, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = String::new();
    for (name, token) in TOKENS {
        let file = folder.path().join(name);
        fs::write(&file, token).unwrap();
        keys.extend([name, "_token_file = \"", file.to_str().unwrap(), "\"\n"]);
    }
    (Front::with_admin(&keys, toml), folder)
}

const NOWHERE: &str = "[upstreams.api]\nbase_url = \"http://api.invalid\"\n";

async fn sign_in(front: &Front, token: &str, headers: &str) -> Got {
    let headers = format!("Content-Type: application/x-www-form-urlencoded\r\n{headers}");
    front.admin("POST", "/session", &headers, &format!("token={token}")).await
}

/// The cookie of a new session, in its original case.
async fn cookie(front: &Front, token: &str) -> String {
    let got = sign_in(front, token, "").await;
    assert_eq!((got.status(), got.header("location")), ("303", Some("/")), "{}", got.text());
    let set = got.header("set-cookie").unwrap();
    assert!(set.ends_with("; path=/; max-age=43200; httponly; samesite=strict"), "{set}");
    format!("Cookie: {}\r\n", set.split(';').next().unwrap())
}

#[tokio::test]
async fn the_page_stands_alone_behind_a_strict_policy() {
    let front = Front::with_admin("", NOWHERE);
    let nonce = |got: &Got| {
        let policy = got.header("content-security-policy").unwrap();
        let (_, rest) = policy.split_once("script-src 'nonce-").unwrap();
        let nonce = rest.split('\'').next().unwrap().to_owned();
        assert_eq!(
            policy,
            format!(
                "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; form-action \
                 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
            )
        );
        assert_eq!(nonce.len(), 32, "{nonce}");
        nonce
    };
    let (one, two) = (front.admin("GET", "/", "", "").await, front.admin("GET", "/", "", "").await);
    assert_eq!(one.status(), "200");
    assert_ne!(nonce(&one), nonce(&two), "a nonce is used once");
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "deny"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        assert_eq!(one.header(name), Some(value), "{name}");
    }
    let text = one.text();
    assert!(!text.contains("{{") && !text.contains("}}"), "something was not filled in");
    assert_eq!(text.matches(&format!("nonce=\"{}\"", nonce(&one))).count(), 2);
    assert!(text.contains("data-role=\"write\""));
}

#[tokio::test]
async fn a_sign_in_opens_what_the_token_may_and_no_more() {
    let (front, _folder) = guarded(NOWHERE);
    let got = front.admin("GET", "/", "", "").await;
    assert_eq!(got.status(), "401");
    assert!(got.text().contains("<form method=\"post\" action=\"/session\">") && !got.text().contains("EventSource"));
    let wrong = sign_in(&front, "the-readers-token-1", "").await;
    assert_eq!((wrong.status(), wrong.header("set-cookie")), ("401", None));
    assert!(wrong.text().contains("This token is not a token of this host."));
    let own = format!("Origin: http://{}\r\n", front.admin_address());
    let (read, write) = (cookie(&front, TOKENS[0].1).await, cookie(&front, TOKENS[1].1).await);
    let reset = "/api/v1/breakers/api/any/reset";
    for (what, method, path, headers, expected) in [
        ("a reader sees the page", "GET", "/", &*read, "200"),
        ("a reader reads", "GET", "/api/v1/status", &*read, "200"),
        ("a reader acts", "POST", reset, &*format!("{read}{own}"), "403"),
        ("a writer acts from the page", "POST", reset, &*format!("{write}{own}"), "200"),
        ("by fetch metadata", "POST", reset, &*format!("{write}Sec-Fetch-Site: same-origin\r\n"), "200"),
        ("a cookie without a word of where from", "POST", reset, &*write, "403"),
        ("from another site", "POST", reset, &*format!("{write}Origin: https://evil.example\r\n"), "403"),
        ("from another port", "POST", reset, &*format!("{write}Origin: http://127.0.0.1:1\r\n"), "403"),
        ("by a link", "POST", reset, &*format!("{write}Sec-Fetch-Site: none\r\n"), "403"),
        ("a made up cookie", "GET", "/api/v1/status", "Cookie: triage-session=write.9999999999999.00\r\n", "401"),
        ("a wrong token beside a right cookie", "GET", "/", &*format!("{write}Authorization: Bearer x\r\n"), "401"),
    ] {
        assert_eq!(front.admin(method, path, headers, "").await.status(), expected, "{what}");
    }
    let page = front.admin("GET", "/", &read, "").await.text();
    assert!(page.contains("data-role=\"read\" data-session=\"yes\""), "{page}");
    let out = front.admin("POST", "/session/end", &format!("{read}{own}"), "").await;
    assert!(out.header("set-cookie").unwrap().starts_with("triage-session=; path=/; max-age=0;"));
    assert_eq!(front.admin("GET", "/", &read, "").await.status(), "401", "a copy of the cookie opens nothing now");
    assert_eq!(front.admin("GET", "/", &write, "").await.status(), "200", "another session goes on");
    let foreign = sign_in(&front, TOKENS[0].1, "Origin: https://evil.example\r\n").await;
    assert_eq!(foreign.status(), "403", "another site signs nobody in");
}

/// Opens the event stream and reads its beginning.
async fn follow(address: SocketAddr, headers: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET /live HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.contains("event: now") && !text.contains("problem+json") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "{text}");
        text += &String::from_utf8_lossy(&bytes[..read]);
    }
    (stream, text)
}

/// The first snapshot of a page's stream for which a condition holds.
async fn snapshot(front: &Front, holds: impl Fn(&Value) -> bool) -> Value {
    let (mut stream, mut text) = follow(front.admin_address(), "").await;
    loop {
        while let Some((data, rest)) = text.split_once("event: now\ndata: ").and_then(|(_, now)| now.split_once("\n\n"))
        {
            let now: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
            if holds(&now) {
                return now;
            }
            text = rest.to_owned();
        }
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "{text}");
        text += &String::from_utf8_lossy(&bytes[..read]);
    }
}

#[tokio::test]
async fn refusals_do_not_make_a_slow_upstream_look_fast() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = Front::with_admin(
        "",
        &format!(
            "[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\nattempt_timeout = \"300ms\"\n\
             retry = {{ max_attempts = 1 }}\nbreaker = {{ failure_threshold = 2, jitter = 0 }}\n",
            upstream.url()
        ),
    );
    for asked in 0..60 {
        let got = front.ask("GET", "/a", "").await;
        assert_eq!(got.status(), if asked < 2 { "504" } else { "503" }, "{asked}: {}", got.text());
    }
    let now = snapshot(&front, |now| now["rates"][0]["held"].as_f64().is_some_and(|held| held > 0.0)).await;
    let rates = &now["rates"][0];
    assert!(rates["p50_ms"].as_f64().unwrap() >= 250.0, "{rates}");
    let metrics = front.admin("GET", "/metrics", "", "").await.text();
    let all = "triage_request_duration_seconds_count{upstream=\"api\",endpoint=\"any\"} 60\n";
    assert!(metrics.contains(all), "the metric counts every request");
}

#[tokio::test]
async fn streams_are_few_and_a_place_comes_back_with_its_page() {
    let front = Front::with_admin("", NOWHERE);
    let address = front.admin_address();
    let mut pages = Vec::new();
    for _ in 0..16 {
        let (stream, text) = follow(address, "").await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("content-type: text/event-stream"), "{text}");
        assert!(text.contains("event: history\ndata: {\"every_ms\":1000,\"most\":180,"), "{text}");
        pages.push(stream);
    }
    let (_, text) = follow(address, "").await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("urn:triage:admin:too-many-pages"), "{text}");
    assert_eq!(front.get_json("/readyz").await["ready"], true);
    pages.pop();
    let mut status = String::new();
    while !status.starts_with("HTTP/1.1 200") {
        status = follow(address, "").await.1;
    }
}

#[tokio::test]
async fn the_stream_is_for_readers_and_for_no_other_site() {
    let (front, _folder) = guarded(NOWHERE);
    let address = front.admin_address();
    let bearer = format!("Authorization: Bearer {}\r\n", TOKENS[0].1);
    for (headers, expected) in [
        (String::new(), "401"),
        (format!("{bearer}Sec-Fetch-Site: cross-site\r\n"), "403"),
        (format!("{bearer}Origin: https://evil.example\r\n"), "403"),
        (bearer.clone(), "200"),
        (cookie(&front, TOKENS[0].1).await, "200"),
    ] {
        let (_, text) = follow(address, &headers).await;
        assert_eq!(text.split(' ').nth(1), Some(expected), "{headers}: {text}");
    }
}

#[tokio::test]
async fn a_sign_out_ends_the_stream() {
    let (front, _folder) = guarded(NOWHERE);
    let read = cookie(&front, TOKENS[0].1).await;
    let (mut stream, _) = follow(front.admin_address(), &read).await;
    let own = format!("Origin: http://{}\r\n", front.admin_address());
    front.admin("POST", "/session/end", &format!("{read}{own}"), "").await;
    let mut rest = Vec::new();
    // Only a stream that stays open exceeds this bound.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while !rest.ends_with(b"\r\n0\r\n\r\n") && stream.read_buf(&mut rest).await.is_ok_and(|count| count > 0) {}
    });
    assert!(ended.await.is_ok(), "it goes on");
}

#[tokio::test]
async fn every_answer_is_what_its_content_type_says() {
    let (front, _folder) = guarded(NOWHERE);
    for (method, path) in [
        ("GET", "/healthz"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("PUT", "/healthz"),
        ("POST", "/session"),
    ] {
        let got = front.admin(method, path, "", "").await;
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{method} {path}: {}", got.head);
    }
}

#[tokio::test]
async fn a_name_that_leads_here_gets_no_page() {
    let front = Front::with_admin("", NOWHERE);
    let got = raw(front.admin_address(), b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert_eq!(got.status(), "403");
}
