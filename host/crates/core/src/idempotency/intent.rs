//! The request of a write to the upstream. Its record keeps the request from the first byte on, so that a host can verify the effect
//! even after the caller has disconnected and the first host has crashed.

use super::fingerprint::Fingerprint;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use std::fmt;

/// The request of a write, as far as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The upstream's name.
    pub upstream: String,
    /// The endpoint's name.
    pub endpoint: String,
    /// The request that a verification needs; none if a host cannot verify the write by itself.
    pub request: Option<KeptRequest>,
}

/// The part of a request that a policy reads to verify it. It holds patients' data and the caller's credentials: a shared store
/// gets it encrypted or not at all.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptRequest {
    /// The digest of the content: equal requests share one lock.
    pub fingerprint: Fingerprint,
    /// The method.
    pub method: Method,
    /// Path and query, below the upstream's base URL.
    pub path_and_query: String,
    /// The headers that the policy reads, and those that a verification carries.
    pub headers: HeaderMap,
    /// The body, as far as the policy reads it.
    pub body: Bytes,
    /// Whether the caller sent an idempotency key. Without one, the record's own fingerprint is derived from its random id.
    pub keyed: bool,
}

impl Intent {
    /// `upstream/endpoint`, the name in events and in a shared store.
    pub fn subject(&self) -> String {
        format!("{}/{}", self.upstream, self.endpoint)
    }

    /// About how many bytes it takes to keep.
    pub fn size(&self) -> usize {
        const OVERHEAD: usize = 256;
        self.upstream.len() + self.endpoint.len() + OVERHEAD + self.request.as_ref().map_or(0, KeptRequest::size)
    }

    /// A copy in buffers of its own: slices of the caller's connection buffer would keep that whole buffer in memory.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self { request: self.request.as_ref().map(KeptRequest::copied), ..self.without_request() }
    }

    /// The names without the request, for a store without space for it.
    #[must_use]
    pub fn without_request(&self) -> Self {
        Self { upstream: self.upstream.clone(), endpoint: self.endpoint.clone(), request: None }
    }
}

impl KeptRequest {
    fn copied(&self) -> Self {
        let copy = |value: &HeaderValue| {
            let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or(HeaderValue::from_static(""));
            copy.set_sensitive(value.is_sensitive());
            copy
        };
        Self {
            headers: self.headers.iter().map(|(name, value)| (name.clone(), copy(value))).collect(),
            body: Bytes::copy_from_slice(&self.body),
            path_and_query: self.path_and_query.clone(),
            method: self.method.clone(),
            ..*self
        }
    }

    /// About how many bytes it takes to keep.
    pub fn size(&self) -> usize {
        const OVERHEAD: usize = 64;
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
        self.path_and_query.len() + headers.sum::<usize>() + self.body.len() + 2 * OVERHEAD
    }
}

impl fmt::Debug for KeptRequest {
    /// Path, header values and body may hold patients' data: only their amount is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptRequest")
            .field("fingerprint", &self.fingerprint)
            .field("method", &self.method)
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .field("keyed", &self.keyed)
            .finish_non_exhaustive()
    }
}
