#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Callers that do not read, do not send, or leave at once: over a stream in memory, on paused time.

use super::*;
use crate::{
    clock::Clock,
    config::settings::Settings,
    policy::contract::Failure,
    rng::Rng,
    upstream::{Inbound, Outbound, Transport, full},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture, stream};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::AtomicUsize,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
};

/// Far longer than any limit here; nothing waits for it in real time.
const FOR_EVER: Duration = Duration::from_hours(1);

/// An upstream in process. `/large` streams without end. Writes to `/made` and `/big` are answered at once, to `/slow` after 3 s, other
/// writes never. Everything else is answered at once.
#[derive(Debug, Default)]
struct Upstream {
    now: AtomicUsize,
    most: AtomicUsize,
    writes: AtomicUsize,
}

/// Counts a write until it is dropped.
struct Counted<'a>(&'a Upstream);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

impl Transport for Upstream {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        async move {
            if request.method == Method::POST {
                self.writes.fetch_add(1, Relaxed);
                let answered = |body: &'static [u8]| {
                    Ok(Inbound {
                        status: StatusCode::CREATED,
                        headers: HeaderMap::new(),
                        body: full(Bytes::from_static(body)),
                    })
                };
                match &*request.path_and_query {
                    "/made" => return answered(b"made"),
                    "/big" => return answered(&BIG),
                    "/slow" => {
                        sleep(Duration::from_secs(3)).await;
                        return answered(b"late");
                    }
                    _ => {}
                }
                let now = self.now.fetch_add(1, Relaxed) + 1;
                self.most.fetch_max(now, Relaxed);
                let _counted = Counted(self);
                std::future::pending::<()>().await;
            }
            let body = if request.path_and_query == "/large" {
                let part = || Ok::<_, BoxError>(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])));
                StreamBody::new(stream::repeat_with(part)).boxed()
            } else {
                full(Bytes::from_static(b"fine"))
            };
            Ok(Inbound { status: StatusCode::OK, headers: HeaderMap::new(), body })
        }
        .boxed()
    }
}

/// As large as a record can keep.
static BIG: [u8; 1 << 20] = [b'x'; 1 << 20];

struct World {
    host: Host,
    upstream: Arc<Upstream>,
    settings: Settings,
}

impl World {
    fn new(keys: &str) -> Self {
        let text = format!(
            "[server]\n{keys}[admin]\nlisten = \"off\"\n[upstreams.api]\nbase_url = \"http://upstream.invalid\"\npolicy = \"http-standard\"\n\
             [upstreams.api.overload]\nenabled = false\n"
        );
        let settings = crate::config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let upstream = Arc::new(Upstream::default());
        let transport: Arc<dyn Transport> = upstream.clone();
        let host = Host::with_transports(&settings, Clock::system(), Rng::seeded(1), vec![transport]).unwrap();
        Self { host, upstream, settings }
    }

    /// A connection from an address, and the task that serves it.
    fn connect(&self, last: u8) -> (DuplexStream, JoinHandle<()>) {
        self.connect_with(last, 4096)
    }

    /// A connection whose stream buffers this many bytes.
    fn connect_with(&self, last: u8, buffer_bytes: usize) -> (DuplexStream, JoinHandle<()>) {
        let address: IpAddr = Ipv4Addr::new(10, 0, 0, last).into();
        let own = Arc::new(self.host.shared.peers.connect(address).expect("a permit"));
        let (ours, theirs) = duplex(buffer_bytes);
        let accepted = Accepted {
            host: self.host.clone(),
            listener: None,
            settings: Arc::new(self.settings.server.clone()),
            own,
            stopping: CancellationToken::new(),
        };
        let task = tokio::spawn(async move {
            serve(accepted, theirs, Protocol::Either, Caller::new(address, "http")).await;
        });
        (ours, task)
    }
}

async fn ends(what: &str, served: JoinHandle<()>) {
    timeout(FOR_EVER, served).await.unwrap_or_else(|_| panic!("{what} holds its permit for ever")).unwrap();
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://x{path}")).body(()).unwrap()
}

type Sender = h2::client::SendRequest<Bytes>;

async fn http2(stream: DuplexStream) -> Sender {
    http2_with_window(stream, 65_535).await
}

/// An HTTP/2 client with this initial window per stream.
async fn http2_with_window(stream: DuplexStream, window_bytes: u32) -> Sender {
    let builder = &mut h2::client::Builder::new();
    let (sender, connection) = builder.initial_window_size(window_bytes).handshake(stream).await.unwrap();
    // Answers pings as long as the connection is open.
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_loses_its_connection() {
    let world = World::new("");
    let (mut caller, served) = world.connect(1);
    caller.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    ends("an HTTP/1.1 caller that does not read", served).await;
    drop(caller);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_reads_slowly_is_served() {
    let world = World::new("");
    let (mut caller, served) = world.connect(1);
    caller.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut part = vec![0; 64 << 10];
    for _ in 0..60 {
        sleep(Duration::from_secs(5)).await;
        caller.read_exact(&mut part).await.expect("it reads within the limit each time");
    }
    assert!(!served.is_finished());
}

/// Pings alone do not keep a connection open: they cost the caller nothing.
#[tokio::test(start_paused = true)]
async fn a_connection_that_only_answers_pings_is_closed() {
    let world = World::new("");
    let (caller, served) = world.connect(1);
    let mut sender = http2(caller).await;
    let (answer, _) = sender.send_request(request(Method::GET, "/a"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    ends("an HTTP/2 caller that only answers pings", served).await;
    drop(sender);
}

/// Only the unread stream is reset. Other streams on its connection are served, and so is the connection's next request.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_reset_alone() {
    let world = World::new("");
    let (caller, served) = world.connect(1);
    let mut sender = http2(caller).await;
    let (answer, _) = sender.send_request(request(Method::GET, "/large"), true).unwrap();
    let mut unread = answer.await.unwrap().into_body();
    let asks = async {
        for _ in 0..40 {
            let (answer, _) = sender.send_request(request(Method::GET, "/a"), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
            sleep(Duration::from_secs(5)).await;
        }
    };
    asks.await;
    let ended = async { while unread.data().await.is_some_and(|part| part.is_ok()) {} };
    timeout(FOR_EVER, ended).await.expect("the stream was reset");
    assert!(!served.is_finished(), "its connection stands");
}

/// One connection starts thousands of writes and resets each: the running ones stay bounded, and another peer's write is sent.
#[tokio::test(start_paused = true)]
async fn writes_of_reset_streams_are_bounded() {
    let world = World::new("");
    let (caller, _served) = world.connect(1);
    let mut sender = http2(caller).await;
    for _ in 0..3000 {
        let (answer, mut stream) = sender.send_request(request(Method::POST, "/a"), true).unwrap();
        tokio::task::yield_now().await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        sender = sender.ready().await.unwrap();
    }
    let most = world.upstream.most.load(Relaxed);
    assert!((1..=256).contains(&most), "{most} writes at once");
    let before = world.upstream.writes.load(Relaxed);
    let (mut other, _other_served) = world.connect(2);
    // Another path, because an equal write would adopt an orphan.
    other.write_all(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let mut one = [0; 1];
    let _ = timeout(FOR_EVER, other.read(&mut one)).await;
    assert!(world.upstream.writes.load(Relaxed) > before, "the other peer is not refused");
}

/// The same with one connection per write, closed at once.
#[tokio::test(start_paused = true)]
async fn writes_of_closed_connections_are_bounded() {
    let world = World::new("max_abandoned = 100\n");
    let mut served = Vec::new();
    for write in 0..400 {
        let (mut caller, task) = world.connect(1);
        // One path each, because an equal write would adopt an orphan.
        let request = format!("POST /a/{write} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        while world.upstream.writes.load(Relaxed) < served.len().min(50) + 1 && !task.is_finished() {
            tokio::task::yield_now().await;
            if served.len() >= 50 {
                break;
            }
        }
        drop(caller);
        task.await.unwrap();
        served.push(());
    }
    let most = world.upstream.most.load(Relaxed);
    assert!((1..=50).contains(&most), "{most} writes at once, of which one peer may leave 50");
    let (requests, abandoned) = world.host.shared.peers.under_way();
    assert!(abandoned <= 50 && requests == abandoned, "{requests} {abandoned}");
}

fn post(path: &str, field: (&str, &str)) -> Request<()> {
    Request::builder().method(Method::POST).uri(format!("http://x{path}")).header(field.0, field.1).body(()).unwrap()
}

/// A caller that grants no window gets the head of a response and none of its bytes, even if the connection is flushed.
#[tokio::test(start_paused = true)]
async fn an_answer_that_had_no_window_is_an_orphans() {
    for window_bytes in [0, 1] {
        let world = World::new("");
        let (caller, _served) = world.connect(1);
        let mut sender = http2_with_window(caller, window_bytes).await;
        let send = |sender: &mut Sender| {
            let (answer, mut stream) = sender.send_request(request(Method::POST, "/made"), true).unwrap();
            (answer, move || stream.send_reset(h2::Reason::CANCEL))
        };
        for time in 0..3 {
            let (answer, mut reset) = send(&mut sender);
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 201, "window {window_bytes}, time {time}");
            assert_eq!(answer.headers().contains_key("triage-adopted"), time > 0, "window {window_bytes}, time {time}");
            // Another response is flushed meanwhile.
            let (other, _) = sender.send_request(request(Method::GET, "/a"), true).unwrap();
            assert_eq!(other.await.unwrap().status(), 200);
            reset();
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(world.upstream.writes.load(Relaxed), 1, "window {window_bytes}");
    }
}

/// A response that was read does not become an orphan's, even if its bytes were read one by one.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_read_byte_by_byte_was_received() {
    let world = World::new("");
    let (caller, _served) = world.connect(1);
    let mut sender = http2_with_window(caller, 1).await;
    for time in 1..=2 {
        let (answer, _) = sender.send_request(request(Method::POST, "/made"), true).unwrap();
        let answer = answer.await.unwrap();
        assert!(!answer.headers().contains_key("triage-adopted"), "time {time}");
        let (mut body, mut read) = (answer.into_body(), Vec::new());
        while let Some(part) = body.data().await {
            let part = part.unwrap();
            body.flow_control().release_capacity(part.len()).unwrap();
            read.extend_from_slice(&part);
        }
        assert_eq!((&*read, world.upstream.writes.load(Relaxed)), (&b"made"[..], time));
    }
}

/// Replays are whole in memory: unread bytes count, and are dropped after the timeout, although other requests on the connection are
/// served.
#[tokio::test(start_paused = true)]
async fn replays_that_are_not_read_count_and_end() {
    const REPLAYS: u64 = 8;
    let world = World::new("memory_limit = \"4GiB\"\n");
    let (caller, served) = world.connect(1);
    let mut sender = http2_with_window(caller, 1).await;
    let mut unread = Vec::new();
    for time in 0..=REPLAYS {
        let (answer, _) = sender.send_request(post("/big", ("idempotency-key", "\"k\"")), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers().contains_key("triage-replay"), time > 0);
        unread.push(answer);
    }
    let held = || world.host.shared.memory.view().1;
    sleep(Duration::from_secs(1)).await;
    assert!(held() >= REPLAYS * BIG.len() as u64, "{} KiB", held() >> 10);
    assert_eq!(world.host.shared.peers.under_way(), (0, 0), "their work is done");
    for _ in 0..40 {
        let (answer, _) = sender.send_request(request(Method::GET, "/a"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        sleep(Duration::from_secs(5)).await;
    }
    assert!(held() < BIG.len() as u64, "{} KiB", held() >> 10);
    assert!(!served.is_finished(), "its connection stands");
    drop((unread, sender));
    ends("a caller that has gone", served).await;
    assert_eq!(held(), 0);
}

/// hyper gets an HTTP/1.1 response as a whole: it counts until it is written, and an unread one ends its connection.
#[tokio::test(start_paused = true)]
async fn a_replay_that_is_not_read_counts_over_http1() {
    let world = World::new("memory_limit = \"4GiB\"\nidle_timeout = \"1h\"\n");
    let request = b"POST /big HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \"k\"\r\nContent-Length: 0\r\n\r\n";
    for time in 0..2 {
        let (mut caller, served) = world.connect(1);
        caller.write_all(request).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let held = world.host.shared.memory.view().1;
        assert!(held >= BIG.len() as u64, "time {time}: {} KiB", held >> 10);
        timeout(Duration::from_mins(30), served).await.expect("it waits for its caller no longer").unwrap();
    }
}

/// Uploads are not heads: other requests on their connections are served even if memory is scarce.
#[tokio::test(start_paused = true)]
async fn uploads_where_memory_is_full_end_no_other_request() {
    let world = World::new("memory_limit = \"1GiB\"\n");
    let mut callers = Vec::new();
    for last in 1..=2 {
        let (caller, served) = world.connect_with(last, 1 << 20);
        let mut sender = http2(caller).await;
        let (slow, _) = sender.send_request(post("/slow", ("x-caller", "a")), true).unwrap();
        callers.push((sender, slow, served));
    }
    while world.upstream.writes.load(Relaxed) < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    world.host.shared.memory.record_measurement(2 << 30);
    let mut uploads = Vec::new();
    for _ in 0..5 {
        for (sender, ..) in &mut callers {
            let (answer, mut stream) = sender.send_request(post("/upload", ("x-caller", "a")), false).unwrap();
            stream.send_data(Bytes::from_static(&BIG[..100_000]), false).unwrap();
            uploads.push((answer, stream));
        }
        sleep(Duration::from_millis(100)).await;
    }
    for (_sender, slow, served) in callers {
        let slow = slow.await.expect("its connection stands");
        assert_eq!(slow.status(), 201);
        assert!(!served.is_finished());
    }
}

/// A caller that got an early response counts as gone, even if it may come back with its key.
#[tokio::test(start_paused = true)]
async fn keyed_writes_that_were_answered_early_count_as_abandoned() {
    let world = World::new("max_abandoned = 100\n");
    let (caller, _served) = world.connect(1);
    let mut sender = http2(caller).await;
    let mut send = |key: usize| {
        let mut request = post("/a", ("idempotency-key", &format!("\"{key}\"")));
        request.headers_mut().insert("prefer", http::HeaderValue::from_static("wait=1"));
        sender.send_request(request, true).unwrap().0
    };
    for answer in (0..50).map(&mut send).collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap().status(), 504);
    }
    assert_eq!(world.host.shared.peers.under_way(), (50, 50));
    let refused = send(50).await.unwrap();
    assert_eq!(refused.headers()["triage-sent"], "no", "one peer leaves no more");
}
