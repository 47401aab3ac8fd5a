//! From a digest to a policy that may serve: pulled, verified and compiled as any other, off the request threads.

use super::Following;
use crate::{
    pipeline::Shared,
    policy::{Digest, Loading, Policy, cases},
    registry::{Artifact, Pulled, Registry, RegistryError},
    rollout::{Serving, Step, told},
    service::Service,
};
use std::{
    sync::{Arc, Weak},
    thread,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Why a component is not staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unstaged {
    /// It cannot be had now: nothing is known of it.
    Away(String),
    /// It is no policy for this host.
    Refused(Step, String),
}

impl Unstaged {
    /// It was rolled back here.
    pub(super) fn quarantined() -> Self {
        let reason = "it was rolled back before; mend it: the same bytes are not taken again";
        Self::Refused(Step::Quarantine, reason.to_owned())
    }

    /// At which step, and why.
    pub(super) fn parts(&self) -> (Step, &str) {
        match self {
            Self::Away(reason) => (Step::Pull, reason),
            Self::Refused(step, reason) => (*step, reason),
        }
    }
}

/// Pulls a component, or finds it where it was kept.
fn pull(registry: &Registry, artifact: &Artifact) -> Result<Pulled, Unstaged> {
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

/// Every check of a component that was pulled, in the order of any load. `promoted`: it may be one that was rolled back
/// here.
fn check(shared: &Shared, serving: &Serving, pulled: &Pulled, promoted: bool) -> Result<Arc<Policy>, Unstaged> {
    let refused = |step| move |reason: String| Unstaged::Refused(step, reason);
    if !promoted && serving.is_quarantined(&Digest::of(&pulled.component)) {
        return Err(Unstaged::quarantined());
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

/// An operator who waits, and the place that this takes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) answer: oneshot::Sender<Result<Arc<Policy>, Unstaged>>,
    pub(super) place: OwnedSemaphorePermit,
}

/// A component on its way. Whatever becomes of it, the next one may follow.
#[derive(Debug)]
struct Staging {
    following: Weak<Following>,
    digest: Digest,
    /// Who waits for it; none: the fleet.
    asked: Option<Asked>,
    ended: bool,
}

impl Following {
    /// Begins to pull and compile, on a thread of its own. `asked`: who waits for it instead of the fleet.
    pub(super) fn stage(self: &Arc<Self>, shared: &Arc<Shared>, digest: Digest, promoted: bool, asked: Option<Asked>) {
        if asked.is_none() {
            self.course.lock().begin(digest);
        }
        let staging = Staging { following: Arc::downgrade(self), digest, asked, ended: false };
        let (artifact, index) = (self.place.at(digest), self.index);
        let (registry, shared) = (shared.registry.clone(), Arc::downgrade(shared));
        let work = move || {
            let checked = pull(&registry, &artifact).and_then(|pulled| {
                // The host may have gone meanwhile.
                let gone = || Unstaged::Away("the host is stopping".to_owned());
                let shared = shared.upgrade().ok_or_else(gone)?;
                let serving = shared.upstreams.get(index).ok_or_else(gone)?;
                check(&shared, serving, &pulled, promoted)
            });
            staging.end(checked);
        };
        if let Err(error) = thread::Builder::new().name("triage-staging".to_owned()).spawn(work) {
            tracing::warn!(%error, "a component cannot be staged: there is no thread for it");
        }
    }
}

impl Staging {
    fn end(mut self, checked: Result<Arc<Policy>, Unstaged>) {
        self.tell(checked);
    }

    fn tell(&mut self, checked: Result<Arc<Policy>, Unstaged>) {
        self.ended = true;
        if let Some(Asked { answer, place }) = self.asked.take() {
            drop(place);
            // Who asked may have gone.
            let _ = answer.send(checked);
            return;
        }
        let Some(following) = self.following.upgrade() else { return };
        match checked {
            Ok(policy) => following.put(self.digest, policy),
            Err(why) => following.not_staged(self.digest, why),
        }
        following.course.lock().end();
        following.wake.notify_one();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Err(Unstaged::Away("the thread that staged it failed".to_owned())));
        }
    }
}
