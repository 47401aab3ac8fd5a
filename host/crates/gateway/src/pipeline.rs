//! The life of a request, read from top to bottom.
//!
//! 1. `prepare`: `routing`, deadline, headers, `request_body`, key and `equality` make a `RequestContext`.
//! 2. `record_lifecycle`, `unkeyed`: begin the record of the request's key, or adopt an orphan.
//! 3. Take the fingerprint lock, so that equal requests run one at a time.
//! 4. `RequestContext::drive`, the only loop that sends: admit and send (`attempt`), decide (`decide`), check claims (`claims`),
//!    clamp (`crate::retry`), apply (`retry_loop`).
//! 5. `record_lifecycle`: finish, release or keep the record.
//! 6. `response`, `delivery`: the response, and the watch over it until the caller has it.
//!
//! For requests that are not safe, steps 2 to 6 run in a detached task: a caller that hangs up after the send must not cancel work whose
//! effect is already under way. `verification` settles a write that is still unknown after that, without its caller.

mod attempt;
mod caller_gone;
mod claims;
mod cold_start;
mod condition;
mod decide;
mod delivery;
mod early_response;
mod equality;
mod leased_body;
mod pending_report;
pub mod prefer;
mod prepare;
mod record_lifecycle;
mod record_status;
mod request_body;
pub(crate) mod request_context;
mod request_head;
mod response;
mod retry_loop;
mod routing;
mod settle_writes;
mod shared_verifications;
mod unkeyed;
pub(crate) mod upstream_key;
mod verdict;
mod verification;

pub(crate) use caller_gone::CallerGone;
pub(crate) use request_context::RequestContext;
use shared_verifications::SharedVerifications;

use crate::{
    error::Problem,
    host::{Host, Shared},
    idempotency::{ClaimOwner, FencingToken},
    overload::{MemoryReservation, UnderWay, peers::Connection},
    policy::contract::Effect,
    retry::NextAction,
    telemetry::{RequestId, RequestRecorder, TimelineEvent, WaitedFor, task_spans},
    upstream::{Body, headers::Caller},
};
use early_response::Leaves;
use http::{HeaderName, HeaderValue, Request, Response};
use record_lifecycle::{Beginning, Begins, Start, hand_over};
use request_context::{MaybeGuard, Orphan, Progress};
use response::CallerResponse;
use std::{net::SocketAddr, sync::Arc};
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

/// The request's id in the admin interface: names it when asking for its explanation.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("triage-request-id");

impl Host {
    /// Handles one request. A refusal is a response too. Dropping the future cancels a safe request; other requests go on in the background
    /// once they may have been sent.
    pub async fn handle(
        &self,
        request: Request<Body>,
        caller: &Caller,
        listener: Option<SocketAddr>,
    ) -> Response<Body> {
        self.handle_on(request, caller, listener, None).await
    }

    /// Handles one request whose body is in memory: the pipeline without a listener.
    /// The book's page about the library has an example that runs.
    pub async fn call(&self, request: Request<bytes::Bytes>) -> Response<Body> {
        let caller = Caller::new(std::net::Ipv4Addr::LOCALHOST.into(), "http");
        self.handle(request.map(crate::upstream::full), &caller, None).await
    }

    /// [`Host::handle`] for a request of a known connection, against whose limits the request counts.
    pub async fn handle_on(
        &self,
        request: Request<Body>,
        caller: &Caller,
        listener: Option<SocketAddr>,
        connection: Option<&Connection>,
    ) -> Response<Body> {
        let mut recorder = RequestRecorder::open(&self.telemetry);
        let id = recorder.id;
        let (mut head, body) = request.into_parts();
        let own = match request_head::check(&mut head) {
            Ok(()) if request_head::asks_the_host(&head) => Some(Ok(response::of_the_host())),
            Ok(()) => self.reserved(&head, caller, listener).await,
            Err(problem) => Some(Err(problem)),
        };
        match own {
            None => {}
            Some(Err(problem)) => return refused(problem, recorder),
            Some(Ok(response)) => {
                recorder.close(response.status().as_u16());
                return identified(response, id);
            }
        }
        match self.prepare(head, body, caller, listener, connection, &mut recorder).await {
            Ok(context) => identified(self.respond(context, recorder).await, id),
            Err(problem) => refused(problem, recorder),
        }
    }

    /// Refuses a request at the listener, and counts the refusal.
    pub fn refuse(&self, problem: Problem) -> Response<Body> {
        refused(problem, RequestRecorder::open(&self.telemetry))
    }

    /// Runs the request: a safe one here, another one in a detached task, which this waits for as long as the caller does.
    async fn respond(&self, context: Box<RequestContext>, recorder: RequestRecorder) -> Response<Body> {
        let span = context.span(&recorder);
        let gone = context.caller_gone.clone();
        let mut waits = context.under_way.as_ref().filter(|_| gone.is_some()).map(UnderWay::caller);
        let caller_wait = context.caller_wait(&recorder.shared_meter());
        let explained = self.shared.link.is_some() && self.telemetry.explains();
        let run = task_spans::gathering(explained, context.run(recorder).instrument(span));
        let Some(gone) = gone else { return run.await };
        let guard = gone.guard();
        let mut finished = self.shared.detached.spawn(run);
        let answer = match caller_wait {
            None => finished.await,
            Some(wait) => {
                let leave = |leaves: Leaves| {
                    if leaves == Leaves::ForGood {
                        guard.no_longer();
                    }
                    drop(waits.take());
                };
                wait.bound(&mut finished, leave).await
            }
        };
        guard.over();
        if let Some(waits) = waits {
            waits.answered();
        }
        answer.unwrap_or_else(|_| Problem::EffectUnknown.into_response())
    }
}

impl RequestContext {
    /// Runs a prepared request to its response.
    async fn run(mut self: Box<Self>, recorder: RequestRecorder) -> Response<Body> {
        let fence = FencingToken::draw(&self.shared.entropy);
        let mut progress = Progress::new(ClaimOwner::Request(fence), recorder);
        let result = self.settled(fence, &mut progress).await;
        let has_disconnected = self.caller_gone.as_ref().is_some_and(CallerGone::has_disconnected);
        let response = match result {
            // Given up because its caller left: the host refused nothing.
            Err(problem @ Problem::DeadlineBeforeSend) if has_disconnected => {
                progress.recorder.abandon();
                problem.into_response()
            }
            result => {
                let response = result.unwrap_or_else(|problem| {
                    progress.recorder.refused(&problem);
                    problem.into_response()
                });
                let status = response.status().as_u16();
                if has_disconnected {
                    progress.recorder.close_abandoned(status);
                } else {
                    progress.recorder.close(status);
                }
                response
            }
        };
        match self.held.take().filter(MemoryReservation::is_limited) {
            Some(held) => response.map(|body| response::holding(body, held)),
            None => response,
        }
    }

    /// Begins the record, takes the lock, drives the request, settles the record. Begins again if the request finds an orphan to adopt.
    async fn settled(&mut self, fence: FencingToken, progress: &mut Progress) -> Result<Response<Body>, Problem> {
        let mut begins = self.begin(fence, progress).await?;
        loop {
            let Beginning { mut guard, mut start, entry, others } = match begins {
                Begins::With(beginning) => *beginning,
                Begins::Answered(response) => return Ok(response),
            };
            let began = Instant::now();
            self.take_lock(progress, &mut guard)
                .await
                .inspect_err(|_| progress.recorder.waited(WaitedFor::EqualRequest))?;
            if let Some(entry) = entry.as_ref().filter(|_| others) {
                if self.found_orphan(entry, began).await? {
                    hand_over(guard);
                    begins = self.adopt(Arc::clone(entry), progress).await?;
                    continue;
                }
                progress.listed = Some(Arc::clone(entry));
            }
            let after_condition = self.after_equal_condition(start, progress).await;
            if self.effect != Effect::Safe {
                progress.recorder.waited(WaitedFor::EqualRequest);
            }
            start = after_condition?;
            if let Some(guard) = &mut guard {
                progress.owner = ClaimOwner::Record(guard.id());
                if guard.is_marked_by_sends() {
                    guard.intend(self.intent());
                }
            }
            let result = self.drive(start, progress, &mut guard).await;
            match entry {
                Some(entry) if progress.orphan == Orphan::Found => {
                    progress.orphan = Orphan::None;
                    hand_over(guard);
                    begins = self.adopt(entry, progress).await?;
                }
                entry => {
                    let response = self.settle(result, progress, guard, entry).await;
                    condition::end(progress).await;
                    return Ok(response);
                }
            }
        }
    }

    /// Drives the request from its start to the response for its caller.
    async fn drive(
        &mut self,
        start: Start,
        progress: &mut Progress,
        guard: &mut MaybeGuard,
    ) -> Result<CallerResponse, Problem> {
        let mut action = self.first_action(start, progress, guard).await?;
        loop {
            action = match action {
                NextAction::Retry(delay) => {
                    self.wait(delay, progress).await;
                    self.send_request(progress, guard).await?
                }
                NextAction::Resend(delay) => {
                    self.wait(delay, progress).await;
                    self.resend_with_key(progress, guard).await?
                }
                NextAction::Verify(probe) => {
                    if !probe.delay.is_zero() {
                        progress.recorder.note(|| TimelineEvent::Waits { wait: probe.delay });
                    }
                    sleep(probe.delay).await;
                    self.send_verification(&probe, progress, guard).await?
                }
                NextAction::Replace(answer) => return Ok(answer.into()),
                NextAction::Deliver => return retry_loop::last_response(progress),
                NextAction::Unsettled => return Err(self.left_unknown(progress)),
            }
        }
    }
}

fn refused(problem: Problem, mut recorder: RequestRecorder) -> Response<Body> {
    let id = recorder.id;
    recorder.refused(&problem);
    let response = problem.into_response();
    recorder.close(response.status().as_u16());
    identified(response, id)
}

fn identified(mut response: Response<Body>, id: RequestId) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_bytes(&id.digits()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
