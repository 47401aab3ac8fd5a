//! Counts bytes that callers have sent and no request has taken yet: mostly unfinished heads.
//!
//! Ten thousand connections with half a head of 62 kB each hold more than half a gigabyte, before there is a request to refuse. So these
//! bytes count as used memory. If memory is scarce, a connection with a large unfinished head is closed. A connection with an open request
//! is kept: its bytes may be a body, and over HTTP/2 a close would end other requests.

use crate::overload::{Buffered, Memory, peers::Connection};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};

/// A connection whose bytes count until a request takes them.
pub(super) struct Metered<S> {
    stream: S,
    buffered: Arc<Buffered>,
    own: Arc<Connection>,
}

impl<S> Metered<S> {
    /// `max_bytes`: the most bytes that hyper buffers, from the limit of a head.
    pub(super) fn new(
        stream: S,
        memory: &Arc<Memory>,
        max_bytes: usize,
        own: &Arc<Connection>,
    ) -> (Self, Arc<Buffered>) {
        let buffered = Arc::new(Buffered::new(memory, max_bytes));
        (Self { stream, buffered: Arc::clone(&buffered), own: Arc::clone(own) }, buffered)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let is_open = own.own.is_open();
        if !is_open && own.buffered.must_end() {
            return Poll::Ready(Err(io::Error::other("memory is scarce, and this connection's head is large")));
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut own.stream).poll_read(cx, into);
        let bytes = into.filled().len() - before;
        if is_open {
            own.buffered.read_beside(bytes);
        } else {
            own.buffered.read(bytes);
        }
        polled
    }
}

super::write_through::write_through!(Metered);

/// A request's body. Its bytes stop counting here once read; the request counts those that it keeps.
pub(super) struct Taking {
    pub(super) body: Incoming,
    pub(super) buffered: Arc<Buffered>,
}

impl http_body::Body for Taking {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let own = self.get_mut();
        let polled = Pin::new(&mut own.body).poll_frame(cx);
        if polled.is_ready() {
            own.buffered.taken();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::overload::{Peers, peers::Limits};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    const LIMITS: Limits =
        Limits { peer_connections: 9, streams: 9, requests: 9, peer_requests: 9, abandoned: 9, peer_abandoned: 9 };

    /// Reads far more than an ordinary head.
    async fn reads(metered: &mut Metered<DuplexStream>, far: &mut DuplexStream) -> bool {
        far.write_all(&vec![b'x'; 40 << 10]).await.unwrap();
        metered.read_exact(&mut vec![0; 40 << 10]).await.is_ok()
    }

    /// Two connections each: a large head is closed only in favour of others.
    #[tokio::test]
    async fn where_memory_is_full_a_connection_with_an_open_request_goes_on() {
        for is_open in [true, false] {
            let memory = Memory::new(Some(1 << 20), || None);
            let peers = Peers::new(LIMITS);
            let mut connections = Vec::new();
            for _ in 0..2 {
                let own = Arc::new(peers.connect(std::net::Ipv4Addr::LOCALHOST.into()).unwrap());
                let (near, far) = duplex(64 << 10);
                let (metered, _) = Metered::new(near, &memory, 64 << 10, &own);
                connections.push((is_open.then(|| own.open()), metered, far));
            }
            for (_, metered, far) in &mut connections {
                assert!(reads(metered, far).await);
            }
            memory.record_measurement(2 << 20);
            let (_open, metered, far) = &mut connections[0];
            assert_eq!(reads(metered, far).await, is_open);
        }
    }
}
