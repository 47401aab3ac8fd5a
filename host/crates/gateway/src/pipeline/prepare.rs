//! Prepares a received request: route, deadline, headers, body, key. The result is its [`RequestContext`].

use super::{
    CallerGone, RequestContext,
    request_context::{EqualRequests, RequestBody},
    request_head,
};
use crate::{
    error::Problem,
    host::Host,
    idempotency::{
        Fingerprint, Identity, Keyed, Likeness, Tenant, header_roles, key::IDEMPOTENCY_KEY,
        search_condition::IF_NONE_EXIST,
    },
    overload::{
        AdmissionRequest, MemoryReservation, Priority, Scarce,
        peers::{Connection, TooMany},
    },
    policy::contract::Effect,
    route,
    telemetry::{RequestRecorder, TraceContext},
    upstream::{self, Body, headers, redirect::Origin},
    upstream_runtime::{Endpoint, UpstreamRuntime},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::HOST, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use std::{cell::LazyCell, net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::timeout_at;

/// Names a request if it has no key: set by the caller or by a proxy before the host.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Host {
    #[allow(clippy::too_many_lines)] // A step for each part of a request.
    pub(super) async fn prepare(
        &self,
        mut head: Parts,
        body: Body,
        caller: &headers::Caller,
        listener: Option<SocketAddr>,
        connection: Option<&Connection>,
        recorder: &mut RequestRecorder,
    ) -> Result<Box<RequestContext>, Problem> {
        let started = recorder.began();
        let (index, path_and_query) = self.upstream_of(&head, listener)?;
        let live = self.shared.rollout.upstreams[index].current();
        let path = path_and_query.split('?').next().unwrap_or("/");
        if !route::is_plain(path) {
            return Err(Problem::PathNotPlain);
        }
        let found = live.find(&head.method, path).ok_or_else(|| Problem::NoEndpoint {
            upstream: live.settings.name.clone(),
            method: head.method.to_string(),
        })?;
        let (meters, label) = (&live.endpoints[found].meters, live.policy.label());
        recorder.found(meters, &head.method, label, live.generation);
        recorder.traced(TraceContext::take(&mut head.headers));
        // With a canary, the stricter of both policies decides the effect, and the live policy names the endpoint.
        let mut effect = live.endpoints[found].effect(&head.method);
        let serving = Arc::clone(&live);
        let (service, endpoint, stand_in) = match self.canary(index, &head, path) {
            Some((candidate, own)) => {
                effect = effect.max(candidate.endpoints[own].effect(&head.method));
                (candidate, own, Some((live, found)))
            }
            None => (live, found, None),
        };
        let deadline = started + allowed(&service, endpoint, &head.headers)?;
        head.headers.remove(&service.settings.deadline_header);
        // A safe request needs no key: repeating it is harmless.
        let key = match effect {
            Effect::Safe => None,
            _ => Keyed::parse(&head.headers).map_err(|error| Problem::Key { why: error.to_string() })?,
        };
        let own = &service.endpoints[endpoint];
        let priority = priority(&service, own, effect, &mut head.headers);
        let under_way = self.shared.peers.begin(connection, effect == Effect::Unsafe).map_err(too_many)?;
        let held = self.shared.memory.admit(priority).map_err(scarce)?;
        if held.is_limited() {
            held.more(head_bytes(&head)).map_err(scarce)?;
        }
        // A key may belong to a request under way, which must not be delayed.
        if key.is_none() && service.settings.sheds_overload && own.settings.concurrency.is_none() {
            let asking = AdmissionRequest {
                priority,
                endpoint: &own.described.name,
                attempt_timeout: own.settings.attempt_timeout,
            };
            self.shared.rollout.upstreams[index].overload.can_admit(&asking).map_err(|_| Problem::Overloaded {
                upstream: service.settings.name.clone(),
                priority: priority.name(),
            })?;
        }
        let idempotency = &service.settings.idempotency;
        let names_tenant = key.is_some() || (idempotency.record_status && effect == Effect::Unsafe);
        let tenant = names_tenant.then(|| Tenant::of(&head.headers, &idempotency.tenant_headers));
        head.headers.remove(crate::idempotency::key::MAYBE_SENT);
        // Before headers are removed or added.
        let has_place = key.is_none() && effect == Effect::Unsafe && idempotency.orphans.is_some();
        let distinguishing_headers = if has_place {
            // A caller that sends the upstream's own key identifies its request by it.
            let upstream_key = serving.endpoints[found].settings.upstream_key.as_ref().map(|own| &own.header);
            let is_own = |name: &HeaderName| idempotency.tenant_headers.contains(name) || upstream_key == Some(name);
            header_roles::distinguishing_headers(&head.headers, is_own)
        } else {
            Vec::new()
        };
        // An absolute form or HTTP/2's `:authority` overrides the Host field (RFC 9112 section 3.2.2).
        if let Some(named) = head.uri.authority().map(request_head::without_userinfo)
            && let Ok(named) = HeaderValue::from_str(named)
        {
            head.headers.insert(HOST, named);
        }
        let origin = Origin { scheme: caller.scheme(&head.headers), authority: head.headers.get(HOST).cloned() };
        headers::to_upstream(&mut head.headers, caller);
        let most = match key {
            Some(_) => idempotency.max_request_bytes,
            None => service.settings.max_buffered_request_bytes,
        };
        let body =
            timeout_at(deadline, buffered(body, most, &held)).await.map_err(|_| Problem::DeadlineBeforeSend)??;
        if key.is_some() && matches!(body, RequestBody::Stream(_)) {
            return Err(Problem::BodyTooLarge { limit_bytes: most });
        }
        let own = &service.endpoints[endpoint];
        let of = (&head, &*path_and_query, &body);
        let (fingerprint, equal) =
            equality(&serving, found, of, key.is_some(), own.commits_late(), effect == Effect::Unsafe);
        let digest = match &body {
            RequestBody::Buffered(bytes) if has_place => {
                let named = &serving.endpoints[found];
                let likeness = Likeness {
                    distinguishing_headers: &distinguishing_headers,
                    asking: &named.asking(&head.headers),
                    identity: Identity {
                        upstream: &serving.settings.name,
                        endpoint: &named.described.name,
                        method: &head.method,
                        path_and_query: &path_and_query,
                        body: bytes,
                    },
                    fingerprint,
                };
                Some(self.shared.records.digest(&likeness))
            }
            _ => None,
        };
        Ok(Box::new(RequestContext {
            shared: Arc::clone(&self.shared),
            upstream: index,
            stand_in,
            transport: self.transport(index),
            endpoint,
            effect,
            priority,
            method: head.method,
            path_and_query,
            origin,
            headers: head.headers,
            body,
            held: Some(held),
            under_way: Some(under_way),
            started,
            deadline,
            key,
            tenant,
            distinguishing_headers,
            fingerprint,
            upstream_key: None,
            equal,
            digest,
            handover: caller.handover(),
            // Only detached requests need this: a safe request is dropped with its caller.
            caller_gone: (effect != Effect::Safe).then(CallerGone::new),
            verifies: None,
            service,
        }))
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

/// The fingerprint for the request's record or lock, and the equal requests that must not run at the same time. With a canary, the live
/// policy decides which requests are equal, so that both groups use the same locks.
fn equality(
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

/// The caller's deadline, capped by the endpoint's.
fn allowed(service: &UpstreamRuntime, endpoint: usize, headers: &HeaderMap) -> Result<Duration, Problem> {
    let most = service.endpoints[endpoint].settings.deadline;
    let header = &service.settings.deadline_header;
    let Some(value) = headers.get(header) else { return Ok(most) };
    let malformed = || Problem::Deadline { header: header.to_string() };
    let text = value.to_str().map_err(|_| malformed())?.trim();
    match text.parse::<u64>() {
        Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms).min(most)),
        _ => Err(malformed()),
    }
}

fn too_many(TooMany { scope, limit, abandoned }: TooMany) -> Problem {
    let what = if abandoned { "writes whose callers disconnected" } else { "requests" };
    Problem::TooManyRequests { scope: scope.name(), limit, what }
}

fn scarce(Scarce { limit_bytes }: Scarce) -> Problem {
    Problem::MemoryScarce { limit_bytes }
}

/// The endpoint's priority, by default that of its effect. The caller may lower it, but not raise it.
fn priority(service: &UpstreamRuntime, endpoint: &Endpoint, effect: Effect, headers: &mut HeaderMap) -> Priority {
    let own = endpoint.settings.priority.unwrap_or(Priority::usual(effect));
    let asked = headers.remove(&service.settings.priority_header);
    let asked = asked.as_ref().and_then(|value| Priority::of(value.to_str().ok()?));
    asked.map_or(own, |asked| asked.min(own))
}

/// The bytes that a buffer of this capacity must add to hold `wanted` bytes: it grows by doubling.
fn grown(capacity: usize, wanted: usize) -> usize {
    if wanted <= capacity { 0 } else { wanted.max(capacity * 2) - capacity }
}

/// The bytes of a request's head. Its fields share the buffer that they were read into.
fn head_bytes(head: &Parts) -> usize {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    fields.sum::<usize>() + head.uri.path_and_query().map_or(0, |path| path.as_str().len())
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
