//! Whether an answer has reached the kernel: a connection tells it once everything that was written before has been flushed.
//!
//! hyper asks for a flush after it has encoded the end of an answer, and the flush is done when its own buffer is empty. Over
//! HTTP/2 frames may still wait for the peer's window then: there, handed over means given to HTTP/2's queue.

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

/// What waits for a flush. Dropping it says that there was none.
pub(crate) trait Unflushed: Send {
    /// It has reached the kernel.
    fn flushed(self: Box<Self>);
}

/// One connection's answers that were written and not flushed yet.
#[derive(Clone, Default)]
pub(crate) struct Handover(Arc<Shared>);

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

impl Handover {
    /// An answer's last byte was written: the next flush confirms it. One that comes after the connection's end is dropped.
    pub(crate) fn written(&self, answer: Box<dyn Unflushed>) {
        let mut waiting = self.0.waiting.lock();
        if waiting.is_closed {
            drop(waiting);
            return;
        }
        waiting.answers.push(answer);
        self.0.any.store(true, Relaxed);
    }

    fn flushed(&self) {
        if !self.0.any.load(Relaxed) {
            return;
        }
        let answers = {
            let mut waiting = self.0.waiting.lock();
            self.0.any.store(false, Relaxed);
            std::mem::take(&mut waiting.answers)
        };
        answers.into_iter().for_each(Unflushed::flushed);
    }

    fn closed(&self) {
        let answers = {
            let mut waiting = self.0.waiting.lock();
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

/// A connection that tells its [`Handover`] of flushes and of its end.
pub(crate) struct Confirming<S> {
    stream: S,
    handover: Handover,
}

impl<S> Confirming<S> {
    pub(crate) fn new(stream: S, handover: Handover) -> Self {
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
    struct Told {
        flushed: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
    }

    struct Answer(Told, bool);

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
        let (handover, told) = (Handover::default(), Told::default());
        let counts = || (told.flushed.load(Relaxed), told.dropped.load(Relaxed));
        let mut connection = Confirming::new(near, handover.clone());
        let written = || handover.written(Box::new(Answer(told.clone(), false)));
        written();
        assert!(connection.write_all(b"half").await.is_ok());
        assert_eq!(counts(), (0, 0), "a write is no flush");
        assert!(connection.flush().await.is_ok());
        assert_eq!(counts(), (1, 0));
        written();
        drop(connection);
        assert_eq!(counts(), (1, 1), "the connection ended before the flush");
        written();
        assert_eq!(counts(), (1, 2), "it came after the end");
    }
}
