//! Actions on an upstream's policy.

use super::{Acted, Acting, Actor};
use crate::{
    AdminState,
    dto::{
        self,
        input::{Announced, Component, UpstreamPath},
    },
    policy::Digest,
    read_handlers::one_policy,
    response::{At, Json, Problem, Refusal, Sent, body},
    rollout::{UpstreamPolicy, fleet::CommandOutcome},
};
use axum::extract::State;
use std::fmt;

/// Announces a component of the upstream's repository to the fleet.
///
/// First, this host pulls, verifies and compiles the component. Then all hosts stage it, and switch together.
#[utoipa::path(
    post,
    path = "/api/v1/policies/{upstream}/announce",
    operation_id = "announcePolicy",
    params(UpstreamPath),
    request_body = Announced,
    responses(
        (status = 200, description = "The upstream's policy.", body = dto::Policy),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(crate) async fn announce(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Policy> {
    let serving = one_policy(&state, &upstream)?;
    let Some(digest) = digest(body::<Announced>(&bytes)?.digest)? else {
        return Err(Refusal::Malformed("digest must name the announced component".to_owned()));
    };
    to_fleet(&state, actor.0, serving, digest, false).await
}

/// Ends the probation of the present generation.
///
/// With a digest: announces a component to the fleet, even if it was rolled back before. If the component already serves the fleet and
/// this host has refused it, this host loads it again.
#[utoipa::path(
    post,
    path = "/api/v1/policies/{upstream}/promote",
    operation_id = "promotePolicy",
    params(UpstreamPath),
    request_body = Component,
    responses(
        (status = 200, description = "The upstream's policy.", body = dto::Policy),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(crate) async fn promote(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Policy> {
    let serving = one_policy(&state, &upstream)?;
    if let Some(digest) = digest(body::<Component>(&bytes)?.digest)? {
        return to_fleet(&state, actor.0, serving, digest, true).await;
    }
    serving.promote().map_err(not_now)?;
    state.audit(actor.0, "policy-promote", &upstream, "an operator ends the policy's probation".to_owned());
    Ok(Json(dto::policy(serving)))
}

/// Rolls back to the last good generation and quarantines the present one.
///
/// If the upstream follows its fleet, the whole fleet rolls back. While a component is announced, the announcement is withdrawn instead and
/// the present generation stays. With a digest: only if that component serves.
#[utoipa::path(
    post,
    path = "/api/v1/policies/{upstream}/rollback",
    operation_id = "rollBackPolicy",
    params(UpstreamPath),
    request_body = Component,
    responses(
        (status = 200, description = "The upstream's policy.", body = dto::Policy),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(crate) async fn roll_back(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Policy> {
    let serving = one_policy(&state, &upstream)?;
    let named = digest(body::<Component>(&bytes)?.digest)?;
    if let Some(following) = serving.following.as_ref().filter(|following| following.has_fleet_policy()) {
        let note = audit_command(&state, actor.0, "rollback", &upstream, None);
        following.roll_back(&state.host.shared.rollout, named, note).await.map_err(not_now)?;
        return Ok(Json(dto::policy(serving)));
    }
    if let Some(named) = named.filter(|named| !serves(&serving.current(), *named)) {
        let text = format!("sha256:{named} does not serve; run `triage policy list` to see the component that serves");
        return Err(Refusal::NotNow(text));
    }
    serving.withdraw().map_err(not_now)?;
    state.audit(actor.0, "policy-rollback", &upstream, "an operator rolls the policy back".to_owned());
    Ok(Json(dto::policy(serving)))
}

fn not_now(why: impl fmt::Display) -> Refusal {
    Refusal::NotNow(why.to_string())
}

/// Parses a digest, with or without the prefix `sha256:` that `triage policy push` prints.
fn digest(text: Option<String>) -> Result<Option<Digest>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.strip_prefix("sha256:").unwrap_or(&text);
    let malformed = || Refusal::Malformed("digest must be sha256: and 64 hexadecimal digits".to_owned());
    digits.parse().map(Some).map_err(|_| malformed())
}

/// Announces a component to the fleet; a promoted one even if it was rolled back before.
async fn to_fleet(
    state: &AdminState,
    actor: Actor,
    serving: &UpstreamPolicy,
    digest: Digest,
    promoted: bool,
) -> Acted<dto::Policy> {
    let Some(following) = serving.following.as_ref() else {
        let text = "this upstream does not follow its fleet; set upstreams.NAME.follow_fleet = true, or copy the \
                    component into the folder";
        return Err(Refusal::NotNow(text.to_owned()));
    };
    let verb = if promoted { "promote" } else { "announce" };
    let note = audit_command(state, actor, verb, &serving.settings.name, Some(digest));
    following.announce(&state.host.shared.rollout, digest, promoted, note).await.map_err(not_now)?;
    Ok(Json(dto::policy(serving)))
}

/// Whether the digest is that of the generation's component or of its manifest.
fn serves(service: &crate::upstream_runtime::UpstreamRuntime, named: Digest) -> bool {
    [service.artifact, service.policy.digest()].contains(&Some(named))
}

/// Audits a command to the fleet as soon as it is done, even if the caller has disconnected by then.
fn audit_command(
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
