//! `GET /.triage/records/ID` on the data listener: the status of a request whose caller got `effect-unknown`.
//!
//! The path `/.triage/` is reserved: requests below it are never forwarded, even if callers may not read records. An id names a record and
//! proves that its holder belongs to the record's tenant. Any other id, or another tenant, gets the same 404.

use super::{RequestContext, response};
use crate::{
    clock::millis,
    config::settings::Redirects,
    error::Problem,
    host::{Host, READ_QUOTA},
    idempotency::{ClaimOwner, OwnerProofs, RecordId, RecordStatus, Stored, Tenant},
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
use serde_json::json;
use std::{net::SocketAddr, time::Duration};

/// The header with the record's phase: `new`, `sent` or `done`.
pub const RECORD_PHASE: HeaderName = HeaderName::from_static("triage-record-phase");

/// The first segment of paths that are not forwarded.
const RESERVED_SEGMENT: &[u8] = b".triage";

/// The path of records, below the upstream's own prefix.
const RECORDS_PATH: &str = "/.triage/records/";

/// `Retry-After` for an unknown record that no request or verification works on.
const UNSETTLED_RETRY_AFTER: Duration = Duration::from_secs(10);

impl RequestContext {
    /// The URL of the request's record, if the request has a key and the operator lets callers read records.
    pub(super) fn record_location(&self) -> Option<HeaderValue> {
        let (keyed, tenant) = (self.key.as_ref()?, self.tenant.as_ref()?);
        self.location_of(RecordId::of(tenant, &self.service.settings.name, &keyed.key))
    }

    /// The URL of a record that ended unknown, with or without a key. Safe to hand out: the caller learns of the unknown effect, so no
    /// other request adopts the record.
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
        HeaderValue::try_from(format!("{prefix}{RECORDS_PATH}{id}{}", hex(&proof))).ok()
    }
}

impl Host {
    /// The response to a request below the reserved path; none for other requests.
    pub(super) async fn reserved(
        &self,
        head: &Parts,
        caller: &Caller,
        listener: Option<SocketAddr>,
    ) -> Option<Result<Response<Body>, Problem>> {
        // Fast path: most requests return here.
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
        let token = path.strip_prefix(RECORDS_PATH).filter(|_| settings.record_status).ok_or(Problem::NoRecord)?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(Problem::NoRecord);
        }
        let tenant = Tenant::of(&head.headers, &settings.tenant_headers);
        let id = owned(token, &tenant, &service.settings.name, &self.shared.owner_proofs).ok_or(Problem::NoRecord)?;
        // Invalid ids were refused before the limit and the store, so guesses do not use up the reads of record owners.
        self.shared.record_reads.admit(self.shared.clock.now()).map_err(|retry_after| Problem::RateLimited {
            endpoint: RECORDS_PATH.to_owned(),
            quota: Some(READ_QUOTA),
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
                            // The record does not keep the request's path, so relative redirects stay as they are.
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

/// The response for a request that is not done.
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

/// The record of an id, if it belongs to this tenant at this upstream.
fn owned(token: &str, tenant: &Tenant, upstream: &str, proofs: &OwnerProofs) -> Option<RecordId> {
    let (id, proof) = token.split_at_checked(64)?;
    let id: RecordId = id.parse().ok()?;
    let proof = uuid::Uuid::try_parse(proof).ok().filter(|_| proof.len() == 32)?;
    proofs.holds(id, tenant, upstream, proof.as_bytes()).then_some(id)
}

fn hex(bytes: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes_ref(bytes).simple().to_string()
}

/// Whether a path's first segment is the reserved one. Percent-encoded forms count too: the upstream would decode them.
fn is_reserved(path: &str) -> bool {
    let mut bytes = path.trim_start_matches('/').split('/').next().unwrap_or_default().bytes();
    let mut decoded = Vec::with_capacity(RESERVED_SEGMENT.len());
    while let Some(byte) = bytes.next() {
        if decoded.len() == RESERVED_SEGMENT.len() {
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
    decoded == RESERVED_SEGMENT
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
}
