//! Operators' actions. Each one is an audit event: a log line with the target `triage::audit`, and a recent event.

pub(super) mod breakers;
pub(super) mod policies;
pub(super) mod records;

use super::{
    AdminState,
    listen::Peer,
    response::{Json, Refusal},
    role::Role,
};
use crate::clock::millis;
use std::time::Duration;

/// How long a forced breaker stays forced by default: long enough to investigate, short enough to be forgotten safely.
const DEFAULT_FORCE_TIME: Duration = Duration::from_mins(10);
/// The longest time that an operator can force a breaker.
const MAX_FORCE_TIME: Duration = Duration::from_hours(24);
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

pub(super) type Acted<T> = Result<Json<T>, Refusal>;

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
