//! Prepares a received request: route, deadline, headers, body, key. The result is its [`RequestContext`].

use super::{
    CallerGone, RequestContext,
    equality::{distinguishing_headers, equality},
    request_body,
    request_context::RequestBody,
    request_head,
    routing::Routed,
};
use crate::{
    error::Problem,
    host::Host,
    idempotency::{Keyed, Tenant},
    overload::{
        AdmissionRequest, Priority, Scarce,
        peers::{Connection, TooMany},
    },
    policy::contract::Effect,
    telemetry::RequestRecorder,
    upstream::{Body, headers, redirect::Origin},
    upstream_runtime::{Endpoint, UpstreamRuntime},
};
use http::{HeaderMap, HeaderValue, header::HOST, request::Parts};
use std::{net::SocketAddr, sync::Arc, time::Duration};

impl Host {
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
        let routed = self.route(&mut head, listener, recorder)?;
        let settings = &routed.service.settings;
        let deadline = started + allowed(&routed.service, routed.endpoint, &head.headers)?;
        head.headers.remove(&settings.deadline_header);
        // A safe request needs no key: repeating it is harmless.
        let key = match routed.effect {
            Effect::Safe => None,
            _ => Keyed::parse(&head.headers).map_err(|error| Problem::Key { why: error.to_string() })?,
        };
        let priority = priority(&routed.service, routed.endpoint(), routed.effect, &mut head.headers);
        let under_way = self.shared.peers.begin(connection, routed.effect == Effect::Unsafe).map_err(too_many)?;
        let held = self.shared.memory.admit(priority).map_err(scarce)?;
        if held.is_limited() {
            held.more(head_bytes(&head)).map_err(scarce)?;
        }
        // A key may belong to a request under way, which must not be delayed.
        if key.is_none() {
            self.shed_overload(&routed, priority)?;
        }
        let is_unsafe = routed.effect == Effect::Unsafe;
        let names_tenant = key.is_some() || (settings.idempotency.record_status && is_unsafe);
        let tenant = names_tenant.then(|| Tenant::of(&head.headers, &settings.idempotency.tenant_headers));
        head.headers.remove(crate::idempotency::key::MAYBE_SENT);
        // Before headers are removed or added.
        let may_be_orphan = key.is_none() && is_unsafe && settings.idempotency.orphans.is_some();
        let distinguishing_headers =
            if may_be_orphan { distinguishing_headers(&routed, &head.headers) } else { Vec::new() };
        // An absolute form or HTTP/2's `:authority` overrides the Host field (RFC 9112 section 3.2.2).
        if let Some(named) = head.uri.authority().map(request_head::without_userinfo)
            && let Ok(named) = HeaderValue::from_str(named)
        {
            head.headers.insert(HOST, named);
        }
        let origin = Origin { scheme: caller.scheme(&head.headers), authority: head.headers.get(HOST).cloned() };
        headers::to_upstream(&mut head.headers, caller);
        let body = request_body::read(body, key.is_some(), settings, &held, deadline, recorder).await?;
        let commits_late = routed.endpoint().commits_late();
        let of = (&head, &*routed.path_and_query, &body);
        let (fingerprint, equal) = equality(&routed.live.0, routed.live.1, of, key.is_some(), commits_late, is_unsafe);
        let digest = match &body {
            RequestBody::Buffered(bytes) if may_be_orphan => {
                Some(self.digest(&routed, &head, bytes, &distinguishing_headers, fingerprint))
            }
            _ => None,
        };
        Ok(Box::new(RequestContext {
            shared: Arc::clone(&self.shared),
            upstream: routed.upstream,
            transport: self.transport(routed.upstream),
            endpoint: routed.endpoint,
            effect: routed.effect,
            priority,
            method: head.method,
            path_and_query: routed.path_and_query,
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
            caller_gone: (routed.effect != Effect::Safe).then(CallerGone::new),
            verifies: None,
            stand_in: routed.is_canary.then_some(routed.live),
            service: routed.service,
        }))
    }

    /// Refuses a request that the upstream's adaptive limit would not admit in time.
    fn shed_overload(&self, routed: &Routed, priority: Priority) -> Result<(), Problem> {
        let (settings, endpoint) = (&routed.service.settings, routed.endpoint());
        if !settings.sheds_overload || endpoint.settings.concurrency.is_some() {
            return Ok(());
        }
        let asking = AdmissionRequest {
            priority,
            endpoint: &endpoint.described.name,
            attempt_timeout: endpoint.settings.attempt_timeout,
        };
        self.shared.rollout.upstreams[routed.upstream]
            .overload
            .can_admit(&asking)
            .map_err(|_| Problem::Overloaded { upstream: settings.name.clone(), priority: priority.name() })
    }
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

pub(super) fn scarce(Scarce { limit_bytes }: Scarce) -> Problem {
    Problem::MemoryScarce { limit_bytes }
}

/// The endpoint's priority, by default that of its effect. The caller may lower it, but not raise it.
fn priority(service: &UpstreamRuntime, endpoint: &Endpoint, effect: Effect, headers: &mut HeaderMap) -> Priority {
    let own = endpoint.settings.priority.unwrap_or(Priority::usual(effect));
    let asked = headers.remove(&service.settings.priority_header);
    let asked = asked.as_ref().and_then(|value| Priority::of(value.to_str().ok()?));
    asked.map_or(own, |asked| asked.min(own))
}

/// The bytes of a request's head. Its fields share the buffer that they were read into.
fn head_bytes(head: &Parts) -> usize {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    fields.sum::<usize>() + head.uri.path_and_query().map_or(0, |path| path.as_str().len())
}
