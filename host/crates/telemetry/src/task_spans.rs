//! Calls of shared state that a request waits for. Code without access to the request's recorder notes them in a task-local list, which
//! the recorder reads at the end.

use super::{TimelineEvent, request_timeline::MAX_EVENTS};
use futures_util::future::Either;
use std::{cell::RefCell, time::Duration};
use tokio::{task::futures::TaskLocalFuture, task_local, time::Instant};

/// Each call with the time of its end.
type Waited = RefCell<Vec<(Instant, TimelineEvent)>>;

task_local! {
    static WAITED: Waited;
}

/// Runs a request; if `wanted`, with a list of its calls, which [`taken`] returns.
pub fn gathering<F: Future>(wanted: bool, request: F) -> Either<TaskLocalFuture<Waited, F>, F> {
    if wanted { Either::Left(WAITED.scope(RefCell::default(), request)) } else { Either::Right(request) }
}

/// Notes a call that ends now, if the task has a list.
pub fn note(name: &'static str, outcome: &'static str, began: Instant) {
    let _ = WAITED.try_with(|waited| {
        let mut waited = waited.borrow_mut();
        // A timeline keeps no more events.
        if waited.len() < MAX_EVENTS {
            let now = Instant::now();
            waited.push((now, TimelineEvent::State { name, outcome, took: now.saturating_duration_since(began) }));
        }
    });
}

/// How long the running request has waited for calls that ended after this time.
pub fn time_since(at: Instant) -> Duration {
    let took = |(ended, event): &(Instant, TimelineEvent)| match event {
        TimelineEvent::State { took, .. } if *ended > at => *took,
        _ => Duration::ZERO,
    };
    WAITED.try_with(|waited| waited.borrow().iter().map(took).sum()).unwrap_or_default()
}

/// Takes the calls of the running request so far.
pub fn taken() -> Vec<(Instant, TimelineEvent)> {
    WAITED.try_with(RefCell::take).unwrap_or_default()
}
