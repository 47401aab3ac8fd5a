//! Load on a simulated upstream, on paused time.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::rng::Rng;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// An upstream that works on a number of requests at once, each for the service time; the others queue without limit.
struct Upstream {
    slots: Semaphore,
    service: Mutex<Duration>,
    entropy: Rng,
}

/// The result of a run.
#[derive(Debug, Default)]
struct Run {
    answered: u64,
    /// Responses after the attempt had ended.
    late: u64,
    refused: [u64; 3],
    slowest: Duration,
}

impl Run {
    fn all_refused(&self) -> u64 {
        self.refused.iter().sum()
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);

fn asking(priority: Priority) -> AdmissionRequest<'static> {
    AdmissionRequest { priority, endpoint: "any", attempt_timeout: TIMEOUT }
}

fn idle() -> Arc<Overload> {
    let clock = Clock::system();
    Overload::new("api".to_owned(), clock, Arc::new(Events::new(clock)))
}

async fn one(overload: &Arc<Overload>, upstream: &Upstream, priority: Priority, run: &Mutex<Run>) {
    let (asking, began) = (asking(priority), Instant::now());
    let admitted = match overload.can_admit(&asking) {
        Ok(()) => overload.enter(asking, TIMEOUT).await,
        Err(shed) => Err(shed),
    };
    let Ok(admission) = admitted else {
        run.lock().refused[priority as usize] += 1;
        return;
    };
    // As real upstreams do, it also works on requests whose callers have gone.
    let work = async {
        let _slot = upstream.slots.acquire().await.unwrap();
        // Between 0.5 and 1.5 times the service time.
        let service = *upstream.service.lock();
        sleep(service * (50 + (upstream.entropy.next() % 101) as u32) / 100).await;
    };
    let mut work = Box::pin(work);
    let in_time = tokio::time::timeout(TIMEOUT, &mut work).await.is_ok();
    admission.over(&asking, if in_time { SampleOutcome::Answered } else { SampleOutcome::TimedOut });
    if in_time {
        let mut run = run.lock();
        run.answered += 1;
        run.slowest = run.slowest.max(began.elapsed());
        return;
    }
    run.lock().late += 1;
    work.await;
}

/// Offers this many requests a second, one third of each priority.
async fn offer(overload: &Arc<Overload>, upstream: &Arc<Upstream>, per_second: u64, seconds: u64) -> Run {
    let (run, began) = (Arc::new(Mutex::new(Run::default())), Instant::now());
    let mut all = JoinSet::new();
    for number in 0..per_second * seconds {
        sleep_until(began + Duration::from_micros(number * 1_000_000 / per_second)).await;
        let priority = Priority::ALL[(number % 3) as usize];
        let (overload, upstream, run) = (Arc::clone(overload), Arc::clone(upstream), Arc::clone(&run));
        all.spawn(async move { one(&overload, &upstream, priority, &run).await });
        while all.try_join_next().is_some() {}
    }
    // Later responses do not count for these seconds.
    std::mem::take(&mut *run.lock())
}

fn upstream(slots: usize, service_ms: u64) -> Arc<Upstream> {
    Arc::new(Upstream {
        slots: Semaphore::new(slots),
        service: Mutex::new(Duration::from_millis(service_ms)),
        entropy: Rng::seeded(7),
    })
}

/// Steady load, bursts, and a ramp up to four fifths of the capacity: no refusals.
#[tokio::test(start_paused = true)]
async fn no_request_is_refused_below_capacity() {
    for (slots, service_ms) in [(20, 20), (4, 400), (1, 50), (200, 1000)] {
        let (overload, upstream) = (idle(), upstream(slots, service_ms));
        let capacity = slots as u64 * 1000 / service_ms;
        for share in [10, 50, 80] {
            let run = offer(&overload, &upstream, (capacity * share / 100).max(1), 20).await;
            assert_eq!(run.all_refused() + run.late, 0, "{slots} slots of {service_ms} ms at {share} %: {run:?}");
        }
        // Ten times the capacity for a tenth of a second, repeatedly.
        for _ in 0..20 {
            let run = Arc::new(Mutex::new(Run::default()));
            let mut burst = JoinSet::new();
            for _ in 0..capacity {
                let (overload, upstream, run) = (Arc::clone(&overload), Arc::clone(&upstream), Arc::clone(&run));
                burst.spawn(async move { one(&overload, &upstream, Priority::Normal, &run).await });
            }
            while burst.join_next().await.is_some() {}
            let run = std::mem::take(&mut *run.lock());
            assert_eq!(run.all_refused() + run.late, 0, "{slots} slots of {service_ms} ms, a burst: {run:?}");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_five_times_the_capacity_goodput_stays_and_recovery_is_at_once() {
    for (slots, service_ms) in [(20, 20), (4, 400), (200, 1000)] {
        let what = format!("{slots} slots of {service_ms} ms");
        let (overload, upstream) = (idle(), upstream(slots, service_ms));
        let capacity = slots as u64 * 1000 / service_ms;
        let (calm, over) = ((capacity * 8 / 10).max(1), capacity * 5);
        offer(&overload, &upstream, calm, 10).await;
        let run = offer(&overload, &upstream, over, 30).await;
        assert!(run.answered >= capacity * 30 * 9 / 10, "{what}: {run:?}");
        let [low, normal, high] = run.refused;
        assert!(low > normal && normal > high, "{what}: {run:?}");
        // Back at four fifths of the capacity: refusals stop within five seconds.
        offer(&overload, &upstream, calm, 5).await;
        let after = offer(&overload, &upstream, calm, 10).await;
        assert_eq!(after.all_refused() + after.late, 0, "{what}: {after:?}, {:?}", overload.view());
    }
}

/// An upstream that has become slower counts as overloaded until its latency is measured again; one that stalls for a moment does not.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_has_become_slower_is_measured_anew() {
    let (overload, upstream) = (idle(), upstream(10_000, 20));
    offer(&overload, &upstream, 100, 10).await;
    *upstream.service.lock() = Duration::from_millis(1500);
    let before = offer(&overload, &upstream, 100, 20).await;
    assert!(before.answered >= 1000, "{before:?}");
    let after = offer(&overload, &upstream, 100, 30).await;
    assert_eq!(after.all_refused() + after.late, 0, "{after:?}, {:?}", overload.view());
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_stands_still_for_a_moment_is_not_overloaded() {
    let (overload, upstream) = (idle(), upstream(20, 20));
    offer(&overload, &upstream, 500, 10).await;
    for _ in 0..10 {
        let stopped = upstream.slots.acquire_many(20).await.unwrap();
        let during = offer(&overload, &upstream, 500, 1).await;
        drop(stopped);
        let after = offer(&overload, &upstream, 500, 9).await;
        assert_eq!(during.all_refused() + after.all_refused() + after.late, 0, "{during:?} {after:?}");
    }
}

/// Proves that the limit causes the result above: without it, the queue grows until every response is too late.
#[tokio::test(start_paused = true)]
async fn tripwire_without_a_limit_everything_is_late() {
    let upstream = upstream(20, 20);
    let run = Arc::new(Mutex::new(Run::default()));
    let began = Instant::now();
    for number in 0..5000 * 30 {
        sleep_until(began + Duration::from_micros(number * 200)).await;
        let (upstream, run) = (Arc::clone(&upstream), Arc::clone(&run));
        // Each request has a limit of its own, so none waits.
        tokio::spawn(async move { one(&idle(), &upstream, Priority::High, &run).await });
    }
    let run = std::mem::take(&mut *run.lock());
    assert!(run.answered < 1000 * 30 / 2, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_leaves_the_queue_takes_no_permit() {
    let overload = idle();
    let mut admissions = Vec::new();
    while overload.state.lock().limiter.has_room() {
        admissions.push(overload.enter(asking(Priority::Low), TIMEOUT).await.unwrap());
    }
    let most = admissions.len();
    let waits = |priority| {
        let overload = Arc::clone(&overload);
        tokio::spawn(async move { overload.enter(asking(priority), TIMEOUT).await })
    };
    let (low, gone, high) = (waits(Priority::Low), waits(Priority::High), waits(Priority::High));
    tokio::task::yield_now().await;
    assert_eq!(overload.view().waiting, 3);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(overload.view().waiting, 2);
    // An attempt that must not wait counts, and so delays others.
    let urgent = overload.enter_now();
    assert_eq!(overload.view().under_way, most + 1);
    drop(urgent);
    admissions.pop();
    assert!(high.await.unwrap().is_ok(), "it was let in first, and its admission was returned unused");
    assert!(low.await.unwrap().is_ok());
    admissions.clear();
    let view = overload.view();
    assert_eq!((view.under_way, view.waiting, view.shed), (0, 0, [0; 3]));
}
