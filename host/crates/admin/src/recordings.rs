//! Recordings of policy decisions: operators start, fetch and stop them.

use super::{
    AdminState,
    actions::{Acted, Acting, lasting},
    dto::{
        self,
        input::{Recording, UpstreamPath},
    },
    response::{At, Json, Problem, Refusal, Sent, body},
};
use crate::{
    decision_log::{Recorder, RecordingStatus},
    rollout::UpstreamPolicy,
    rounded::Rounded,
};
use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The state of an upstream's recording.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Trace {
    upstream: String,
    /// Whether a recording is running.
    recording: bool,
    /// Whether it has contents.
    contents: bool,
    /// Decisions recorded since the start.
    decisions: u64,
    /// Decisions that were dropped because the buffer was full.
    dropped: u64,
    /// Bytes that were not fetched yet.
    bytes: usize,
    /// Time until the recording ends; null if no recording is running.
    remaining_ms: Option<u64>,
}

fn recorder<'a>(state: &'a AdminState, upstream: &str) -> Result<&'a Recorder, Refusal> {
    let serving = dto::serving(&state.host, upstream);
    serving.map(|own| &own.recorder).ok_or(Refusal::None { what: "such upstream", list: "/api/v1/traces" })
}

fn shape(state: &AdminState, upstream: &str, recorder: &Recorder) -> Trace {
    let status = recorder.view(state.host.shared.clock.now());
    let RecordingStatus { recording, contents, decisions, dropped, bytes, remaining_ms } = status;
    Trace { upstream: upstream.to_owned(), recording, contents, decisions, dropped, bytes, remaining_ms }
}

fn with(contents: bool) -> &'static str {
    if contents { "with contents" } else { "without contents" }
}

/// The state of every upstream's recording.
#[utoipa::path(
    get,
    path = "/api/v1/traces",
    operation_id = "traces",
    responses(
        (status = 200, description = "Every upstream's recording.", body = Vec<Trace>),
    ),
)]
pub(super) async fn list(State(state): State<AdminState>) -> Json<Vec<Trace>> {
    let one = |serving: &UpstreamPolicy| shape(&state, &serving.settings.name, &serving.recorder);
    Json(state.host.shared.rollout.upstreams.iter().map(|serving| one(serving)).collect())
}

/// The state of one upstream's recording.
#[utoipa::path(
    get,
    path = "/api/v1/traces/{upstream}",
    operation_id = "trace",
    params(UpstreamPath),
    responses(
        (status = 200, description = "The upstream's recording.", body = Trace),
        (status = 404, response = Problem),
    ),
)]
pub(super) async fn one(
    State(state): State<AdminState>,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
) -> Acted<Trace> {
    Ok(Json(shape(&state, &upstream, recorder(&state, &upstream)?)))
}

/// Records an upstream's decisions.
#[utoipa::path(
    post,
    path = "/api/v1/traces/{upstream}/start",
    operation_id = "startTrace",
    params(UpstreamPath),
    request_body = Recording,
    responses(
        (status = 200, description = "The upstream's recording.", body = Trace),
        (status = 400, response = Problem),
        (status = 404, response = Problem),
        (status = 409, response = Problem),
        (status = 413, response = Problem),
    ),
)]
pub(super) async fn start(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
    Sent(bytes): Sent,
) -> Acted<Trace> {
    let own = recorder(&state, &upstream)?;
    let Recording { contents, for_ms } = body(&bytes)?;
    let time = lasting(for_ms)?;
    let now = state.host.shared.clock.now();
    own.start(contents, time, now).map_err(|already| Refusal::NotNow(already.to_string()))?;
    let text = format!("an operator records decisions {} for {}", with(contents), Rounded(time));
    state.audit(actor.0, "trace-start", &upstream, text);
    Ok(Json(shape(&state, &upstream, own)))
}

/// The decisions since the last fetch; the host then deletes them.
#[utoipa::path(
    post,
    path = "/api/v1/traces/{upstream}/take",
    operation_id = "takeTrace",
    params(UpstreamPath),
    responses(
        (
            status = 200,
            description = "Lines of JSON: heads, decisions, and the number of dropped decisions.",
            body = String,
            content_type = "application/jsonl",
        ),
        (status = 404, response = Problem),
    ),
)]
pub(super) async fn take(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
) -> Result<Response, Refusal> {
    let own = recorder(&state, &upstream)?;
    let now = state.host.shared.clock.now();
    let contents = own.view(now).contents;
    let (lines, first) = own.take(now);
    // A recording client fetches several times a second, so only the first time is audited.
    if first {
        state.audit(actor.0, "trace-take", &upstream, format!("an operator fetches decisions {}", with(contents)));
    }
    let mut response = lines.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Ends the recording. The host keeps decisions that were not fetched for ten minutes.
#[utoipa::path(
    post,
    path = "/api/v1/traces/{upstream}/stop",
    operation_id = "stopTrace",
    params(UpstreamPath),
    responses(
        (status = 200, description = "The upstream's recording.", body = Trace),
        (status = 404, response = Problem),
    ),
)]
pub(super) async fn stop(
    State(state): State<AdminState>,
    actor: Acting,
    At(UpstreamPath { upstream }): At<UpstreamPath>,
) -> Acted<Trace> {
    let own = recorder(&state, &upstream)?;
    let now = state.host.shared.clock.now();
    let was_recording = own.view(now).recording;
    let RecordingStatus { decisions, dropped, .. } = own.stop(now);
    if was_recording {
        let text = format!("an operator ends the recording: {decisions} decisions, {dropped} dropped");
        state.audit(actor.0, "trace-stop", &upstream, text);
    }
    Ok(Json(shape(&state, &upstream, own)))
}
