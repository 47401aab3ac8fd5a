//! Which requests are equal: the fingerprints and the digest of a request.

use super::{
    request_context::{EqualRequests, RequestBody},
    routing::Routed,
};
use crate::{
    host::Host,
    idempotency::{Fingerprint, Identity, Likeness, RequestDigest, header_roles, search_condition::IF_NONE_EXIST},
    upstream_runtime::UpstreamRuntime,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, request::Parts};

impl Host {
    /// The digest under which equal requests without a key are listed.
    pub(super) fn digest(
        &self,
        routed: &Routed,
        head: &Parts,
        body: &[u8],
        distinguishing_headers: &[(HeaderName, HeaderValue)],
        fingerprint: Option<Fingerprint>,
    ) -> RequestDigest {
        let endpoint = routed.live_endpoint();
        let identity = Identity {
            upstream: &routed.live.0.settings.name,
            endpoint: &endpoint.described.name,
            method: &head.method,
            path_and_query: &routed.path_and_query,
            body,
        };
        let asking = endpoint.asking(&head.headers);
        self.shared.records.digest(&Likeness { distinguishing_headers, asking: &asking, identity, fingerprint })
    }
}

/// The headers that tell this request apart from equal ones of other callers.
pub(super) fn distinguishing_headers(routed: &Routed, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let tenant_headers = &routed.service.settings.idempotency.tenant_headers;
    // A caller that sends the upstream's own key identifies its request by it.
    let upstream_key = routed.live_endpoint().settings.upstream_key.as_ref().map(|own| &own.header);
    header_roles::distinguishing_headers(headers, |name| tenant_headers.contains(name) || upstream_key == Some(name))
}

/// The fingerprint for the request's record or lock, and the equal requests that must not run at the same time. With a canary, the live
/// policy decides which requests are equal, so that both groups use the same locks.
pub(super) fn equality(
    serving: &UpstreamRuntime,
    endpoint: usize,
    (head, path_and_query, body): (&Parts, &str, &RequestBody),
    keyed: bool,
    commits_late: bool,
    is_unsafe: bool,
) -> (Option<Fingerprint>, Option<EqualRequests>) {
    if !keyed && !commits_late {
        return (None, None);
    }
    let endpoint = &serving.endpoints[endpoint];
    let (upstream, name) = (&*serving.settings.name, &*endpoint.described.name);
    let identity = |body| Identity { upstream, endpoint: name, method: &head.method, path_and_query, body };
    let asking = endpoint.asking(&head.headers);
    let fingerprint = match body {
        RequestBody::Buffered(bytes) => Some(Fingerprint::of(&identity(bytes)).with_headers(&asking)),
        RequestBody::Stream(_) => None,
    };
    let equal = if !is_unsafe || !commits_late {
        None
    } else if let Some(query) = selection(&head.method, path_and_query) {
        // A conditional create with the same condition makes what this update makes if nothing matches, so both use one lock.
        let path = path_and_query.split('?').next().unwrap_or_default();
        let creates = serving.find(&Method::POST, path).map(|create| &serving.endpoints[create]);
        let fingerprint = match creates.filter(|create| create.commits_late() && create.reads(IF_NONE_EXIST)) {
            Some(create) => {
                let (endpoint, method) = (&*create.described.name, &Method::POST);
                let created = Identity { endpoint, method, ..identity(&[]) };
                Fingerprint::of_condition(&created, &[(IF_NONE_EXIST, query.as_bytes())])
            }
            None => Fingerprint::of_selection(&identity(&[])),
        };
        Some(EqualRequests { fingerprint, by_condition: true })
    } else if endpoint.verifies_by_condition(&asking) {
        let fingerprint = Fingerprint::of_condition(&identity(&[]), &asking);
        Some(EqualRequests { fingerprint, by_condition: true })
    } else {
        fingerprint.map(|fingerprint| EqualRequests { fingerprint, by_condition: false })
    };
    (fingerprint, equal)
}

/// The query that selects what a PUT or PATCH changes or creates. A POST's query is about its response. A DELETE needs no lock: sent twice,
/// it creates nothing.
fn selection<'a>(method: &Method, path_and_query: &'a str) -> Option<&'a str> {
    let (_, query) = path_and_query.split_once('?').filter(|_| matches!(*method, Method::PUT | Method::PATCH))?;
    Some(query).filter(|query| !query.is_empty())
}
