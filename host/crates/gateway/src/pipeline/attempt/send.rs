//! Sends a request and reads the part of the response that its policy reads.

use super::RequestContext;
use crate::{
    pipeline::request_context::{AttemptResult, UpstreamResponse},
    policy::contract::{Failure, FailureKind},
    retry::upstream_key::{self, KeyAnswer},
    upstream::{Body, Inbound, Outbound, answer_head},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

impl RequestContext {
    /// Sends the request and waits for the response's head and the first bytes of its body.
    pub(super) async fn send(&self, outbound: Outbound, is_request: bool) -> AttemptResult {
        let sent = self.transport.send(outbound).await;
        let Inbound { status, mut headers, body } = match sent {
            Ok(inbound) => inbound,
            Err(failure) => return AttemptResult::Failure(failure),
        };
        let max_fields = self.service.settings.connection.max_header_fields;
        if let Err(reason) = answer_head::check(status, &mut headers, max_fields) {
            // A malformed response cannot be passed on; the request may have been processed.
            return AttemptResult::Failure(Failure::new(FailureKind::Protocol, true).because(reason));
        }
        let endpoint = self.endpoint();
        if is_request && endpoint.is_settled(status.as_u16(), self.effect) {
            return AttemptResult::Answer(UpstreamResponse { status, headers, read: Bytes::new(), rest: Some(body) });
        }
        let mut prefix_bytes = endpoint.described.interest.response_body_bytes;
        if is_request && self.upstream_key.is_some() && KeyAnswer::is_in_body(status) {
            prefix_bytes = prefix_bytes.max(upstream_key::BODY_BYTES);
        }
        match read_prefix(body, prefix_bytes).await {
            Ok((read, rest)) => AttemptResult::Answer(UpstreamResponse { status, headers, read, rest }),
            Err(()) => AttemptResult::Failure(Failure::new(FailureKind::Body, true)),
        }
    }
}

/// Reads up to `most` bytes of a body; the rest stays a stream.
async fn read_prefix(mut body: Body, most: usize) -> Result<(Bytes, Option<Body>), ()> {
    use http_body::Body as _;
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    if most == 0 {
        return Ok((Bytes::new(), Some(body)));
    }
    let mut read = BytesMut::new();
    while read.len() <= most {
        match body.frame().await {
            None => return Ok((read.freeze(), None)),
            Some(Err(_)) => return Err(()),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    read.extend_from_slice(&data);
                }
            }
        }
    }
    Ok((read.freeze(), Some(body)))
}
