//! One connection, and the response body that streams over it.

use super::Idle;
use crate::{Body, BoxError};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, Connection, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::net::TcpStream;

/// A connection. It makes progress only while it is polled by [`drive`].
#[derive(Debug)]
pub(super) struct Wire {
    sender: SendRequest<Payload>,
    driven: Driven,
    /// Whether the last request has a body, which may still be sent when the response ends. Then reuse of the connection costs one more
    /// poll to check for that.
    carries: bool,
}

/// None once the connection has ended. The sender or the body reports the error.
type Driven = Option<Connection<TokioIo<TcpStream>, Payload>>;

fn drive(driven: &mut Driven, cx: &mut Context<'_>) {
    if driven.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready()) {
        *driven = None;
    }
}

/// A request body.
#[derive(Debug)]
pub(super) enum Payload {
    /// In memory; none if empty or already sent.
    Bytes(Option<Bytes>),
    /// Streamed from the caller.
    Stream(Body),
}

impl Wire {
    pub(super) async fn open(stream: TokioIo<TcpStream>, max_header_fields: usize) -> hyper::Result<Self> {
        let (sender, connection) = http1::Builder::new().max_headers(max_header_fields).handshake(stream).await?;
        Ok(Self { sender, driven: Some(connection), carries: false })
    }

    /// Whether the connection is open and can take a request now.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        drive(&mut self.driven, cx);
        self.driven.is_some() && self.sender.is_ready()
    }

    /// Sends a request, and drives the connection until the response's head arrives.
    ///
    /// # Errors
    /// Contains the request if none of it was sent.
    pub(super) async fn send(
        &mut self,
        request: Request<Payload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Payload>>> {
        self.carries = !request.body().is_end_stream();
        let mut answer = pin!(self.sender.try_send_request(request));
        let driven = &mut self.driven;
        poll_fn(|cx| {
            drive(driven, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }
}

impl http_body::Body for Payload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_none(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// A response body. After a complete response, the connection returns to the `idle` pool, if there is one; otherwise it is closed.
pub(super) fn streaming(incoming: Incoming, wire: Wire, idle: Option<Arc<Idle>>) -> Body {
    let is_over = incoming.is_end_stream();
    let mut streaming = Streaming { incoming: Some(incoming), wire: Some(wire), idle, broken: None };
    if is_over {
        streaming.end();
    }
    streaming.boxed()
}

struct Streaming {
    /// None only after the drop.
    incoming: Option<Incoming>,
    /// None once the body has ended.
    wire: Option<Wire>,
    idle: Option<Arc<Idle>>,
    /// The error that ended the body. It is returned one poll later, so that the data before it can be written first.
    broken: Option<hyper::Error>,
}

impl Streaming {
    /// Returns the connection to the pool if it can be reused. With `is_over`, it needs no check.
    fn release(&mut self, is_over: bool) {
        if let (Some(mut wire), Some(idle)) = (self.wire.take(), &self.idle)
            && (is_over || wire.is_usable(&mut Context::from_waker(Waker::noop())))
        {
            idle.put(wire);
        }
    }

    /// Releases the connection at the end of the response. A request without a body needs no check. `is_usable` checks any other, because
    /// an idle connection sends no rest of a body.
    fn end(&mut self) {
        self.release(self.wire.as_ref().is_some_and(|wire| !wire.carries));
    }
}

impl Drop for Streaming {
    /// If a response is dropped before its end, the connection is reused only if the rest has already arrived.
    fn drop(&mut self) {
        if self.wire.is_some() {
            drop(self.incoming.take());
            self.release(false);
        }
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let own = self.get_mut();
        if let Some(error) = own.broken.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let Some(incoming) = &mut own.incoming else { return Poll::Ready(None) };
        // Poll the body first: the connection reads no more of a body than was requested.
        let mut polled = Pin::new(&mut *incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(wire) = &mut own.wire
        {
            drive(&mut wire.driven, cx);
            polled = Pin::new(&mut *incoming).poll_frame(cx);
        }
        let frame = std::task::ready!(polled);
        match frame {
            Some(Err(error)) => {
                own.wire = None;
                own.broken = Some(error);
                // The task that forwards the body discards its buffer on an error. Return to it once more, so that it can write the buffer
                // first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Ok(_)) if !incoming.is_end_stream() => {}
            Some(Ok(_)) | None => own.end(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}
