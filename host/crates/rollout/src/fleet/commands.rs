//! Operators' commands to a fleet: announce a component, roll back.

use super::{
    Follower, Message, MessageOutcome, PolicyRef, Why,
    staging::{Asked, Unstaged, Wanted},
};
use crate::{
    Context, UpstreamPolicy, policy::Digest, state::rollout::MessageReply, state_redis::LinkError,
    upstream_runtime::StagePhase,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Why a component was not announced.
#[derive(Debug, thiserror::Error)]
pub enum NotAnnounced {
    /// Another component is being announced.
    #[error("another announcement is under way; `triage policy list` shows it: announce again after its end")]
    Busy,
    /// Shared state cannot be reached.
    #[error("shared state cannot be reached now, and announcements need it: announce again when it answers")]
    Away(#[source] LinkError),
    /// The command was sent, but no reply arrived.
    #[error("shared state did not confirm the announcement; run `triage policy list` before you announce again")]
    Unsure(#[source] LinkError),
    /// Shared state has lost its list of live hosts.
    #[error("shared state has lost the list of live hosts, which register again within a second: announce again then")]
    Gathering,
    /// This host refused the component.
    #[error("this host refused the component at step {}: {reason}; it is not announced", step.name())]
    Refused {
        /// The phase that failed.
        step: StagePhase,
        /// The cause.
        reason: String,
    },
    /// The component serves the fleet already.
    #[error("the fleet's generation {0} already is this component")]
    Serving(u64),
    /// The fleet has rolled the component back before.
    #[error(
        "this component was rolled back before; fix it, or announce it in spite of that: `triage policy promote \
         UPSTREAM DIGEST`"
    )]
    Quarantined,
}

/// Why a fleet was not rolled back.
#[derive(Debug, thiserror::Error)]
pub enum NotRolledBack {
    /// Shared state cannot be reached.
    #[error("shared state cannot be reached now, and rollbacks need it: retry when it answers")]
    Away(#[source] LinkError),
    /// The command was sent, but no reply arrived.
    #[error("shared state did not confirm the rollback; run `triage policy list` before you retry")]
    Unsure(#[source] LinkError),
    /// The named component neither serves nor is proposed.
    #[error("sha256:{0} neither serves the fleet nor is proposed to it; run `triage policy list`")]
    Other(Digest),
    /// The fleet has no earlier generation.
    #[error("the fleet has no earlier generation; announce a better component")]
    NoOther,
    /// Another generation serves by now.
    #[error("the fleet has switched meanwhile; run `triage policy list`")]
    Stale,
}

/// The outcome of an operator's command. Reported as soon as it is known, even if the operator no longer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutcome {
    /// The component is announced.
    Announced,
    /// The fleet is rolled back.
    RolledBack,
    /// The open proposal is withdrawn.
    Aborted,
    /// This host allows the fleet's component again.
    Pardoned,
    /// The command may have been executed.
    Unsure,
}

impl Follower {
    /// Announces a component to the fleet, after this host has staged it. `promoted`: even if it was rolled back before; if it serves the
    /// fleet already, this host allows it again. `note` gets the outcome. Dropping the future stops an announcement that was not sent yet.
    ///
    /// # Errors
    /// [`NotAnnounced`]; nothing is announced, except perhaps with [`NotAnnounced::Unsure`].
    pub async fn announce(
        self: &Arc<Self>,
        context: &Arc<Context>,
        digest: Digest,
        promoted: bool,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<(), NotAnnounced> {
        let permit = Arc::clone(&self.announcing).try_acquire_owned().map_err(|_| NotAnnounced::Busy)?;
        if !self.agreement.link().has_connection() {
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
        match self.cached_policy(digest).filter(|_| !promoted) {
            Some(policy) if policy.digest().is_some_and(|component| serving.is_quarantined(&component)) => {
                return Err(refused(&Unstaged::quarantined()));
            }
            Some(_) => {}
            None => {
                let (answer, answered) = oneshot::channel();
                let wanted = Wanted { digest, promoted, within: None };
                self.stage(context, wanted, Some(Asked { answer, permit }));
                let gone = || Unstaged::Away("the staging thread has ended".to_owned());
                let checked = answered.await.unwrap_or_else(|_| Err(gone()));
                self.put(digest, checked.map_err(|why| refused(&why))?);
            }
        }
        let id = self.entropy.next();
        let (from, others) = {
            let planner = self.planner.lock();
            (planner.configured(), planner.others(self.clock.now()))
        };
        let message = Message::Announce { id, digest, promoted, from, others };
        let reply = self.send(serving, message, note).await.map_err(|error| {
            if error.may_be_done() { NotAnnounced::Unsure(error) } else { NotAnnounced::Away(error) }
        })?;
        match reply.outcome {
            MessageOutcome::Serving => Err(NotAnnounced::Serving(reply.view.state.generation)),
            MessageOutcome::Quarantined => Err(NotAnnounced::Quarantined),
            MessageOutcome::Busy => Err(NotAnnounced::Busy),
            MessageOutcome::Gathering => Err(NotAnnounced::Gathering),
            MessageOutcome::Done | MessageOutcome::NoOther | MessageOutcome::Stale | MessageOutcome::Aborted => Ok(()),
        }
    }

    /// Allows the fleet's component again if this host refused it. Returns whether it did.
    fn unquarantine(&self, digest: Digest, artifact: Option<Digest>) -> bool {
        let mut planner = self.planner.lock();
        let is_refused = planner.known().chosen == PolicyRef::Artifact(digest) && planner.behind(artifact);
        if is_refused {
            planner.unquarantine();
        }
        is_refused
    }

    /// Checks an announcement against the known state, before anything is pulled.
    fn would(&self, digest: Digest, promoted: bool) -> Result<(), NotAnnounced> {
        let planner = self.planner.lock();
        let known = planner.known();
        if known.chosen == PolicyRef::Artifact(digest) {
            return Err(NotAnnounced::Serving(known.generation));
        }
        if known.quarantined.contains(&digest) && !promoted {
            return Err(NotAnnounced::Quarantined);
        }
        Ok(())
    }

    /// Rolls the whole fleet back to the previous generation, by an operator's command. While a proposal is open, withdraws that instead,
    /// and the live generation stays. `named`: only if this is the component. `note` gets the outcome.
    ///
    /// # Errors
    /// [`NotRolledBack`]; nothing is done, except perhaps with [`NotRolledBack::Unsure`].
    pub async fn roll_back(
        self: &Arc<Self>,
        context: &Context,
        named: Option<Digest>,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<(), NotRolledBack> {
        let Some(serving) = context.upstreams.get(self.index) else { return Err(NotRolledBack::Away(LinkError::Down)) };
        let message = {
            let planner = self.planner.lock();
            // An open proposal comes first, so that an operator withdraws only the component that they name.
            let meant = planner.proposed().map_or(planner.target(), |proposed| proposed.digest);
            if let Some(named) = named.filter(|named| *named != meant) {
                return Err(NotRolledBack::Other(named));
            }
            let known = planner.known();
            Message::RollBack { generation: known.generation, chosen: known.chosen, why: Why::Operator }
        };
        let reply = self.send(serving, message, note).await.map_err(|error| {
            if error.may_be_done() { NotRolledBack::Unsure(error) } else { NotRolledBack::Away(error) }
        })?;
        match reply.outcome {
            MessageOutcome::Done | MessageOutcome::Aborted => Ok(()),
            MessageOutcome::NoOther => Err(NotRolledBack::NoOther),
            _ => Err(NotRolledBack::Stale),
        }
    }

    /// Sends an operator's message in a task, so that its outcome is noted even if the operator no longer waits. The follower's next round,
    /// which it wakes, acts on the reply.
    async fn send(
        self: &Arc<Self>,
        serving: &Arc<UpstreamPolicy>,
        message: Message,
        note: impl FnOnce(CommandOutcome) + Send + 'static,
    ) -> Result<MessageReply, LinkError> {
        let (own, serving) = (Arc::clone(self), Arc::clone(serving));
        let said = tokio::spawn(async move {
            let (status, known, _) = own.own(Some(&serving));
            let reply = own.agreement.send(&status, &known, &message).await;
            match &reply {
                Ok(MessageReply { outcome: MessageOutcome::Done, .. })
                    if matches!(message, Message::RollBack { .. }) =>
                {
                    note(CommandOutcome::RolledBack);
                }
                Ok(MessageReply { outcome: MessageOutcome::Done, .. }) => note(CommandOutcome::Announced),
                Ok(MessageReply { outcome: MessageOutcome::Aborted, .. }) => note(CommandOutcome::Aborted),
                Err(error) if error.may_be_done() => note(CommandOutcome::Unsure),
                Ok(_) | Err(_) => {}
            }
            let reply = reply?;
            let notices = own.planner.lock().process_reply(&message, &reply, own.clock.now());
            own.report_notices(notices);
            own.wake.notify_one();
            Ok(reply)
        });
        // The task fails only if the host ends meanwhile.
        said.await.unwrap_or(Err(LinkError::TimedOut(Duration::ZERO)))
    }
}
