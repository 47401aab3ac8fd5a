//! Steps of shared state that a request waits for. They are taken far from its account, which gathers them at its end.

use super::{TimelineEvent, request_timeline::STEPS};
use futures_util::future::Either;
use std::cell::RefCell;
use tokio::{task::futures::TaskLocalFuture, task_local, time::Instant};

/// Each with its end.
type Waited = RefCell<Vec<(Instant, TimelineEvent)>>;

task_local! {
    static WAITED: Waited;
}

/// Runs a request; where `wanted`, the steps that it waits for are there for [`taken`] until it ends.
pub fn gathering<F: Future>(wanted: bool, request: F) -> Either<TaskLocalFuture<Waited, F>, F> {
    if wanted { Either::Left(WAITED.scope(RefCell::default(), request)) } else { Either::Right(request) }
}

/// Notes a step that ends now, if a request that is told of waits for it.
pub fn note(name: &'static str, outcome: &'static str, began: Instant) {
    let _ = WAITED.try_with(|waited| {
        let mut waited = waited.borrow_mut();
        // No request that a person reads has more.
        if waited.len() < STEPS {
            let now = Instant::now();
            waited.push((now, TimelineEvent::State { name, outcome, took: now.saturating_duration_since(began) }));
        }
    });
}

/// What the request that runs has waited for so far.
pub fn taken() -> Vec<(Instant, TimelineEvent)> {
    WAITED.try_with(RefCell::take).unwrap_or_default()
}
