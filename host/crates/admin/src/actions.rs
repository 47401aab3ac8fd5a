//! Operators' actions. Each one is an audit event: a log line with the target `triage::audit`, and a recent event.

use super::{
    AdminState, dto,
    listen::Peer,
    read_handlers,
    response::{At, Json, Refusal, Sent, body},
    role::Role,
};
use crate::{
    admission::Group,
    breaker::Force,
    clock::millis,
    idempotency::{RecordId, Resolution, Resolved, Stored, StoredBody},
    policy::{Digest, contract::Class},
    rollout::fleet::CommandOutcome,
};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use bytes::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// How long a forced breaker stays forced by default: long enough to investigate, short enough to be forgotten safely.
const DEFAULT_FORCE_TIME: Duration = Duration::from_mins(10);
/// The longest time that an operator can force a breaker.
const MAX_FORCE_TIME: Duration = Duration::from_hours(24);
/// The longest response body that an operator can set for a record.
const MAX_RESPONSE_BYTES: usize = 32 << 10;

/// The caller of an action, for the audit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Actor {
    peer: std::net::SocketAddr,
    role: Role,
}

impl AdminState {
    pub(super) fn audit(&self, actor: Actor, action: &str, subject: &str, text: String) {
        let Actor { peer, role } = actor;
        tracing::info!(target: "triage::audit", %peer, role = role.name(), action, subject, "{text}");
        self.host.shared.events.note("action", subject, text);
    }
}

/// The body of an action with a time limit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expiry {
    #[serde(default, deserialize_with = "whole")]
    for_ms: Option<u64>,
}

impl Expiry {
    fn duration(&self) -> Result<Duration, Refusal> {
        lasting(self.for_ms)
    }
}

/// How long an operator's action lasts.
pub(super) fn lasting(for_ms: Option<u64>) -> Result<Duration, Refusal> {
    let Some(ms) = for_ms else { return Ok(DEFAULT_FORCE_TIME) };
    let wanted = Duration::from_millis(ms);
    if wanted.is_zero() || wanted > MAX_FORCE_TIME {
        let text = format!(
            "for_ms must be from 1 to {}; an operator's action ends by itself after that time",
            millis(MAX_FORCE_TIME)
        );
        return Err(Refusal::Malformed(text));
    }
    Ok(wanted)
}

/// Deserializes a whole number, also written as `1.0`: JSON does not distinguish the two.
pub(super) fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    const MAX_BODY_BYTES: f64 = 9e15;
    let Some(number) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
    if number.fract() != 0.0 || !(0.0..=MAX_BODY_BYTES).contains(&number) {
        return Err(serde::de::Error::custom(format!("{number} is not a number; send a whole number from 0")));
    }
    Ok(Some(number as u64))
}

pub(super) type Acted<T> = Result<Json<T>, Refusal>;

/// Forces the breaker `open` or `close`, or resets it.
pub(super) async fn force(
    State(state): State<AdminState>,
    actor: Acting,
    At((upstream, endpoint, verb)): At<(String, String, String)>,
    Sent(bytes): Sent,
) -> Acted<dto::Breaker> {
    let force = match verb.as_str() {
        "open" => Force::Open(body::<Expiry>(&bytes)?.duration()?),
        "close" => Force::Close(body::<Expiry>(&bytes)?.duration()?),
        "reset" => Force::Reset,
        _ => return Err(Refusal::NoPath),
    };
    set(&state, actor.0, &upstream, &endpoint, force).await
}

/// Ends a forced `open` or `close`.
pub(super) async fn undo(
    State(state): State<AdminState>,
    actor: Acting,
    At((upstream, endpoint)): At<(String, String)>,
) -> Acted<dto::Breaker> {
    set(&state, actor.0, &upstream, &endpoint, Force::Clear).await
}

async fn set(state: &AdminState, actor: Actor, upstream: &str, endpoint: &str, force: Force) -> Acted<dto::Breaker> {
    let before = read_handlers::one_breaker(state, upstream, endpoint)?;
    let group = group(state, upstream, endpoint);
    let (action, text) = match force {
        Force::Open(time) => ("breaker-open", format!("an operator forces the breaker open for {} ms", millis(time))),
        Force::Close(time) => {
            ("breaker-close", format!("an operator forces the breaker closed for {} ms", millis(time)))
        }
        Force::Reset => ("breaker-reset", "an operator resets the breaker".to_owned()),
        Force::Clear if !before.forced => {
            return Err(Refusal::NotNow("no operator has forced this breaker; there is nothing to clear".to_owned()));
        }
        Force::Clear => {
            ("breaker-undo", "an operator clears the forced state; the breaker decides by itself again".to_owned())
        }
    };
    let done = match group {
        Some(group) => group.force(force).await.map_err(|error| Refusal::NotNow(error.to_string()))?,
        None => false,
    };
    if !done {
        return Err(Refusal::NotNow("this endpoint has no breaker; set breaker.enabled = true".to_owned()));
    }
    state.audit(actor, action, &format!("{upstream}/{}", before.group), text);
    read_handlers::one_breaker(state, upstream, endpoint).map(Json)
}

fn group(state: &AdminState, upstream: &str, endpoint: &str) -> Option<Group> {
    let service = dto::serving(&state.host, upstream)?.current();
    service.endpoints.iter().find(|own| own.described.name == endpoint).map(|own| own.group.clone())
}

/// Ends the pause that a policy or an upstream has requested.
pub(super) async fn lift_pause(
    State(state): State<AdminState>,
    actor: Acting,
    At((upstream, endpoint)): At<(String, String)>,
) -> Acted<dto::Limits> {
    let before = read_handlers::one_limits(&state, &upstream, &endpoint)?;
    let done = match group(&state, &upstream, &endpoint) {
        Some(group) => group.lift_pause().await.map_err(|error| Refusal::NotNow(error.to_string()))?,
        None => false,
    };
    if !done {
        return Err(Refusal::NotNow("the group of this endpoint is not paused; there is nothing to lift".to_owned()));
    }
    let left = before.paused_ms.map(|left| format!(", {left} ms before its end")).unwrap_or_default();
    let subject = format!("{upstream}/{}", before.group);
    state.audit(actor.0, "pause-lift", &subject, format!("an operator lifts the pause{left}"));
    read_handlers::one_limits(&state, &upstream, &endpoint).map(Json)
}

/// The body of an action on a policy, with an optional digest.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    digest: Option<String>,
}

impl Named {
    /// Parses the digest, with or without the prefix `sha256:` that `triage policy push` prints.
    fn digest(&self) -> Result<Option<Digest>, Refusal> {
        let Some(text) = &self.digest else { return Ok(None) };
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let malformed = || Refusal::Malformed("digest must be sha256: and 64 hexadecimal digits".to_owned());
        digits.parse().map(Some).map_err(|_| malformed())
    }
}

/// Handles `announce`, `rollback` and `promote`.
pub(super) async fn policy(
    State(state): State<AdminState>,
    actor: Acting,
    At((upstream, verb)): At<(String, String)>,
    Sent(bytes): Sent,
) -> Acted<dto::Policy> {
    if !matches!(verb.as_str(), "announce" | "rollback" | "promote") {
        return Err(Refusal::NoPath);
    }
    let serving = dto::serving(&state.host, &upstream)
        .ok_or(Refusal::None { what: "such upstream", list: "/api/v1/policies" })?;
    let named = body::<Named>(&bytes)?.digest()?;
    let following = serving.following.as_ref();
    let not_now = |why: &dyn std::fmt::Display| Refusal::NotNow(why.to_string());
    let (action, text) = match (verb.as_str(), named, following) {
        ("announce", None, _) => {
            return Err(Refusal::Malformed("digest must name the announced component".to_owned()));
        }
        ("announce" | "promote", Some(_), None) => {
            let text = "this upstream does not follow its fleet; set upstreams.NAME.follow_fleet = true, or copy the \
                        component into the folder";
            return Err(Refusal::NotNow(text.to_owned()));
        }
        ("announce" | "promote", Some(digest), Some(following)) => {
            let promoted = verb == "promote";
            let note = fleets(&state, actor.0, &verb, &upstream, Some(digest));
            let done = following.announce(&state.host.shared.rollout, digest, promoted, note).await;
            done.map_err(|why| not_now(&why))?;
            return Ok(Json(dto::policy(serving)));
        }
        ("rollback", named, Some(following)) if following.has_fleet_policy() => {
            let note = fleets(&state, actor.0, &verb, &upstream, None);
            following.roll_back(&state.host.shared.rollout, named, note).await.map_err(|why| not_now(&why))?;
            return Ok(Json(dto::policy(serving)));
        }
        ("rollback", Some(named), _) if !serves(&serving.current(), named) => {
            let text = format!(
                "sha256:{named} does not serve; run `triage policy list` to see the component that \
                                serves"
            );
            return Err(Refusal::NotNow(text));
        }
        ("rollback", ..) => {
            serving.withdraw().map_err(|why| not_now(&why))?;
            ("policy-rollback".to_owned(), "an operator rolls the policy back".to_owned())
        }
        _ => {
            serving.promote().map_err(|why| not_now(&why))?;
            ("policy-promote".to_owned(), "an operator ends the policy's probation".to_owned())
        }
    };
    state.audit(actor.0, &action, &upstream, text);
    Ok(Json(dto::policy(serving)))
}

/// Whether the digest is that of the generation's component or of its manifest.
fn serves(service: &crate::upstream_runtime::UpstreamRuntime, named: Digest) -> bool {
    [service.artifact, service.policy.digest()].contains(&Some(named))
}

/// Audits a command to the fleet as soon as it is done, even if the caller has disconnected by then.
fn fleets(
    state: &AdminState,
    actor: Actor,
    verb: &str,
    upstream: &str,
    digest: Option<Digest>,
) -> impl FnOnce(CommandOutcome) + Send + 'static {
    let (state, verb, upstream) = (state.clone(), verb.to_owned(), upstream.to_owned());
    move |said| {
        let how = if verb == "promote" { ", although it was rolled back before" } else { "" };
        let announces = digest.map(|digest| format!("an operator announces sha256:{digest} to the fleet{how}"));
        let asked = announces.unwrap_or_else(|| "an operator rolls the policy of the whole fleet back".to_owned());
        let text = match (said, digest) {
            (CommandOutcome::Announced | CommandOutcome::RolledBack, _) => asked,
            (CommandOutcome::Aborted, _) => {
                "an operator withdraws the component that was announced to the fleet".to_owned()
            }
            (CommandOutcome::Pardoned, digest) => {
                let digest = digest.map(|digest| format!("sha256:{digest}")).unwrap_or_default();
                format!("an operator makes this host load the fleet's {digest} again")
            }
            (CommandOutcome::Unsure, _) => format!("{asked}; shared state did not confirm it"),
        };
        state.audit(actor, &format!("policy-{verb}"), &upstream, text);
    }
}

/// The response that repetitions of a settled request get.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    #[serde(default, deserialize_with = "whole")]
    status: Option<u64>,
    content_type: Option<String>,
    body: Option<String>,
}

/// Handles `applied` and `not-applied`: an operator settles a write of unknown effect.
pub(super) async fn settle(
    State(state): State<AdminState>,
    actor: Acting,
    At((id, verb)): At<(String, String)>,
    Sent(bytes): Sent,
) -> Acted<serde_json::Value> {
    let id: RecordId = id
        .parse()
        .map_err(|error: crate::idempotency::fingerprint::NotARecordId| Refusal::Malformed(error.to_string()))?;
    let (resolution, text) = match verb.as_str() {
        "applied" => (Resolution::Applied(answer(body(&bytes)?)?), "an operator states that the write took effect"),
        "not-applied" => (Resolution::NotApplied, "an operator states that the write did not take effect"),
        _ => return Err(Refusal::NoPath),
    };
    match state.host.shared.records.resolve(id, resolution).await {
        Ok(Resolved::Done) => {
            state.audit(actor.0, &format!("record-{verb}"), &id.to_string(), text.to_owned());
            Ok(Json(serde_json::json!({ "id": id.to_string(), "settled": verb })))
        }
        Ok(Resolved::NotUnsettled) => Err(Refusal::NotNow(
            "no unsettled record has this id, or a request is settling it; /api/v1/records lists the unsettled records"
                .to_owned(),
        )),
        Err(_) => Err(Refusal::Store),
    }
}

fn answer(given: Given) -> Result<Stored, Refusal> {
    let malformed = |text: &str| Refusal::Malformed(text.to_owned());
    let status = u16::try_from(given.status.unwrap_or(200)).unwrap_or(0);
    let status = StatusCode::from_u16(status).ok().filter(StatusCode::is_success);
    let status = status.ok_or_else(|| malformed("status must be from 200 to 299, because the write took effect"))?;
    let text = given.body.unwrap_or_else(|| {
        serde_json::json!({ "title": "settled by an operator", "detail": "the request took effect; its answer was lost" })
            .to_string()
    });
    if text.len() > MAX_RESPONSE_BYTES {
        return Err(Refusal::TooLarge);
    }
    let kind = given.content_type.unwrap_or_else(|| "application/json".to_owned());
    let kind = HeaderValue::from_str(&kind).map_err(|_| malformed("content_type must be a valid header value"))?;
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    let body = Bytes::from(text);
    let class = Class::Applied.name();
    Ok(Stored::Answer(StoredBody { status, headers, body, class, policy: "operator".into() }))
}

/// The actor, which the authentication layer adds to the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acting(pub(super) Actor);

impl<S: Sync> axum::extract::FromRequestParts<S> for Acting {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Refusal> {
        let Peer(peer) = *parts.extensions.get::<Peer>().ok_or(Refusal::NoToken)?;
        let role = *parts.extensions.get::<Role>().ok_or(Refusal::NoToken)?;
        Ok(Self(Actor { peer, role }))
    }
}
