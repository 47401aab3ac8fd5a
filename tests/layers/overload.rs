//! An overloaded upstream: which requests are served, which are refused with a wait, and which are never delayed.

use super::{Plan, Stage, api, millis, secs};
use bytes::Bytes;
use http::Request;
use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};
use triage_upstream::Outbound;

/// Handles `slots` requests at once, each for this time, first come, first served, including those whose callers have left.
fn queue(slots: usize, service: Duration) -> impl FnMut(&Outbound) -> Plan + Send + 'static {
    let mut free: BinaryHeap<Reverse<Instant>> = (0..slots).map(|_| Reverse(Instant::now())).collect();
    move |_| {
        let now = Instant::now();
        let begins = free.pop().map_or(now, |Reverse(at)| at.max(now));
        free.push(Reverse(begins + service));
        Plan::status(200).after(begins + service - now)
    }
}

/// The results of one kind of request.
#[derive(Debug, Default, Clone, Copy)]
struct Fate {
    served: u64,
    refused: u64,
    otherwise: u64,
}

/// Offers requests at this rate, alternating a write, a read and a low-priority read.
async fn offer(stage: &Arc<Stage>, per_second: u64, seconds: u64) -> [Fate; 3] {
    let began = Instant::now();
    let mut all = Vec::new();
    for number in 0..per_second * seconds {
        sleep_until(began + Duration::from_micros(number * 1_000_000 / per_second)).await;
        let kind = (number % 3) as usize;
        let request = match kind {
            0 => Request::put("/a"),
            1 => Request::get("/a"),
            _ => Request::get("/a").header("triage-priority", "low"),
        };
        let (stage, request) = (Arc::clone(stage), request.body(Bytes::new()).unwrap());
        all.push((kind, tokio::spawn(async move { stage.send(request).await })));
    }
    let mut fates = [Fate::default(); 3];
    for (kind, answer) in all {
        let answer = answer.await.unwrap();
        let fate = &mut fates[kind];
        match answer.status {
            200 => fate.served += 1,
            503 if answer.problem() == "overloaded" => {
                assert_eq!((answer.header("retry-after"), answer.header("triage-sent")), ("1", "no"));
                fate.refused += 1;
            }
            _ => fate.otherwise += 1,
        }
    }
    fates
}

fn sum(fates: &[Fate; 3], of: impl Fn(&Fate) -> u64) -> u64 {
    fates.iter().map(of).sum()
}

const LIVELY: &str = "breaker = { enabled = false }\nretry = { max_attempts = 1 }";

#[tokio::test(start_paused = true)]
async fn at_five_times_the_capacity_who_matters_most_is_served_and_goodput_stays() {
    // The capacity is 100 a second.
    let stage = Stage::new(&api(LIVELY), queue(10, millis(100)));
    let calm = offer(&stage, 80, 10).await;
    assert_eq!(sum(&calm, |fate| fate.refused + fate.otherwise), 0, "{calm:?}");
    let over = offer(&stage, 500, 30).await;
    assert!(sum(&over, |fate| fate.served) >= 30 * 100 * 9 / 10, "{over:?}");
    assert_eq!(sum(&over, |fate| fate.otherwise), 0, "{over:?}");
    let [writes, reads, low] = over;
    assert!(writes.served > 2 * reads.served && reads.served >= low.served, "{over:?}");
    offer(&stage, 80, 5).await;
    let after = offer(&stage, 80, 10).await;
    assert_eq!(sum(&after, |fate| fate.refused + fate.otherwise), 0, "{after:?}");
}

/// Tripwire: without overload shedding, the test above would fail.
#[tokio::test(start_paused = true)]
async fn tripwire_without_shedding_no_request_is_refused_and_most_are_late() {
    let mut settings = api(LIVELY);
    settings.upstreams[0].sheds_overload = false;
    let stage = Stage::new(&settings, queue(10, millis(100)));
    offer(&stage, 80, 10).await;
    let over = offer(&stage, 500, 30).await;
    assert_eq!(sum(&over, |fate| fate.refused), 0, "{over:?}");
    assert!(sum(&over, |fate| fate.served) < 30 * 100 / 2, "{over:?}");
}

/// Fills the maximum of concurrency permits with requests that end late.
async fn filled(stage: &Arc<Stage>, most: usize) {
    stage.then(|_| Plan::status(200).after(secs(600)));
    let before = stage.arrived();
    for _ in 0..most {
        drop(stage.begin("/hangs"));
    }
    while stage.arrived() < before + most {
        tokio::task::yield_now().await;
    }
}

const PATIENT: &str = "attempt_timeout = \"20m\"\ndeadline = \"30m\"\nbreaker = { enabled = false }";

#[tokio::test(start_paused = true)]
async fn a_retry_of_a_write_never_waits_in_the_overload_queue() {
    let stage = Stage::new(&api(PATIENT), |_| Plan::status(503).after(millis(10)));
    let write = {
        let stage = Arc::clone(&stage);
        let request = Request::put("/write").body(Bytes::new()).unwrap();
        tokio::spawn(async move { stage.send(request).await })
    };
    sleep(millis(100)).await;
    filled(&stage, 10_000).await;
    let full = stage.arrived();
    let read = stage.begin("/read");
    stage.then(|_| Plan::status(200));
    let write = write.await.unwrap();
    assert_eq!((write.status, write.header("triage-attempts")), (200, "2"), "its second attempt was sent");
    assert_eq!(stage.arrived(), full + 1, "and the read still waits for its turn");
    read.abort();
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_a_limit_of_its_own_has_no_other() {
    let stage = Stage::new(&api(&format!("{PATIENT}\nconcurrency = 20000")), |_| Plan::status(200));
    filled(&stage, 10_000).await;
    stage.then(|_| Plan::status(200));
    assert_eq!(stage.get("/one-more").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_ask_for_less_and_not_for_more_and_the_upstream_hears_nothing_of_it() {
    let settings = api(&format!("{PATIENT}\npriority = \"low\""));
    let stage = Stage::new(&settings, |outbound: &Outbound| {
        assert!(!outbound.headers.contains_key("triage-priority"));
        Plan::status(200)
    });
    filled(&stage, 10_000).await;
    let request = Request::get("/a").header("triage-priority", "high").header("triage-deadline-ms", "100");
    let answer = stage.send(request.body(Bytes::new()).unwrap()).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
    assert!(
        answer.json()["detail"].as_str().unwrap().contains("requests with a priority above low go first"),
        "{answer:?}"
    );
    stage.then(|outbound: &Outbound| {
        assert!(!outbound.headers.contains_key("triage-priority"));
        Plan::status(200)
    });
}
