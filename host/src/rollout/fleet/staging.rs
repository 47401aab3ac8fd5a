//! From a digest to a policy that may serve: pulled, verified and compiled as any other, off the request threads.

use crate::{
    pipeline::Shared,
    policy::{Loading, Policy, cases},
    registry::{Artifact, Pulled, Registry, RegistryError},
    rollout::{Serving, Step, told},
    service::Service,
};
use std::sync::Arc;

/// Why a component is not staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unstaged {
    /// It cannot be had now: nothing is known of it.
    Away(String),
    /// It is no policy for this host.
    Refused(Step, String),
}

impl Unstaged {
    /// At which step, and why.
    pub(super) fn parts(&self) -> (Step, &str) {
        match self {
            Self::Away(reason) => (Step::Pull, reason),
            Self::Refused(step, reason) => (*step, reason),
        }
    }
}

/// Pulls a component, or finds it where it was kept.
pub(super) fn pull(registry: &Registry, artifact: &Artifact) -> Result<Pulled, Unstaged> {
    registry.fetch(artifact).map_err(|error| match &error {
        RegistryError::TooLarge { .. } | RegistryError::Forged { .. } | RegistryError::NotAPolicy { .. } => {
            Unstaged::Refused(Step::Pull, told(&error))
        }
        RegistryError::Credentials(_)
        | RegistryError::Refused { .. }
        | RegistryError::Slow { .. }
        | RegistryError::Client(_) => Unstaged::Away(told(&error)),
    })
}

/// Every check of a component that was pulled, in the order of any load. `promoted`: it may be one that was rolled back here.
pub(super) fn check(
    shared: &Shared,
    serving: &Serving,
    pulled: &Pulled,
    promoted: bool,
) -> Result<Arc<Policy>, Unstaged> {
    let refused = |step| move |reason: String| Unstaged::Refused(step, reason);
    if !promoted && serving.is_quarantined(&crate::policy::Digest::of(&pulled.component)) {
        return Err(refused(Step::Quarantine)(QUARANTINED.to_owned()));
    }
    let signed = shared.keys.verify(pulled.signature.as_deref(), &pulled.component);
    signed.map_err(|error| refused(Step::Signature)(told(&error)))?;
    let settings = serving.configured();
    let loading = Loading { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
    let policy = Policy::load(&shared.engine, &pulled.component, &loading);
    let policy = policy.map_err(|error| refused(Step::Load)(told(&error)))?;
    play(&policy, pulled).map_err(|error| refused(Step::Cases)(error.to_string()))?;
    service(shared, serving, &policy)?;
    Ok(policy)
}

pub(super) const QUARANTINED: &str = "it was rolled back before; mend it: the same bytes are not taken again";

/// The golden cases that came with a component.
pub(crate) fn play(policy: &Policy, pulled: &Pulled) -> Result<(), cases::CasesError> {
    pulled.cases.as_deref().map_or(Ok(()), |text| cases::play(policy, text).map(drop))
}

/// A policy with the settings of now.
pub(super) fn service(shared: &Shared, serving: &Serving, policy: &Arc<Policy>) -> Result<Service, Unstaged> {
    let groups = |name: &str, endpoint: &_| shared.gates.group(name, endpoint);
    Service::with_policy(&serving.configured(), Arc::clone(policy), false, groups)
        .map_err(|error| Unstaged::Refused(Step::Configuration, told(&error)))
}
