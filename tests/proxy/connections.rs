//! Connections: reused, shared, and never the cause of a second send.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, ok, status},
};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use triage_config as config;
use triage_engine::contract::Failure;
use triage_upstream::{HttpClient, Outbound, OutboundBody, Transport as _};

const ONCE: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n";
const TWICE: &str = "[upstreams.api.defaults]\nretry = { max_attempts = 2, min_wait = \"0s\", max_wait = \"0s\" }\n";

/// A client of its own, on the test's clock.
struct Client(HttpClient);

impl Client {
    fn of(upstream: &Scripted) -> Self {
        let settings = config::for_upstream(&upstream.url(), "http-standard").unwrap();
        Self(HttpClient::new(&settings.upstreams[0].connection).unwrap())
    }

    /// The body of a response, or the failure. A write uses only connections that were not idle for long.
    async fn asks(&self, method: Method) -> Result<Bytes, Failure> {
        self.asks_at(method, "/a").await
    }

    async fn asks_at(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        let outbound = Outbound {
            guarded: method != Method::GET,
            method,
            path_and_query: path.to_owned(),
            headers: http::HeaderMap::new(),
            body: OutboundBody::Bytes(Bytes::new()),
        };
        let answer = self.0.send(outbound).await?;
        Ok(answer.body.collect().await.unwrap().to_bytes())
    }
}

/// Advances the clock for the connections without other effects.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_write_takes_no_connection_that_was_idle_for_long() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let client = Client::of(&upstream);
    for (method, after_ms, connection, why) in [
        (Method::GET, 0, 0, "the first"),
        (Method::POST, 3_800, 0, "young enough"),
        (Method::GET, 29_000, 0, "for a read it may be older"),
        (Method::POST, 4_000, 1, "too old for a write"),
        (Method::POST, 0, 1, "the youngest"),
        (Method::GET, 31_000, 2, "too old for anything"),
    ] {
        pass(Duration::from_millis(after_ms)).await;
        assert_eq!(client.asks(method).await.unwrap(), "fine", "{why}");
        assert_eq!(upstream.seen().last().unwrap().connection, connection, "{why}");
    }
}

/// A connection that the upstream has visibly closed is not used, so that even a write's effect stays known.
#[tokio::test]
async fn a_connection_that_the_upstream_closed_meanwhile_is_not_used() {
    for headers in ["", "connection: close\r\n"] {
        let upstream = Scripted::start(move |_| {
            let Reply::Bytes(answer) = ok(headers, "fine") else { unreachable!() };
            Reply::Part(answer)
        })
        .await;
        let client = Client::of(&upstream);
        for number in 0..20 {
            assert_eq!(client.asks(Method::POST).await.unwrap(), "fine", "{headers:?}, the one after {number}");
            // Give the close time to arrive.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(upstream.seen().len(), 20, "{headers:?}: once each");
    }
}

/// A path arrives encoded like a URL over every kind of connection, since a policy's verification may contain characters that need
/// encoding.
#[tokio::test]
async fn a_path_that_takes_encoding_is_encoded() {
    let upstream = Scripted::start(|_| ok("", "")).await;
    let client = Client::of(&upstream);
    for (path, arrives) in [
        ("/rooms?name=A#4", "/rooms?name=a%234"),
        ("/\"{a}\"?b='<c>'", "/%22%7ba%7d%22?b=%27%3cc%3e%27"),
        ("/caf\u{e9}", "/caf%c3%a9"),
        ("/a/../b", "/b"),
        ("/a%2e?b=%20c&d+e~f", "/a%2e?b=%20c&d+e~f"),
    ] {
        client.asks_at(Method::GET, path).await.unwrap();
        assert_eq!(upstream.seen().last().unwrap().line(), format!("get {arrives} http/1.1"), "{path}");
    }
}

/// An unread error body must not cost a connection, least of all while the upstream has problems.
#[tokio::test]
async fn an_unread_answer_keeps_its_connection() {
    let mut count = 0;
    let upstream = Scripted::start(move |_| {
        count += 1;
        let status = if count % 2 == 1 { "503 Busy" } else { "200 OK" };
        Reply::Bytes(format!("HTTP/1.1 {status}\r\ncontent-length: 7\r\n\r\nperhaps").into())
    })
    .await;
    let front = Front::of(&upstream.url(), TWICE);
    for _ in 0..3 {
        let got = front.ask("GET", "/a", "").await;
        assert_eq!((got.status(), got.header("triage-attempts")), ("200", Some("2")));
    }
    let connections: Vec<usize> = upstream.seen().iter().map(|seen| seen.connection).collect();
    // The last response is kept until there is a better one, and so is its connection.
    assert!(connections.iter().all(|connection| *connection < 2), "{connections:?}");
}

/// An upstream that responds before it has read the body, and never reads the rest, blocks neither this caller nor later ones.
#[tokio::test]
async fn an_early_answer_ends_the_upload() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n").await;
            open.push(stream);
        }
    });
    let front = Front::of(&url, "");
    let mut caller = tokio::net::TcpStream::connect(front.address()).await.unwrap();
    let head = format!("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 64 << 20);
    caller.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = caller.into_split();
    let sent = tokio::spawn(async move { while write.write_all(&[b'x'; 8192]).await.is_ok() {} });
    let mut answer = Vec::new();
    // Only a connection that stays open exceeds this bound.
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        while read.read_buf(&mut answer).await.is_ok_and(|count| count > 0) {}
        sent.await.unwrap();
    });
    assert!(ended.await.is_ok(), "still open");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 413"), "{:?}", String::from_utf8_lossy(&answer));
}

/// Concurrent responses in parts and with different bodies are not mixed up.
#[tokio::test]
async fn many_requests_at_once_have_a_connection_each_and_their_own_answers() {
    let upstream = Scripted::start(|seen| {
        let path = seen.line().split(' ').nth(1).unwrap().to_owned();
        let body = path.repeat(1 + path.len() * 7_000);
        Reply::Bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into())
    })
    .await;
    let front = Front::of(&upstream.url(), "");
    for _ in 0..3 {
        let asked = (0..40).map(|number| {
            let front = &front;
            async move { (number, front.ask("GET", &format!("/{number}"), "").await) }
        });
        for (number, got) in futures_util::future::join_all(asked).await {
            let path = format!("/{number}");
            assert_eq!(got.text(), path.repeat(1 + path.len() * 7_000), "{number}");
        }
    }
    let most = upstream.seen().iter().map(|seen| seen.connection).max().unwrap();
    assert!(most < 80, "{most} connections for 120 requests, 40 at a time");
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
async fn the_problem_separates_a_dns_failure_from_a_closed_port() {
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
    // Only a missing limit exceeds this bound.
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
