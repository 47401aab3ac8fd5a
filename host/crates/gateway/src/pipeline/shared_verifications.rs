//! Requests that several verifications share: twenty rows of one batch need the same list, and an endpoint's limit may allow one list a
//! second. For each write, a response counts from the time it was requested, never from the time it is read.

use super::{
    RequestContext,
    attempt::{AttemptTarget, CompletedAttempt},
    request_context::{AttemptResult, MaybeGuard, Progress, UpstreamResponse},
};
use crate::{
    error::Problem,
    policy::contract::{BreakerSignal, Failure, Probe},
    upstream::{self, Outbound},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::OnceCell, time::Instant};

/// How long a failure is shared, and the least time for a response.
const MIN_SHARED_FOR: Duration = Duration::from_secs(1);
/// The longest time that a response is shared.
const MAX_SHARED_FOR: Duration = Duration::from_secs(15);
/// The most bytes of shared responses. Beyond that the oldest is dropped, and its writes ask again.
const MAX_SHARED_BYTES: usize = 8 << 20;

/// Shared responses by the identity of their request.
#[derive(Debug, Default)]
pub(crate) struct SharedVerifications(Mutex<HashMap<Vec<u8>, Arc<OnceCell<SharedOutcome>>>>);

/// The result of a shared request.
#[derive(Debug)]
struct SharedOutcome {
    asked_at: Instant,
    received_at: Instant,
    /// The response with the part of its body that a policy reads, and whether that is the whole body.
    answer: Result<(StatusCode, HeaderMap, Bytes, bool), Failure>,
}

impl SharedOutcome {
    /// Bytes of its body and its headers: an upstream chooses the size of both.
    fn bytes(&self) -> usize {
        self.answer.as_ref().map_or(0, |(_, headers, read, _)| {
            read.len() + headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
        })
    }

    /// How long any write may use this outcome.
    fn shared_for(&self) -> Duration {
        match &self.answer {
            Ok((status, ..)) if status.is_success() => MAX_SHARED_FOR,
            _ => MIN_SHARED_FOR,
        }
    }

    /// Whether this outcome says as much about a write as a new request would.
    ///
    /// A write is verified each time its age has doubled, so a response younger than a quarter of that age is fresh enough. From
    /// `commit_within` on, absence is a proof, so a response must have been requested after it.
    fn serves(&self, sent: Option<Instant>, commit_within: Duration, now: Instant) -> bool {
        let age = sent.map(|sent| now.saturating_duration_since(sent));
        let longest = age.map_or(MIN_SHARED_FOR, |age| (age / 4).max(MIN_SHARED_FOR)).min(self.shared_for());
        let is_young = now.saturating_duration_since(self.received_at) < longest;
        let age_when_asked = sent.map(|sent| self.asked_at.saturating_duration_since(sent));
        let is_late_enough =
            age_when_asked.is_none_or(|then| then >= commit_within) || age.is_some_and(|age| age < commit_within);
        is_young && is_late_enough && sent.is_none_or(|sent| sent <= self.asked_at)
    }
}

impl SharedVerifications {
    /// Sends the request, or returns the shared response to an equal one. None: the host refused the request.
    pub(super) async fn request(
        &self,
        context: &mut RequestContext,
        probe: &Probe,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Option<AttemptResult> {
        let (sent, now) = (progress.last_sent, Instant::now());
        let commit_within = context.endpoint().described.commit_within.unwrap_or_default();
        let cell = self.cell(identity(context.upstream, &context.verification_request(probe)), now, |outcome| {
            outcome.serves(sent, commit_within, now)
        });
        let own = requested(context, probe, progress, guard);
        let outcome = match cell.get_or_try_init(|| own).await {
            Ok(outcome) => outcome,
            Err(problem) => {
                tracing::debug!(%problem, "an unknown write could not be verified in this round");
                return None;
            }
        };
        // A response requested before the write was sent says nothing about it.
        if progress.last_sent.is_some_and(|sent| outcome.asked_at < sent) {
            return None;
        }
        progress.verifications += 1;
        progress.verification_sent_at = Some(outcome.asked_at);
        Some(match &outcome.answer {
            Ok((status, headers, read, complete)) => AttemptResult::Answer(UpstreamResponse {
                status: *status,
                headers: headers.clone(),
                read: read.clone(),
                rest: (!complete).then(|| upstream::full(Bytes::new())),
            }),
            Err(failure) => AttemptResult::Failure(*failure),
        })
    }

    fn cell(
        &self,
        identity: Vec<u8>,
        now: Instant,
        serves: impl Fn(&SharedOutcome) -> bool,
    ) -> Arc<OnceCell<SharedOutcome>> {
        let mut cells = self.0.lock();
        cells.retain(|_, cell| match cell.get() {
            Some(outcome) => now.saturating_duration_since(outcome.received_at) < outcome.shared_for(),
            // Still running, unless all that waited for it are gone.
            None => Arc::strong_count(cell) > 1,
        });
        while cells.values().filter_map(|cell| cell.get()).map(SharedOutcome::bytes).sum::<usize>() > MAX_SHARED_BYTES {
            let received_at = |cell: &Arc<OnceCell<SharedOutcome>>| cell.get().map(|outcome| outcome.received_at);
            let oldest = cells.iter().filter_map(|(identity, cell)| Some((received_at(cell)?, identity.clone()))).min();
            let Some((_, identity)) = oldest else { break };
            cells.remove(&identity);
        }
        let cell = cells.entry(identity).or_default();
        if cell.get().is_some_and(|outcome| !serves(outcome)) {
            *cell = Arc::default();
        }
        Arc::clone(cell)
    }
}

async fn requested(
    context: &mut RequestContext,
    probe: &Probe,
    progress: &mut Progress,
    guard: &mut MaybeGuard,
) -> Result<SharedOutcome, Problem> {
    let CompletedAttempt { arrival, permit, took, sent_at, .. } =
        context.attempt(AttemptTarget::Verification(probe), progress, guard).await?;
    permit.report(BreakerSignal::Ignore, took);
    let answer = match arrival {
        AttemptResult::Answer(UpstreamResponse { status, headers, read, rest }) => {
            Ok((status, headers, read, rest.is_none()))
        }
        AttemptResult::Failure(failure) => Err(failure),
    };
    Ok(SharedOutcome { asked_at: sent_at, received_at: Instant::now(), answer })
}

/// The whole request, credentials included, so that only equal requests share a response.
fn identity(upstream: usize, request: &Outbound) -> Vec<u8> {
    let mut identity = upstream.to_be_bytes().to_vec();
    let mut part = |bytes: &[u8]| {
        identity.extend(bytes.len().to_be_bytes());
        identity.extend(bytes);
    };
    part(request.method.as_str().as_bytes());
    part(request.path_and_query.as_bytes());
    for (name, value) in &request.headers {
        part(name.as_str().as_bytes());
        part(value.as_bytes());
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Duration = Duration::from_secs(75);

    fn outcome(asked_at: Instant, status: u16) -> SharedOutcome {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        SharedOutcome { asked_at, received_at: asked_at, answer: Ok((status, HeaderMap::new(), Bytes::new(), true)) }
    }

    /// `asked`, `now`: seconds after the write was sent.
    fn serves(asked: f64, now: f64, status: u16) -> bool {
        let sent = Instant::now() + Duration::from_secs(100);
        let at = |seconds: f64| sent + Duration::from_secs_f64(seconds);
        outcome(at(asked), status).serves(Some(sent), COMMIT, at(now))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_while_it_is_young_against_the_age_of_the_write() {
        for (asked, now, expected) in [
            (2.0, 2.9, true),
            (2.0, 3.1, false),
            (40.0, 50.0, true),
            (30.0, 45.0, false),
            (60.0, 74.9, true),
            (60.0, 75.0, false),
            (74.9, 75.1, false),
            (75.0, 75.1, true),
            (75.0, 89.9, true),
            (75.0, 90.0, false),
        ] {
            assert_eq!(serves(asked, now, 200), expected, "asked at {asked} s, read at {now} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_answer_is_asked_for_again_soon() {
        assert!(serves(80.0, 80.9, 503));
        assert!(!serves(80.0, 81.1, 503));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_the_write_tells_nothing_of_it() {
        let sent = Instant::now() + Duration::from_secs(1);
        let early = outcome(sent - Duration::from_millis(1), 200);
        assert!(!early.serves(Some(sent), Duration::ZERO, sent));
        assert!(early.serves(None, Duration::ZERO, sent), "a write of unknown age was sent before");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_bounded_by_bytes_and_the_oldest_goes_first() {
        let shared = SharedVerifications::default();
        let start = Instant::now();
        for number in 0..5_u64 {
            let cell = shared.cell(vec![u8::try_from(number).unwrap_or_default()], start, |_| true);
            let mut big = outcome(start + Duration::from_millis(number), 200);
            big.answer = Ok((StatusCode::OK, HeaderMap::new(), Bytes::from(vec![0; MAX_SHARED_BYTES / 2]), true));
            assert!(cell.set(big).is_ok());
        }
        shared.cell(vec![9], start, |_| true);
        let mut left: Vec<u8> = shared.0.lock().keys().map(|identity| identity[0]).collect();
        left.sort_unstable();
        assert_eq!(left, [3, 4, 9]);
    }
}
