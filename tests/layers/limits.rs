//! Rate limits: several at once, waits within the deadline, accurate refusals, pauses.

use super::{Plan, Stage, api, millis, secs};
use bytes::Bytes;
use http::Request;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn a_caller_waits_its_turn_if_its_deadline_allows() {
    let stage = Stage::new(
        &api("deadline = \"5s\"\nattempt_timeout = \"1s\"\nlimits = [{ requests = 1, period = \"1s\" }]"),
        |_| Plan::status(200),
    );
    let began = Instant::now();
    let crowd: Vec<_> = (0..10).map(|_| stage.begin("/")).collect();
    let mut answers = Vec::new();
    for answer in crowd {
        answers.push(answer.await.unwrap());
    }
    let at: Vec<u64> = stage.arrivals().iter().map(|at| (*at - began).as_millis() as u64 / 100).collect();
    assert_eq!(at, [0, 10, 20, 30, 40], "one a second, in line");
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(refused.len() + at.len(), 10, "{answers:?}");
    for answer in refused {
        assert_eq!(answer.problem(), "rate-limited", "{answer:?}");
        assert!(!answer.header("retry-after").is_empty() && answer.header("triage-sent") == "no", "{answer:?}");
    }
}

/// A limit finer than the clock's resolution delays no request.
#[tokio::test(start_paused = true)]
async fn a_limit_of_a_hundred_million_a_second_admits_a_crowd_at_once() {
    let stage = Stage::new(&api("limits = [{ requests = 100000000, period = \"1s\" }]"), |_| Plan::status(200));
    let began = Instant::now();
    let crowd: Vec<_> = (0..2000).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert!(stage.arrivals().iter().all(|at| *at == began), "at one moment");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_and_keeps_its_word() {
    let stage =
        Stage::new(&api("deadline = \"5s\"\nlimits = [{ requests = 1, period = \"60s\" }]"), |_| Plan::status(200));
    assert_eq!(stage.get("/").await.status, 200);
    sleep(secs(10)).await;
    let refused = stage.get("/").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "50"), "{refused:?}");
    sleep(Duration::from_millis(refused.json()["retry_after_ms"].as_u64().unwrap())).await;
    let began = Instant::now();
    assert_eq!(stage.get("/").await.status, 200);
    assert_eq!(began.elapsed(), Duration::ZERO, "after that time there is no wait");
}

#[tokio::test(start_paused = true)]
async fn all_limits_of_a_route_hold_in_every_window() {
    let limits =
        "limits = [{ requests = 5, period = \"1s\", burst = 5 }, { requests = 20, period = \"60s\", burst = 10 }]";
    let stage = Stage::new(&api(&format!("deadline = \"30s\"\n{limits}")), |_| Plan::status(200));
    for _ in 0..12 {
        for _ in 0..20 {
            drop(stage.begin("/"));
        }
        sleep(secs(10)).await;
    }
    sleep(secs(60)).await;
    let arrivals = stage.arrivals();
    assert!(arrivals.len() > 40, "{} passed", arrivals.len());
    for (index, from) in arrivals.iter().enumerate() {
        for (count, to) in arrivals[index..].iter().enumerate().map(|(count, to)| (count as u128 + 1, to)) {
            // Reservations are exact, but timers fire up to a millisecond late.
            let width = (*to - *from + millis(2)).as_millis();
            for (requests, period, burst) in [(5, 1_000, 5), (20, 60_000, 10)] {
                let most = burst + width * requests / period;
                assert!(count <= most, "{count} in {width} ms, at most {most} of {requests} a {period} ms");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_has_no_room_takes_nothing_from_the_others() {
    let limits = "limits = [{ requests = 3, period = \"3600s\", burst = 3 }, { requests = 1, period = \"10s\" }]";
    let stage = Stage::new(&api(&format!("deadline = \"5s\"\n{limits}")), |_| Plan::status(200));
    assert_eq!(stage.get("/").await.status, 200);
    for _ in 0..50 {
        assert_eq!(stage.get("/").await.status, 429);
    }
    sleep(secs(10)).await;
    assert_eq!(stage.get("/").await.status, 200, "fifty refusals cost the hourly limit nothing");
    sleep(secs(10)).await;
    assert_eq!(stage.get("/").await.status, 200);
    sleep(secs(10)).await;
    assert_eq!(stage.get("/").await.status, 429, "three an hour");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_answer_holds_everybody_back() {
    let mut call = 0;
    let stage = Stage::new(&api("retry = { max_attempts = 1 }\ndeadline = \"10s\""), move |_| {
        call += 1;
        if call == 1 { Plan::asking(429, &[("retry-after", "20")]) } else { Plan::status(200) }
    });
    let throttled = stage.get("/").await;
    assert_eq!((throttled.status, throttled.header("triage-verdict")), (429, "throttled"), "{throttled:?}");
    let refused = stage.get("/").await;
    assert_eq!((refused.status, refused.problem().as_str()), (429, "rate-limited"), "{refused:?}");
    assert_eq!((refused.header("retry-after"), stage.arrived()), ("20", 1));
    sleep(secs(12)).await;
    let began = Instant::now();
    assert_eq!(stage.get("/").await.status, 200, "8 s are left of the pause: within the deadline");
    assert!((secs(8)..secs(9)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_comes_while_a_request_waits_is_seen_before_it_is_sent() {
    let mut call = 0;
    let limits = "retry = { max_attempts = 1 }\ndeadline = \"30s\"\nlimits = [{ requests = 1, period = \"2s\" }]";
    let stage = Stage::new(&api(limits), move |_| {
        call += 1;
        if call == 1 { Plan::asking(429, &[("retry-after", "15")]).after(secs(1)) } else { Plan::status(200) }
    });
    let began = Instant::now();
    let (first, second) = (stage.begin("/"), stage.begin("/"));
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (429, 200));
    let at = stage.arrivals()[1] - began;
    assert!(at >= secs(16), "reserved for 2 s, asked at 1 s to wait 15 s, sent at {at:?}");
}

/// Tripwire: without a reserve in the deadline for the response, all requests of a full queue would be answered too late.
#[tokio::test(start_paused = true)]
async fn a_request_that_waits_has_time_left_for_its_answer() {
    let keys = "deadline = \"5s\"\nattempt_timeout = \"2s\"\nlimits = [{ requests = 5, period = \"1s\" }]";
    let stage = Stage::new(&api(keys), |_| Plan::status(200).after(millis(300)));
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(stage.begin("/"));
        sleep(millis(100)).await;
    }
    let mut statuses = std::collections::BTreeMap::new();
    for answer in crowd {
        *statuses.entry(answer.await.unwrap().status).or_insert(0) += 1;
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 429], "{statuses:?}");
    assert!(statuses[&200] >= 150, "{statuses:?}");
}

/// A caller's slow upload must not count as the upstream's response time.
#[tokio::test(start_paused = true)]
async fn a_slow_upload_leaves_others_their_time_to_wait() {
    for (body, status) in [(2 << 20, 200), (1, 429)] {
        let keys = "deadline = \"16s\"\nattempt_timeout = \"9s\"\nlimits = [{ requests = 1, period = \"20s\" }]";
        let stage = Stage::new(&api(keys), |_| Plan::status(200).after(secs(7)));
        let upload = Request::post("/").body(Bytes::from(vec![b'x'; body])).unwrap();
        assert_eq!(stage.send(upload).await.status, 200);
        stage.then(|_| Plan::status(200));
        // After 13 s of 16 s there is time for a response, unless it is expected to take 7 s.
        assert_eq!(stage.get("/").await.status, status, "after {body} bytes");
    }
}

/// Tripwire: without limits, the tests above would fail.
#[tokio::test(start_paused = true)]
async fn tripwire_without_limits_everything_passes_at_once() {
    let stage = Stage::new(&api("limits = []"), |_| Plan::status(200));
    let began = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(stage.get("/").await.status, 200);
    }
    assert_eq!((began.elapsed(), stage.arrived()), (Duration::ZERO, 1_000));
}

#[tokio::test(start_paused = true)]
async fn a_503_with_retry_after_pauses_the_group_only_if_the_operator_says_so() {
    for (keys, paused) in [("retry_after_pauses = true", true), ("", false)] {
        let mut call = 0;
        let keys = format!("retry = {{ max_attempts = 1 }}\ndeadline = \"10s\"\n{keys}");
        let stage = Stage::new(&api(&keys), move |_| {
            call += 1;
            if call == 1 { Plan::asking(503, &[("retry-after", "20")]) } else { Plan::status(200) }
        });
        assert_eq!(stage.get("/").await.status, 503);
        let next = stage.get("/other").await;
        let problem = if next.status == 200 { String::new() } else { next.problem() };
        assert_eq!((next.status, problem.as_str()), if paused { (429, "rate-limited") } else { (200, "") }, "{next:?}");
        assert_eq!(stage.arrived(), if paused { 1 } else { 2 });
        sleep(secs(20)).await;
        assert_eq!(stage.get("/").await.status, 200, "the pause is over");
    }
}
