//! The thread on which shadow candidates decide: after the live decision, off the request's path, and bounded by its queue.

use super::{Difference, UpstreamPolicy, VerdictSummary};
use crate::{
    clock::Timestamp,
    policy::contract::{Attempt, Failure, Outcome},
    upstream_runtime::UpstreamRuntime,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use std::{
    io,
    sync::{
        Arc, LazyLock,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

/// The most queued cases; further ones are skipped and counted.
const MAX_QUEUED_CASES: usize = 256;

/// Sends cases to the thread, which ends when the last sender is dropped.
#[derive(Debug, Clone)]
pub struct Shadow(SyncSender<Box<Case>>);

impl Shadow {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's error if the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (sender, cases) = sync_channel(MAX_QUEUED_CASES);
        thread::Builder::new().name("triage-shadow".to_owned()).spawn(move || work(&cases))?;
        Ok(Self(sender))
    }

    /// Queues an outcome that the live policy has decided about. Never waits.
    pub fn show(&self, case: Case) {
        if let Err(error) = self.0.try_send(Box::new(case)) {
            let (TrySendError::Full(case) | TrySendError::Disconnected(case)) = error;
            if let Some(candidate) = &case.serving.candidate {
                candidate.skip();
            }
        }
    }
}

/// An owned copy of an outcome, limited to the candidate's interest.
#[derive(Debug)]
pub struct Case {
    serving: Arc<UpstreamPolicy>,
    candidate: Arc<UpstreamRuntime>,
    /// The endpoint's name in the live policy.
    named: String,
    live: VerdictSummary,
    now: Timestamp,
    facts: Attempt<'static>,
    method: Method,
    path: String,
    request_headers: HeaderMap,
    request_body: Bytes,
    outcome: ShadowInput,
}

#[derive(Debug)]
enum ShadowInput {
    Response { status: StatusCode, headers: HeaderMap, body: Bytes, complete: bool },
    Failure(Failure),
}

impl Case {
    /// Builds the candidate's case. None if the candidate has no policy endpoint for the request, or wants more of the body than was read.
    pub fn of(
        serving: &Arc<UpstreamPolicy>,
        candidate: Arc<UpstreamRuntime>,
        endpoint: usize,
        judged: (&str, VerdictSummary, Timestamp),
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
    ) -> Option<Self> {
        let skipped = || {
            if let Some(candidate) = &serving.candidate {
                candidate.skip();
            }
        };
        let own = candidate.endpoints.get(endpoint)?;
        let policy_index = own.policy_index?;
        let interest = &own.described.interest;
        let seen = match outcome {
            Outcome::Response { status, headers, body, complete } => {
                if !complete && body.len() < interest.response_body_bytes {
                    skipped();
                    return None;
                }
                ShadowInput::Response {
                    status: *status,
                    headers: named(headers, &interest.response_headers),
                    body: Bytes::copy_from_slice(prefix(body, interest.response_body_bytes)),
                    complete: *complete && body.len() <= interest.response_body_bytes,
                }
            }
            Outcome::Failure(failure) => ShadowInput::Failure(*failure),
        };
        let (name, live, now) = judged;
        Some(Self {
            serving: Arc::clone(serving),
            named: name.to_owned(),
            live,
            now,
            method: attempt.method.clone(),
            path: if interest.path { attempt.path.to_owned() } else { String::new() },
            request_headers: named(attempt.request_headers, &interest.request_headers),
            request_body: Bytes::copy_from_slice(prefix(attempt.request_body, interest.request_body_bytes)),
            outcome: seen,
            facts: facts(attempt, policy_index),
            candidate,
        })
    }

    /// Has the candidate decide, and records the comparison.
    fn judge(self) {
        let Some(slot) = &self.serving.candidate else { return };
        if !slot.is(&self.candidate) {
            return;
        }
        let attempt = Attempt {
            method: &self.method,
            path: &self.path,
            request_headers: &self.request_headers,
            request_body: &self.request_body,
            ..self.facts
        };
        let outcome = match &self.outcome {
            ShadowInput::Response { status, headers, body, complete } => {
                Outcome::Response { status: *status, headers, body, complete: *complete }
            }
            ShadowInput::Failure(failure) => Outcome::Failure(*failure),
        };
        let decided = self.candidate.policy.decide(&attempt, &outcome);
        let said = match &decided {
            Ok(verdict) if VerdictSummary::of(verdict) == self.live => None,
            Ok(verdict) => Some(VerdictSummary::of(verdict).to_string()),
            Err(fault) => Some(fault.name().to_owned()),
        };
        let difference = said.map(|candidate| Difference {
            endpoint: self.named.clone(),
            outcome: match &self.outcome {
                ShadowInput::Response { status, .. } => status.as_u16().to_string(),
                ShadowInput::Failure(failure) => failure.kind.name().to_owned(),
            },
            live: self.live.to_string(),
            candidate,
        });
        self.serving.compared(&self.candidate, difference, decided.is_err(), self.now);
        self.serving.decided(&self.candidate, decided.err().as_ref(), self.now);
    }
}

/// The copyable part of an attempt; the rest is empty.
fn facts(attempt: &Attempt<'_>, endpoint: usize) -> Attempt<'static> {
    static NOTHING: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
    Attempt {
        endpoint,
        method: &Method::GET,
        effect: attempt.effect,
        purpose: attempt.purpose,
        number: attempt.number,
        prior_unknown: attempt.prior_unknown,
        sent_ago: attempt.sent_ago,
        elapsed: attempt.elapsed,
        remaining: attempt.remaining,
        previous_delay: attempt.previous_delay,
        random: attempt.random,
        now_unix_ms: attempt.now_unix_ms,
        keyed: attempt.keyed,
        path: "",
        request_headers: &NOTHING,
        request_body: b"",
        taken: &[],
    }
}

fn work(cases: &Receiver<Box<Case>>) {
    while let Ok(case) = cases.recv() {
        case.judge();
    }
}

fn named(all: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut found = HeaderMap::new();
    for name in names {
        for value in all.get_all(name) {
            found.append(name.clone(), value.clone());
        }
    }
    found
}

fn prefix(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}
