//! Responses on their way to a caller: tracks whether they wait for the caller, and for how long.
//!
//! A caller that does not read, or grants no HTTP/2 window, would hold its stream, its connection and the response for ever. So a stalled
//! stream is reset.
//!
//! hyper polls a body as fast as it comes, and h2 buffers bytes beyond the caller's window. So a response is passed to them in parts that
//! report when they are dropped. Until the last part is dropped, the response counts as held, its request as open, and its HTTP/2 stream
//! stays alive, so that it can be reset.

use crate::{
    flush_notice::Handover,
    overload::{Memory, Spare, peers::OpenRequest},
    upstream::{Body, BoxError},
};
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    io::IoSlice,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, sleep};

tokio::task_local! {
    /// The stall state of the HTTP/2 stream that a task serves.
    static STREAM: Arc<Stall>;
}

/// Since when a stream waits for its caller; none while it does not.
#[derive(Debug, Default)]
pub(super) struct Stall(Mutex<Option<Instant>>);

impl Stall {
    /// The stall state of this task's stream; none over HTTP/1.1, where the connection itself is watched.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    fn begins(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn ends(&self) {
        *self.0.lock() = None;
    }

    /// The caller has read something: restart the wait, if there is one.
    fn restart(&self) {
        if let Some(since) = &mut *self.0.lock() {
            *since = Instant::now();
        }
    }

    /// Resolves once the caller has read nothing for this long.
    async fn stalled_for(&self, limit: Duration) {
        loop {
            let waited = self.0.lock().map(|since| since.elapsed());
            match waited {
                Some(waited) if waited >= limit => return,
                Some(waited) => sleep(limit.saturating_sub(waited)).await,
                None => sleep(limit).await,
            }
        }
    }
}

/// Runs the streams of HTTP/2 connections, each until it ends or its caller stops reading. A stalled stream is reset; others on its
/// connection go on.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor {
    pub(super) write_timeout: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (limit, stall) = (self.write_timeout, Arc::new(Stall::default()));
        let own = Arc::clone(&stall);
        tokio::spawn(STREAM.scope(stall, async move {
            tokio::select! {
                () = stream => {}
                () = own.stalled_for(limit) => tracing::debug!("a stream was reset: its caller did not read the answer"),
            }
        }));
    }
}

/// The largest part passed to HTTP/2 at once. Small parts show progress while a caller reads slowly, and limit the bytes left behind when a
/// stream ends with its last part.
const PART_BYTES: usize = 16 << 10;

/// The bytes of a response that the connection has not dropped yet, and what stays counted meanwhile.
#[derive(Debug)]
struct Unsent {
    bytes: AtomicUsize,
    open: Mutex<OpenRequest>,
    stall: Option<Arc<Stall>>,
    /// Woken when a part is dropped.
    stream: AtomicWaker,
}

impl Unsent {
    fn works(&self) {
        self.open.lock().works();
        if let Some(stall) = &self.stall {
            stall.ends();
        }
    }

    fn waits(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, AcqRel);
        self.open.lock().waits();
        if let Some(stall) = &self.stall {
            stall.begins();
        }
    }

    fn let_go(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, AcqRel);
        self.open.lock().touch();
        if let Some(stall) = &self.stall {
            stall.restart();
        }
        self.stream.wake();
    }
}

/// A part of a response, until the connection drops it: it was written, or its stream has ended.
#[derive(Debug)]
pub(super) struct Part {
    bytes: Bytes,
    /// Its original length.
    length: usize,
    unsent: Arc<Unsent>,
    _spare: Option<Spare>,
    /// In the last part: the body, with its memory reservation.
    _body: Option<Body>,
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(into)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.unsent.let_go(self.length);
    }
}

/// A response body that tracks whether it waits for its caller.
pub(super) struct Watched {
    /// None once it has moved into the last part.
    body: Option<Body>,
    /// Bytes that were read and not passed to the connection yet.
    rest: Bytes,
    trailers: Option<HeaderMap>,
    has_ended: bool,
    unsent: Arc<Unsent>,
    /// The host's memory that its bytes take; none without a limit.
    spare: Option<Spare>,
    /// The stream's handover; none over HTTP/1.1.
    handover: Option<Handover>,
}

impl Watched {
    /// Watches a response. `handover`: that of its HTTP/2 stream.
    pub(super) fn answer(
        response: Response<Body>,
        open: OpenRequest,
        memory: &Arc<Memory>,
        handover: Option<Handover>,
    ) -> Response<Self> {
        let unsent = Unsent {
            bytes: AtomicUsize::new(0),
            open: Mutex::new(open),
            stall: Stall::current(),
            stream: AtomicWaker::new(),
        };
        let mut response = response.map(|body| Self {
            body: Some(body),
            rest: Bytes::new(),
            trailers: None,
            has_ended: false,
            unsent: Arc::new(unsent),
            spare: memory.spare(),
            handover,
        });
        // The end is sent as a separate frame here; with it, the length header of a response to HEAD, or of 304, would be wrong.
        if response.body().is_empty() && !response.body().is_end_stream() {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        response
    }

    /// Whether no byte or trailer is left to send.
    fn is_empty(&self) -> bool {
        self.rest.is_empty()
            && self.trailers.is_none()
            && (self.has_ended || self.body.as_ref().is_none_or(Body::is_end_stream))
    }

    fn next_part(&mut self) -> Part {
        let length = match &self.handover {
            Some(_) => self.rest.len().min(PART_BYTES),
            None => self.rest.len(),
        };
        let bytes = self.rest.split_to(length);
        let before = self.unsent.bytes.load(Acquire);
        // hyper does not poll again after the last bytes of a known length. And HTTP/2 needs no separate end frame for a response that fits
        // into one part and whose handover is not awaited.
        let is_alone = self.handover.as_ref().is_none_or(|handover| before == 0 && !handover.is_expected());
        let body = if self.has_ended && self.is_empty() && is_alone { self.body.take() } else { None };
        self.unsent.waits(length);
        let spare = self.spare.as_mut().map(|spare| spare.split(length));
        Part { bytes, length, unsent: Arc::clone(&self.unsent), _spare: spare, _body: body }
    }

    /// Ends the body. Over HTTP/2 only once h2 has dropped all parts before.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Part>>> {
        if let Some(handover) = &self.handover {
            self.unsent.stream.register(cx.waker());
            if self.unsent.bytes.load(Acquire) > 0 {
                return Poll::Pending;
            }
            handover.stream_written();
        }
        Poll::Ready(self.trailers.take().map(Frame::trailers))
    }
}

impl http_body::Body for Watched {
    type Data = Part;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, BoxError>>> {
        let own = self.get_mut();
        loop {
            if !own.rest.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(own.next_part()))));
            }
            let Some(body) = own.body.as_mut().filter(|_| !own.has_ended) else {
                return own.poll_end(cx).map(|frame| frame.map(Ok));
            };
            // A poll means that the caller has taken the earlier bytes.
            own.unsent.works();
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => own.has_ended = true,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        own.has_ended = body.is_end_stream();
                        if let Some(spare) = &mut own.spare {
                            // A response that has begun continues; if memory is scarce, new requests are refused instead.
                            let _ = spare.more(data.len());
                        }
                        own.rest = data;
                    }
                    Err(frame) => own.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // Over HTTP/2, let hyper poll for the end if the handover is awaited or parts are not dropped yet.
        let is_asked_for = match &self.handover {
            None => false,
            Some(handover) => self.body.is_some() && (handover.is_expected() || self.unsent.bytes.load(Acquire) > 0),
        };
        self.is_empty() && !is_asked_for
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            // hyper would add a content length of zero, which 204 must not have.
            Some(body) if body.is_end_stream() => SizeHint::new(),
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(handover) = &self.handover {
            handover.stream_closed();
        }
    }
}

#[cfg(test)]
#[path = "streams/tests.rs"]
mod tests;
