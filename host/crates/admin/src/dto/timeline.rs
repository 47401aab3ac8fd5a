//! The JSON objects of recent requests.

use crate::{
    clock::{Clock, micros, millis},
    telemetry::{RequestRow, RequestTimeline, TimedEvent, TimelineEvent},
};
use serde::Serialize;
use std::borrow::Cow;
use tokio::time::Instant;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, RefOr, Schema,
        schema::{AdditionalProperties, Type},
    },
};

/// A request and its timeline.
// No flattened summary: the schema of a flattened field is an `allOf`, which cannot forbid further properties.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) upstream: String,
    pub(crate) endpoint: String,
    pub(crate) method: &'static str,
    /// Time of arrival, since 1970.
    pub(crate) unix_ms: u64,
    /// Microseconds until the response's head, or until the caller left.
    pub(crate) took_us: u64,
    /// Null if the caller left before the response.
    pub(crate) status: Option<u16>,
    pub(crate) policy: String,
    pub(crate) generation: u64,
    /// The caller's trace id.
    pub(crate) trace: Option<String>,
    pub(crate) steps: Vec<TimelineEventDto>,
    /// The number of timeline events that were dropped.
    pub(crate) omitted: u32,
}

/// A request, or equal refusals of requests that were not sent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) upstream: String,
    pub(crate) endpoint: String,
    pub(crate) method: &'static str,
    /// Time of arrival, since 1970.
    pub(crate) unix_ms: u64,
    /// Microseconds until the response's head, or until the caller left.
    pub(crate) took_us: u64,
    /// Null if the caller left before the response.
    pub(crate) status: Option<u16>,
    /// Why the host answered itself; null if it passed on the upstream's response.
    pub(crate) reason: Option<&'static str>,
    /// The number of requests in this row: equal refusals are one row, which shows the latest of them.
    #[schema(minimum = 1)]
    pub(crate) count: u64,
    /// Time of arrival of the row's first request, since 1970.
    pub(crate) first_unix_ms: u64,
}

/// An event of a request's timeline. Its `step` decides which further properties it has.
#[derive(Debug, Serialize)]
pub(crate) struct TimelineEventDto {
    /// Time since the request arrived.
    at_us: u64,
    /// Serializes as `step` and the further properties.
    #[serde(flatten)]
    event: TimelineEvent,
    /// The event as a sentence.
    text: String,
}

// Not derived: the schema of the flattened event would need one variant per kind, and clients read only `text`.
impl PartialSchema for TimelineEventDto {
    fn schema() -> RefOr<Schema> {
        let integer = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let text = |about| ObjectBuilder::new().schema_type(Type::String).description(Some(about));
        ObjectBuilder::new()
            .description(Some("An event of a request's timeline. Its `step` decides which further properties it has."))
            .property("at_us", integer.description(Some("Microseconds since the request arrived.")))
            .property("step", text("The kind of event."))
            .property("text", text("The event as a sentence."))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .into()
    }
}

impl ToSchema for TimelineEventDto {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("TimelineEvent")
    }
}

fn unix_ms(began: Instant, clock: &Clock) -> u64 {
    clock.unix_ms().saturating_sub(millis(began.elapsed()))
}

pub(crate) fn summary(row: &RequestRow, clock: &Clock) -> Summary {
    Summary {
        id: row.id.to_string(),
        upstream: row.names.upstream.clone(),
        endpoint: row.names.endpoint.clone(),
        method: row.method,
        unix_ms: unix_ms(row.began, clock),
        took_us: micros(row.took),
        status: row.status,
        reason: row.reason,
        count: row.count,
        first_unix_ms: unix_ms(row.first_began, clock),
    }
}

pub(crate) fn request(timeline: RequestTimeline, clock: &Clock) -> Request {
    let step = |TimedEvent { at, step }: TimedEvent| TimelineEventDto {
        at_us: micros(at),
        text: step.to_string(),
        event: step,
    };
    Request {
        id: timeline.id.to_string(),
        upstream: timeline.names.upstream.clone(),
        endpoint: timeline.names.endpoint.clone(),
        method: timeline.method,
        unix_ms: unix_ms(timeline.began, clock),
        took_us: micros(timeline.took),
        status: timeline.status,
        policy: timeline.policy.to_str().unwrap_or_default().to_owned(),
        generation: timeline.generation,
        trace: timeline.trace.map(|trace| trace.to_string()),
        steps: timeline.steps.into_iter().map(step).collect(),
        omitted: timeline.omitted,
    }
}
