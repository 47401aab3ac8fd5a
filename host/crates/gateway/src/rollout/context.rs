//! The parts of a host that a rollout needs.

use super::UpstreamPolicy;
use crate::{
    admission::Groups,
    policy::{Engine, signature::Keys},
    registry::Registry,
    telemetry::Events,
};
use std::sync::Arc;

/// The upstreams, and the parts that load and check another policy generation. File watchers and fleet followers hold it weakly, so that
/// they end with their host.
#[derive(Debug)]
pub struct Context {
    pub upstreams: Vec<Arc<UpstreamPolicy>>,
    pub(crate) engine: Engine,
    /// Public keys; one of them must have signed a component.
    pub(crate) keys: Keys,
    pub(crate) registry: Registry,
    pub(crate) gates: Groups,
    pub(crate) events: Arc<Events>,
}
