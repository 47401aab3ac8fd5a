//! What operators ask of a fleet: announce, go back.

use super::{
    Chosen, Following, Outcome, Why, Word,
    staging::{Asked, Unstaged},
};
use crate::{
    pipeline::Shared,
    policy::Digest,
    rollout::Step,
    store::redis::{LinkError, agreement::Heard},
};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Why a component was not announced.
#[derive(Debug, thiserror::Error)]
pub enum NotAnnounced {
    /// Another one is.
    #[error("another component is being announced; `triage policy list` shows it: announce again when that is over")]
    Busy,
    /// There is no way to tell the others.
    #[error("shared state cannot be reached now, and only there can the fleet agree: announce again when it answers")]
    Away(#[source] LinkError),
    /// This host refused it.
    #[error("it was refused at step {}: {reason}; nothing is announced", step.name())]
    Refused {
        /// At which step.
        step: Step,
        /// Why.
        reason: String,
    },
    /// It is there.
    #[error("the fleet's generation {0} is this component already")]
    Serving(u64),
    /// It failed.
    #[error(
        "it was rolled back before; mend it, or say that you want it all the same: \
         `triage policy promote UPSTREAM DIGEST`"
    )]
    Quarantined,
}

/// Why a fleet did not go back.
#[derive(Debug, thiserror::Error)]
pub enum NotRolledBack {
    /// There is no way to tell the others.
    #[error("shared state cannot be reached now, and only there can the fleet agree: ask again when it answers")]
    Away(#[source] LinkError),
    /// There is nothing to go back to.
    #[error("the fleet has no generation before this one; announce a component that serves better")]
    NoOther,
    /// Another one serves by now.
    #[error("the fleet has switched meanwhile; look again: `triage policy list`")]
    Stale,
}

impl Following {
    /// Announces a component to the fleet, once this host itself could serve it. `promoted`: although it was rolled back
    /// before.
    /// Dropping the future announces nothing that was not announced yet.
    ///
    /// # Errors
    /// [`NotAnnounced`]; nothing is announced then.
    pub(crate) async fn announce(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        digest: Digest,
        promoted: bool,
    ) -> Result<(), NotAnnounced> {
        let place = Arc::clone(&self.announcing).try_acquire_owned().map_err(|_| NotAnnounced::Busy)?;
        if !self.agreement.link().is_up() {
            return Err(NotAnnounced::Away(LinkError::Down));
        }
        self.would(digest, promoted)?;
        let refused = |why: &Unstaged| {
            let (step, reason) = why.parts();
            NotAnnounced::Refused { step, reason: reason.to_owned() }
        };
        let serving = shared.upstreams.get(self.index);
        let is_bad = |component: &Digest| serving.is_some_and(|serving| serving.is_quarantined(component));
        match self.at_hand(digest).filter(|_| !promoted) {
            Some(policy) if policy.digest().is_some_and(|component| is_bad(&component)) => {
                return Err(refused(&Unstaged::quarantined()));
            }
            Some(_) => {}
            None => {
                let (answer, answered) = oneshot::channel();
                self.stage(shared, digest, promoted, Some(Asked { answer, place }));
                let gone = || Unstaged::Away("the thread that staged it is gone".to_owned());
                let checked = answered.await.unwrap_or_else(|_| Err(gone()));
                self.put(digest, checked.map_err(|why| refused(&why))?);
            }
        }
        let artifact = serving.and_then(|serving| serving.current().artifact);
        let id = self.entropy.next();
        let heard = self.tell(artifact, &Word::Announce { id, digest, promoted }).await.map_err(NotAnnounced::Away)?;
        match heard.outcome {
            Outcome::Serving => Err(NotAnnounced::Serving(heard.view.standing.generation)),
            Outcome::Quarantined => Err(NotAnnounced::Quarantined),
            Outcome::Busy => Err(NotAnnounced::Busy),
            Outcome::Done | Outcome::NoOther | Outcome::Stale => Ok(()),
        }
    }

    /// What would come of an announcement, as far as this host knows: nothing is pulled in vain.
    fn would(&self, digest: Digest, promoted: bool) -> Result<(), NotAnnounced> {
        let course = self.course.lock();
        let known = course.known();
        if known.chosen == Chosen::Artifact(digest) {
            return Err(NotAnnounced::Serving(known.generation));
        }
        if known.quarantined.contains(&digest) && !promoted {
            return Err(NotAnnounced::Quarantined);
        }
        Ok(())
    }

    /// Takes the whole fleet back to the generation before this one, on an operator's word. `artifact` serves here.
    ///
    /// # Errors
    /// [`NotRolledBack`]
    pub(crate) async fn roll_back(&self, artifact: Option<Digest>) -> Result<(), NotRolledBack> {
        let generation = self.course.lock().known().generation;
        let word = Word::RollBack { generation, why: Why::Operator };
        let heard = self.tell(artifact, &word).await.map_err(NotRolledBack::Away)?;
        match heard.outcome {
            Outcome::Done => Ok(()),
            Outcome::NoOther => Err(NotRolledBack::NoOther),
            _ => Err(NotRolledBack::Stale),
        }
    }

    /// Says one word for an operator; what follows from it is done by the next turn, which comes at once.
    async fn tell(&self, artifact: Option<Digest>, word: &Word) -> Result<Heard, LinkError> {
        let (speaker, known, _) = self.own(artifact);
        let heard = self.agreement.say(&speaker, &known, word).await?;
        let told = self.course.lock().heard(word, &heard, self.clock.now());
        self.tell_all(told);
        self.wake.notify_one();
        Ok(heard)
    }
}
