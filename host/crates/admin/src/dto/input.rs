//! The parameters and bodies of requests.

use crate::error::REASONS;
use serde::Deserialize;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{Object, ObjectBuilder, schema::Type},
};

/// The path of an upstream.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct UpstreamPath {
    #[param(min_length = 1)]
    pub(crate) upstream: String,
}

/// The path of an upstream's endpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct EndpointPath {
    #[param(min_length = 1)]
    pub(crate) upstream: String,
    #[param(min_length = 1)]
    pub(crate) endpoint: String,
}

/// The path of a record.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct RecordPath {
    #[param(min_length = 1, pattern = "^[0-9a-fA-F]{64}$")]
    pub(crate) id: String,
}

/// The path of a request.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct RequestPath {
    #[param(min_length = 1, pattern = "^[0-9a-fA-F]{16}$")]
    pub(crate) id: String,
}

/// The query of the events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// Returns only events with a greater number.
    // The maximum is what other languages parse as an integer.
    #[param(minimum = 0, maximum = 9_223_372_036_854_775_807_u64)]
    #[serde(default)]
    pub(crate) after: u64,
}

/// The query of the requests.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestsQuery {
    /// Only requests with an incident: a retry, a refusal, a failure.
    #[param(default = false)]
    #[serde(default)]
    pub(crate) rough: bool,
    /// Maximum requests in the response.
    #[param(minimum = 1, maximum = 500, default = 100)]
    #[serde(default = "usual_limit")]
    pub(crate) limit: usize,
    /// Only requests to this upstream.
    #[param(min_length = 1)]
    pub(crate) upstream: Option<String>,
    /// Only requests to endpoints of this name.
    #[param(min_length = 1)]
    pub(crate) endpoint: Option<String>,
    /// Only answers with this status, such as 503, or of this class, such as 5xx.
    #[param(pattern = "^[1-5]([0-9][0-9]|xx)$")]
    pub(crate) status: Option<String>,
    /// Only requests that the host answered itself for this reason, such as `breaker-open`.
    #[param(schema_with = reasons)]
    pub(crate) reason: Option<String>,
}

fn reasons() -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(REASONS)).build()
}

fn usual_limit() -> usize {
    100
}

/// How long an action lasts.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expiry {
    /// How long the action holds; it ends by itself.
    #[schema(minimum = 1, maximum = 86_400_000, default = 600_000)]
    #[serde(default, deserialize_with = "whole")]
    pub(crate) for_ms: Option<u64>,
}

/// A component of the upstream's repository.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Component {
    /// The digest of the manifest, as `triage policy push` prints it.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    pub(crate) digest: Option<String>,
}

/// The component to announce.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    /// The digest of the manifest, as `triage policy push` prints it.
    // Optional in this type only, so that a request without a digest gets the host's error text instead of serde's.
    #[schema(value_type = String, required, pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    pub(crate) digest: Option<String>,
}

/// The response for repetitions of the request.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    /// The response's status.
    #[schema(minimum = 200, maximum = 299, default = 200)]
    #[serde(default, deserialize_with = "whole")]
    pub(crate) status: Option<u64>,
    /// The response's content type.
    #[schema(pattern = "^[ -~]*$", default = "application/json")]
    pub(crate) content_type: Option<String>,
    /// The response's body. By default a JSON object that says that an operator settled the request.
    #[schema(max_length = 8000)]
    pub(crate) body: Option<String>,
}

/// The contents and the length of a recording.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recording {
    /// Whether to record paths, header values, bodies, claims and verifications too. The recording is confidential then.
    #[schema(default = false)]
    #[serde(default)]
    pub(crate) contents: bool,
    /// How long the recording lasts. Ten minutes by default.
    #[schema(minimum = 1, maximum = 86_400_000, default = 600_000)]
    #[serde(default, deserialize_with = "whole")]
    pub(crate) for_ms: Option<u64>,
}

/// Deserializes a whole number, also written as `1.0`: JSON does not distinguish the two.
fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    /// The largest number whose predecessors a 64-bit float can all hold, rounded down.
    const MAX_WHOLE: f64 = 9e15;
    let Some(number) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
    if number.fract() != 0.0 || !(0.0..=MAX_WHOLE).contains(&number) {
        return Err(serde::de::Error::custom(format!("{number} is not a number; send a whole number from 0")));
    }
    Ok(Some(number as u64))
}
