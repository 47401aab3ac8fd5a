//! Operators settle writes of unknown effect.

use super::{Acted, Acting, Actor};
use crate::{
    AdminState,
    dto::{
        self,
        input::{Answer, RecordPath},
    },
    idempotency::{RecordId, Resolution, Resolved, Stored, StoredBody, fingerprint::NotARecordId},
    policy::contract::Class,
    response::{At, Json, Problem, Refusal, Sent, body},
};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use bytes::Bytes;

/// The longest response body that an operator can set for a record.
const MAX_RESPONSE_BYTES: usize = 32 << 10;

/// Settles the write as applied.
#[utoipa::path(
    post,
    path = "/api/v1/records/{id}/applied",
    operation_id = "recordApplied",
    params(RecordPath),
    request_body = Answer,
    responses(
        (status = 200, description = "The record is settled.", body = dto::Settled),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
        (status = 503, response = Problem),
    ),
)]
pub(crate) async fn applied(
    State(state): State<AdminState>,
    actor: Acting,
    At(RecordPath { id }): At<RecordPath>,
    Sent(bytes): Sent,
) -> Acted<dto::Settled> {
    let id = parsed(&id)?;
    let stored = answer(body(&bytes)?)?;
    settle(&state, actor.0, id, Resolution::Applied(stored), "applied", "an operator states that the write took effect")
        .await
}

/// Settles the write as not applied: the host sends the next request with its key.
#[utoipa::path(
    post,
    path = "/api/v1/records/{id}/not-applied",
    operation_id = "recordNotApplied",
    params(RecordPath),
    responses(
        (status = 200, description = "The record is settled.", body = dto::Settled),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 503, response = Problem),
    ),
)]
pub(crate) async fn not_applied(
    State(state): State<AdminState>,
    actor: Acting,
    At(RecordPath { id }): At<RecordPath>,
) -> Acted<dto::Settled> {
    let text = "an operator states that the write did not take effect";
    settle(&state, actor.0, parsed(&id)?, Resolution::NotApplied, "not-applied", text).await
}

fn parsed(id: &str) -> Result<RecordId, Refusal> {
    id.parse().map_err(|error: NotARecordId| Refusal::Malformed(error.to_string()))
}

async fn settle(
    state: &AdminState,
    actor: Actor,
    id: RecordId,
    resolution: Resolution,
    settled: &'static str,
    text: &str,
) -> Acted<dto::Settled> {
    match state.host.shared.records.resolve(id, resolution).await {
        Ok(Resolved::Done) => {
            state.audit(actor, &format!("record-{settled}"), &id.to_string(), text.to_owned());
            Ok(Json(dto::Settled { id: id.to_string(), settled }))
        }
        Ok(Resolved::NotUnsettled) => Err(Refusal::NotNow(
            "no unsettled record has this id, or a request is settling it; /api/v1/records lists the unsettled records"
                .to_owned(),
        )),
        Err(_) => Err(Refusal::Store),
    }
}

fn answer(given: Answer) -> Result<Stored, Refusal> {
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
