//! Reads the body of a request, within the memory that the request may take.

use super::{prepare::scarce, request_context::RequestBody};
use crate::{
    config::settings,
    error::Problem,
    overload::MemoryReservation,
    telemetry::{RequestRecorder, WaitedFor},
    upstream::{self, Body},
};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

/// Reads the body into memory as far as it may be buffered. A keyed body must fit, since its fingerprint needs the whole body.
pub(super) async fn read(
    body: Body,
    is_keyed: bool,
    settings: &settings::Upstream,
    held: &MemoryReservation,
    deadline: Instant,
    recorder: &mut RequestRecorder,
) -> Result<RequestBody, Problem> {
    let max_bytes = if is_keyed { settings.idempotency.max_request_bytes } else { settings.max_buffered_request_bytes };
    let is_empty = body.is_end_stream();
    let read = timeout_at(deadline, buffered(body, max_bytes, held)).await;
    if !is_empty {
        recorder.waited(WaitedFor::RequestBody);
    }
    let body = read.map_err(|_| Problem::DeadlineBeforeSend)??;
    if is_keyed && matches!(body, RequestBody::Stream(_)) {
        return Err(Problem::BodyTooLarge { limit_bytes: max_bytes });
    }
    Ok(body)
}

/// The bytes that a buffer of this capacity must add to hold `wanted` bytes: it grows by doubling.
fn grown(capacity: usize, wanted: usize) -> usize {
    if wanted <= capacity { 0 } else { wanted.max(capacity * 2) - capacity }
}

/// Reads a body into memory up to a cap. A larger body stays a stream that begins with the bytes already read.
async fn buffered(mut body: Body, most: usize, held: &MemoryReservation) -> Result<RequestBody, Problem> {
    if body.is_end_stream() {
        return Ok(RequestBody::Buffered(Bytes::new()));
    }
    if body.size_hint().lower() > most as u64 {
        return Ok(RequestBody::Stream(Some(body)));
    }
    // A body of known size is refused before it is read. One of unknown size counts as it arrives.
    let known = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    held.room_for(known.unwrap_or(0)).map_err(scarce)?;
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Request trailers are not forwarded.
        let Ok(data) = frame.map_err(|_| Problem::BodyBroken)?.into_data() else { continue };
        let grown = grown(read.capacity(), read.len() + data.len());
        held.more(grown).map_err(scarce)?;
        read.extend_from_slice(&data);
        if read.len() > most {
            return Ok(RequestBody::Stream(Some(upstream::prefixed(read.freeze(), body))));
        }
    }
    Ok(RequestBody::Buffered(read.freeze()))
}
