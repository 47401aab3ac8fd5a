//! Connections: kept, shared, never the cause of a second send.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, ok, status},
};
use std::time::Duration;

const ONCE: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n";
const TWICE: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 2, min_wait = \"0s\", max_wait = \"0s\" }\n";

#[tokio::test]
async fn connections_are_kept_apart_for_safe_and_unsafe_requests() {
    let upstream = Scripted::start(|_| ok("", "")).await;
    let front = Front::of(&upstream.url(), "");
    for method in ["GET", "GET", "POST", "POST", "GET"] {
        front.send(method, "/a", "", "").await;
    }
    let connections: Vec<usize> = upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 1, 1, 0]);
}

#[tokio::test]
async fn a_write_on_a_kept_connection_that_closes_is_sent_once() {
    let upstream = Scripted::start(|seen| if seen.body == b"first" { ok("", "") } else { Reply::Close }).await;
    let front = Front::of(&upstream.url(), TWICE);
    assert_eq!(front.send("POST", "/a", "", "first").await.status(), "200");
    let got = front.send("POST", "/a", "", "second").await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("504", Some("1")), "{}", got.head);
    assert!(got.text().contains("effect-unknown"), "{}", got.text());
    assert_eq!(upstream.seen().len(), 2, "first and second, once each");
}

#[tokio::test]
async fn a_read_is_sent_as_often_as_the_host_says() {
    let upstream = Scripted::start(|_| Reply::Close).await;
    let front = Front::of(&upstream.url(), TWICE);
    let got = front.ask("GET", "/a", "").await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("502", Some("2")), "{} {}", got.head, got.text());
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_told_from_a_closed_port() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, kind) in [("http://nowhere.invalid".to_owned(), "dns"), (format!("http://{closed}"), "connect")] {
        let front = Front::of(&url, ONCE);
        let got = front.send("POST", "/a", "", "x").await;
        assert_eq!(
            (got.status(), got.header("triage-sent")),
            ("502", Some("no")),
            "{url}: {} {}",
            got.head,
            got.text()
        );
        let problem: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(problem["failure"], kind, "{url}: {problem}");
    }
}

#[tokio::test]
async fn a_callers_deadline_ends_the_request() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a", "Triage-Deadline-Ms: 50\r\n").await;
    assert_eq!(got.status(), "504", "{}", got.text());
    assert!(upstream.seen()[0].all("triage-deadline-ms").is_empty(), "the header is the host's");
    for bad in ["0", "-1", "1.5", "soon", ""] {
        let got = front.ask("GET", "/a", &format!("Triage-Deadline-Ms: {bad}\r\n")).await;
        assert_eq!(got.status(), "400", "{bad:?}");
    }
}

#[tokio::test]
async fn a_callers_deadline_is_capped_by_the_endpoints() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = Front::of(
        &upstream.url(),
        "[upstreams.api.defaults]\nattempt_timeout = \"50ms\"\ndeadline = \"60ms\"\nretry = { max_attempts = 1 }\n",
    );
    let asked = front.ask("GET", "/a", "Triage-Deadline-Ms: 3600000\r\n");
    // A generous bound that only a missing cap would pass.
    let got = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("capped");
    assert_eq!(got.status(), "504");
}

#[tokio::test]
async fn a_stream_that_an_h2_upstream_refuses_was_not_sent() {
    let (address, refused) = refusing_h2().await;
    let front = Front::of(&format!("http://{address}"), &format!("http2_prior_knowledge = true\n{TWICE}"));
    let got = front.send("POST", "/a", "", "x").await;
    let sent = refused.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(got.header("triage-attempts"), Some("2"), "a refused stream may be sent again: {}", got.text());
    assert_eq!(sent, 2, "and only the host sends it again");
    assert_eq!(got.header("triage-sent"), Some("no"));
}

async fn refusing_h2() -> (std::net::SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refused = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = refused.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    (address, refused)
}

#[tokio::test]
async fn the_upstreams_own_last_answer_ends_the_retries() {
    let upstream = Scripted::start(|_| status(503)).await;
    let front = Front::of(&upstream.url(), TWICE);
    let got = front.ask("GET", "/a", "").await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("503", Some("2")));
    assert_eq!(got.header("content-type"), None, "no problem of the host's own");
}
