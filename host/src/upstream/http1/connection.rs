//! One connection, and the answer that streams over it.

use super::Idle;
use crate::upstream::{Body, BoxError};
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

/// A connection. It works only while it is driven.
#[derive(Debug)]
pub(super) struct Wire {
    sender: SendRequest<Payload>,
    driven: Driven,
    /// Whether the last request has a body, which may still be on its way when its answer ends. That costs a look; without one
    /// there is nothing to look for.
    carries: bool,
}

/// None once it has ended: why is told to who waits for an answer, or ends the body.
type Driven = Option<Connection<TokioIo<TcpStream>, Payload>>;

fn drive(driven: &mut Driven, cx: &mut Context<'_>) {
    if driven.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready()) {
        *driven = None;
    }
}

/// What a request carries.
#[derive(Debug)]
pub(super) enum Payload {
    /// In memory; none where there is nothing, or it was taken.
    Bytes(Option<Bytes>),
    /// Passed through.
    Stream(Body),
}

impl Wire {
    pub(super) async fn open(stream: TokioIo<TcpStream>, max_header_fields: usize) -> hyper::Result<Self> {
        let (sender, connection) = http1::Builder::new().max_headers(max_header_fields).handshake(stream).await?;
        Ok(Self { sender, driven: Some(connection), carries: false })
    }

    /// Whether it stands and can take a request now.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        drive(&mut self.driven, cx);
        self.driven.is_some() && self.sender.is_ready()
    }

    /// Sends, and drives the connection until the head of the answer is there.
    ///
    /// # Errors
    /// With the request where none of it was sent.
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

/// An answer's body. When it has ended well its connection goes to the `idle` ones, where there are any to go to; else it is closed.
pub(super) fn streaming(incoming: Incoming, wire: Wire, idle: Option<Arc<Idle>>) -> Body {
    let is_over = incoming.is_end_stream();
    let mut streaming = Streaming { incoming: Some(incoming), wire: Some(wire), idle, broken: None };
    if is_over {
        streaming.end();
    }
    streaming.boxed()
}

struct Streaming {
    /// There until it is dropped.
    incoming: Option<Incoming>,
    /// None once the body has ended.
    wire: Option<Wire>,
    idle: Option<Arc<Idle>>,
    /// How it broke off: told once what came before has gone on its way.
    broken: Option<hyper::Error>,
}

impl Streaming {
    /// Keeps the connection if it can be used again; where all on it is over, that need not be asked.
    fn release(&mut self, is_over: bool) {
        if let (Some(mut wire), Some(idle)) = (self.wire.take(), &self.idle)
            && (is_over || wire.is_usable(&mut Context::from_waker(Waker::noop())))
        {
            idle.put(wire);
        }
    }

    /// The answer has ended. A request that has not would have nobody to drive it.
    fn end(&mut self) {
        self.release(self.wire.as_ref().is_some_and(|wire| !wire.carries));
    }
}

impl Drop for Streaming {
    /// Of an answer that nobody reads to its end, the connection is kept if the rest of it is there already.
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
        // It asks first: the connection reads no more of a body than somebody wants.
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
                // Whoever passes the body on drops what it holds when it breaks off: once more it gets the time to write that.
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
