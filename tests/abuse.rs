//! Malicious callers on real sockets. Each gets a clear response or a closed connection, nothing wrong reaches the upstream, and the host
//! serves the next caller.

use crate::support::{
    front::Front,
    scripted::{Scripted, ok},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use triage_core::{clock::Clock, rng::Rng};

/// Sends bytes, closes the sending side, and reads until the connection ends.
async fn all(front: &Front, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    // The host may close before it has read everything; that counts as a response too.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8_lossy(&read).into_owned()
}

/// Sends a whole request and reads up to the end of a response head. The sending side stays open: a caller that closes it counts as gone
/// and may get no response.
async fn answer(front: &Front, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n")
        && stream.read_buf(&mut read).await.is_ok_and(|count| count > 0)
    {}
    String::from_utf8_lossy(&read).into_owned()
}

async fn world(keys: &str) -> (Scripted, Front) {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::of(&upstream.url(), keys);
    (upstream, front)
}

/// Checks that the host still serves.
async fn serves(front: &Front, after: &str) {
    let got = front.ask("GET", "/alive", "").await;
    assert_eq!((got.status(), got.text().as_str()), ("200", "fine"), "after {after}");
}

#[tokio::test]
async fn malformed_requests_are_refused_and_never_sent_on() {
    let (upstream, front) = world("").await;
    let long = "x".repeat(200_000);
    for (what, request, expected) in [
        ("no HTTP", "hello\r\n\r\n".to_owned(), "400"),
        ("another version", "GET /a HTTP/3.7\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("NUL in a header", "GET /a HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n".to_owned(), "400"),
        ("a folded header", "GET /a HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n".to_owned(), "400"),
        ("a space before the colon", "GET /a HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n".to_owned(), "400"),
        (
            "two lengths",
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
            "400",
        ),
        ("a length that is none", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_owned(), "400"),
        ("a signed length", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na".to_owned(), "400"),
        (
            "an unknown coding",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n".to_owned(),
            "400",
        ),
        ("dot segments", "GET /a/../b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("encoded dot segments", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("a backslash", "GET /a\\b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("a line of 200 KB", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), "4"),
        ("a header of 200 KB", format!("GET /a HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"), "431"),
        ("10,000 headers", format!("GET /a HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(10_000)), "431"),
        ("CONNECT", "CONNECT inside:22 HTTP/1.1\r\nHost: inside:22\r\n\r\n".to_owned(), "501"),
        ("two hosts", "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), "400"),
        ("no host", "GET /a HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("an empty host", "GET /a HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), "400"),
        ("a host with a user", "GET /a HTTP/1.1\r\nHost: user@x\r\n\r\n".to_owned(), "400"),
        ("a host with a path", "GET /a HTTP/1.1\r\nHost: x/evil.example\r\n\r\n".to_owned(), "400"),
        ("a host with a blank", "GET /a HTTP/1.1\r\nHost: x y\r\n\r\n".to_owned(), "400"),
        ("a host with a quote", "GET /a HTTP/1.1\r\nHost: x\"y\r\n\r\n".to_owned(), "400"),
        ("a port that is none", "GET /a HTTP/1.1\r\nHost: x:99999\r\n\r\n".to_owned(), "400"),
        ("a bad host in the target", "GET http://x:y/a HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("a target without a slash", "GET x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("a target that is an authority", "GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("another scheme", "GET ftp://x/a HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("an asterisk of GET", "GET * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("an asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "204"),
        ("an encoded slash behind dots", "GET /a/..%2fb HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("an encoded backslash behind dots", "GET /a/%2e%2e%5Cb HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("parameters behind dots", "GET /a/..;x=1/b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        (
            "another expectation",
            "POST /a HTTP/1.1\r\nHost: x\r\nExpect: foo\r\nContent-Length: 1\r\n\r\na".to_owned(),
            "417",
        ),
        (
            "an expectation too many",
            "POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue, foo\r\nContent-Length: 1\r\n\r\na".to_owned(),
            "417",
        ),
        (
            "a coding before chunked",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "501",
        ),
        (
            "a coding in a field of its own",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            "501",
        ),
        (
            "chunked twice",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "501",
        ),
        ("identity", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n".to_owned(), "400"),
        (
            "identity before chunked",
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "501",
        ),
        (
            "a length of 2^63",
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9223372036854775808\r\n\r\na".to_owned(),
            "400",
        ),
        ("nothing", String::new(), ""),
        ("half a head", "GET /a HT".to_owned(), ""),
    ] {
        let is_whole = request.contains("\r\n\r\n");
        let answer =
            if is_whole { answer(&front, request.as_bytes()).await } else { all(&front, request.as_bytes()).await };
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(status.starts_with(expected) && (expected.is_empty() == answer.is_empty()), "{what}: {answer:?}");
        assert_eq!(upstream.seen().len(), 0, "{what} was sent on: {:?}", upstream.seen().last());
    }
    serves(&front, "all of it").await;
}

#[tokio::test]
async fn header_fields_above_the_limit_are_refused_with_a_reason() {
    let (upstream, front) = world("").await;
    let with = |count: usize| format!("GET /a HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    assert_eq!(front.raw(&with(256)).await.status(), "200", "as many as are admitted");
    for count in [257, 1024, 8192] {
        let got = front.raw(&with(count)).await;
        assert_eq!((got.status(), got.header("triage-sent")), ("431", Some("no")), "{count}: {}", got.head);
        assert!(got.text().contains("urn:triage:problem:too-many-fields"), "{count}: {}", got.text());
        assert!(got.text().contains("server.max_header_fields"), "{count}: {}", got.text());
    }
    assert_eq!(upstream.seen().len(), 1);
    let few = Front::with_server("max_header_fields = 16\n", &upstream.url());
    assert_eq!(few.raw(&with(16)).await.status(), "200");
    assert_eq!(few.raw(&with(17)).await.status(), "431");
}

#[tokio::test]
async fn a_host_is_asked_of_whom_the_protocol_asks_it() {
    let (_upstream, front) = world("").await;
    assert_eq!(front.raw("GET /a HTTP/1.0\r\n\r\n").await.status(), "200", "HTTP/1.0 knows no Host");
    let got = front.raw("GET /a HTTP/1.1\r\n\r\n").await;
    assert!(got.text().contains("urn:triage:problem:host-missing"), "{}", got.text());
    assert_eq!(got.header("triage-request-id").map(str::len), Some(16), "{}", got.head);
    // In-process requests need no Host.
    let request = http::Request::get("/a").body(bytes::Bytes::new()).unwrap();
    assert_eq!(front.host().call(request).await.status(), 200);
}

#[tokio::test]
async fn the_host_says_what_it_offers_whatever_the_resource() {
    let (upstream, front) = world("").await;
    let got = front.raw("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((got.status(), got.header("triage-sent")), ("204", Some("no")), "{}", got.head);
    assert!(got.header("allow").is_some_and(|methods| methods.contains("patch")), "{}", got.head);
    assert!(upstream.seen().is_empty());
    assert_eq!(front.ask("OPTIONS", "/a", "").await.text(), "fine", "of a resource, the upstream says it");
}

#[tokio::test]
async fn lengths_are_sent_on_as_one_plain_number() {
    let (upstream, front) = world("").await;
    let got = front.raw("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 04\r\nContent-Length: 4\r\n\r\nbody").await;
    assert_eq!(got.status(), "200", "{}", got.text());
    assert_eq!(upstream.seen()[0].all("content-length"), ["4"]);
}

#[tokio::test]
async fn both_framings_at_once_never_smuggle_a_second_request() {
    let (upstream, front) = world("").await;
    // By length, the body is the whole second request; by chunks, it is empty.
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let request = format!(
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{hidden}",
        hidden.len()
    );
    all(&front, request.as_bytes()).await;
    for seen in upstream.seen() {
        let framings = seen.all("content-length").len() + seen.all("transfer-encoding").len();
        assert!(framings <= 1, "sent on with both framings: {}", seen.head);
    }
    serves(&front, "both framings").await;
}

#[tokio::test]
async fn ten_megabytes_of_header_are_cut_off() {
    let (upstream, front) = world("").await;
    let mut request = b"GET /a HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
    request.resize(10 << 20, b'x');
    let answer = all(&front, &request).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer:?}");
    assert!(upstream.seen().is_empty());
    serves(&front, "10 MB of header").await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off_and_delays_no_other_caller() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::with_server("header_read_timeout = \"100ms\"\n", &upstream.url());
    let mut slow = TcpStream::connect(front.address()).await.unwrap();
    slow.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    serves(&front, "a head that is not whole").await;
    // The host must give up by itself. The bound is far above the limit; without the limit this test would hang.
    let mut read = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), slow.read_to_end(&mut read)).await;
    assert!(ended.is_ok(), "still open");
    assert_eq!(upstream.seen().len(), 1, "only the one that was whole");
}

#[tokio::test]
async fn a_body_that_stops_half_way_sends_nothing() {
    let (upstream, front) = world("").await;
    let answer = all(&front, b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    serves(&front, "half a body").await;
}

#[tokio::test]
async fn a_chunk_that_lies_sends_nothing() {
    let (upstream, front) = world("").await;
    for chunk in ["zz\r\nab\r\n", "ffffffffffffffffff\r\nab\r\n", "2;a=\"\r\nab\r\n0\r\n\r", "-2\r\nab\r\n"] {
        let request = format!("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        let answer = all(&front, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{chunk:?}: {answer:?}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    serves(&front, "lying chunks").await;
}

#[tokio::test]
async fn an_absolute_form_goes_to_the_configured_upstream_only() {
    let (upstream, front) = world("").await;
    let got = front.raw("GET http://inside.example:9/a HTTP/1.1\r\nHost: inside.example:9\r\n\r\n").await;
    assert_eq!(got.text(), "fine");
    assert_eq!(upstream.seen()[0].line(), "get /a http/1.1");
    assert_eq!(upstream.seen()[0].all("host"), [upstream.address.to_string()]);
    // With an absolute target, the Host field is ignored.
    front.raw("GET http://inside.example:9/a HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    assert_eq!(upstream.seen()[1].all("x-forwarded-host"), ["inside.example:9"]);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Scripted::start(|seen| ok("", seen.line().split(' ').nth(1).unwrap())).await;
    let front = Front::of(&upstream.url(), "");
    let request = |n: usize| {
        let close = if n == 49 { "Connection: close\r\n" } else { "" };
        format!("GET /{n} HTTP/1.1\r\nHost: x\r\n{close}\r\n")
    };
    let many: Vec<String> = (0..50).map(request).collect();
    // A caller that closes its sending side counts as gone, so this one keeps it open.
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    stream.write_all(many.concat().as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let order: Vec<usize> = (0..50).filter_map(|n| answers.find(&format!("\r\n\r\n/{n}"))).collect();
    assert_eq!(order.len(), 50, "{answers}");
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test]
async fn malformed_keys_are_refused_and_nothing_is_sent() {
    let (upstream, front) = world("").await;
    let long = format!("\"{}\"", "k".repeat(5000));
    for key in ["", "\"\"", "\"open", "a b", "\"a\"b", long.as_str()] {
        let got = front.send("POST", "/a", &format!("Idempotency-Key: {key}\r\n"), "x").await;
        assert_eq!(got.status(), "400", "{key:?}: {}", got.text());
        assert!(got.text().contains("urn:triage:problem:key-malformed"), "{key:?}: {}", got.text());
    }
    let twice = front.send("POST", "/a", "Idempotency-Key: \"a\"\r\nIdempotency-Key: \"b\"\r\n", "x").await;
    assert_eq!(twice.status(), "400", "{}", twice.text());
    assert!(upstream.seen().is_empty());
    serves(&front, "malformed keys").await;
}

#[tokio::test]
async fn a_keyed_body_above_the_cap_is_refused_before_it_is_read() {
    let (upstream, front) = world("idempotency = { max_request = \"1KiB\" }\n").await;
    let got = front.send("POST", "/a", "Idempotency-Key: \"a\"\r\n", &"x".repeat(1025)).await;
    assert_eq!(got.status(), "413", "{}", got.text());
    // Only the declared length is too large: the host must not wait for the body.
    let got =
        front.raw("POST /a HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \"a\"\r\nContent-Length: 1073741824\r\n\r\n").await;
    assert_eq!(got.status(), "413", "{}", got.text());
    assert!(upstream.seen().is_empty());
    serves(&front, "a large keyed body").await;
}

/// A connection is closed if it sends nothing, or too little to identify the protocol.
#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let upstream = Scripted::start(|_| ok("", "fine")).await;
    let front = Front::with_server("header_read_timeout = \"50ms\"\n", &upstream.url());
    for (what, said) in [("silence", &b""[..]), ("half a preface", b"PRI * HTTP/2.0\r\n"), ("half a word", b"GE")] {
        let mut stream = TcpStream::connect(front.address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut read = Vec::new();
        // Only a connection that stays open exceeds this bound.
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut read)).await;
        assert!(ended.is_ok(), "{what}: still open");
        assert!(!read.starts_with(b"HTTP/1.1 2"), "{what}: {:?}", String::from_utf8_lossy(&read));
        serves(&front, what).await;
    }
    assert!(upstream.seen().iter().all(|seen| seen.line().starts_with("get /alive")));
}

/// Connects from another local address.
async fn from(address: [u8; 4], front: &Front) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(front.address()).await.unwrap()
}

/// One peer opens and keeps as many connections as it can, half of them with an unread response. Another peer is still served, and so is a
/// quiet peer's next connection once all permits are taken.
#[tokio::test]
async fn a_peer_that_holds_its_connections_keeps_no_other_peer_out() {
    let body = "x".repeat(4 << 20);
    let upstream =
        Scripted::start(move |seen| if seen.line().contains("/large") { ok("", &body) } else { ok("", "fine") }).await;
    let front = Front::with_server("max_connections = 40\n", &upstream.url());
    let mut held = Vec::new();
    for n in 0..60 {
        let mut stream = from([127, 0, 0, 2], &front).await;
        let path = if n % 2 == 0 { "/large" } else { "/small" };
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        held.push(stream);
    }
    serves(&front, "a peer with all of its share").await;
    // As many connections from others: now an old one must be closed for a new one.
    for last in 3..6 {
        for _ in 0..10 {
            held.push(from([127, 0, 0, last], &front).await);
        }
    }
    serves(&front, "all places are taken").await;
    drop(held);
    serves(&front, "they have gone").await;
}

/// Endless heads of maximum length, from far more callers than memory allows: the host closes them, and serves the next request.
#[tokio::test]
async fn half_sent_heads_are_held_up_to_the_memory_limit() {
    let (upstream, warm) = world("").await;
    serves(&warm, "the start").await;
    let limit = (triage_telemetry::memory_bytes().unwrap() + (24 << 20)).max(64 << 20);
    let keys = format!("memory_limit = \"{limit}B\"\nheader_read_timeout = \"60s\"\n");
    let front = Front::with_server(&keys, &upstream.url());
    let mut head = b"GET /a HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
    head.resize(60_000, b'x');
    let head = std::sync::Arc::new(head);
    let (closed, mut closings) = tokio::sync::mpsc::unbounded_channel();
    let callers: Vec<_> = (0..900)
        .map(|_| {
            let (address, head, closed) = (front.address(), std::sync::Arc::clone(&head), closed.clone());
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(&head).await;
                let _ = stream.read(&mut [0; 1]).await;
                let _ = closed.send(());
            })
        })
        .collect();
    closings.recv().await.unwrap();
    for caller in callers {
        caller.abort();
    }
    while front.ask("GET", "/alive", "").await.status() == "503" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    serves(&front, "heads without end").await;
}

/// An unfinished response counts against the limit. Alone it is admitted even over the limit; a second one is not.
#[tokio::test]
async fn an_answer_under_way_counts_against_the_memory_limit() {
    let upstream =
        Scripted::start(|seen| if seen.line().contains("/slow") { ok("", "a part of it") } else { ok("", "") }).await;
    let mut settings = triage_config::for_upstream(&upstream.url(), "http-standard").unwrap();
    settings.server.memory_limit = Some(1);
    let host = triage::Host::new(&settings, Clock::system(), Rng::system()).unwrap();
    let ask = async |path: &str| host.call(http::Request::get(path).body(bytes::Bytes::new()).unwrap()).await;
    let slow = ask("/slow").await;
    assert_eq!(slow.status(), 200, "whoever is alone is served");
    assert_eq!(ask("/other").await.status(), 503, "nobody else");
    drop(slow);
    assert_eq!(ask("/other").await.status(), 200, "it has ended");
}

/// Endless bodies of 1 MiB, from far more callers than memory allows: some are refused, the others wait, and the buffered bytes stay within
/// the limit.
#[tokio::test]
async fn bodies_are_held_up_to_the_memory_limit() {
    const ROOM: u64 = 48 << 20;
    const BODY: usize = 1 << 20;
    // All callers share one buffer, since they run in the host's process.
    static BYTES: [u8; BODY - 1] = [b'x'; BODY - 1];
    let (upstream, warm) = world("").await;
    serves(&warm, "the start").await;
    let limit = (triage_telemetry::memory_bytes().unwrap() + ROOM).max(64 << 20);
    let keys = format!("memory_limit = \"{limit}B\"\n");
    let front = Front::with_server(&keys, &upstream.url());
    let head = format!("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n");
    let (refused, mut refusals) = tokio::sync::mpsc::unbounded_channel();
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let (address, head, refused) = (front.address(), head.clone(), refused.clone());
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&BYTES).await;
                let mut read = Vec::new();
                while !read.windows(4).any(|end| end == b"\r\n\r\n")
                    && stream.read_buf(&mut read).await.is_ok_and(|count| count > 0)
                {}
                refused.send(String::from_utf8_lossy(&read).into_owned()).unwrap();
            })
        })
        .collect();
    let first = refusals.recv().await.unwrap();
    assert!(first.starts_with("HTTP/1.1 503") && first.contains("triage-sent: no"), "{first}");
    for caller in callers {
        caller.abort();
    }
    // Waits until the host has noticed that the callers have left. The allocator may keep the memory.
    while front.ask("GET", "/alive", "").await.status() == "503" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    serves(&front, "bodies without end").await;
    assert!(upstream.seen().iter().all(|seen| seen.body.is_empty()), "none of them was whole");
}
