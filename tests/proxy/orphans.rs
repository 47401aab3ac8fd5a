//! Writes without a key over real connections: which responses count as received.

use crate::support::{
    front::{Front, Got},
    scripted::{Reply, Scripted, ok, status},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

const ROW: &str = "POST /orders HTTP/1.1\r\nHost: triage.test\r\nContent-Length: 3\r\n\r\nrow";

/// A host that buffers responses of up to 16 MiB.
fn front(upstream: &Scripted) -> Front {
    Front::of(
        &upstream.url(),
        "idempotency = { max_response = \"16MiB\" }\n[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n\
         deadline = \"60s\"\nattempt_timeout = \"30s\"\n",
    )
}

fn is_adopted(got: &Got) -> bool {
    got.header("triage-adopted") == Some("true")
}

async fn until_seen(upstream: &Scripted, requests: usize) {
    while upstream.seen().len() < requests {
        sleep(Duration::from_millis(2)).await;
    }
}

fn over_http2() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap()
}

/// The first request gets the bytes that the test sends; all others get `another`.
async fn first_when_told() -> (mpsc::Sender<Bytes>, Scripted) {
    let (answer, parts) = mpsc::channel(1);
    let mut parts = Some(parts);
    let upstream = Scripted::start(move |_| match parts.take() {
        Some(parts) => Reply::Paced(parts),
        None => ok("", "another"),
    });
    (answer, upstream.await)
}

type Script = Box<dyn Fn() -> Reply + Send>;

/// Tripwire: a response that was received, with any framing, is never given to another request.
#[tokio::test]
async fn an_answer_that_was_received_is_no_orphans() {
    let large = "x".repeat(300_000);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let replies: Vec<(&str, Script)> = vec![
        ("a length", Box::new(|| ok("", "done"))),
        ("no byte", Box::new(|| ok("", ""))),
        ("204", Box::new(|| Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n".into()))),
        ("201 without a body", Box::new(|| status(201))),
        ("chunks", Box::new(move || Reply::Bytes(chunked.into()))),
        ("the end of the connection", Box::new(|| Reply::Part("HTTP/1.1 200 OK\r\n\r\ndone".into()))),
        ("many bytes", Box::new(move || ok("", &large))),
    ];
    for (framing, reply) in replies {
        let upstream = Scripted::start(move |_| reply()).await;
        let front = front(&upstream);
        let client = over_http2();
        for time in 1..=3 {
            let got = front.raw(ROW).await;
            assert!(!is_adopted(&got), "{framing}, time {time}: {got:?}");
        }
        for time in 4..=6 {
            let got = client.post(front.url("/orders")).body("row").send().await.unwrap();
            assert!(!got.headers().contains_key("triage-adopted"), "{framing} over HTTP/2, time {time}: {got:?}");
            got.bytes().await.unwrap();
        }
        assert_eq!(upstream.seen().len(), 6, "{framing}");
    }
}

#[tokio::test]
async fn a_connection_that_closes_before_the_answer_leaves_an_orphan() {
    let (answer, upstream) = first_when_told().await;
    let front = front(&upstream);
    let mut first = TcpStream::connect(front.address()).await.unwrap();
    first.write_all(ROW.as_bytes()).await.unwrap();
    until_seen(&upstream, 1).await;
    drop(first);
    // At once: the host may not have noticed yet that the caller left.
    let again = tokio::spawn({
        let address = front.address();
        async move { crate::support::front::raw(address, ROW.as_bytes()).await }
    });
    sleep(Duration::from_millis(100)).await;
    answer.send(Bytes::from_static(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ndone")).await.unwrap();
    let got = again.await.unwrap();
    assert_eq!((got.status(), got.text().as_str(), upstream.seen().len()), ("201", "done", 1), "{got:?}");
    assert!(is_adopted(&got));
    drop(answer);
    let next = front.raw(ROW).await;
    assert_eq!((next.text().as_str(), is_adopted(&next)), ("another", false));
}

/// The caller resets a stream, and the connection continues.
#[tokio::test]
async fn a_stream_that_is_reset_leaves_an_orphan() {
    let (answer, upstream) = first_when_told().await;
    let front = front(&upstream);
    let client = over_http2();
    let send = |client: &reqwest::Client| client.post(front.url("/orders")).body("row").send();
    assert!(timeout(Duration::from_millis(300), send(&client)).await.is_err(), "it was answered too early");
    let again = tokio::spawn(send(&client));
    sleep(Duration::from_millis(100)).await;
    answer.send(Bytes::from_static(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")).await.unwrap();
    let got = again.await.unwrap().unwrap();
    assert_eq!((got.status().as_u16(), upstream.seen().len()), (201, 1));
    assert!(got.headers().contains_key("triage-adopted"), "{got:?}");
    drop(answer);
    assert_eq!(send(&client).await.unwrap().text().await.unwrap(), "another");
}

/// The body exceeds the sockets' buffers, so a caller that leaves in the middle has not received it.
#[tokio::test]
async fn an_answer_that_is_not_read_to_its_end_is_an_orphans() {
    let body = "0123456789abcdef".repeat(1 << 19);
    let whole = body.clone();
    let upstream = Scripted::start(move |_| ok("", &body)).await;
    let front = front(&upstream);
    let mut first = TcpStream::connect(front.address()).await.unwrap();
    first.write_all(ROW.as_bytes()).await.unwrap();
    let mut head = [0; 4096];
    assert!(first.read(&mut head).await.unwrap() > 0);
    drop(first);
    let got = front.raw(ROW).await;
    assert_eq!((got.status(), upstream.seen().len()), ("200", 1));
    assert!(is_adopted(&got) && got.body == whole.as_bytes(), "{} bytes", got.body.len());
    let next = front.raw(ROW).await;
    assert_eq!((is_adopted(&next), upstream.seen().len()), (false, 2));
}
