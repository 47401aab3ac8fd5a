//! Delivers the response to a request without a key. Until its last byte is handed to the connection, it may become an orphan's response:
//! streamed bytes are kept up to the cap, and the rest is read in the background if the caller leaves.

use crate::{
    flush_notice::{Handover, Unflushed},
    idempotency::{Entry, RecordGuard, Stored, StoredBody},
    overload::Spare,
    telemetry::{EndpointCounters, OrphanResult},
    upstream::{Body, BoxError},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;

/// How long the rest of a body is read for an orphan. The attempt timeout also bounds each silence.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The part of a response that a record keeps beside the body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) class: &'static str,
    pub(super) policy: HeaderValue,
}

/// The kind of a delivered response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// The result of the request: entry and record are removed together.
    Answer,
    /// `effect-unknown` after the request has ended: the record stays.
    Unknown,
    /// `effect-unknown` while the request continues.
    Early,
}

/// Ends a request's entry and record once its response was delivered, or was not.
pub(super) struct Pending {
    entry: Arc<Entry>,
    received: Received,
    keeps: Option<Keeps>,
    is_over: bool,
    /// Tracks reads in the background.
    detached: TaskTracker,
    meter: Arc<EndpointCounters>,
}

/// A record that is finished with the response if the caller leaves.
struct Keeps {
    guard: RecordGuard,
    head: Head,
    most: usize,
    /// The streamed bytes; none once they exceed the cap or the memory limit.
    read: Option<Vec<Bytes>>,
    bytes: usize,
    /// The host's memory that `read` takes; none without a limit.
    spare: Option<Spare>,
}

impl Pending {
    /// Without a record to finish: it is unknown, or already has its response.
    pub(super) fn entry(
        entry: Arc<Entry>,
        received: Received,
        detached: TaskTracker,
        meter: Arc<EndpointCounters>,
    ) -> Self {
        Self { entry, received, keeps: None, is_over: false, detached, meter }
    }

    /// With a record: finished with the response if the caller does not receive it, else removed.
    pub(super) fn with_answer(mut self, guard: RecordGuard, head: Head, most: usize, spare: Option<Spare>) -> Self {
        self.received = Received::Answer;
        self.keeps = Some(Keeps { guard, head, most, read: Some(Vec::new()), bytes: 0, spare });
        self
    }

    /// Attaches this to the body of the response to a request with this method.
    pub(super) fn behind(
        self,
        response: Response<Body>,
        method: &Method,
        handover: Option<Handover>,
    ) -> Response<Body> {
        let is_head =
            method == Method::HEAD || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|body| {
            let left = if is_head || body.is_end_stream() { Some(0) } else { length.or(body.size_hint().exact()) };
            if let Some(handover) = &handover {
                handover.expects();
            }
            Delivery { body: Some(body), left, pending: Some(self), handover }.boxed()
        })
    }

    fn handed_over(mut self) {
        if self.is_void() {
            // The caller had already gone, so the response reached no connection.
            return;
        }
        self.is_over = true;
        if let Some(keeps) = self.keeps.take() {
            keeps.guard.end_with_entry();
        }
        match self.received {
            Received::Answer => self.entry.answered(true),
            Received::Unknown | Received::Early => self.entry.answered_unknown(),
        }
    }

    /// Whether the caller had already gone. An early response does not count: its request continues without the caller.
    fn is_void(&self) -> bool {
        self.received != Received::Early && self.entry.is_abandoned()
    }

    /// The caller left. `rest`: the unread body; none if it broke off.
    pub(super) fn lost(mut self, rest: Option<Body>) {
        self.is_over = true;
        self.orphaned(rest);
    }

    /// The response goes to no caller, but the entry is not abandoned.
    pub(super) fn kept_without_caller(mut self, rest: Option<Body>) {
        self.is_over = true;
        self.keep(rest);
    }

    fn orphaned(&mut self, rest: Option<Body>) {
        self.entry.abandon();
        // Not counted if the request was refused or its caller has been answered: then nothing is left to adopt.
        if self.entry.is_abandoned() {
            self.meter.orphans.add(OrphanResult::Left as usize);
        }
        self.keep(rest);
    }

    fn keep(&mut self, rest: Option<Body>) {
        let Some(keeps) = self.keeps.take() else { return };
        // Without a runtime, dropping the guard leaves the record unknown: the next request verifies first.
        let Ok(runtime) = Handle::try_current() else { return };
        let entry = Arc::clone(&self.entry);
        runtime.spawn(self.detached.track_future(async move {
            keeps.finish(rest).await;
            drop(entry);
        }));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Written to the connection, but never flushed.
        if !self.is_over {
            self.orphaned(Some(crate::upstream::full(Bytes::new())));
        }
    }
}

impl Unflushed for Pending {
    fn flushed(self: Box<Self>) {
        self.handed_over();
    }
}

impl Keeps {
    fn more(&mut self, data: &Bytes) {
        self.bytes = self.bytes.saturating_add(data.len());
        let is_scarce = self.spare.as_mut().is_some_and(|spare| spare.more(data.len()).is_err());
        if self.bytes > self.most || is_scarce {
            (self.read, self.spare) = (None, None);
        }
        if let Some(read) = &mut self.read {
            read.push(data.clone());
        }
    }

    /// Reads the rest of the body and finishes the record.
    async fn finish(mut self, rest: Option<Body>) {
        let whole = match rest {
            None => false,
            Some(mut rest) => {
                let drained = timeout(DRAIN_TIMEOUT, async {
                    while self.read.is_some() {
                        match rest.frame().await {
                            None => return true,
                            Some(Err(_)) => return false,
                            Some(Ok(frame)) => {
                                if let Some(data) = frame.data_ref() {
                                    self.more(data);
                                }
                            }
                        }
                    }
                    false
                });
                drained.await.unwrap_or(false)
            }
        };
        let Head { status, headers, class, policy } = self.head;
        let stored = match self.read.filter(|_| whole) {
            None => Stored::TooLarge { status },
            Some(read) => {
                let label = policy.to_str().unwrap_or_default().into();
                let mut body = BytesMut::with_capacity(self.bytes);
                for data in &read {
                    body.extend_from_slice(data);
                }
                Stored::capped(StoredBody { status, headers, body: body.freeze(), class, policy: label }, self.most)
            }
        };
        if let Err(error) = self.guard.finish(stored).await {
            tracing::warn!(%error, "the answer for a caller that disconnected could not be stored");
        }
    }
}

/// A body that notices when its last byte was polled.
struct Delivery {
    body: Option<Body>,
    /// Bytes not yet polled: hyper stops polling at zero. None if the length is unknown.
    left: Option<u64>,
    pending: Option<Pending>,
    handover: Option<Handover>,
}

impl Delivery {
    /// Ends the delivery: the last byte was polled. An empty body is never polled, only dropped.
    fn end(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        match &self.handover {
            _ if pending.is_void() => drop(pending),
            Some(handover) => handover.written(Box::new(pending)),
            // A library caller polls the body itself, so it has the bytes now.
            None => pending.handed_over(),
        }
    }
}

impl HttpBody for Delivery {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        match &frame {
            None => this.left = Some(0),
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                this.left =
                    if body.is_end_stream() { Some(0) } else { this.left.map(|left| left.saturating_sub(length)) };
                let keeps = this.pending.as_mut().and_then(|pending| pending.keeps.as_mut());
                if let (Some(keeps), Some(data)) = (keeps, frame.data_ref()) {
                    keeps.more(data);
                }
            }
            // The body broke off: the caller gets only a part.
            Some(Err(_)) => {
                if let Some(pending) = this.pending.take() {
                    pending.lost(None);
                }
            }
        }
        if this.left == Some(0) {
            this.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let body = self.body.take();
        if self.left == Some(0) {
            self.end();
        } else if let Some(pending) = self.pending.take() {
            pending.lost(body);
        }
    }
}

#[cfg(test)]
#[path = "delivery/tests.rs"]
mod tests;
