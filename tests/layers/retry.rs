//! Retries: their limits hold, and retries cannot multiply a failure.

use super::{Answer, Plan, Stage, api, millis, secs};
use bytes::Bytes;
use http::Request;
use tokio::time::{Instant, sleep};

const QUIET: &str = "breaker = { enabled = false }\nbudget = { percent = 100, floor_per_second = 1000 }";

#[tokio::test(start_paused = true)]
async fn attempts_end_at_the_ceiling_with_the_upstreams_own_answer() {
    for most in [1, 2, 3, 5] {
        let retry = format!("retry = {{ max_attempts = {most}, min_wait = \"1s\", max_wait = \"2s\" }}");
        let stage = Stage::new(&api(&format!("{QUIET}\n{retry}\ndeadline = \"120s\"")), |_| Plan::status(503));
        let answer = stage.get("/").await;
        assert_eq!((answer.status, answer.body.as_ref()), (503, &b"scripted"[..]), "the upstream's own last answer");
        assert_eq!(answer.header("triage-attempts"), most.to_string());
        assert_eq!(answer.header("triage-clamped"), "attempts");
        let at = stage.arrivals();
        assert_eq!(at.len(), most);
        for pair in at.windows(2) {
            assert!((secs(1)..=millis(2_010)).contains(&(pair[1] - pair[0])), "{:?}", pair[1] - pair[0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_cannot_fit_is_not_made() {
    let retry = "retry = { max_attempts = 100, min_wait = \"2s\", max_wait = \"2s\" }\ndeadline = \"15s\"";
    let stage = Stage::new(&api(&format!("{QUIET}\n{retry}")), |_| Plan::status(503).after(secs(1)));
    let began = Instant::now();
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("triage-clamped")), (503, "deadline"), "{answer:?}");
    assert!(began.elapsed() <= secs(15), "{:?}", began.elapsed());
    assert_eq!(stage.arrived(), 5, "each takes 1 s and waits 2 s: at 0, 3, 6, 9 and 12 s");

    // A caller's own deadline is shorter.
    let mut request = super::get("/");
    request.headers_mut().insert("triage-deadline-ms", "2000".parse().unwrap());
    let began = Instant::now();
    assert_eq!(stage.send(request).await.header("triage-attempts"), "1");
    assert!(began.elapsed() <= secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_upstream_asks_for_is_never_shortened() {
    let retry = "retry = { max_attempts = 3, min_wait = \"1s\", max_wait = \"2s\" }\ndeadline = \"30s\"";
    let mut call = 0;
    let stage = Stage::new(&api(&format!("{QUIET}\n{retry}")), move |_| {
        call += 1;
        match call {
            1 => Plan::asking(503, &[("retry-after", "7")]),
            2 => Plan::asking(503, &[("retry-after", "60")]),
            _ => Plan::status(200),
        }
    });
    let answer = stage.get("/").await;
    let at = stage.arrivals();
    assert!(at[1] - at[0] >= secs(7), "{:?}", at[1] - at[0]);
    assert_eq!((answer.status, answer.header("retry-after"), at.len()), (503, "60", 2), "60 s do not fit: delivered");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_ends_at_its_timeout() {
    let stage = Stage::new(&api(&format!("{QUIET}\nattempt_timeout = \"2s\"\nretry = {{ max_attempts = 2 }}")), |_| {
        Plan::status(200).after(secs(3600))
    });
    let began = Instant::now();
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"), "{answer:?}");
    assert_eq!(stage.arrived(), 2);
    assert!(began.elapsed() < secs(15), "{:?}", began.elapsed());
    assert_eq!(stage.upstream.seen.lock().under_way, 0, "abandoned attempts are dropped");
}

/// At most 20 % of the traffic plus the floor, however many requests fail.
#[tokio::test(start_paused = true)]
async fn the_budget_caps_a_storm() {
    let storm = |budget: &'static str| async move {
        let retry = "retry = { max_attempts = 5, min_wait = \"1s\", max_wait = \"1s\" }\nbreaker = { enabled = false }";
        let stage = Stage::new(&api(&format!("{retry}\n{budget}\ndeadline = \"60s\"")), |_| Plan::status(503));
        for _ in 0..1_000 {
            drop(stage.begin("/"));
            sleep(millis(10)).await;
        }
        sleep(secs(30)).await;
        stage.arrived() - 1_000
    };
    let capped = storm("budget = { percent = 20, floor_per_second = 3, capacity = 100 }").await;
    // 10 s of traffic and at most 4 s of waits after it: 200 for the traffic, 3 per second, and 3 at the start.
    assert!((200..=200 + 3 * 15 + 3).contains(&capped), "{capped} retries of 1000 requests");
    let free = storm("budget = { percent = 100, floor_per_second = 1000000, capacity = 1000000 }").await;
    assert_eq!(free, 4_000, "tripwire: without a budget each of them is sent five times");
}

#[tokio::test(start_paused = true)]
async fn a_retry_without_budget_leaves_the_answer_of_the_upstream() {
    let retry = "retry = { max_attempts = 3, min_wait = \"1s\", max_wait = \"1s\" }\nbreaker = { enabled = false }";
    let budget = "budget = { percent = 0, floor_per_second = 0, capacity = 1 }";
    let stage = Stage::new(&api(&format!("{retry}\n{budget}")), |_| Plan::status(503));
    let answers = [stage.get("/").await, stage.get("/").await];
    let attempts: Vec<_> = answers.iter().map(|answer| answer.header("triage-attempts")).collect();
    assert_eq!(attempts, ["2", "1"], "one was saved up");
    assert!(answers.iter().all(|answer| answer.body.as_ref() == b"scripted"), "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_goes_out_again_only_if_nothing_was_sent() {
    for (first, attempts) in [
        (Plan::status(503), 1),
        (Plan::status(500), 1),
        (Plan::of(Answer::Refused), 2),
        (Plan::asking(429, &[("retry-after", "1")]), 2),
        (Plan::status(425), 2),
    ] {
        let mut call = 0;
        let plan = first.clone();
        let stage = Stage::new(&api(&format!("{QUIET}\ndeadline = \"60s\"")), move |_| {
            call += 1;
            if call == 1 { plan.clone() } else { Plan::status(200) }
        });
        stage.send(Request::post("/").body(Bytes::from_static(b"x")).unwrap()).await;
        assert_eq!(stage.arrived(), attempts, "after {first:?}");
    }
}

/// Tripwire: only a retry turns this 503 into a 200.
#[tokio::test(start_paused = true)]
async fn tripwire_a_retry_heals_and_without_one_the_failure_shows() {
    for (most, status) in [(1, 503), (2, 200)] {
        let mut call = 0;
        let stage = Stage::new(&api(&format!("{QUIET}\nretry = {{ max_attempts = {most} }}")), move |_| {
            call += 1;
            Plan::status(if call == 1 { 503 } else { 200 })
        });
        assert_eq!(stage.get("/").await.status, status, "max_attempts = {most}");
    }
}

/// The last attempt was never sent, but the one before it may have arrived.
#[tokio::test(start_paused = true)]
async fn triage_sent_covers_the_earlier_attempts() {
    let mut call = 0;
    let stage = Stage::new(&api("retry = { max_attempts = 2 }\nattempt_timeout = \"2s\""), move |_| {
        call += 1;
        if call == 1 { Plan::status(200).after(secs(60)) } else { Plan::of(Answer::Refused) }
    });
    let lost = stage.get("/").await;
    assert_eq!((lost.problem().as_str(), lost.header("triage-attempts")), ("upstream-failed", "2"), "{lost:?}");
    assert_eq!(lost.header("triage-sent"), "maybe", "{lost:?}");
}

/// A keyed request reaches the upstream once for every 5xx, because gateways and CDNs use their own statuses.
#[tokio::test(start_paused = true)]
async fn a_keyed_write_that_is_answered_any_5xx_reaches_the_upstream_once() {
    let refusals = [501, 505, 511];
    for status in (500..=599).filter(|status| !refusals.contains(status)) {
        let stage = Stage::new(&api(QUIET), move |_| Plan::status(status));
        for time in 1..=3 {
            let request = Request::post("/").header("idempotency-key", "k").body(Bytes::new()).unwrap();
            let answer = stage.send(request).await;
            assert_eq!(answer.header("triage-verdict"), "unknown", "{status}, time {time}: {answer:?}");
        }
        assert_eq!(stage.arrived(), 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_odd_5xx_is_retried_for_what_is_safe_or_idempotent() {
    for method in ["GET", "QUERY", "PUT"] {
        for status in [506, 520, 524, 529, 599] {
            let mut call = 0;
            let stage = Stage::new(&api(QUIET), move |_| {
                call += 1;
                Plan::status(if call == 1 { status } else { 200 })
            });
            let request = Request::builder().method(method).uri("/").body(Bytes::new()).unwrap();
            let answer = stage.send(request).await;
            assert_eq!((answer.status, answer.header("triage-attempts")), (200, "2"), "{method} {status}: {answer:?}");
        }
    }
}

/// The caller follows a redirect with the same key, so the key must be free for the new target, and for a second try here.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_to_be_sent_elsewhere_frees_its_key() {
    for status in [307, 308] {
        let stage = Stage::new(&api(QUIET), move |request| {
            let moved = request.path_and_query == "/here";
            if moved { Plan::asking(status, &[("location", "/there")]) } else { Plan::status(201) }
        });
        for method in ["POST", "PUT"] {
            let keyed =
                |path| Request::builder().method(method).uri(path).header("idempotency-key", method).body(Bytes::new());
            let moved = stage.send(keyed("/here").unwrap()).await;
            assert_eq!((moved.status, moved.header("triage-verdict")), (status, "not-applied"), "{method}: {moved:?}");
            let followed = stage.send(keyed("/there").unwrap()).await;
            assert_eq!(followed.status, 201, "{method} {status}: {followed:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_when_and_whether_is_followed() {
    let mut call = 0;
    let stage = Stage::new(&api(QUIET), move |_| {
        call += 1;
        if call == 1 {
            Plan::asking(503, &[("retry-after-ms", "2500"), ("retry-after", "9")])
        } else {
            Plan::status(200)
        }
    });
    assert_eq!(stage.get("/").await.status, 200);
    let at = stage.arrivals();
    assert!((millis(2_500)..millis(2_600)).contains(&(at[1] - at[0])), "{:?}", at[1] - at[0]);

    let stage = Stage::new(&api(QUIET), |_| Plan::asking(503, &[("x-should-retry", "false")]));
    assert_eq!((stage.get("/").await.status, stage.arrived()), (503, 1), "it is of no use");
}
