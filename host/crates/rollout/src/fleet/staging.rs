//! Stages a component from its digest: pulls, verifies and compiles it like any other, off the request threads.

use super::Follower;
use crate::{
    Context, UpstreamPolicy,
    error_chain::error_chain,
    policy::{Digest, Policy},
    registry::{Artifact, RegistryError},
    upstream_runtime::{self, ServiceError, StagePhase, UpstreamRuntime},
};
use std::{
    error::Error as _,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Why a component is not staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unstaged {
    /// The component is unavailable now, so nothing is known about it.
    Away(String),
    /// The component is no policy for this host.
    Refused(StagePhase, String),
}

impl Unstaged {
    /// The refusal of a component that was rolled back here.
    pub(super) fn quarantined() -> Self {
        let reason = "this component was rolled back before; fix it: the host does not load the same bytes again";
        Self::Refused(StagePhase::Quarantine, reason.to_owned())
    }

    /// The reason of a failed load, with its phase.
    pub(super) fn of(error: &ServiceError) -> Self {
        // The notice already names the upstream, so the cause is enough.
        let reason = match error {
            ServiceError::Config { .. } | ServiceError::Route { .. } => error_chain(error),
            _ => error.source().map_or_else(|| error_chain(error), error_chain),
        };
        match error {
            ServiceError::Registry { source, .. } if !is_certain(source) => Self::Away(reason),
            _ => Self::Refused(error.step(), reason),
        }
    }

    /// The phase that failed, and the cause.
    pub(super) fn parts(&self) -> (StagePhase, &str) {
        match self {
            Self::Away(reason) => (StagePhase::Pull, reason),
            Self::Refused(step, reason) => (*step, reason),
        }
    }
}

/// Whether the error proves that the artifact is no policy, rather than unavailable.
fn is_certain(error: &RegistryError) -> bool {
    match error {
        RegistryError::TooLarge { .. } | RegistryError::Forged { .. } | RegistryError::NotAPolicy { .. } => true,
        RegistryError::Credentials(_)
        | RegistryError::Refused { .. }
        | RegistryError::Slow { .. }
        | RegistryError::Client(_) => false,
    }
}

/// A component in a registry, and the conditions for staging it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    /// Whether a component that was rolled back here is allowed.
    pub(super) promoted: bool,
    /// The time limit of the pull; none: the registry's default.
    pub(super) within: Option<Duration>,
}

/// Pulls a component, or finds it in the cache on disk, and runs every check.
fn check(context: &Weak<Context>, index: usize, artifact: &Artifact, wanted: Wanted) -> Result<Arc<Policy>, Unstaged> {
    // The host may end meanwhile.
    let gone = || Unstaged::Away("the host is stopping".to_owned());
    let registry = context.upgrade().ok_or_else(gone)?.parts.registry.clone();
    let registry = match wanted.within {
        Some(within) => registry.with_time_limit(within),
        None => registry,
    };
    let failed = |source| ServiceError::Registry { upstream: String::new(), source: Box::new(source) };
    let pulled = registry.fetch(artifact).map_err(|error| Unstaged::of(&failed(error)))?;
    let context = context.upgrade().ok_or_else(gone)?;
    let serving = context.upstreams.get(index).ok_or_else(gone)?;
    if !wanted.promoted && serving.is_quarantined(&Digest::of(&pulled.component)) {
        return Err(Unstaged::quarantined());
    }
    let policy =
        upstream_runtime::checked(&serving.configured(), &context.parts.engine, &context.parts.keys, artifact, &pulled);
    let policy = policy.map_err(|error| Unstaged::of(&error))?;
    service(&context, serving, &policy)?;
    Ok(policy)
}

/// Builds the runtime of an upstream from a policy and the configured settings, without installing it.
pub(super) fn service(
    context: &Context,
    serving: &UpstreamPolicy,
    policy: &Arc<Policy>,
) -> Result<UpstreamRuntime, Unstaged> {
    let groups = |name: &str, endpoint: &_| context.parts.gates.group(name, endpoint);
    UpstreamRuntime::with_policy(&serving.configured(), Arc::clone(policy), false, groups)
        .map_err(|error| Unstaged::of(&error))
}

/// A waiting operator command, and its permit.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) answer: oneshot::Sender<Result<Arc<Policy>, Unstaged>>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// A component that is being staged. Dropping it reports a failure, so that the next one can follow.
#[derive(Debug)]
struct Staging {
    following: Weak<Follower>,
    digest: Digest,
    /// The operator command that waits; none: staged for the fleet.
    asked: Option<Asked>,
    ended: bool,
}

impl Follower {
    /// Starts to pull and compile, on a thread of its own. `asked`: the operator command that waits for the result instead of the fleet.
    pub(super) fn stage(self: &Arc<Self>, context: &Arc<Context>, wanted: Wanted, asked: Option<Asked>) {
        let digest = wanted.digest;
        if asked.is_none() {
            self.planner.lock().begin(digest);
        }
        let staging = Staging { following: Arc::downgrade(self), digest, asked, ended: false };
        let (artifact, index, context) = (self.repository.at(digest), self.index, Arc::downgrade(context));
        let work = move || staging.end(check(&context, index, &artifact, wanted));
        if let Err(error) = thread::Builder::new().name("triage-staging".to_owned()).spawn(work) {
            tracing::warn!(%error, "a component cannot be staged: its thread could not be started");
        }
    }
}

impl Staging {
    fn end(mut self, checked: Result<Arc<Policy>, Unstaged>) {
        self.report(checked);
    }

    fn report(&mut self, checked: Result<Arc<Policy>, Unstaged>) {
        self.ended = true;
        if let Some(Asked { answer, permit }) = self.asked.take() {
            drop(permit);
            // The operator may have gone.
            let _ = answer.send(checked);
            return;
        }
        let Some(following) = self.following.upgrade() else { return };
        match checked {
            Ok(policy) => following.put(self.digest, policy),
            Err(why) => following.not_staged(self.digest, why),
        }
        following.planner.lock().end(self.digest);
        following.wake.notify_one();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.ended {
            self.report(Err(Unstaged::Away("the staging thread failed".to_owned())));
        }
    }
}
