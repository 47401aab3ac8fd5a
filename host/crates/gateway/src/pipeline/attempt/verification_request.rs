//! The request that verifies an unknown write: the policy's probe with the caller's credentials.

use super::RequestContext;
use crate::{
    idempotency::header_roles,
    policy::contract::Probe,
    upstream::{Outbound, OutboundBody},
    upstream_runtime::Endpoint,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use std::time::Duration;

/// The most header bytes of a write that are kept for its verification: about the limit of common servers for a request head.
const MAX_KEPT_HEADER_BYTES: usize = 16 << 10;

impl RequestContext {
    /// The headers that the policy reads and that a verification carries. None if they exceed the cap: a verification without one of them
    /// may search other data than the write changed, and would prove nothing.
    pub(crate) fn headers_to_verify(&self, interest: &[HeaderName]) -> Option<HeaderMap> {
        let mut kept = HeaderMap::new();
        let mut bytes = 0;
        for (name, value) in &self.headers {
            if interest.contains(name) || self.is_carried(name) {
                bytes += name.as_str().len() + value.len();
                if bytes > MAX_KEPT_HEADER_BYTES {
                    return None;
                }
                kept.append(name.clone(), value.clone());
            }
        }
        Some(kept)
    }

    /// Whether a verification carries this header of the write.
    fn is_carried(&self, name: &HeaderName) -> bool {
        let upstream_key = self.endpoint().settings.upstream_key.as_ref();
        self.service.settings.idempotency.tenant_headers.contains(name)
            || (header_roles::is_carried_by_verification(name) && upstream_key.is_none_or(|own| own.header != *name))
    }

    pub(crate) fn verification_request(&self, probe: &Probe) -> Outbound {
        let mut headers = probe.headers.clone();
        let carried = || self.headers.iter().filter(|(name, _)| self.is_carried(name));
        // The caller's headers override the policy's.
        for (name, _) in carried() {
            headers.remove(name);
        }
        for (name, value) in carried() {
            headers.append(name.clone(), value.clone());
        }
        Outbound {
            method: probe.method.clone(),
            path_and_query: probe.path_and_query.clone(),
            headers,
            body: OutboundBody::Bytes(Bytes::new()),
            guarded: false,
        }
    }

    /// The endpoint of a verification: its rate limits apply, its breaker does not.
    pub(super) fn verified_endpoint(&self, probe: &Probe) -> Option<&Endpoint> {
        let path = probe.path_and_query.split('?').next()?;
        let index = self.service.find(&probe.method, path)?;
        self.service.endpoints.get(index)
    }

    pub(crate) fn verification_timeout(&self, probe: &Probe) -> Duration {
        self.verified_endpoint(probe).unwrap_or(self.endpoint()).settings.attempt_timeout
    }
}
