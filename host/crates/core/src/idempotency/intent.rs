//! What a write asked of the upstream: kept with its record from the first byte on, so that its effect can be verified after its
//! caller and its host are gone.

use super::fingerprint::Fingerprint;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use std::fmt;

/// What a write asked, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The upstream's name.
    pub upstream: String,
    /// The endpoint's name.
    pub endpoint: String,
    /// What its verification needs; none where a host cannot verify it by itself.
    pub request: Option<KeptRequest>,
}

/// The part of a request that a policy reads to verify it. It holds patients' data and the caller's credentials: a shared store
/// gets it sealed or not at all.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptRequest {
    /// Its content: requests that are equal to it take turns with it.
    pub fingerprint: Fingerprint,
    /// The method.
    pub method: Method,
    /// Path and query, below the upstream's base URL.
    pub path_and_query: String,
    /// The headers that the policy reads, and those that a verification carries.
    pub headers: HeaderMap,
    /// The body, as far as the policy reads it.
    pub body: Bytes,
    /// Whether the caller gave an idempotency key. Without one its record has a fingerprint of its own.
    pub keyed: bool,
}

impl Intent {
    /// Upstream and endpoint, as events and a shared store name them.
    pub fn subject(&self) -> String {
        format!("{}/{}", self.upstream, self.endpoint)
    }

    /// About how many bytes it takes to keep.
    pub fn size(&self) -> usize {
        const OVERHEAD: usize = 256;
        self.upstream.len() + self.endpoint.len() + OVERHEAD + self.request.as_ref().map_or(0, KeptRequest::size)
    }

    /// The same in buffers of its own: the request's are parts of what its caller's connection was read into, and would keep that.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self { request: self.request.as_ref().map(KeptRequest::copied), ..self.without_request() }
    }

    /// The same without the request: what is left where there is no room for it.
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
