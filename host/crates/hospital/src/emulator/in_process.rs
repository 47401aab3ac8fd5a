//! The emulator as an upstream without sockets.

use super::{Emulator, Reply, Request};
use crate::{
    contract::{Failure, FailureKind},
    upstream::{Body, BoxError, Inbound, Outbound, OutboundBody, Transport, full},
};
use bytes::{Bytes, BytesMut};
use futures_util::{future::BoxFuture, stream};
use http::Response;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

const MAX_BODY_BYTES: usize = 1 << 20;

/// Sends requests to an emulator in the same process. Resets, refusals and stalls become the failures that sockets would show.
#[derive(Debug, Clone)]
pub struct InProcess(pub Arc<Emulator>);

impl Transport for InProcess {
    // The emulator has the whole body before it begins.
    fn stops_when_dropped(&self) -> bool {
        true
    }

    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            let body = match request.body {
                OutboundBody::Bytes(bytes) => bytes,
                OutboundBody::Stream(body) => collect(body).await.ok_or(Failure::new(FailureKind::Send, true))?,
            };
            let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let Outbound { method, path_and_query, headers, .. } = request;
            match self.0.handle(Request { method, path_and_query, headers, body, client }).await {
                Reply::Answer(response) => Ok(inbound(response, full)),
                Reply::CutShort(response, sent) => Ok(inbound(response, |body| broken(&body, sent))),
                Reply::Reset => Err(Failure::new(FailureKind::Reset, true)),
                Reply::Refused => Err(Failure::new(FailureKind::Connect, false)),
                Reply::Stall => std::future::pending().await,
            }
        })
    }
}

/// The whole body; none if it breaks off or is too large.
async fn collect(mut body: Body) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > MAX_BODY_BYTES {
            return None;
        }
    }
    Some(whole.freeze())
}

fn inbound(response: Response<Bytes>, body: impl FnOnce(Bytes) -> Body) -> Inbound {
    let (head, bytes) = response.into_parts();
    Inbound { status: head.status, headers: head.headers, body: body(bytes) }
}

fn broken(body: &Bytes, sent: usize) -> Body {
    let reset: BoxError = Box::new(io::Error::from(io::ErrorKind::ConnectionReset));
    let part = Ok(Frame::data(body.slice(..sent.min(body.len()))));
    StreamBody::new(stream::iter([part, Err(reset)])).boxed()
}
