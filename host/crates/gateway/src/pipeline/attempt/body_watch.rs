//! Watches a response body: an attempt is reported to the breaker only once its body has ended.

use crate::{
    admission::Permit,
    policy::contract::BreakerSignal,
    telemetry::FailureCause,
    upstream::{Body, BoxError},
};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// A body whose end decides the breaker signal. A whole body is a success. A body that breaks off, or is silent for longer than an attempt
/// may take, is a failure; silence also ends the body here, so that it does not hold its caller and connection for ever. A caller that
/// leaves in the middle says nothing against the upstream.
///
/// Only the upstream's time counts, not that of a caller who reads slowly.
struct Tail {
    body: Body,
    permit: Option<Permit>,
    /// The time until the head, plus the time spent waiting for the body.
    took: Duration,
    longest: Duration,
    began: Instant,
    waiting: Option<Waiting>,
    /// Whether this watch ended the body.
    is_over: bool,
}

/// The body was polled and had no data yet.
struct Waiting {
    since: Instant,
    silent: Pin<Box<Sleep>>,
}

/// Reports a success once the body has ended. A half-open probe reports at the latest after `longest`, since its lease would run out.
pub(super) fn watch(body: Body, permit: Permit, took: Duration, longest: Duration) -> Body {
    if body.is_end_stream() || !permit.counts() {
        permit.report(BreakerSignal::Success, took);
        return bound(body, longest);
    }
    Tail { body, permit: Some(permit), took, longest, began: Instant::now(), waiting: None, is_over: false }.boxed()
}

/// Limits the silence of a body that is no longer reported.
pub(super) fn bound(body: Body, longest: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let (took, began) = (Duration::ZERO, Instant::now());
    Tail { body, permit: None, took, longest, began, waiting: None, is_over: false }.boxed()
}

impl Tail {
    fn report(&mut self, signal: BreakerSignal) {
        if let Some(mut permit) = self.permit.take() {
            permit.blame_instead(FailureCause::BodyBroken);
            permit.report(signal, self.took);
        }
    }

    fn poll_watched(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending() {
            let longest = self.longest;
            let waiting =
                self.waiting.get_or_insert_with(|| Waiting { since: Instant::now(), silent: Box::pin(sleep(longest)) });
            ready!(waiting.silent.as_mut().poll(context));
            self.took += longest;
            self.report(BreakerSignal::Failure);
            self.is_over = true;
            return Poll::Ready(Some(Err("the upstream sent nothing for longer than the attempt timeout".into())));
        }
        if let Some(waiting) = self.waiting.take() {
            self.took += waiting.since.elapsed();
        }
        match &polled {
            Poll::Ready(Some(Err(_))) => self.report(BreakerSignal::Failure),
            Poll::Ready(None) => self.report(BreakerSignal::Success),
            _ if self.body.is_end_stream() || self.began.elapsed() >= self.longest => {
                self.report(BreakerSignal::Success);
            }
            _ => {}
        }
        polled
    }
}

impl HttpBody for Tail {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.is_over { Poll::Ready(None) } else { this.poll_watched(context) }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.report(BreakerSignal::Success);
    }
}
