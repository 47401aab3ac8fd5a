//! Reads of unsettled records: writes with unknown effect.

use crate::{
    AdminState,
    dto::{self, input::RecordPath},
    idempotency::{RecordId, fingerprint::NotARecordId},
    response::{At, Json, Problem, Refusal},
};
use axum::{
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse as _, Response},
};
use utoipa::ToSchema;

/// Maximum unsettled records in one response.
pub(crate) const MAX_RECORDS: usize = 1000;
/// Maximum unsettled records to count for the total. The store is queried for each one.
const MAX_COUNTED_RECORDS: usize = 10_000;
/// The header for the total number of entries, since the list may hold only the first ones.
const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

/// A number of records, up to the most that are counted.
#[derive(ToSchema)]
#[schema(minimum = 0, maximum = 10_000)]
#[expect(dead_code, reason = "only describes the header")]
struct TotalCount(u32);

/// Writes whose effect is unknown, the next to expire first.
#[utoipa::path(
    get,
    path = "/api/v1/records",
    operation_id = "records",
    responses(
        (
            status = 200,
            description = "The writes, at most 1000.",
            body = Vec<dto::Record>,
            headers(
                ("x-total-count" = inline(TotalCount), description = "The number of writes; 10000 means 10000 or more."),
            ),
        ),
        (status = 503, response = Problem),
    ),
)]
pub(crate) async fn records(State(state): State<AdminState>) -> Result<Response, Refusal> {
    let unsettled = state.host.shared.records.unsettled(MAX_COUNTED_RECORDS).await.map_err(|_| Refusal::Store)?;
    let total = HeaderValue::from(unsettled.len());
    let first: Vec<_> = unsettled.into_iter().take(MAX_RECORDS).map(dto::record).collect();
    Ok(([(TOTAL_COUNT, total)], Json(first)).into_response())
}

/// One write whose effect is unknown.
#[utoipa::path(
    get,
    path = "/api/v1/records/{id}",
    operation_id = "record",
    params(RecordPath),
    responses(
        (status = 200, description = "The record.", body = dto::Record),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 503, response = Problem),
    ),
)]
pub(crate) async fn record(
    State(state): State<AdminState>,
    At(RecordPath { id }): At<RecordPath>,
) -> Result<Json<dto::Record>, Refusal> {
    let id: RecordId = id.parse().map_err(|error: NotARecordId| Refusal::Malformed(error.to_string()))?;
    let found = state.host.shared.records.unsettled_one(id).await.map_err(|_| Refusal::Store)?;
    let none =
        Refusal::None { what: "unsettled record with this id, or a request is settling it", list: "/api/v1/records" };
    found.map(|own| Json(dto::record(own))).ok_or(none)
}
