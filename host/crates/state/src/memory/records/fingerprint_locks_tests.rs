#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::idempotency::Identity;
use futures_util::{FutureExt, future::BoxFuture, task::noop_waker_ref};
use http::Method;
use proptest::prelude::*;
use std::{
    sync::atomic::AtomicBool,
    task::{Context, Poll},
};

fn twin(n: u8) -> Fingerprint {
    let request =
        Identity { upstream: "up", endpoint: "create", method: &Method::POST, path_and_query: "/", body: &[n] };
    Fingerprint::of(&request)
}

enum Request {
    LockWaiter(BoxFuture<'static, Result<LocalLockGuard, RecordError>>),
    Going { _guard: LocalLockGuard },
}

impl Request {
    fn take(locks: &Arc<FingerprintLocks>, fingerprint: Fingerprint) -> Result<Self, RecordError> {
        Ok(match locks.take(fingerprint)? {
            LockToken::First(guard) => Self::Going { _guard: guard },
            LockToken::Queued(waiting) => Self::LockWaiter(waiting.wait().boxed()),
        })
    }

    fn poll(&mut self) {
        if let Self::LockWaiter(waiting) = self
            && let Poll::Ready(guard) = waiting.as_mut().poll(&mut Context::from_waker(noop_waker_ref()))
        {
            *self = Self::Going { _guard: guard.unwrap() };
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Arrive(u8),
    /// The request at this index leaves, whether it holds the lock or waits.
    Leave(prop::sample::Index),
    /// Polls all waiting requests. In histories without it, batons are in channels when their receivers leave.
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_u8).prop_map(Step::Arrive),
        3 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..60)
}

const MAX: usize = 12;

proptest! {
    #[test]
    fn equal_requests_go_one_at_a_time_in_order(steps in steps()) {
        let locks = Arc::new(FingerprintLocks::new(MAX));
        let mut requests: Vec<(u8, Request)> = Vec::new();
        for step in steps {
            match step {
                Step::Arrive(n) => {
                    let request = Request::take(&locks, twin(n));
                    prop_assert_eq!(request.is_err(), requests.len() == MAX, "refused only when full");
                    requests.extend(request.ok().map(|request| (n, request)));
                }
                Step::Leave(index) if !requests.is_empty() => drop(requests.remove(index.index(requests.len()))),
                Step::Leave(_) => {}
                Step::Look => {
                    for (_, request) in &mut requests {
                        request.poll();
                    }
                    for n in 0..3 {
                        let going: Vec<bool> = requests
                            .iter()
                            .filter(|(of, _)| *of == n)
                            .map(|(_, request)| matches!(request, Request::Going { .. }))
                            .collect();
                        let first_only: Vec<bool> = (0..going.len()).map(|place| place == 0).collect();
                        prop_assert_eq!(going, first_only, "of twin {}", n);
                    }
                }
            }
            let going = |n| requests.iter().filter(|(of, request)| *of == n && matches!(request, Request::Going { .. })).count();
            prop_assert!((0..3).all(|n| going(n) <= 1), "two at a time");
            prop_assert_eq!(locks.len(), requests.len());
        }
        requests.clear();
        prop_assert_eq!(locks.len(), 0);
        prop_assert!(locks.shards.iter().all(|shard| shard.lock().is_empty()), "no queue is left behind");
    }
}

#[test]
fn a_panic_passes_the_turn_on() {
    let locks = Arc::new(FingerprintLocks::new(MAX));
    let first = Request::take(&locks, twin(1)).unwrap();
    let mut second = Request::take(&locks, twin(1)).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = first;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    second.poll();
    assert!(matches!(second, Request::Going { .. }));
}

#[test]
fn different_requests_do_not_wait() {
    let locks = Arc::new(FingerprintLocks::new(MAX));
    let both = [1, 2].map(|n| Request::take(&locks, twin(n)).unwrap());
    assert!(both.iter().all(|request| matches!(request, Request::Going { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_never_share_a_turn() {
    let locks = Arc::new(FingerprintLocks::new(1000));
    let busy = Arc::new(AtomicBool::new(false));
    let requests = (0..400_u32).map(|n| {
        let (locks, busy) = (Arc::clone(&locks), Arc::clone(&busy));
        tokio::spawn(async move {
            let place = locks.take(twin(0)).unwrap();
            let guard = match place {
                LockToken::First(guard) => guard,
                // Every third request leaves while it waits, with or without a baton in its channel.
                LockToken::Queued(waiting) if n % 3 == 0 => {
                    let mut waiting = waiting.wait().boxed();
                    let _ = futures_util::poll!(&mut waiting);
                    return;
                }
                LockToken::Queued(waiting) => waiting.wait().await.unwrap(),
            };
            assert!(!busy.swap(true, Relaxed), "two at a time");
            tokio::task::yield_now().await;
            busy.store(false, Relaxed);
            drop(guard);
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
    assert_eq!(locks.len(), 0);
}
