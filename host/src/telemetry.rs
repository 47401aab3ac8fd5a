//! What the host tells of itself: recent events, metrics, and the course of single requests.
//!
//! Nothing in here holds a body, a header's value or a path's parameter: hospital data is confidential. A request counts on
//! its worker's own [`Meter`], so that no two cores write to one cache line, and is told of once, when its [`Account`] ends.

mod account;
mod cgroup;
mod desk;
mod events;
pub(crate) mod histogram;
pub(crate) mod meter;
pub(crate) mod metrics;
mod otlp;
pub(crate) mod process;
pub mod rates;
mod story;
pub mod trace_context;
pub(crate) mod waited;

pub use account::Account;
pub use cgroup::Cgroup;
pub use desk::{Desk, Desks};
pub use events::{Event, Events, KINDS};
pub use histogram::{Bounds, Histogram, Observed};
pub use meter::{EndpointMeters, KeyResult, Meter, Meters, Names, OrphanResult};
pub use metrics::{METRICS, Metric, reference};
pub use otlp::{Exporter, Target};
pub use process::{memory_bytes, memory_used};
pub use rates::{Point, Rates, Sampler};
pub use story::{NotARequestId, Noted, RequestId, Rounded, Step, Story};
pub use trace_context::TraceContext;
