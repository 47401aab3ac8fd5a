//! `GET /.triage/records/ID` on the data listener: what became of a request whose caller was told that its effect is unknown.
//!
//! The path `/.triage/` is reserved: nothing below it is forwarded, whether or not records may be read. An id names a record and
//! proves that its holder belongs to the record's tenant; with any other id, or another tenant, the answer is the same 404.

use super::{Host, RequestContext, response};
use crate::{
    clock::{Timestamp, millis},
    config::settings::Redirects,
    error::Problem,
    idempotency::{ClaimOwner, OwnerProofs, RecordId, RecordStatus, Stored, Tenant},
    rate_limit::{Gcra, Quota},
    upstream::{
        self, Body,
        headers::Caller,
        redirect::{self, Origin, Route},
    },
    upstream_runtime::UpstreamRuntime,
};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER},
    request::Parts,
};
use parking_lot::Mutex;
use serde_json::json;
use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

/// The header that says how far a record is: `new`, `sent` or `done`.
pub const RECORD_PHASE: HeaderName = HeaderName::from_static("triage-record-phase");

/// The first segment of paths that are not forwarded.
const RESERVED: &[u8] = b".triage";

/// Where records are, below the upstream's own prefix.
const RECORDS: &str = "/.triage/records/";

/// Reads of all records together: more than callers that follow `Retry-After` need, and little work for a store.
const READS: Quota = Quota { requests: HUNDRED, period: Duration::from_secs(1), burst: HUNDRED };

const HUNDRED: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// When to read a record again that nobody works on.
const UNSETTLED_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Bounds the reads of this host.
#[derive(Debug, Default)]
pub(crate) struct ReadLimit(Mutex<Gcra>);

impl ReadLimit {
    fn admit(&self, now: Timestamp) -> Result<(), Duration> {
        let mut reads = self.0.lock();
        let due = reads.earliest(&READS, now);
        if due > now {
            return Err(due.since(now));
        }
        reads.take(&READS, due);
        Ok(())
    }
}

impl RequestContext {
    /// Where the caller may read what became of its request, if it has a key and the operator lets callers read.
    pub(super) fn record_location(&self) -> Option<HeaderValue> {
        let (keyed, tenant) = (self.key.as_ref()?, self.tenant.as_ref()?);
        self.location_of(RecordId::of(tenant, &self.service.settings.name, &keyed.key))
    }

    /// The same for a request that ended unknown under this record, with or without a key. Its caller is told so, and no other
    /// request is given the record.
    pub(super) fn location_of_unknown(&self, owner: ClaimOwner) -> Option<HeaderValue> {
        match owner {
            ClaimOwner::Record(id) => self.location_of(id),
            ClaimOwner::Request(_) => None,
        }
    }

    fn location_of(&self, id: RecordId) -> Option<HeaderValue> {
        let (settings, tenant) = (&self.service.settings, self.tenant.as_ref()?);
        if !settings.idempotency.record_status {
            return None;
        }
        let prefix = settings.path_prefix.as_deref().unwrap_or_default();
        let proof = self.shared.owner_proofs.of(id, tenant, &settings.name)?;
        HeaderValue::try_from(format!("{prefix}{RECORDS}{id}{}", hex(&proof))).ok()
    }
}

impl Host {
    /// The answer to a request below the reserved path; none for every other request.
    pub(super) async fn reserved(
        &self,
        head: &Parts,
        caller: &Caller,
        listener: Option<SocketAddr>,
    ) -> Option<Result<Response<Body>, Problem>> {
        // Most requests end here.
        if !head.uri.path().contains("triage") && !head.uri.path().contains('%') {
            return None;
        }
        let (index, path_and_query) = self.upstream_of(head, listener).ok()?;
        let path = path_and_query.split('?').next().unwrap_or("/");
        if !is_reserved(path) {
            return None;
        }
        let service = self.shared.rollout.upstreams[index].current();
        Some(self.read_record(head, caller, &service, path).await)
    }

    async fn read_record(
        &self,
        head: &Parts,
        caller: &Caller,
        service: &UpstreamRuntime,
        path: &str,
    ) -> Result<Response<Body>, Problem> {
        let settings = &service.settings.idempotency;
        let token = path.strip_prefix(RECORDS).filter(|_| settings.record_status).ok_or(Problem::NoRecord)?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(Problem::NoRecord);
        }
        let tenant = Tenant::of(&head.headers, &settings.tenant_headers);
        let id = owned(token, &tenant, &service.settings.name, &self.shared.owner_proofs).ok_or(Problem::NoRecord)?;
        // Guesses ask no store: they take nothing of what the owners of records may read.
        self.shared.record_reads.admit(self.shared.clock.now()).map_err(|retry_after| Problem::RateLimited {
            endpoint: RECORDS.to_owned(),
            quota: Some(READS),
            retry_after,
        })?;
        let status = self.shared.records.status(id).await.map_err(|_| Problem::StoreUnavailable)?;
        let mut response = match status.ok_or(Problem::NoRecord)? {
            RecordStatus::UnderWay { for_now, is_sent } => pending(is_sent, true, for_now.max(Duration::from_secs(1))),
            RecordStatus::Unknown { .. } => pending(true, false, UNSETTLED_RETRY_AFTER),
            RecordStatus::Done(stored) => {
                let mut response = match &*stored {
                    Stored::Answer(kept) => {
                        let mut response = response::kept(kept);
                        if service.settings.redirects == Redirects::Rewrite {
                            let base_url = &service.settings.connection.base_url;
                            let prefix = service.settings.path_prefix.as_deref().unwrap_or("");
                            let origin = Origin {
                                scheme: caller.scheme(&head.headers),
                                authority: head.headers.get(HOST).cloned(),
                            };
                            // The path of the request itself is not kept: what is relative to it stays as it is.
                            let route = Route { base_url, path_and_query: "/", prefix, origin: &origin };
                            redirect::rewrite(response.headers_mut(), &route);
                        }
                        response
                    }
                    Stored::TooLarge { status } => {
                        let limit_bytes = settings.max_response_bytes;
                        Problem::NotKept { status: status.as_u16(), limit_bytes }.into_response()
                    }
                };
                response.headers_mut().insert(RECORD_PHASE, HeaderValue::from_static("done"));
                response
            }
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// The answer for a request that is not done.
fn pending(is_sent: bool, is_under_way: bool, retry_after: Duration) -> Response<Body> {
    let phase = if is_sent { "sent" } else { "new" };
    let body = json!({ "phase": phase, "under_way": is_under_way, "retry_after_ms": millis(retry_after) });
    let mut response = Response::new(upstream::full(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(RECORD_PHASE, HeaderValue::from_static(phase));
    headers.insert(RETRY_AFTER, HeaderValue::from(retry_after.as_millis().div_ceil(1000).max(1) as u64));
    response
}

/// The record of an id, if it is one of this tenant's at this upstream.
fn owned(token: &str, tenant: &Tenant, upstream: &str, proofs: &OwnerProofs) -> Option<RecordId> {
    let (id, proof) = token.split_at_checked(64)?;
    let id: RecordId = id.parse().ok()?;
    let proof = uuid::Uuid::try_parse(proof).ok().filter(|_| proof.len() == 32)?;
    proofs.holds(id, tenant, upstream, proof.as_bytes()).then_some(id)
}

fn hex(bytes: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes_ref(bytes).simple().to_string()
}

/// Whether a path's first segment is the reserved one, also where it is percent-encoded: the upstream would decode it.
fn is_reserved(path: &str) -> bool {
    let mut bytes = path.trim_start_matches('/').split('/').next().unwrap_or_default().bytes();
    let mut decoded = Vec::with_capacity(RESERVED.len());
    while let Some(byte) = bytes.next() {
        if decoded.len() == RESERVED.len() {
            return false;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => decoded.push((high << 4 | low) as u8),
                _ => return false,
            },
            byte => decoded.push(byte),
        }
    }
    decoded == RESERVED
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_reserved_path_is_known_however_it_is_written() {
        for (path, expected) in [
            ("/.triage/records/a", true),
            ("/.triage", true),
            ("//.triage/x", true),
            ("/%2etriage/x", true),
            ("/%2E%74riage/x", true),
            ("/.triages/x", false),
            ("/.triag/x", false),
            ("/triage/x", false),
            ("/a/.triage/x", false),
            ("/%2/x", false),
            ("/%", false),
            ("/", false),
        ] {
            assert_eq!(is_reserved(path), expected, "{path}");
        }
    }

    #[test]
    fn reads_are_bounded() {
        let limit = ReadLimit::default();
        let now = Timestamp(5_000_000);
        let admitted = (0..1_000).filter(|_| limit.admit(now).is_ok()).count();
        assert_eq!(admitted, 100);
        assert_eq!(limit.admit(now).unwrap_err(), Duration::from_millis(10));
        assert!(limit.admit(now.after(Duration::from_millis(10))).is_ok());
    }
}
