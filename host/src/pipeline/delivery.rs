//! The answer to a request without a key, on its way to the caller. Until its last byte is handed to the connection it may become
//! an orphan's answer: what streams through is kept up to the cap, and the rest is read where the caller leaves.

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

/// The longest that the rest of an answer is read for an orphan. Its silence is bounded by the attempt timeout besides.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a record keeps of an answer, beside its body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) class: &'static str,
    pub(super) policy: HeaderValue,
}

/// What a caller has received that has received this answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// What came of its request: the record goes with the place.
    Answer,
    /// That this is unknown: the record stays.
    Unknown,
    /// The same, before its request was over.
    Early,
}

/// What becomes of a request's place and record once its answer was handed over, or was not.
pub(super) struct Pending {
    entry: Arc<Entry>,
    received: Received,
    keeps: Option<Keeps>,
    is_over: bool,
    /// Counts what is read in the background.
    detached: TaskTracker,
    meter: Arc<EndpointCounters>,
}

/// A record that waits for its answer.
struct Keeps {
    hold: RecordGuard,
    head: Head,
    most: usize,
    /// What has streamed through; none once that is more than is kept, or than there is memory for.
    read: Option<Vec<Bytes>>,
    bytes: usize,
    /// What that takes of the host's memory; none where there is no limit.
    spare: Option<Spare>,
}

impl Pending {
    /// The answer leaves nothing to keep: the record is unknown, or has its answer.
    pub(super) fn entry(
        entry: Arc<Entry>,
        received: Received,
        detached: TaskTracker,
        meter: Arc<EndpointCounters>,
    ) -> Self {
        Self { entry, received, keeps: None, is_over: false, detached, meter }
    }

    /// The record is finished with the answer where the caller does not get it, and goes where it does.
    pub(super) fn with_answer(mut self, hold: RecordGuard, head: Head, most: usize, spare: Option<Spare>) -> Self {
        self.received = Received::Answer;
        self.keeps = Some(Keeps { hold, head, most, read: Some(Vec::new()), bytes: 0, spare });
        self
    }

    /// Puts it behind the body of the answer to a request with this method.
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
            // It went to no connection: its caller had gone before.
            return;
        }
        self.is_over = true;
        if let Some(keeps) = self.keeps.take() {
            keeps.hold.goes_with_its_place();
        }
        match self.received {
            Received::Answer => self.entry.answered(true),
            Received::Unknown | Received::Early => self.entry.told(),
        }
    }

    /// Whether its caller had gone before. One that is answered early has a request that goes on without it.
    fn is_void(&self) -> bool {
        self.received != Received::Early && self.entry.is_abandoned()
    }

    /// The caller left. `rest` is what was not read of the answer, none where it broke off.
    pub(super) fn lost(mut self, rest: Option<Body>) {
        self.is_over = true;
        self.orphaned(rest);
    }

    /// The answer goes to no caller, and its place is not given up by that.
    pub(super) fn kept_without_caller(mut self, rest: Option<Body>) {
        self.is_over = true;
        self.keep(rest);
    }

    fn orphaned(&mut self, rest: Option<Body>) {
        self.entry.abandon();
        // A request that is over leaves nothing to adopt: it was refused, or told.
        if self.entry.is_abandoned() {
            self.meter.orphans.add(OrphanResult::Left as usize);
        }
        self.keep(rest);
    }

    fn keep(&mut self, rest: Option<Body>) {
        let Some(keeps) = self.keeps.take() else { return };
        // Without a runtime the hold's end leaves the record unknown: the next request looks first.
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
        // Written, and never flushed.
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

    /// Reads the rest and keeps the answer.
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
        if let Err(error) = self.hold.finish(stored).await {
            tracing::warn!(%error, "the answer to a caller that has gone could not be kept");
        }
    }
}

/// A body that knows whether its last byte was asked for.
struct Delivery {
    body: Option<Body>,
    /// Bytes that were not asked for yet: with none left it is not asked again. None where only its end tells.
    left: Option<u64>,
    pending: Option<Pending>,
    handover: Option<Handover>,
}

impl Delivery {
    /// Its last byte was asked for. One without a byte is never asked: dropping it is its end.
    fn end(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        match &self.handover {
            _ if pending.is_void() => drop(pending),
            Some(handover) => handover.written(Box::new(pending)),
            // A caller that takes bodies itself has it now.
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
            // The caller gets a part of it, and no end.
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
