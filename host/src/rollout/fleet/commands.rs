//! What operators ask of a fleet: announce, go back.

use super::{
    Follower, Message, MessageOutcome, PolicyRef, Why,
    staging::{Asked, Unstaged, Wanted},
};
use crate::{
    policy::Digest,
    rollout::{Context, UpstreamPolicy},
    state::rollout::MessageReply,
    store::redis::LinkError,
    upstream_runtime::StagePhase,
};
use std::{sync::Arc, time::Duration};
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
    /// It was told, but nothing was heard of it.
    #[error("shared state did not say whether it was announced; look before you announce again: `triage policy list`")]
    Unsure(#[source] LinkError),
    /// Nobody knows who has to have it.
    #[error("shared state has lost which hosts live, and they say so again within a second: announce again then")]
    Gathering,
    /// This host refused it.
    #[error("it was refused at step {}: {reason}; nothing is announced", step.name())]
    Refused {
        /// At which step.
        step: StagePhase,
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
    /// It was told, but nothing was heard of it.
    #[error("shared state did not say whether the fleet goes back; look before you ask again: `triage policy list`")]
    Unsure(#[source] LinkError),
    /// Not the one that is named.
    #[error("sha256:{0} neither serves the fleet nor is it proposed; look again: `triage policy list`")]
    Other(Digest),
    /// There is nothing to go back to.
    #[error("the fleet has no generation before this one; announce a component that serves better")]
    NoOther,
    /// Another one serves by now.
    #[error("the fleet has switched meanwhile; look again: `triage policy list`")]
    Stale,
}

/// What came of an operator's word, told as soon as it is known, whether the operator still waits or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandOutcome {
    /// A component is announced.
    Announced,
    /// The fleet has gone back.
    RolledBack,
    /// What was proposed is not any more.
    Aborted,
    /// This host takes what serves the fleet once more.
    Pardoned,
    /// It may have been done.
    Unsure,
}

impl Follower {
    /// Announces a component to the fleet, once this host itself could serve it. `promoted`: although it was rolled back
    /// before; where it serves the fleet already, this host takes it once more. `note` is told what was done.
    /// Dropping the future announces nothing that was not announced yet.
    ///
    /// # Errors
    /// [`NotAnnounced`]; nothing is announced then, unless it is [`NotAnnounced::Unsure`].
    pub(crate) async fn announce(
        self: &Arc<Self>,
        context: &Arc<Context>,
        digest: Digest,
        promoted: bool,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<(), NotAnnounced> {
        let place = Arc::clone(&self.announcing).try_acquire_owned().map_err(|_| NotAnnounced::Busy)?;
        if !self.agreement.link().is_up() {
            return Err(NotAnnounced::Away(LinkError::Down));
        }
        let Some(serving) = context.upstreams.get(self.index) else { return Err(NotAnnounced::Away(LinkError::Down)) };
        if promoted && self.unquarantine(digest, serving.current().artifact) {
            note(CommandOutcome::Pardoned);
            self.wake.notify_one();
            return Ok(());
        }
        self.would(digest, promoted)?;
        let refused = |why: &Unstaged| {
            let (step, reason) = why.parts();
            NotAnnounced::Refused { step, reason: reason.to_owned() }
        };
        match self.at_hand(digest).filter(|_| !promoted) {
            Some(policy) if policy.digest().is_some_and(|component| serving.is_quarantined(&component)) => {
                return Err(refused(&Unstaged::quarantined()));
            }
            Some(_) => {}
            None => {
                let (answer, answered) = oneshot::channel();
                let wanted = Wanted { digest, promoted, within: None };
                self.stage(context, wanted, Some(Asked { answer, place }));
                let gone = || Unstaged::Away("the thread that staged it is gone".to_owned());
                let checked = answered.await.unwrap_or_else(|_| Err(gone()));
                self.put(digest, checked.map_err(|why| refused(&why))?);
            }
        }
        let id = self.entropy.next();
        let (from, others) = {
            let course = self.course.lock();
            (course.configured(), course.others(self.clock.now()))
        };
        let word = Message::Announce { id, digest, promoted, from, others };
        let heard = self.say(serving, word, note).await.map_err(|error| {
            if error.may_be_done() { NotAnnounced::Unsure(error) } else { NotAnnounced::Away(error) }
        })?;
        match heard.outcome {
            MessageOutcome::Serving => Err(NotAnnounced::Serving(heard.view.standing.generation)),
            MessageOutcome::Quarantined => Err(NotAnnounced::Quarantined),
            MessageOutcome::Busy => Err(NotAnnounced::Busy),
            MessageOutcome::Gathering => Err(NotAnnounced::Gathering),
            MessageOutcome::Done | MessageOutcome::NoOther | MessageOutcome::Stale | MessageOutcome::Aborted => Ok(()),
        }
    }

    /// What serves the fleet, but was refused here: whether it is taken once more.
    fn unquarantine(&self, digest: Digest, artifact: Option<Digest>) -> bool {
        let mut course = self.course.lock();
        let is_refused = course.known().chosen == PolicyRef::Artifact(digest) && course.behind(artifact);
        if is_refused {
            course.unquarantine();
        }
        is_refused
    }

    /// What would come of an announcement, as far as this host knows: nothing is pulled in vain.
    fn would(&self, digest: Digest, promoted: bool) -> Result<(), NotAnnounced> {
        let course = self.course.lock();
        let known = course.known();
        if known.chosen == PolicyRef::Artifact(digest) {
            return Err(NotAnnounced::Serving(known.generation));
        }
        if known.quarantined.contains(&digest) && !promoted {
            return Err(NotAnnounced::Quarantined);
        }
        Ok(())
    }

    /// Takes the whole fleet back to the generation before this one, on an operator's word; while something is proposed, takes
    /// that back, and what serves stays. `named`: only if it is this component. `note` is told what was done.
    ///
    /// # Errors
    /// [`NotRolledBack`]; nothing is done then, unless it is [`NotRolledBack::Unsure`].
    pub(crate) async fn roll_back(
        self: &Arc<Self>,
        context: &Context,
        named: Option<Digest>,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<(), NotRolledBack> {
        let Some(serving) = context.upstreams.get(self.index) else { return Err(NotRolledBack::Away(LinkError::Down)) };
        let word = {
            let course = self.course.lock();
            // What is proposed goes first, so that nobody takes back another one than they name.
            let meant = course.proposed().map_or(course.target(), |proposed| proposed.digest);
            if let Some(named) = named.filter(|named| *named != meant) {
                return Err(NotRolledBack::Other(named));
            }
            let known = course.known();
            Message::RollBack { generation: known.generation, chosen: known.chosen, why: Why::Operator }
        };
        let heard = self.say(serving, word, note).await.map_err(|error| {
            if error.may_be_done() { NotRolledBack::Unsure(error) } else { NotRolledBack::Away(error) }
        })?;
        match heard.outcome {
            MessageOutcome::Done | MessageOutcome::Aborted => Ok(()),
            MessageOutcome::NoOther => Err(NotRolledBack::NoOther),
            _ => Err(NotRolledBack::Stale),
        }
    }

    /// Says one word for an operator, and notes what came of it even if nobody waits any more; what follows from it is done by the
    /// next turn, which comes at once.
    async fn say(
        self: &Arc<Self>,
        serving: &Arc<UpstreamPolicy>,
        word: Message,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<MessageReply, LinkError> {
        let (own, serving) = (Arc::clone(self), Arc::clone(serving));
        let said = tokio::spawn(async move {
            let (speaker, known, _) = own.own(Some(&serving));
            let heard = own.agreement.say(&speaker, &known, &word).await;
            match &heard {
                Ok(MessageReply { outcome: MessageOutcome::Done, .. }) if matches!(word, Message::RollBack { .. }) => {
                    note(CommandOutcome::RolledBack);
                }
                Ok(MessageReply { outcome: MessageOutcome::Done, .. }) => note(CommandOutcome::Announced),
                Ok(MessageReply { outcome: MessageOutcome::Aborted, .. }) => note(CommandOutcome::Aborted),
                Err(error) if error.may_be_done() => note(CommandOutcome::Unsure),
                Ok(_) | Err(_) => {}
            }
            let heard = heard?;
            let told = own.course.lock().heard(&word, &heard, own.clock.now());
            own.tell_all(told);
            own.wake.notify_one();
            Ok(heard)
        });
        // It fails only where the host ends meanwhile.
        said.await.unwrap_or(Err(LinkError::TimedOut(Duration::ZERO)))
    }
}
