//! Confirms that a response has reached the kernel: a connection reports once all earlier writes are flushed.
//!
//! Over HTTP/1.1, a response is written once hyper has polled the end of its body: hyper then asks for a flush, which is done when its own
//! buffer is empty. Over HTTP/2, hyper and h2 keep bytes beyond the peer's window even across flushes. There a response is written only
//! once h2 has dropped its last byte, which the server's response body reports.

use parking_lot::Mutex;
use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Waits for a flush. Dropped without a call if there was none.
pub trait Unflushed: Send {
    /// The response has reached the kernel.
    fn flushed(self: Box<Self>);
}

/// The responses of a connection that were written and not flushed yet.
#[derive(Clone, Default)]
pub struct Handover {
    connection: Arc<Shared>,
    /// The HTTP/2 stream; none over HTTP/1.1.
    stream: Option<Arc<Stream>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    any: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    answers: Vec<Box<dyn Unflushed>>,
    is_closed: bool,
}

/// The response of an HTTP/2 stream. Two notices may wait for its end: that of an early response, and that of the request's own result.
#[derive(Default)]
struct Stream {
    is_expected: AtomicBool,
    state: Mutex<StreamState>,
}

enum StreamState {
    /// Bytes are still to be written. Holds the waiting notices.
    Open(Vec<Box<dyn Unflushed>>),
    /// All bytes are written.
    Written,
    /// The stream ended before all bytes were written.
    Closed,
}

impl Default for StreamState {
    fn default() -> Self {
        Self::Open(Vec::new())
    }
}

impl Handover {
    /// A handover for the response on a new HTTP/2 stream of this connection.
    #[must_use]
    pub fn stream(&self) -> Self {
        Self { connection: Arc::clone(&self.connection), stream: Some(Arc::default()) }
    }

    /// Announces that [`Self::written`] will be called, so that the stream reports the end of its response.
    pub fn expects(&self) {
        if let Some(stream) = &self.stream {
            stream.is_expected.store(true, Relaxed);
        }
    }

    /// Whether a later call of [`Self::written`] will wait for the end of this response. Always false over HTTP/1.1.
    pub fn is_expected(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_expected.load(Relaxed))
    }

    /// The last byte of a response was polled: the next flush after its write confirms it. If the stream or the connection has ended, the
    /// notice is dropped.
    pub fn written(&self, answer: Box<dyn Unflushed>) {
        let Some(stream) = &self.stream else { return self.connection.written(answer) };
        let mut state = stream.state.lock();
        match &mut *state {
            StreamState::Open(waiting) => waiting.push(answer),
            StreamState::Written => {
                drop(state);
                self.connection.written(answer);
            }
            StreamState::Closed => {
                drop(state);
                drop(answer);
            }
        }
    }

    /// All bytes of the stream's response are written.
    pub fn stream_written(&self) {
        let Some(stream) = &self.stream else { return };
        let mut state = stream.state.lock();
        if let StreamState::Open(waiting) = &mut *state {
            let answers = std::mem::take(waiting);
            *state = StreamState::Written;
            drop(state);
            for answer in answers {
                self.connection.written(answer);
            }
        }
    }

    /// The stream has ended: bytes not written by now never are.
    pub fn stream_closed(&self) {
        let Some(stream) = &self.stream else { return };
        let mut state = stream.state.lock();
        if let StreamState::Open(waiting) = &mut *state {
            let answers = std::mem::take(waiting);
            *state = StreamState::Closed;
            drop(state);
            drop(answers);
        }
    }

    fn flushed(&self) {
        self.connection.flushed();
    }

    fn closed(&self) {
        self.connection.closed();
    }
}

impl Shared {
    fn written(&self, answer: Box<dyn Unflushed>) {
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            drop(waiting);
            return;
        }
        waiting.answers.push(answer);
        self.any.store(true, Relaxed);
    }

    fn flushed(&self) {
        if !self.any.load(Relaxed) {
            return;
        }
        let answers = {
            let mut waiting = self.waiting.lock();
            self.any.store(false, Relaxed);
            std::mem::take(&mut waiting.answers)
        };
        answers.into_iter().for_each(Unflushed::flushed);
    }

    fn closed(&self) {
        let answers = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            std::mem::take(&mut waiting.answers)
        };
        drop(answers);
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handover")
    }
}

/// A connection that reports flushes and its end to its [`Handover`].
pub struct Confirming<S> {
    stream: S,
    handover: Handover,
}

impl<S> Confirming<S> {
    /// Reports the flushes of `stream`.
    pub fn new(stream: S, handover: Handover) -> Self {
        Self { stream, handover }
    }
}

impl<S> Drop for Confirming<S> {
    fn drop(&mut self) {
        self.handover.closed();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Confirming<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Confirming<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            this.handover.flushed();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::AsyncWriteExt as _;

    #[derive(Clone, Default)]
    struct Counted {
        flushed: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
    }

    struct Answer(Counted, bool);

    impl Unflushed for Answer {
        fn flushed(mut self: Box<Self>) {
            self.1 = true;
            self.0.flushed.fetch_add(1, Relaxed);
        }
    }

    impl Drop for Answer {
        fn drop(&mut self) {
            if !self.1 {
                self.0.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    #[tokio::test]
    async fn a_flush_confirms_what_was_written_before_it_and_an_end_nothing() {
        let (near, _far) = tokio::io::duplex(64);
        let (handover, counted) = (Handover::default(), Counted::default());
        let counts = || (counted.flushed.load(Relaxed), counted.dropped.load(Relaxed));
        let mut connection = Confirming::new(near, handover.clone());
        let written = || handover.written(Box::new(Answer(counted.clone(), false)));
        written();
        assert!(connection.write_all(b"half").await.is_ok());
        assert_eq!(counts(), (0, 0), "a write is no flush");
        assert!(connection.flush().await.is_ok());
        assert_eq!(counts(), (1, 0));
        written();
        drop(connection);
        assert_eq!(counts(), (1, 1), "the connection ended before the flush");
        written();
        assert_eq!(counts(), (1, 2), "it arrived after the end");
    }

    /// Earlier flushes do not confirm bytes that h2 still holds, and a reset stream confirms nothing.
    #[tokio::test]
    async fn a_streams_answer_is_confirmed_once_its_bytes_are_written() {
        let (near, _far) = tokio::io::duplex(64);
        let (handover, counted) = (Handover::default(), Counted::default());
        let counts = || (counted.flushed.load(Relaxed), counted.dropped.load(Relaxed));
        let mut connection = Confirming::new(near, handover.clone());
        let (read, reset, late) = (handover.stream(), handover.stream(), handover.stream());
        for stream in [&read, &reset] {
            stream.written(Box::new(Answer(counted.clone(), false)));
        }
        assert!(connection.flush().await.is_ok());
        assert_eq!(counts(), (0, 0), "h2 holds both");
        reset.stream_closed();
        read.stream_written();
        read.stream_closed();
        assert_eq!(counts(), (0, 1));
        assert!(connection.flush().await.is_ok());
        assert_eq!(counts(), (1, 1));
        late.stream_closed();
        late.written(Box::new(Answer(counted.clone(), false)));
        assert_eq!(counts(), (1, 2), "it arrived after the stream's end");
    }
}
