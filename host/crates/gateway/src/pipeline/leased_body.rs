//! The body of a write that another task sends. It fails when the host loses the lease to send it.
//!
//! Over TLS and HTTP/2, and perhaps in a transport of another program, the connection's own task writes the request and continues after the request's future is dropped. A failing body
//! makes that task reset the stream or close the connection, so that the upstream gets no complete request. Data already given to the
//! connection stays sent, and a request without a body is sent as a whole.

use crate::{
    idempotency::SendLease,
    upstream::{Body, BoxError, OutboundBody, full},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// Maximum bytes given to the connection at once. After the lease ends, no more than this is written, besides data that the connection has
/// buffered.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// The error of a body whose lease has ended.
#[derive(Debug, thiserror::Error)]
#[error("this host no longer holds the record of the write, so it stopped sending the body")]
struct LeaseOver;

#[derive(Debug)]
struct Leased {
    body: Body,
    /// Bytes read from the body, but not yet given to the connection.
    rest: Bytes,
    leases: Vec<SendLease>,
}

/// Wraps a body so that it fails once one of `leases` has ended.
pub(crate) fn leased(body: OutboundBody, leases: Vec<SendLease>) -> OutboundBody {
    if leases.is_empty() {
        return body;
    }
    let body = match body {
        OutboundBody::Bytes(bytes) if bytes.is_empty() => return OutboundBody::Bytes(bytes),
        OutboundBody::Bytes(bytes) => full(bytes),
        OutboundBody::Stream(body) => body,
    };
    OutboundBody::Stream(Leased { body, rest: Bytes::new(), leases }.boxed())
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.leases.iter().any(|lease| lease.left().is_zero()) {
            return Poll::Ready(Some(Err(LeaseOver.into())));
        }
        if this.rest.is_empty() {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                ended => return ended,
            }
        }
        let next = this.rest.split_to(this.rest.len().min(MAX_FRAME_BYTES));
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::{
        clock::Clock,
        idempotency::{BeginRequest, RecordGuard, Records},
        state::fixtures::{id, opening},
        state::memory::records::{Limits, MemoryRecords},
    };
    use http_body::Body as _;
    use std::sync::Arc;

    fn stream(body: OutboundBody) -> Body {
        match body {
            OutboundBody::Stream(body) => body,
            OutboundBody::Bytes(bytes) => panic!("{bytes:?} is not bound"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_ends_with_the_right_to_send_it() {
        let clock = Clock::system();
        let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(clock, Limits::default()));
        let opening = opening(1, 0);
        let guard = RecordGuard::unwritten(&records, clock, id(1), opening);
        let longer = BeginRequest { lock: 2 * opening.lock, ..opening };
        let long = RecordGuard::unwritten(&records, clock, id(2), longer);
        let bytes = Bytes::from(vec![7; 3 * MAX_FRAME_BYTES]);
        let bound = || stream(leased(OutboundBody::Bytes(bytes.clone()), vec![long.lease(), guard.lease()]));
        let whole = bound();
        assert_eq!(whole.size_hint().exact(), Some(bytes.len() as u64), "its length is announced");
        assert_eq!(whole.collect().await.unwrap().to_bytes(), bytes);
        let mut cut = bound();
        let first = cut.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), MAX_FRAME_BYTES);
        assert_eq!(cut.size_hint().exact(), Some(2 * MAX_FRAME_BYTES as u64));
        assert!(!cut.is_end_stream());
        tokio::time::advance(opening.lock).await;
        assert!(cut.frame().await.unwrap().is_err(), "what was taken already is handed over after the end");
        assert!(bound().frame().await.unwrap().is_err(), "a body that was not begun is");
    }
}
