//! Attempts that ask at the same time, with one server, on real time.

use super::{
    shared_breaker::{Host, MS, five, host, host_at, quota, settings, soon},
    *,
};
use crate::{
    group::{AttemptKind, Refusal},
    test_server::{Proxy, RedisServer, Way},
};
use futures_util::future::join_all;
use std::{ops::RangeInclusive, time::Duration};
use tokio::time::{sleep, timeout};

/// No wait: admit at once, or refuse.
const NOW: RangeInclusive<Duration> = Duration::ZERO..=Duration::ZERO;

impl Host {
    /// `count` attempts ask at once, none of which can wait.
    async fn crowd(&self, count: usize) -> Vec<Result<Grant, Refusal>> {
        join_all((0..count).map(|_| self.gate.acquire(AttemptKind::First, NOW))).await
    }
}

/// Many attempts at once need one or two calls, and each gets the result that it would have got alone.
#[tokio::test]
async fn a_crowd_that_asks_at_the_same_moment_takes_few_steps() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![quota(1, Duration::from_secs(60), 60)]);
    let one = host(&server, &settings).await;
    let () = server.ask(&["CONFIG", "RESETSTAT"]);
    let crowd = |count| join_all((0..count).map(|_| one.gate.acquire(AttemptKind::First, NOW)));
    let grants: Vec<_> = crowd(50).await.into_iter().map(Result::unwrap).collect();
    let asked = server.calls("evalsha") + server.calls("eval");
    assert!(asked <= 10, "{asked} steps for 50 attempts, with a beat or two");
    let counted = grants.iter().all(|grant| matches!(grant, Grant::Shared(shared) if shared.ticket.is_some()));
    assert!(counted, "each counts for the breaker");
    // The last permit of a call can be refunded, and another attempt gets it.
    one.gate.give_back(&grants[49]);
    one.gates.flush().await;
    let more = one.crowd(50).await;
    let (granted, refused): (Vec<_>, Vec<_>) = more.into_iter().partition(Result::is_ok);
    assert_eq!((granted.len(), refused.len()), (11, 39), "of 60 in all, one given back");
    for refusal in refused {
        assert!(matches!(refusal, Err(Refusal::RateLimited { quota: Some(_), .. })), "{refusal:?}");
    }
}

/// A limit beyond the clock's resolution delays no attempt, and its figures fit the server's arithmetic.
#[tokio::test]
async fn a_limit_of_a_hundred_million_a_second_admits_a_crowd_at_once() {
    let server = RedisServer::start();
    for requests in [100_000_000, u32::MAX] {
        let settings = settings(None, vec![quota(requests, Duration::from_secs(1), requests)]);
        let one = host(&server, &settings).await;
        let granted = one.crowd(500).await;
        assert!(granted.iter().all(|grant| grant.as_ref().is_ok_and(|grant| grant.wait().is_zero())), "{granted:?}");
    }
}

/// An attempt that accepts a wait gets a later permit, whatever the others in its batch accept.
#[tokio::test]
async fn in_a_crowd_each_waits_as_long_as_it_can_bear() {
    let server = RedisServer::start();
    let settings = settings(None, vec![quota(1, Duration::from_secs(10), 1)]);
    let one = host(&server, &settings).await;
    let bears = [0, 60, 0, 15, 60, 0, 25].map(Duration::from_secs);
    let results = join_all(bears.map(|bears| one.gate.acquire(AttemptKind::First, Duration::ZERO..=bears))).await;
    let mut waits: Vec<u64> =
        results.iter().flatten().map(|grant| (grant.wait().as_millis() as u64 + 5_000) / 10_000).collect();
    waits.sort_unstable();
    assert!(waits.len() >= 3 && waits.iter().copied().eq(0..waits.len() as u64), "one after the other: {waits:?}");
    for (results, bears) in results.iter().zip(bears) {
        assert!(results.as_ref().map_or(true, |grant| grant.wait() <= bears), "{results:?}, which can bear {bears:?}");
    }
}

/// Attempts of a batch that left meanwhile keep no permit.
#[tokio::test]
async fn an_attempt_that_leaves_its_batch_gives_its_permit_back() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let settings = settings(Some(five()), vec![quota(1, Duration::from_secs(60), 8)]);
    let one = host_at(&proxy.url(), &settings, Duration::from_secs(2));
    soon("its first beat", || one.gate.known.lock().heartbeat.is_some()).await;
    proxy.delay(50 * MS);
    assert!(timeout(20 * MS, one.crowd(8)).await.is_err(), "it takes longer");
    proxy.delay(Duration::ZERO);
    for _ in 0..300 {
        let results = one.crowd(8).await;
        if results.iter().all(Result::is_ok) {
            return;
        }
        results.iter().flatten().rev().for_each(|grant| one.gate.give_back(grant));
        one.gates.flush().await;
        sleep(10 * MS).await;
    }
    panic!("some permits are still taken");
}

/// A later permit, asked for by an attempt that left, does not go to an attempt that cannot wait for it.
#[tokio::test]
async fn a_wait_goes_to_none_who_cannot_bear_it() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let settings = settings(None, vec![quota(1, Duration::from_secs(10), 1)]);
    let one = host_at(&proxy.url(), &settings, Duration::from_secs(2));
    soon("its first beat", || one.gate.known.lock().heartbeat.is_some()).await;
    let first = one.gate.acquire(AttemptKind::First, NOW).await;
    assert!(first.is_ok());
    proxy.delay(50 * MS);
    let patient = timeout(20 * MS, one.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_secs(60)));
    let (left, results) = tokio::join!(patient, one.gate.acquire(AttemptKind::First, NOW));
    assert!(left.is_err(), "it has left");
    assert!(matches!(results, Err(Refusal::RateLimited { .. })), "{results:?}");
}

/// A reply after all attempts of the batch fell back leaves no permit taken.
#[tokio::test]
async fn a_step_that_is_late_gives_all_its_places_back() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let settings = settings(None, vec![quota(1, Duration::from_secs(60), 8)]);
    let one = host_at(&proxy.url(), &settings, 100 * MS);
    soon("its first beat", || one.gate.known.lock().heartbeat.is_some()).await;
    proxy.delay(150 * MS);
    let results = one.crowd(8).await;
    assert!(results.iter().flatten().all(|grant| matches!(grant, Grant::Alone(_))), "{results:?}");
    proxy.delay(Duration::ZERO);
    for _ in 0..300 {
        let results = one.crowd(8).await;
        if results.iter().all(|results| matches!(results, Ok(Grant::Shared(_)))) {
            return;
        }
        results.iter().flatten().rev().for_each(|grant| one.gate.give_back(grant));
        one.gates.flush().await;
        sleep(10 * MS).await;
    }
    panic!("some permits are still taken");
}

/// A runtime that ends during a call leaves no attempt waiting in its batch.
#[test]
fn a_runtime_that_ends_leaves_the_line_to_the_next() {
    let server = RedisServer::start();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let settings = settings(None, vec![quota(1, Duration::from_secs(60), 100)]);
    let proxy = Proxy::before(server.port());
    let first = runtime();
    let one = first.block_on(async { host_at(&proxy.url(), &settings, Duration::from_secs(5)) });
    first.block_on(soon("its first beat", || one.gate.known.lock().heartbeat.is_some()));
    proxy.set(Way::BlackHole);
    let left = first.block_on(async { timeout(20 * MS, one.gate.acquire(AttemptKind::First, NOW)).await });
    assert!(left.is_err(), "nobody answers");
    drop(first);
    proxy.set(Way::Open);
    let second = runtime();
    let results = second.block_on(async {
        for _ in 0..500 {
            let results = one.gate.acquire(AttemptKind::First, NOW).await;
            if matches!(results, Ok(Grant::Shared(_))) {
                return true;
            }
            sleep(10 * MS).await;
        }
        false
    });
    assert!(results, "the line was left");
}
