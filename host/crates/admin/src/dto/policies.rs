//! The JSON objects of an upstream's policy.

use super::{candidate, fleet};
use crate::{
    policy::contract,
    rollout::{self, UpstreamPolicy},
    upstream_runtime::UpstreamRuntime,
};
use serde::Serialize;
use utoipa::ToSchema;

/// An upstream's policy.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Policy {
    pub(crate) upstream: String,
    pub(crate) source: String,
    pub(crate) serving: Generation,
    /// The number of the latest generation, even if it no longer serves.
    pub(crate) latest: u64,
    /// The target of a rollback; null if none is left.
    pub(crate) fallback: Option<Generation>,
    /// Digests that do not serve again by themselves.
    pub(crate) quarantined: Vec<String>,
    /// The fleet's choice; null if the upstream does not follow its fleet.
    pub(crate) fleet: Option<fleet::Fleet>,
    /// The trial of the candidate; null if none is configured.
    pub(crate) candidate: Option<candidate::Candidate>,
}

/// A generation of an upstream's policy.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Generation {
    pub(crate) generation: u64,
    pub(crate) name: String,
    pub(crate) version: String,
    /// The component's digest; null for a built-in policy.
    pub(crate) digest: Option<String>,
    #[schema(inline)]
    pub(crate) standing: Standing,
    /// Decisions in the current window.
    pub(crate) decisions: u32,
    /// Faults in the current window.
    pub(crate) faults: u32,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Whether a generation has proven itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Standing {
    Probation,
    Good,
    Suspended,
}

/// An endpoint that a policy describes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    /// A method, or `*` for every method.
    pub(crate) method: String,
    pub(crate) path: String,
    #[schema(inline)]
    pub(crate) effect: Effect,
    /// Whether the policy may settle unknown writes here.
    pub(crate) granted: bool,
}

/// The effect of a request on the upstream.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Effect {
    Safe,
    Idempotent,
    Unsafe,
}

impl From<contract::Effect> for Effect {
    fn from(effect: contract::Effect) -> Self {
        match effect {
            contract::Effect::Safe => Self::Safe,
            contract::Effect::Idempotent => Self::Idempotent,
            contract::Effect::Unsafe => Self::Unsafe,
        }
    }
}

pub(crate) fn policy(serving: &UpstreamPolicy) -> Policy {
    let rollout::PolicyStatus { current, latest, fallback, quarantined } = serving.view();
    let mut quarantined: Vec<String> = quarantined.iter().map(ToString::to_string).collect();
    quarantined.sort_unstable();
    Policy {
        upstream: serving.settings.name.clone(),
        source: serving.settings.policy.to_string(),
        serving: generation(&current),
        latest,
        fallback: fallback.map(|service| generation(&service)),
        quarantined,
        fleet: serving.following.as_ref().map(|following| fleet::of(&following.report(current.artifact))),
        candidate: candidate::of(serving),
    }
}

fn generation(service: &UpstreamRuntime) -> Generation {
    let description = service.policy.description();
    let (decisions, faults) = service.probation.counts();
    let standing = match (service.probation.is_suspended(), service.probation.is_good() || service.generation == 1) {
        (true, _) => Standing::Suspended,
        (false, true) => Standing::Good,
        (false, false) => Standing::Probation,
    };
    let endpoint = |own: &crate::upstream_runtime::Endpoint| Endpoint {
        name: own.described.name.clone(),
        method: own.described.method.as_ref().map_or("*", http::Method::as_str).to_owned(),
        path: own.described.path.clone(),
        effect: own.described.effect.into(),
        granted: own.granted,
    };
    Generation {
        generation: service.generation,
        name: description.name.clone(),
        version: description.version.clone(),
        digest: service.policy.digest().map(|digest| digest.to_string()),
        standing,
        decisions,
        faults,
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }
}
