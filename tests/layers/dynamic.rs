//! Adaptive settings, on and off: the direction of each gain, as counts. `cargo run --release --example dynamic` prints the figures.

#[path = "../../host/examples/dynamic/scene.rs"]
mod scene;

use super::{Plan, Stage, api, secs};
use scene::{Tally, Throttle, Upstream, host, offer};
use tokio::time::{Instant, sleep};
use triage_config as config;

const ADAPTIVE: &str = "limits = []\nadaptive_rate = { enabled = true }";
const WITHOUT: &str = "limits = []";

/// The results of 25 requests a second for five minutes at an upstream that takes 20 a second, and the number of its 429s.
async fn played(throttle: Throttle, policy: &str, keys: &str) -> (Tally, u64) {
    let upstream = Upstream::throttling(throttle, &[(0, 20.0)]);
    let tally = offer(&host(&upstream, policy, keys).unwrap(), 25, 300).await;
    (tally, upstream.seen().throttled)
}

/// Tripwire: fails if the adaptive rate has no effect.
#[tokio::test(start_paused = true)]
async fn an_adaptive_rate_is_throttled_far_less_and_delivers_hardly_less() {
    for throttle in [Throttle::Window, Throttle::Bucket] {
        let (without, throttled_without) = played(throttle, "http-standard", WITHOUT).await;
        let (with, throttled) = played(throttle, "http-standard", ADAPTIVE).await;
        let case = format!("{throttle:?}: without {without:?}, with {with:?}");
        assert!(throttled * 2 < throttled_without, "{throttled} 429s, {throttled_without} without; {case}");
        assert!(with.delivered * 100 >= without.delivered * 90, "{case}");
        assert!(with.retries * 10 < without.retries && with.failed == 0, "{case}");
    }
}

/// With an additional fixed limit that is too high today.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_too_high_today_delivers_more_with_an_adaptive_rate_below_it() {
    let limit = "limits = [{ requests = 20, period = \"1s\" }]";
    let mut both = Vec::new();
    for keys in [limit.to_owned(), format!("{limit}\nadaptive_rate = {{ enabled = true }}")] {
        let upstream = Upstream::throttling(Throttle::Bucket, &[(0, 10.0)]);
        both.push(offer(&host(&upstream, "http-standard", &keys).unwrap(), 25, 300).await.delivered);
    }
    assert!(both[1] * 10 > both[0] * 12, "{both:?}");
}

#[tokio::test(start_paused = true)]
async fn off_is_the_default_and_waits_for_nothing() {
    let mut call = 0;
    let stage = Stage::new(&api("retry = { max_attempts = 1 }"), move |_| {
        call += 1;
        Plan::status(if call % 2 == 0 { 429 } else { 200 })
    });
    let began = Instant::now();
    for _ in 0..200 {
        stage.get("/").await;
    }
    assert_eq!((began.elapsed(), stage.arrived()), (secs(0), 200), "without Retry-After nobody waits");
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_was_learned_makes_callers_wait_their_turn_or_refuses_them_and_is_forgotten() {
    let keys = "retry = { max_attempts = 1 }\ndeadline = \"8s\"\nattempt_timeout = \"2s\"\nadaptive_rate = { enabled = true, floor_per_minute = 60, rise_per_minute = 1 }";
    let mut call = 0;
    let stage = Stage::new(&api(keys), move |_| {
        call += 1;
        Plan::status(if call == 1 { 429 } else { 200 })
    });
    assert_eq!(stage.get("/").await.status, 429);
    let began = Instant::now();
    let crowd: Vec<_> = (0..10).map(|_| stage.begin("/")).collect();
    let mut statuses = Vec::new();
    for answer in crowd {
        let answer = answer.await.unwrap();
        if answer.status == 429 {
            assert_eq!((answer.problem().as_str(), answer.header("triage-sent")), ("rate-limited", "no"), "{answer:?}");
            assert!(
                answer.json()["detail"].as_str().unwrap().contains("the rate that the upstream accepted lately"),
                "{answer:?}"
            );
        }
        statuses.push(answer.status);
    }
    let at: Vec<u64> = stage.arrivals()[1..].iter().map(|at| (*at - began).as_millis() as u64 / 100).collect();
    assert_eq!(at, [0, 10, 20], "one a second, in line for a third of the deadline");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 7);
    sleep(secs(601)).await;
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(stage.get("/").await.status, 200);
    }
    assert_eq!(began.elapsed(), secs(0), "ten minutes later it is forgotten");
}

/// A request that gives up while waiting leaves its reservation to the next one, and the learned rate survives a reload.
#[tokio::test(start_paused = true)]
async fn places_are_given_back() {
    let keys = "retry = { max_attempts = 1 }\ndeadline = \"60s\"\nadaptive_rate = { enabled = true, floor_per_minute = 6, rise_per_minute = 1 }";
    let mut call = 0;
    let stage = Stage::new(&api(keys), move |_| {
        call += 1;
        Plan::status(if call == 1 { 429 } else { 200 })
    });
    stage.get("/").await;
    // The settings are reloaded in between, and the learned rate stays.
    let other = keys.replace("deadline = \"60s\"", "deadline = \"90s\"");
    stage.host.reload(&config::reload(&api(keys), &api(&other)).unwrap()).unwrap();
    stage.get("/").await;
    let waiting = stage.begin("/");
    tokio::task::yield_now().await;
    sleep(secs(1)).await;
    waiting.abort();
    let _ = waiting.await;
    let began = Instant::now();
    assert_eq!(stage.get("/").await.status, 200);
    assert!((secs(8)..=secs(9)).contains(&began.elapsed()), "{:?}: not behind the one that left", began.elapsed());
}

/// Tripwire: fails if the baseline has no effect, or is on by default.
#[tokio::test(start_paused = true)]
async fn a_baseline_trips_at_a_tenth_where_a_thousandth_is_usual_and_the_fixed_limits_do_not() {
    let mut trips = Vec::new();
    for keys in ["", "breaker.baseline = 5"] {
        let upstream = Upstream::failing(&[(0, 1), (600, 100)]);
        let host = host(&upstream, "http-standard", &format!("retry.max_attempts = 1\n{keys}")).unwrap();
        let calm = offer(&host, 20, 600).await;
        assert_eq!(calm.trips, 0, "{keys}: while all is as usual");
        let troubled = offer(&host, 20, 60).await;
        trips.push(troubled.first_trip.map(|(failed, _)| failed));
    }
    assert!(trips[0].is_none() && trips[1].is_some_and(|failed| failed < 80), "{trips:?}");
}

#[tokio::test(start_paused = true)]
async fn a_baseline_spares_an_endpoint_whose_failures_are_usual() {
    let mut trips = Vec::new();
    for keys in ["", "breaker.baseline = 5"] {
        let upstream = Upstream::failing(&[(0, 300)]);
        let host = host(&upstream, "http-standard", &format!("retry.max_attempts = 1\n{keys}")).unwrap();
        trips.push(offer(&host, 5, 3600).await.trips);
    }
    // Until the baseline is known, only the fixed limits apply.
    assert!(trips[0] >= 10 && trips[1] * 4 <= trips[0], "{trips:?}");
}
