//! Telemetry of the host: recent events, metrics, and timelines of single requests.
//!
//! Telemetry holds no bodies, no header values and no path parameters, because hospital data is confidential. A request counts on its
//! worker's own [`EndpointCounters`], so that no two cores write to one cache line. Its timeline is stored once, when its
//! [`RequestRecorder`] is dropped.

use triage_core::{breaker, clock, contract, retry, rng, rounded};
use triage_problem as error;
use triage_upstream as upstream;

mod cgroup;
pub mod dashboard_sampler;
pub mod endpoint_counters;
mod events;
mod failure_history;
pub mod histogram;
pub mod metrics;
mod otlp;
mod pinned_timelines;
pub mod process;
mod refusal_runs;
mod request_recorder;
mod request_timeline;
pub mod task_spans;
pub mod trace_context;
mod waited_for;
mod worker_telemetry;

pub use cgroup::Cgroup;
pub use dashboard_sampler::{Point, Rates, Sampler, Traffic};
pub use endpoint_counters::{AllEndpointCounters, EndpointCounters, EndpointMeters, KeyResult, Names, OrphanResult};
pub use events::{Event, Events, KINDS};
pub use failure_history::{FailedAttempt, FailureCause, FailureHistory, TripFailures};
pub use histogram::{Bounds, Histogram, Observed};
pub use metrics::{METRICS, Metric, reference};
pub use otlp::{Exporter, Target};
pub use pinned_timelines::PinnedTimelines;
pub use process::{memory_bytes, memory_used};
pub use refusal_runs::RequestRow;
pub use request_recorder::RequestRecorder;
pub use request_timeline::{NotARequestId, RequestId, RequestTimeline, TimedEvent, TimelineEvent};
pub use trace_context::TraceContext;
pub use waited_for::WaitedFor;
pub use worker_telemetry::{WorkerTelemetry, WorkersTelemetry};
