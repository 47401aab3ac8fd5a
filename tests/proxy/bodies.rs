//! Bodies: unmodified, streamed, and buffered for a second attempt only up to a limit.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, message, ok, status},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

const SMALL: &str =
    "max_buffered_request = \"1KiB\"\n[upstreams.api.defaults]\nretry = { min_wait = \"0s\", max_wait = \"0s\" }\n";

#[tokio::test]
async fn compressed_bodies_are_passed_on_as_they_are() {
    // Invalid gzip, so that any attempt to decode it fails.
    let upstream = Scripted::start(|_| ok("content-encoding: gzip\r\n", "\u{1f}not gzip")).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a", "Accept-Encoding: gzip\r\n").await;
    assert_eq!((got.header("content-encoding"), got.text().as_str()), (Some("gzip"), "\u{1f}not gzip"));
    assert_eq!(got.header("content-length"), Some("9"));
    assert_eq!(upstream.seen()[0].all("accept-encoding"), ["gzip"]);
}

#[tokio::test]
async fn a_body_within_the_cap_can_be_sent_again() {
    let mut calls = 0;
    let upstream = Scripted::start(move |_| {
        calls += 1;
        if calls == 1 { status(503) } else { ok("", "") }
    })
    .await;
    let front = Front::of(&upstream.url(), SMALL);
    let got = front.send("PUT", "/a", "", &"x".repeat(1024)).await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("200", Some("2")));
    let bodies: Vec<usize> = upstream.seen().iter().map(|seen| seen.body.len()).collect();
    assert_eq!(bodies, [1024, 1024]);
}

#[tokio::test]
async fn a_body_above_the_cap_is_streamed_once_and_never_sent_again() {
    let upstream = Scripted::start(|_| status(503)).await;
    let front = Front::of(&upstream.url(), SMALL);
    for (framing, headers) in [("length", ""), ("chunked", "Transfer-Encoding: chunked\r\n")] {
        let body = "x".repeat(1025);
        let got = if headers.is_empty() {
            front.send("PUT", "/a", "", &body).await
        } else {
            front.raw(&format!("PUT /a HTTP/1.1\r\nHost: x\r\n{headers}\r\n401\r\n{body}\r\n0\r\n\r\n")).await
        };
        assert_eq!((got.status(), got.header("triage-attempts")), ("503", Some("1")), "{framing}");
        assert_eq!(got.header("triage-clamped"), Some("body"), "{framing}: {}", got.head);
        assert_eq!(upstream.seen().last().unwrap().body.len(), 1025, "{framing}");
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn answers_are_streamed() {
    let (parts, receiver) = mpsc::channel(1);
    let mut receiver = Some(receiver);
    let upstream = Scripted::start(move |_| Reply::Paced(receiver.take().unwrap())).await;
    let front = Front::of(&upstream.url(), "");
    let mut caller = TcpStream::connect(front.address()).await.unwrap();
    caller.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    parts.send(Bytes::from("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")).await.unwrap();
    // The second half is sent only after the first one has arrived.
    let mut read = Vec::new();
    while !read.ends_with(b"first") {
        assert!(caller.read_buf(&mut read).await.unwrap() > 0, "ended early: {}", String::from_utf8_lossy(&read));
    }
    parts.send(Bytes::from("later")).await.unwrap();
    let (_, body) = message(&mut caller, &mut read).await.unwrap().unwrap();
    assert_eq!(body, b"firstlater");
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_caller_too() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    let upstream = Scripted::start(move |_| Reply::Part(half.into())).await;
    let front = Front::of(&upstream.url(), "");
    let mut caller = TcpStream::connect(front.address()).await.unwrap();
    caller.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    // The head is already sent, but the host must not let half a response pass for a complete one.
    while caller.read_buf(&mut read).await.is_ok_and(|count| count > 0) {}
    let text = String::from_utf8_lossy(&read).to_lowercase();
    assert!(text.contains("content-length: 10\r\n") && text.ends_with("\r\n\r\nhalf"), "{text}");
    assert_eq!(upstream.seen().len(), 1);
}

/// An upstream that stops in the middle of a response does not block a caller forever, with or without a breaker.
#[tokio::test]
async fn an_answer_that_falls_silent_is_broken_off() {
    for (breaker, status) in [("true", "200 OK"), ("false", "200 OK"), ("false", "404 Not Found")] {
        let half = format!("HTTP/1.1 {status}\r\ncontent-length: 10\r\n\r\nhalf");
        let upstream = Scripted::start(move |_| Reply::Bytes(half.clone().into())).await;
        let keys =
            format!("[upstreams.api.defaults]\nattempt_timeout = \"50ms\"\nbreaker = {{ enabled = {breaker} }}\n");
        let front = Front::of(&upstream.url(), &keys);
        let mut caller = TcpStream::connect(front.address()).await.unwrap();
        caller.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        // Only a body without a time limit exceeds this bound.
        let ended = tokio::time::timeout(Duration::from_secs(60), caller.read_to_end(&mut read)).await;
        assert!(ended.is_ok(), "{status}, breaker {breaker}: still open");
        assert!(read.ends_with(b"\r\n\r\nhalf"), "{status}: {:?}", String::from_utf8_lossy(&read));
    }
}

/// A keyed response that is not yet sent can be replaced by an error.
#[tokio::test]
async fn a_keyed_answer_that_breaks_off_is_a_502_and_is_not_sent_again() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    let upstream = Scripted::start(move |_| Reply::Part(half.into())).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.send("POST", "/a", "Idempotency-Key: \"k\"\r\n", "x").await;
    let shown = (got.status(), got.header("triage-sent"), got.header("triage-verdict"));
    assert_eq!(shown, ("502", Some("maybe"), Some("applied")), "{}", got.text());
    let again = front.send("POST", "/a", "Idempotency-Key: \"k\"\r\n", "x").await;
    assert_eq!(again.status(), "409", "{}", again.text());
    assert!(again.text().contains("answer-not-kept"), "{}", again.text());
    assert_eq!(upstream.seen().len(), 1);
}

/// An invalid response, or one with wrong framing, is not forwarded.
#[tokio::test]
async fn an_invalid_response_is_not_passed_on() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    ] {
        let upstream = Scripted::start(move |_| Reply::Part(answer.into())).await;
        let front = Front::of(&upstream.url(), "[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n");
        let mut caller = TcpStream::connect(front.address()).await.unwrap();
        caller.write_all(b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut got = String::new();
        caller.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 502"), "{answer:?}: {got:?}");
    }
}

#[tokio::test]
async fn trailers_are_dropped_and_the_body_is_whole() {
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n";
    let upstream = Scripted::start(move |_| Reply::Bytes(answer.into())).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a", "").await;
    assert_eq!(got.text(), "body");
    assert_eq!(got.header("trailer"), None, "a trailer that does not come is not promised");
}
