//! Answers on their way to a caller: whether they wait for it, and for how long.
//!
//! A caller that does not read, or grants no HTTP/2 window, would hold its stream, its connection and the answer for ever.

use crate::{
    overload::peers::OpenRequest,
    upstream::{Body, BoxError},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};

tokio::task_local! {
    /// The HTTP/2 stream that a task serves.
    static STREAM: Arc<Stall>;
}

/// Since when a stream waits for its caller; none while it does not.
#[derive(Debug, Default)]
pub(super) struct Stall(Mutex<Option<Instant>>);

impl Stall {
    /// That of the stream that this task serves; none on HTTP/1.1, where the connection is the stream.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// Ends once the caller has read nothing for so long.
    async fn lasts(&self, limit: Duration) {
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

/// Runs the streams of HTTP/2 connections, each until it ends or its caller reads no more. A stream that is given up is reset;
/// others on its connection go on.
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
                () = own.lasts(limit) => tracing::debug!("a stream was reset: its caller did not read"),
            }
        }));
    }
}

/// An answer's body that tells whether it waits for its caller.
pub(super) struct Watched {
    body: Body,
    /// None once it has ended.
    open: Option<OpenRequest>,
    stall: Option<Arc<Stall>>,
}

impl Watched {
    pub(super) fn new(body: Body, open: OpenRequest) -> Self {
        Self { body, open: Some(open), stall: Stall::current() }
    }

    fn note(&self, since: Option<Instant>) {
        if let Some(stall) = &self.stall {
            *stall.0.lock() = since;
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let own = self.get_mut();
        // It is asked for more once the caller has taken what there was.
        if let Some(open) = &mut own.open {
            open.works();
        }
        own.note(None);
        let polled = Pin::new(&mut own.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                if let Some(open) = &mut own.open {
                    open.waits();
                }
                own.note(Some(Instant::now()));
            }
            Poll::Ready(None | Some(Err(_))) => own.open = None,
            Poll::Pending => {}
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
