//! The way of a request: upstream, endpoint, and the generation that serves.

use crate::{
    error::Problem,
    host::Host,
    idempotency::key::IDEMPOTENCY_KEY,
    policy::contract::Effect,
    route,
    telemetry::{RequestRecorder, TraceContext},
    upstream_runtime::{Endpoint, UpstreamRuntime},
};
use http::{HeaderName, header::HOST, request::Parts};
use std::{cell::LazyCell, net::SocketAddr, sync::Arc};

/// Names a request if it has no key: set by the caller or by a proxy before the host.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's way: the upstream, its endpoint and the generation that serves.
pub(super) struct Routed {
    /// Index of the upstream in the host's list.
    pub(super) upstream: usize,
    pub(super) path_and_query: String,
    /// The live generation and its endpoint. With a canary too, they name the endpoint and decide which requests are equal.
    pub(super) live: (Arc<UpstreamRuntime>, usize),
    /// The generation that serves: the live one, or a canary.
    pub(super) service: Arc<UpstreamRuntime>,
    pub(super) endpoint: usize,
    /// Whether a canary serves.
    pub(super) is_canary: bool,
    pub(super) effect: Effect,
}

impl Routed {
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.service.endpoints[self.endpoint]
    }

    pub(super) fn live_endpoint(&self) -> &Endpoint {
        &self.live.0.endpoints[self.live.1]
    }
}

impl Host {
    /// Finds the upstream, the endpoint and the generation, and reports them to the recorder.
    pub(super) fn route(
        &self,
        head: &mut Parts,
        listener: Option<SocketAddr>,
        recorder: &mut RequestRecorder,
    ) -> Result<Routed, Problem> {
        let (upstream, path_and_query) = self.upstream_of(head, listener)?;
        let live = self.shared.rollout.upstreams[upstream].current();
        let path = path_and_query.split('?').next().unwrap_or("/");
        if !route::is_plain(path) {
            return Err(Problem::PathNotPlain);
        }
        let found = live.find(&head.method, path).ok_or_else(|| Problem::NoEndpoint {
            upstream: live.settings.name.clone(),
            method: head.method.to_string(),
        })?;
        recorder.found(&live.endpoints[found].meters, &head.method, live.policy.label(), live.generation);
        recorder.traced(TraceContext::take(&mut head.headers));
        let effect = live.endpoints[found].effect(&head.method);
        Ok(match self.canary(upstream, head, path) {
            // The stricter of both policies decides the effect.
            Some((service, endpoint)) => {
                let effect = effect.max(service.endpoints[endpoint].effect(&head.method));
                Routed { upstream, path_and_query, live: (live, found), service, endpoint, is_canary: true, effect }
            }
            None => {
                let service = Arc::clone(&live);
                let (endpoint, live) = (found, (live, found));
                Routed { upstream, path_and_query, live, service, endpoint, is_canary: false, effect }
            }
        })
    }

    /// The candidate and its endpoint, if the candidate decides for this request as a canary.
    fn canary(&self, upstream: usize, head: &Parts, path: &str) -> Option<(Arc<UpstreamRuntime>, usize)> {
        let candidate = self.shared.rollout.upstreams[upstream].candidate.as_ref()?;
        let name = [IDEMPOTENCY_KEY, REQUEST_ID].into_iter().find_map(|name| head.headers.get(name));
        let service = match name {
            Some(name) => candidate.as_canary(name.as_bytes()),
            None => candidate.as_canary(&self.shared.entropy.next().to_le_bytes()),
        }?;
        let endpoint = service.find(&head.method, path)?;
        Some((service, endpoint))
    }

    /// The upstream for a request, and the path to send to it: the most specific match of listener, host and prefix wins.
    pub(super) fn upstream_of(&self, head: &Parts, listener: Option<SocketAddr>) -> Result<(usize, String), Problem> {
        let path_and_query = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = LazyCell::new(|| host(head));
        let mut best: Option<(usize, (bool, bool, usize))> = None;
        for (index, upstream) in self.shared.rollout.upstreams.iter().enumerate() {
            let settings = &upstream.settings;
            let prefix = settings.path_prefix.as_deref().unwrap_or("");
            let matches = settings.listen.is_none_or(|own| Some(own) == listener)
                && settings.host.as_deref().is_none_or(|own| host.as_deref() == Some(own))
                && below(path_and_query, prefix).is_some();
            let exactness = (settings.listen.is_some(), settings.host.is_some(), prefix.len());
            if matches && best.is_none_or(|(_, other)| exactness > other) {
                best = Some((index, exactness));
            }
        }
        let (index, _) = best.ok_or(Problem::NoUpstream)?;
        let prefix = self.shared.rollout.upstreams[index].settings.path_prefix.as_deref().unwrap_or("");
        let rest = below(path_and_query, prefix).unwrap_or("/");
        let rooted = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        Ok((index, rooted))
    }
}

/// The path below a prefix; none if it is not below it. `/api` matches `/api`, `/api/x` and `/api?x`, not `/apis`.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
}

/// The host in the request, in lower case and without its port.
fn host(head: &Parts) -> Option<String> {
    let named = head.uri.authority().map(http::uri::Authority::as_str);
    let named = named.or_else(|| head.headers.get(HOST).and_then(|value| value.to_str().ok()))?;
    let authority: http::uri::Authority = named.parse().ok()?;
    Some(authority.host().to_ascii_lowercase())
}
