#![allow(clippy::unwrap_used, clippy::panic)]
//! When a response on an HTTP/2 stream counts as written.

use super::*;
use crate::{
    flush_notice::{Confirming, Unflushed},
    overload::{Peers, peers::Limits},
    upstream::full,
};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio::io::AsyncWriteExt as _;

/// A response that records its flush.
struct Answer(Arc<AtomicBool>);

impl Unflushed for Answer {
    fn flushed(self: Box<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// An empty body that reports its end when it is dropped.
struct Empty(Handover, Arc<AtomicBool>);

impl http_body::Body for Empty {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        self.0.written(Box::new(Answer(Arc::clone(&self.1))));
    }
}

struct World {
    connection: Confirming<tokio::io::DuplexStream>,
    _far: tokio::io::DuplexStream,
    handover: Handover,
    peers: Arc<Peers>,
    memory: Arc<Memory>,
}

impl World {
    fn new() -> Self {
        let (near, far) = tokio::io::duplex(64);
        let handover = Handover::default();
        let many = usize::MAX / 2;
        let limits = Limits {
            peer_connections: many,
            streams: many,
            requests: many,
            peer_requests: many,
            abandoned: many,
            peer_abandoned: many,
        };
        Self {
            connection: Confirming::new(near, handover.clone()),
            _far: far,
            handover,
            peers: Peers::new(limits),
            memory: Memory::new(Some(1 << 30), || None),
        }
    }

    fn answer(&self, body: impl FnOnce(Handover) -> Body) -> Response<Watched> {
        let open = self.peers.connect(Ipv4Addr::LOCALHOST.into()).unwrap().open();
        let stream = self.handover.stream();
        let mut response = Response::new(body(stream.clone()));
        response.headers_mut().insert(CONTENT_LENGTH, 7.into());
        Watched::answer(response, open, &self.memory, Some(stream))
    }
}

/// If the stream was reset in that moment, hyper drops the response without polling it.
#[tokio::test]
async fn an_answer_without_a_byte_is_written_once_its_end_was_asked_for() {
    for is_reset in [false, true] {
        let mut world = World::new();
        let flushed = Arc::new(AtomicBool::new(false));
        let mut response = world.answer(|stream| {
            stream.expects();
            Empty(stream, Arc::clone(&flushed)).boxed()
        });
        let body = response.body();
        assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
        assert!(!response.headers().contains_key(CONTENT_LENGTH), "a length beside an empty frame is no answer");
        if !is_reset {
            assert!(response.body_mut().frame().await.is_none());
        }
        drop(response);
        world.connection.flush().await.unwrap();
        assert_eq!(flushed.load(Relaxed), !is_reset);
    }
}

/// If no handover is awaited, the end takes no frame of its own.
#[tokio::test]
async fn a_small_answer_ends_with_its_bytes_and_counts_until_they_are_let_go_of() {
    let world = World::new();
    assert!(world.answer(|_| full(Bytes::new())).body().is_end_stream());
    let mut response = world.answer(|_| full(Bytes::from_static(b"seven b")));
    let part = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(response.body().is_end_stream());
    drop(response);
    assert_eq!(world.memory.view().1, 7);
    drop(part);
    assert_eq!(world.memory.view().1, 0);
}

#[tokio::test]
async fn the_end_of_a_large_answer_waits_for_its_parts() {
    let world = World::new();
    let bytes = Bytes::from(vec![b'x'; PART_BYTES + 1]);
    let mut response = world.answer(|_| full(bytes));
    let body = response.body_mut();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((first.remaining(), second.remaining(), body.is_end_stream()), (PART_BYTES, 1, false));
    assert_eq!(world.memory.view().1, PART_BYTES as u64 + 1);
    drop(first);
    assert!(body.frame().now_or_never().is_none(), "one part is left");
    drop(second);
    assert!(body.frame().await.is_none());
    assert_eq!(world.memory.view().1, 0);
}
