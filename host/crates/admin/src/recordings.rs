//! Recordings of policy decisions: operators start, fetch and stop them.

use super::{
    AdminState,
    actions::{Acting, lasting, whole},
    dto,
    response::{At, Json, Refusal, Sent, body},
};
use crate::{
    clock::millis,
    decision_log::{Recorder, RecordingStatus},
    rollout::UpstreamPolicy,
};
use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

/// The state of an upstream's recording.
#[derive(Debug, Serialize)]
pub(super) struct Trace {
    upstream: String,
    #[serde(flatten)]
    view: RecordingStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    contents: bool,
    #[serde(default, deserialize_with = "whole")]
    for_ms: Option<u64>,
}

fn recorder<'a>(state: &'a AdminState, upstream: &str) -> Result<&'a Recorder, Refusal> {
    let serving = dto::serving(&state.host, upstream);
    serving.map(|own| &own.recorder).ok_or(Refusal::None { what: "such upstream", list: "/api/v1/traces" })
}

fn shape(state: &AdminState, upstream: &str, recorder: &Recorder) -> Trace {
    Trace { upstream: upstream.to_owned(), view: recorder.view(state.host.shared.clock.now()) }
}

/// The state of every upstream's recording.
pub(super) async fn list(State(state): State<AdminState>) -> Json<Vec<Trace>> {
    let one = |serving: &UpstreamPolicy| shape(&state, &serving.settings.name, &serving.recorder);
    Json(state.host.shared.rollout.upstreams.iter().map(|serving| one(serving)).collect())
}

/// The state of one upstream's recording.
pub(super) async fn one(State(state): State<AdminState>, At(upstream): At<String>) -> Result<Json<Trace>, Refusal> {
    Ok(Json(shape(&state, &upstream, recorder(&state, &upstream)?)))
}

/// Handles `start`, `take` and `stop`.
pub(super) async fn act(
    State(state): State<AdminState>,
    actor: Acting,
    At((upstream, verb)): At<(String, String)>,
    Sent(bytes): Sent,
) -> Result<Response, Refusal> {
    let own = recorder(&state, &upstream)?;
    let now = state.host.shared.clock.now();
    let with = |contents| if contents { "with contents" } else { "without contents" };
    let (action, text) = match verb.as_str() {
        "start" => {
            let Wanted { contents, for_ms } = body(&bytes)?;
            let time = lasting(for_ms)?;
            own.start(contents, time, now).map_err(|already| Refusal::NotNow(already.to_string()))?;
            ("trace-start", format!("an operator records decisions {} for {} ms", with(contents), millis(time)))
        }
        "stop" => {
            let was = own.view(now).recording;
            let RecordingStatus { decisions, dropped, .. } = own.stop(now);
            if !was {
                return Ok(Json(shape(&state, &upstream, own)).into_response());
            }
            ("trace-stop", format!("an operator ends the recording: {decisions} decisions, {dropped} dropped"))
        }
        "take" => {
            let contents = own.view(now).contents;
            let (lines, first) = own.take(now);
            // A recording client fetches several times a second, so only the first time is audited.
            if first {
                state.audit(
                    actor.0,
                    "trace-take",
                    &upstream,
                    format!("an operator fetches decisions {}", with(contents)),
                );
            }
            let mut response = lines.into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return Ok(response);
        }
        _ => return Err(Refusal::NoPath),
    };
    state.audit(actor.0, action, &upstream, text);
    Ok(Json(shape(&state, &upstream, own)).into_response())
}
