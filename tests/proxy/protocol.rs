//! Messages at the limits of the protocol: which are corrected, refused or reported as failures.

use crate::support::{
    front::{Front, Got},
    scripted::{Reply, Scripted, ok},
};
use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;

const ONCE: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n";

fn json(got: &Got) -> serde_json::Value {
    serde_json::from_slice(&got.body).unwrap_or_else(|error| panic!("{error}: {}", got.head))
}

/// An invalid response: a read fails with this reason, and a write is unknown and not sent again.
async fn fails(what: &str, answer: String, reason: &str) {
    let upstream = Scripted::start(move |_| Reply::Part(answer.clone().into())).await;
    let front = Front::of(&upstream.url(), ONCE);
    let got = front.ask("GET", "/a", "").await;
    let problem = json(&got);
    assert_eq!((got.status(), &problem["failure"]), ("502", &"protocol".into()), "{what}: {problem}");
    assert_eq!(problem["failure_reason"], reason, "{what}: {problem}");
    assert_eq!(got.header("triage-sent"), Some("maybe"), "{what}: {}", got.head);
    for again in [false, true] {
        let got = front.send("POST", "/a", "Idempotency-Key: \"k\"\r\n", "x").await;
        if !again {
            assert_eq!(json(&got)["failure_reason"], reason, "{what}: {}", got.text());
        }
        assert_eq!(
            (got.status(), got.header("triage-verdict")),
            ("504", Some("unknown")),
            "{what}, again {again}: {}",
            got.text()
        );
    }
    assert_eq!(upstream.seen().len(), 2, "{what}: one read and one write");
}

#[tokio::test]
async fn a_coded_answer_is_a_failure() {
    for coding in [
        "gzip, chunked",
        "chunked, gzip",
        "xchunked",
        "identity",
        "chunked, chunked",
        "chunked\r\ntransfer-encoding: chunked",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n4\r\nfine\r\n0\r\n\r\n");
        fails(coding, answer, "transfer-coding").await;
    }
}

#[tokio::test]
async fn a_status_that_http_does_not_have_is_a_failure() {
    for status in [600, 799, 999] {
        fails("a status", format!("HTTP/1.1 {status} Odd\r\ncontent-length: 0\r\n\r\n"), "status").await;
    }
    let highest = Scripted::start(|_| Reply::Bytes(b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n".to_vec())).await;
    assert_eq!(Front::of(&highest.url(), ONCE).ask("GET", "/a", "").await.status(), "599");
}

#[tokio::test]
async fn a_length_is_passed_on_as_one_plain_number_or_not_at_all() {
    fails("2^63", "HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\nbody".to_owned(), "content-length")
        .await;
    for lengths in ["content-length: 04\r\n", "content-length: 4\r\ncontent-length: 4\r\n"] {
        let upstream =
            Scripted::start(move |_| Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{lengths}\r\nbody").into())).await;
        let got = Front::of(&upstream.url(), ONCE).ask("GET", "/a", "").await;
        assert_eq!(got.text(), "body");
        assert_eq!(got.head.matches("content-length").count(), 1, "{}", got.head);
        assert_eq!(got.header("content-length"), Some("4"), "{}", got.head);
    }
}

#[tokio::test]
async fn an_answer_may_have_as_many_fields_as_the_key_says() {
    let upstream = Scripted::start(|seen| {
        let count: usize = seen.line().split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        ok(&"a: b\r\n".repeat(count - 1), "fine")
    })
    .await;
    let front = Front::of(&upstream.url(), ONCE);
    assert_eq!(front.ask("GET", "/256", "").await.status(), "200");
    let got = front.ask("GET", "/257", "").await;
    let problem = json(&got);
    assert_eq!(problem["failure_reason"], "head-too-large", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("max_header_fields"), "{problem}");
    let few = Front::of(&upstream.url(), &format!("max_header_fields = 16\n{ONCE}"));
    assert_eq!(few.ask("GET", "/16", "").await.status(), "200");
    assert_eq!(few.ask("GET", "/17", "").await.status(), "502");
    // Over HTTP/2 the host itself counts the fields, including its own.
    let inner = Front::of(&upstream.url(), ONCE);
    let outer = Front::of(&inner.url(""), &format!("http2_prior_knowledge = true\nmax_header_fields = 200\n{ONCE}"));
    assert_eq!(outer.ask("GET", "/180", "").await.status(), "200");
    let problem = json(&outer.ask("GET", "/220", "").await);
    assert_eq!(problem["failure_reason"], "too-many-fields", "{problem}");
}

/// Sends one request over HTTP/2 with unmodified fields, and reads status and body.
async fn over_h2(front: &Front, request: http::request::Builder) -> (u16, String) {
    let stream = TcpStream::connect(front.address()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let driven = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    let answer = answer.await.unwrap();
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data: Bytes = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    driven.abort();
    (status, String::from_utf8(read).unwrap())
}

#[tokio::test]
async fn cookies_of_http2_are_joined_for_http1() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::of(&upstream.url(), "");
    let request = Request::get("http://triage.test/a")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=\"3\"");
    assert_eq!(over_h2(&front, request).await, (200, "fine".to_owned()));
    assert_eq!(upstream.seen()[0].all("cookie"), ["a=1; b=2; c=\"3\""]);
}

#[tokio::test]
async fn lengths_of_http2_are_sent_on_once() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::of(&upstream.url(), "");
    let request = Request::post("http://triage.test/a").header("content-length", "0").header("content-length", "00");
    assert_eq!(over_h2(&front, request).await.0, 200);
    assert_eq!(upstream.seen()[0].all("content-length"), ["0"]);
}

#[tokio::test]
async fn an_authority_and_a_host_that_differ_are_refused() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::of(&upstream.url(), "");
    let ask = |host: &'static str| over_h2(&front, Request::get("http://triage.test/a").header("host", host));
    for same in ["triage.test", "TRIAGE.test", "triage.test:80"] {
        assert_eq!(ask(same).await.0, 200, "{same}");
    }
    let sent = upstream.seen().len();
    for other in ["other.test", "triage.test:81", "triage.test.other.test"] {
        let (status, text) = ask(other).await;
        assert_eq!(status, 400, "{other}: {text}");
        assert!(text.contains("urn:triage:problem:host-ambiguous"), "{other}: {text}");
    }
    assert_eq!(upstream.seen().len(), sent);
    assert_eq!(upstream.seen()[0].all("x-forwarded-host"), ["triage.test"]);
}

#[tokio::test]
async fn fields_of_http2_are_counted_too() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::of(&upstream.url(), "");
    let with = |count: usize| {
        let request = Request::get("http://triage.test/a");
        over_h2(&front, (0..count).fold(request, |request, _| request.header("a", "b")))
    };
    assert_eq!(with(256).await.0, 200);
    let (status, text) = with(257).await;
    assert!(status == 431 && text.contains("urn:triage:problem:too-many-fields"), "{status}: {text}");
}
