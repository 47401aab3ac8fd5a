//! One endpoint with its effective settings: those of the policy under those of the operator.

use crate::{
    admission::Group,
    config::settings,
    idempotency,
    policy::contract::{self, Effect},
    telemetry::EndpointMeters,
};
use http::{HeaderMap, Method};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// One endpoint with its effective settings.
#[derive(Debug)]
pub struct Endpoint {
    /// The endpoint's description by the policy, or by the configuration for an added one.
    pub described: contract::Endpoint,
    /// The endpoint's index in the policy's description; none for an added endpoint that no catch-all covers.
    pub policy_index: Option<usize>,
    /// The effective settings.
    pub settings: settings::Endpoint,
    /// Whether the policy is trusted to settle unknown writes here.
    pub granted: bool,
    /// Whether the policy's effect holds even if the method's own is stricter: only for a policy that comes with the host.
    pub says_effect: bool,
    /// The group whose breaker, budget and limits the endpoint shares.
    pub group: Group,
    /// The endpoint's counters.
    pub meters: Arc<EndpointMeters>,
    /// Permits for attempts under way; none without a fixed concurrency limit.
    pub concurrency_permits: Option<Arc<Semaphore>>,
}

impl Endpoint {
    /// The effect of a request: the stricter one of method and policy, unless the operator sets it. A policy that comes with the host may
    /// declare a weaker effect for a method that it names: a search by POST only reads.
    pub fn effect(&self, method: &Method) -> Effect {
        let stated = self.described.effect;
        let holds = self.says_effect && self.described.method.is_some();
        self.settings.effect.unwrap_or_else(|| if holds { stated } else { Effect::of(method).max(stated) })
    }

    /// The endpoint's group, and that of safe requests if these have one.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.group).chain(self.group.reads())
    }

    /// The group whose breaker, budget and limits a request with this effect uses.
    pub fn group_for(&self, effect: Effect) -> &Group {
        self.group.reads().filter(|_| effect == Effect::Safe).unwrap_or(&self.group)
    }

    /// Whether the upstream may commit a write late. Then equal writes are sent one at a time and claim what they made. This also holds for
    /// a generation without a grant, since another one with a grant may be searching for a match.
    pub fn commits_late(&self) -> bool {
        self.described.commit_within.is_some()
    }

    /// The header fields that change what a request asks for, as far as the policy reads them.
    pub fn asking<'a>(&'a self, headers: &'a HeaderMap) -> Vec<(&'a str, &'a [u8])> {
        idempotency::fingerprint::asking(&self.described.interest.request_headers, headers)
    }

    /// Whether the policy reads this request header.
    pub fn reads(&self, header: &str) -> bool {
        self.described.interest.request_headers.iter().any(|own| own == header)
    }

    /// Whether a request with these fields is verified by them alone, because the policy reads nothing of its body.
    pub fn verifies_by_condition(&self, fields: &[(&str, &[u8])]) -> bool {
        self.commits_late() && !fields.is_empty() && self.described.interest.request_body_bytes == 0
    }

    /// Whether the status means `applied` and `deliver` without asking the policy.
    pub fn is_settled(&self, status: u16, effect: Effect) -> bool {
        effect != Effect::Unsafe
            && self.described.settled.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}
