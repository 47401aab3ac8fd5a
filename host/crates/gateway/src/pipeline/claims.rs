//! Claims on resources that a verification finds: a request adopts a match only if no other request has claimed it.

use super::{
    RequestContext, record_lifecycle,
    request_context::{AttemptResult, Doubt, MaybeGuard, Progress},
};
use crate::{
    error::Problem,
    idempotency::{Claim, ClaimName, Claimant, RecordError},
    policy::contract::{Next, Purpose},
};
use std::ops::Range;
use tokio::time::Instant;

/// Whether the request may take a match for its own.
pub(super) enum MatchCheck {
    /// Yes: the match is claimed for the request, or needs no claim.
    Free,
    /// No: another request has claimed the match.
    Taken,
    /// The policy is asked again, since another match may be the request's own.
    AskAgain,
    /// No match may be adopted.
    Unclear,
}

/// Other matches that a request could adopt, when no claim names the first one.
enum OtherMatches {
    /// No other: the first match may be adopted.
    None,
    /// A match that the request itself has claimed.
    Own,
    /// No match may be adopted, for this reason.
    InDoubt(Doubt),
    /// The policy or the store gave no usable answer.
    Unclear,
}

impl RequestContext {
    /// Checks a match and claims it. `adopts`: the verdict gives the match to the caller as the response.
    pub(super) async fn check_match(
        &self,
        name: &str,
        adopts: bool,
        result: (Purpose, &AttemptResult),
        progress: &mut Progress,
        guard: &MaybeGuard,
        asks: &mut Range<usize>,
    ) -> MatchCheck {
        if adopts && !self.shared.adopts_after_loss {
            match self.claimant(name, progress).await {
                Ok(Claimant::Asker) => {}
                Ok(Claimant::Other) => return MatchCheck::Taken,
                // The claim lookup has just refreshed whether the store has lost data.
                Ok(Claimant::Nobody) => match self.other_matches(name, result, progress, asks).await {
                    OtherMatches::None => {}
                    OtherMatches::Own => return MatchCheck::AskAgain,
                    OtherMatches::InDoubt(doubt) => {
                        progress.doubt = Some(doubt);
                        return MatchCheck::Unclear;
                    }
                    OtherMatches::Unclear => return MatchCheck::Unclear,
                },
                Err(_) => return MatchCheck::Unclear,
            }
        }
        match self.claim(name, progress, guard).await {
            Ok(Claim::Ours) => MatchCheck::Free,
            Ok(Claim::Taken) if adopts => MatchCheck::Taken,
            Ok(Claim::Taken) => {
                let endpoint = &self.endpoint().described.name;
                tracing::warn!(%endpoint, "the upstream returned the same resource to two requests");
                MatchCheck::Free
            }
            // Adopt nothing without the store: an equal request may have claimed the match.
            Err(_) if adopts => MatchCheck::Unclear,
            Err(problem) => {
                tracing::warn!(%problem, "a claim could not be recorded");
                MatchCheck::Free
            }
        }
    }

    /// Searches another match that the request could adopt instead of `name`, which no claim names. Needed only after shared state has
    /// lost its data: claims may be missing then, and an equal request may have made the match. Claims nothing.
    ///
    /// A verdict without another match is not recorded, since it is not followed.
    async fn other_matches(
        &self,
        name: &str,
        (purpose, result): (Purpose, &AttemptResult),
        progress: &mut Progress,
        asks: &mut Range<usize>,
    ) -> OtherMatches {
        if !self.is_after_loss() {
            return OtherMatches::None;
        }
        if progress.doubtful && progress.attempts == 0 {
            return OtherMatches::InDoubt(Doubt::NotKnownSent);
        }
        progress.taken.push(name.to_owned());
        while asks.next().is_some() {
            let began = Instant::now();
            let (verdict, is_faulty) = self.verdict(purpose, result, progress, began);
            if is_faulty {
                return OtherMatches::Unclear;
            }
            if !matches!(verdict.next, Next::Replace(_)) {
                progress.taken.retain(|taken| taken != name);
                return OtherMatches::None;
            }
            progress.recorder.judged(&verdict, began.elapsed());
            let Some(other) = verdict.claim else { return OtherMatches::InDoubt(Doubt::SeveralUnclaimed) };
            match self.claimant(&other, progress).await {
                Ok(Claimant::Asker) => return OtherMatches::Own,
                Ok(Claimant::Other) => progress.taken.push(other),
                // The policy proposed the same match, although `progress.taken` lists it: the policy cannot name another match.
                Ok(Claimant::Nobody) if other == name => return OtherMatches::Unclear,
                Ok(Claimant::Nobody) => return OtherMatches::InDoubt(Doubt::SeveralUnclaimed),
                Err(_) => return OtherMatches::Unclear,
            }
        }
        OtherMatches::Unclear
    }

    /// Whether claims may be missing: shared state has lost its data.
    pub(super) fn is_after_loss(&self) -> bool {
        self.shared.is_after_loss(&self.service.settings.idempotency)
    }

    async fn claimant(&self, name: &str, progress: &Progress) -> Result<Claimant, RecordError> {
        self.shared.records.claimant(self.claim_name(name), progress.owner).await
    }

    async fn claim(&self, name: &str, progress: &Progress, guard: &MaybeGuard) -> Result<Claim, Problem> {
        let name = self.claim_name(name);
        let made = match guard {
            Some(guard) => guard.claim(name).await,
            None => {
                let settings = &self.service.settings.idempotency;
                self.shared.records.claim(name, progress.owner, settings.keep.saturating_add(settings.lock)).await
            }
        };
        made.map_err(record_lifecycle::problem)
    }

    fn claim_name(&self, name: &str) -> ClaimName {
        ClaimName::of(&self.service.settings.name, name)
    }
}
