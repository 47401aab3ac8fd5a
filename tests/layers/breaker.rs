//! The circuit breaker: when it opens, for how long, which requests may probe, and which results are ignored.

use super::{Answer, Plan, Stage, api, millis, secs};
use bytes::Bytes;
use http::{Method, Request};
use tokio::time::sleep;

/// No retries and no jitter: each request is one call, and all times are exact.
fn settings(breaker: &str) -> triage_config::settings::Settings {
    api(&format!(
        "retry = {{ max_attempts = 1 }}\nattempt_timeout = \"5s\"\nbreaker = {{ jitter = 0, open_for = \"10s\", {breaker} }}"
    ))
}

/// A stage whose breaker has just opened for 10 s after five consecutive failures.
async fn opened(breaker: &str) -> std::sync::Arc<Stage> {
    let stage = Stage::new(&settings(breaker), |_| Plan::status(500));
    for call in 1..=5 {
        assert_eq!(stage.get("/").await.status, 500, "call {call} is the upstream's own answer");
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open");
    stage
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it_and_a_success_in_between_does_not() {
    let stage = opened("failure_threshold = 5").await;
    let refused = stage.get("/").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "breaker-open"), "{refused:?}");
    assert_eq!((refused.header("retry-after"), refused.header("triage-sent")), ("10", "no"));
    assert!(refused.json()["detail"].as_str().unwrap().contains("5 failures in a row"), "{refused:?}");
    assert_eq!(stage.arrived(), 5, "a refusal reaches nobody");

    let mut call = 0;
    let stage = Stage::new(&settings("failure_threshold = 5"), move |_| {
        call += 1;
        Plan::status(if call % 5 == 0 { 200 } else { 500 })
    });
    for _ in 0..15 {
        assert_ne!(stage.get("/").await.status, 503);
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_opens_it_once_the_window_holds_enough() {
    let alternating = |first: u16, second: u16| {
        let mut call = 0;
        move |_: &_| {
            call += 1;
            Plan::status(if call % 2 == 1 { first } else { second })
        }
    };
    let rate = "failure_threshold = \"off\", failure_rate = 50, minimum_calls = 20, window = \"30s\"";
    let stage = Stage::new(&settings(rate), alternating(200, 500));
    for call in 1..=20 {
        assert_ne!(stage.get("/").await.status, 503, "call {call}");
    }
    let refused = stage.get("/").await;
    assert_eq!(refused.problem(), "breaker-open", "half of 20 failed");
    assert!(refused.json()["detail"].as_str().unwrap().contains("50 % of calls failed"), "{refused:?}");

    // The same calls, but spread so that a window never contains 20.
    let stage = Stage::new(&settings(rate), alternating(200, 500));
    for call in 1..=60 {
        assert_ne!(stage.get("/").await.status, 503, "call {call}, spread thin");
        sleep(secs(4)).await;
    }
    assert_eq!(stage.arrived(), 60);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_although_they_succeed() {
    let slow = "slow_call_after = \"2s\", slow_rate = 80, minimum_calls = 10, window = \"60s\"";
    let stage = Stage::new(&settings(slow), |_| Plan::status(200).after(secs(2)));
    for call in 1..=10 {
        assert_eq!(stage.get("/").await.status, 200, "call {call}");
    }
    let refused = stage.get("/").await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("100 % of calls were slow"), "{refused:?}");

    let stage = Stage::new(&settings(slow), |_| Plan::status(200).after(millis(1_999)));
    for call in 1..=30 {
        assert_eq!(stage.get("/").await.status, 200, "call {call} is not slow");
    }
}

#[tokio::test(start_paused = true)]
async fn each_failed_probe_doubles_the_open_time_up_to_the_cap() {
    let stage = opened("open_for_max = \"40s\"").await;
    for (probe, open_for) in [10, 20, 40, 40].into_iter().enumerate() {
        let arrived = stage.arrived();
        sleep(millis(open_for * 1_000 - 1)).await;
        assert_eq!(stage.get("/").await.problem(), "breaker-open", "before probe {probe}");
        sleep(millis(1)).await;
        assert_eq!(stage.get("/").await.status, 500, "probe {probe} reaches the upstream");
        let refused = stage.get("/").await;
        assert!(refused.json()["detail"].as_str().unwrap().contains("a probe failed"), "{refused:?}");
        assert_eq!(stage.arrived(), arrived + 1);
    }
    stage.then(|_| Plan::status(200));
    sleep(secs(40)).await;
    for _ in 0..3 {
        assert_eq!(stage.get("/").await.status, 200, "one success closes it (K = 1)");
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_open_time_within_its_share() {
    let settings = api("retry = { max_attempts = 1 }\nbreaker = { jitter = 20, open_for = \"10s\" }");
    let mut waits = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let stage = Stage::seeded(&settings, seed, |_| Plan::status(500));
        for _ in 0..5 {
            stage.get("/").await;
        }
        let wait = stage.get("/").await.json()["retry_after_ms"].as_u64().unwrap();
        assert!((9_000..=11_000).contains(&wait), "seed {seed}: {wait} ms");
        waits.insert(wait);
    }
    assert!(waits.len() >= 10, "a fleet does not probe in step: {waits:?}");
}

#[tokio::test(start_paused = true)]
async fn only_k_probes_pass_and_k_successes_close_it() {
    let stage = opened("probes = 3").await;
    stage.then(|_| Plan::status(200).after(secs(1)));
    sleep(secs(10)).await;
    let crowd: Vec<_> = (0..20).map(|_| stage.begin("/")).collect();
    let mut statuses = Vec::new();
    for answer in crowd {
        statuses.push(answer.await.unwrap().status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert_eq!(stage.arrived(), 5 + 3);
    let crowd: Vec<_> = (0..20).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        assert_eq!(answer.await.unwrap().status, 200, "closed: everybody passes");
    }
}

#[tokio::test(start_paused = true)]
async fn late_results_of_an_older_epoch_change_nothing() {
    let mut call = 0;
    let short = api("retry = { max_attempts = 1 }\nbreaker = { jitter = 0, open_for = \"1s\" }");
    let stage = Stage::new(&short, move |_| {
        call += 1;
        match call {
            // These begin while the breaker is closed and fail after it has opened and closed again; one succeeds while it is open.
            1..=8 => Plan::status(500).after(secs(4)),
            9 => Plan::status(200).after(millis(500)),
            10..=14 => Plan::status(500),
            _ => Plan::status(200),
        }
    });
    let late: Vec<_> = (0..8).map(|_| stage.begin("/")).collect();
    tokio::task::yield_now().await;
    let good = stage.begin("/");
    sleep(millis(1)).await;
    for _ in 0..5 {
        assert_eq!(stage.get("/").await.status, 500);
    }
    assert_eq!(good.await.unwrap().status, 200);
    assert_eq!(stage.get("/").await.problem(), "breaker-open", "a late success does not close it");
    sleep(secs(1)).await;
    assert_eq!(stage.get("/").await.status, 200, "the probe closes it");
    for answer in late {
        assert_eq!(answer.await.unwrap().status, 500);
    }
    assert_eq!(stage.get("/").await.status, 200, "eight late failures do not open it");
}

const TWO: &str = r#"
    retry = { max_attempts = 1 }
    breaker = { jitter = 0, open_for = "10s" }
    [upstreams.api.endpoints.left]
    method = "GET"
    path = "/left"
    GROUP
    [upstreams.api.endpoints.right]
    method = "GET"
    path = "/right"
    GROUP
"#;

#[tokio::test(start_paused = true)]
async fn each_endpoint_has_its_own_and_a_group_shares_one() {
    for (group, right) in [("", 200), ("group = \"both\"", 503)] {
        let stage = Stage::new(&api(&TWO.replace("GROUP", group)), |request| {
            Plan::status(if request.path_and_query == "/left" { 500 } else { 200 })
        });
        for _ in 0..5 {
            assert_eq!(stage.get("/left").await.status, 500);
        }
        assert_eq!(stage.get("/left").await.status, 503);
        assert_eq!(stage.get("/right").await.status, right, "group: {group:?}");
        assert_eq!(stage.get("/else").await.status, 200, "a third one is not in the group");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_of_our_own_are_no_failures_of_the_upstream() {
    let stage = Stage::new(
        &api("retry = { max_attempts = 1 }\ndeadline = \"5s\"\nlimits = [{ requests = 1, period = \"60s\" }]"),
        |_| Plan::status(200),
    );
    assert_eq!(stage.get("/").await.status, 200);
    for _ in 0..30 {
        assert_eq!(stage.get("/").await.status, 429);
    }
    sleep(secs(60)).await;
    assert_eq!(stage.get("/").await.status, 200, "thirty refusals did not open it");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_a_failure_although_its_head_was_good() {
    let stage = Stage::new(&settings("failure_threshold = 5"), |_| Plan::of(Answer::Broken(millis(10))));
    for _ in 0..5 {
        let response = stage.host.call(super::get("/")).await;
        assert_eq!(response.status(), 200, "the head was passed on before the body broke off");
        assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err(), "the caller sees it break off");
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_a_failure_and_one_that_is_late_is_slow() {
    let stage = Stage::new(&settings("failure_threshold = 2"), |_| Plan::of(Answer::Late(secs(3600))));
    for _ in 0..2 {
        let response = stage.host.call(super::get("/")).await;
        let read = http_body_util::BodyExt::collect(response.into_body());
        let read = tokio::time::timeout(secs(6), read).await;
        assert!(read.is_ok_and(|read| read.is_err()), "broken off before the caller gives up");
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open", "longer than an attempt may take");

    let slow = "slow_call_after = \"2s\", slow_rate = 80, minimum_calls = 10, window = \"60s\"";
    let stage = Stage::new(&settings(slow), |_| Plan::of(Answer::Late(secs(2))));
    for call in 1..=10 {
        assert_eq!(stage.get("/").await.status, 200, "call {call}");
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open", "the head was quick, the body slow");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_reads_slowly_does_not_make_the_upstream_slow() {
    let slow = "slow_call_after = \"2s\", slow_rate = 50, minimum_calls = 2, failure_threshold = 2, window = \"60s\"";
    let stage = Stage::new(&settings(slow), |_| Plan::status(200));
    for _ in 0..10 {
        let response = stage.host.call(super::get("/")).await;
        sleep(secs(4)).await;
        assert_eq!(crate::support::read(response).await.status, 200);
    }
    for _ in 0..10 {
        // A caller that leaves in the middle is no failure either.
        let response = stage.host.call(super::get("/")).await;
        assert_eq!(response.status(), 200);
    }
}

/// Five callers with short deadlines must not open the breaker for all others.
#[tokio::test(start_paused = true)]
async fn a_callers_own_short_deadline_is_no_failure_of_the_upstream() {
    let stage = Stage::new(&settings("failure_threshold = 5"), |_| Plan::status(200).after(secs(1)));
    let impatient = |ms: &'static str| {
        let mut request = super::get("/");
        request.headers_mut().insert("triage-deadline-ms", ms.parse().unwrap());
        stage.send(request)
    };
    for _ in 0..50 {
        assert_eq!(impatient("100").await.problem(), "upstream-timeout");
    }
    assert_eq!(stage.get("/").await.status, 200, "patient callers are served");
    stage.then(|_| Plan::status(200).after(secs(3600)));
    for _ in 0..5 {
        assert_eq!(impatient("5100").await.problem(), "upstream-timeout");
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open", "longer than an attempt may take: that is a failure");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_sends_its_body_slowly_is_no_failure_of_the_upstream() {
    let small = "[upstreams.api]\nbase_url = \"http://api.invalid\"\nmax_buffered_request = \"1KiB\"\n";
    let settings = triage_config::from_toml(small).unwrap_or_else(|problems| panic!("{problems}"));
    let stage = Stage::new(&settings, |request| match request.body {
        triage_upstream::OutboundBody::Stream(_) => Plan::status(200).after(secs(3600)),
        triage_upstream::OutboundBody::Bytes(_) => Plan::status(200),
    });
    for _ in 0..10 {
        let large = http::Request::put("/").body(bytes::Bytes::from(vec![b'x'; 2 << 10])).unwrap();
        assert_eq!(stage.send(large).await.status, 504);
    }
    assert_eq!(stage.get("/").await.status, 200);
}

/// After its open time, a breaker first sends a health call, and admits no request while that fails.
#[tokio::test(start_paused = true)]
async fn the_health_call_gates_half_open() {
    use crate::support::read;
    use triage_hospital::emulator::{Call, Fault, Faults, When};
    let world = super::with_health_call();
    let list = || async { read(world.host.call(super::get("/hospitals/")).await).await };
    let lists = || world.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::List).count();
    world.emulator.set_faults(Faults::none().anywhere(When::Always, Fault::FailBefore(http::StatusCode::BAD_GATEWAY)));
    for _ in 0..5 {
        assert_eq!(list().await.status, 502);
    }
    assert_eq!((list().await.problem().as_str(), lists()), ("breaker-open", 5));
    sleep(secs(10)).await;
    let refused = list().await;
    assert_eq!((refused.problem().as_str(), lists()), ("breaker-open", 5), "no request was risked: {refused:?}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("its health call fails"), "{refused:?}");
    world.emulator.set_faults(Faults::none());
    assert_eq!(list().await.problem(), "breaker-open", "open again, for twice as long");
    sleep(secs(20)).await;
    assert_eq!((list().await.status, lists()), (200, 6));
}

/// During the health call, a late response to an older request pauses the group, so the probe waits too.
#[tokio::test(start_paused = true)]
async fn a_pause_during_the_health_call_delays_the_probe() {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.defaults]
        attempt_timeout = "15s"
        retry = { max_attempts = 1 }
        breaker = { jitter = 0, open_for = "10s" }
    "#;
    let settings = triage_config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    let mut lists = 0;
    let stage = Stage::new(&settings, move |request| {
        if request.path_and_query == "/" {
            return Plan::status(200).after(secs(5));
        }
        lists += 1;
        match lists {
            1 => Plan::asking(429, &[("retry-after", "30")]).after(secs(12)),
            2..=6 => Plan::status(500),
            _ => Plan::status(200),
        }
    });
    let late = stage.begin("/hospitals/");
    tokio::task::yield_now().await;
    for _ in 0..5 {
        assert_eq!(stage.get("/hospitals/").await.status, 500);
    }
    assert_eq!(stage.get("/hospitals/").await.problem(), "breaker-open");
    sleep(secs(10)).await;
    let arrived = stage.arrived();
    let held = stage.get("/hospitals/").await;
    assert_eq!(late.await.unwrap().status, 429, "it arrived during the health call");
    assert_eq!((held.status, held.problem().as_str()), (429, "rate-limited"), "{held:?}");
    assert_eq!(stage.arrived(), arrived + 1, "the health call, and no request");
    sleep(secs(30)).await;
    assert_eq!(stage.get("/hospitals/").await.status, 200, "the probe's place was given back");
}

/// Tripwire: without the breaker, the tests above would fail.
#[tokio::test(start_paused = true)]
async fn tripwire_without_a_breaker_everything_reaches_the_upstream() {
    let stage = Stage::new(&api("retry = { max_attempts = 1 }\nbreaker = { enabled = false }"), |_| Plan::status(500));
    for _ in 0..100 {
        assert_eq!(stage.get("/").await.status, 500);
    }
    assert_eq!(stage.arrived(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_keeps_an_open_breaker_open_up_to_the_cap() {
    let cases: [(&[(&str, &str)], u64); 3] =
        [(&[("retry-after", "5")], 10), (&[("retry-after", "25")], 25), (&[("retry-after", "3600")], 40)];
    for (headers, open_for) in cases {
        let settings = settings("failure_threshold = 2, open_for_max = \"40s\"");
        let stage = Stage::new(&settings, move |_| Plan::asking(503, headers));
        for _ in 0..2 {
            assert_eq!(stage.get("/").await.body.as_ref(), b"scripted", "the upstream's own answer");
        }
        let refused = stage.get("/").await;
        assert_eq!(
            (refused.problem().as_str(), refused.header("retry-after")),
            ("breaker-open", open_for.to_string().as_str())
        );
        sleep(millis(open_for * 1_000 - 1)).await;
        assert_eq!(stage.get("/").await.problem(), "breaker-open", "{headers:?}");
        sleep(millis(1)).await;
        stage.then(|_| Plan::status(200));
        assert_eq!(stage.get("/").await.status, 200, "{headers:?}");
    }
}

fn request(method: &Method, path: &str) -> Request<Bytes> {
    Request::builder().method(method).uri(path).body(Bytes::from_static(b"row")).unwrap()
}

/// The default policy has one endpoint for all methods. An upstream whose reads fail may still apply writes.
#[tokio::test(start_paused = true)]
async fn failing_reads_refuse_no_write_and_failing_writes_refuse_no_read() {
    let failing = |reads: bool| {
        Stage::new(&settings("failure_threshold = 5"), move |sent| {
            Plan::status(if (sent.method == Method::GET) == reads { 500 } else { 200 })
        })
    };
    let stage = failing(true);
    for _ in 0..5 {
        stage.get("/").await;
    }
    assert_eq!(stage.get("/").await.problem(), "breaker-open");
    assert_eq!(stage.send(request(&Method::HEAD, "/")).await.status, 503, "every safe method counts as a read");
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        assert_eq!(stage.send(request(&method, "/")).await.status, 200, "{method}");
    }
    let stage = failing(false);
    for _ in 0..5 {
        stage.send(request(&Method::PUT, "/")).await;
    }
    assert_eq!(stage.send(request(&Method::POST, "/")).await.problem(), "breaker-open");
    assert_eq!(stage.get("/").await.status, 200);
}

/// The limits are the upstream's: two breakers must not double them. A pause holds reads and writes back alike.
#[tokio::test(start_paused = true)]
async fn reads_and_writes_share_limits_and_pauses() {
    let settings = api("retry = { max_attempts = 1 }\ndeadline = \"10ms\"\nattempt_timeout = \"5ms\"\n\
                        limits = [{ requests = 4, period = \"1h\", burst = 4 }]");
    let stage = Stage::new(&settings, |_| Plan::status(200));
    for method in [Method::GET, Method::POST, Method::GET, Method::PUT] {
        assert_eq!(stage.send(request(&method, "/")).await.status, 200, "{method}");
    }
    for method in [Method::GET, Method::POST] {
        assert_eq!(stage.send(request(&method, "/")).await.problem(), "rate-limited", "{method}");
    }
    let settings = api("retry = { max_attempts = 1 }\n");
    let stage = Stage::new(&settings, |_| Plan::asking(429, &[("retry-after", "60")]));
    assert_eq!(stage.get("/").await.status, 429);
    for method in [Method::GET, Method::POST] {
        assert_eq!(stage.send(request(&method, "/")).await.problem(), "rate-limited", "{method}");
    }
    assert_eq!(stage.arrived(), 1);
}

/// An operator who names a group wants one breaker for all of it.
#[tokio::test(start_paused = true)]
async fn a_configured_group_has_one_breaker_for_reads_and_writes() {
    let settings = api("retry = { max_attempts = 1 }\nbreaker = { failure_threshold = 5 }\ngroup = \"all\"");
    let stage = Stage::new(&settings, |_| Plan::status(500));
    for _ in 0..5 {
        stage.get("/").await;
    }
    assert_eq!(stage.send(request(&Method::POST, "/")).await.problem(), "breaker-open");
}

/// A read that its breaker refuses takes nothing of the limits that it shares with the writes.
#[tokio::test(start_paused = true)]
async fn refused_reads_use_up_no_limit_of_the_writes() {
    let settings = api("retry = { max_attempts = 1 }\ndeadline = \"10ms\"\nattempt_timeout = \"5ms\"\n\
                        breaker = { failure_threshold = 2, jitter = 0 }\nlimits = [{ requests = 10, period = \"1h\", burst = 10 }]");
    let stage = Stage::new(&settings, |sent| Plan::status(if sent.method == Method::GET { 500 } else { 200 }));
    for _ in 0..2 {
        stage.get("/").await;
    }
    let refused: Vec<_> = (0..200).map(|_| stage.begin("/")).collect();
    for answer in refused {
        assert_eq!(answer.await.unwrap().problem(), "breaker-open");
    }
    for write in 1..=8 {
        assert_eq!(stage.send(request(&Method::POST, "/")).await.status, 200, "write {write} of the 8 that are left");
    }
    assert_eq!(stage.send(request(&Method::POST, "/")).await.problem(), "rate-limited");
}

/// Waiting reads keep their moments when a pause comes: each takes one permit of the limits.
#[tokio::test(start_paused = true)]
async fn a_pause_takes_no_second_permit_for_a_waiting_read() {
    let settings = api("retry = { max_attempts = 1 }\ndeadline = \"60s\"\nattempt_timeout = \"1s\"\n\
                        limits = [{ requests = 1, period = \"1s\", burst = 1 }]");
    let mut call = 0;
    let stage = Stage::new(&settings, move |_| {
        call += 1;
        if call == 1 { Plan::asking(429, &[("retry-after", "10")]).after(millis(100)) } else { Plan::status(200) }
    });
    let began = tokio::time::Instant::now();
    let reads: Vec<_> = (0..5).map(|_| stage.begin("/")).collect();
    for answer in reads {
        answer.await.unwrap();
    }
    let at: Vec<u64> = stage.arrivals().iter().map(|at| (*at - began).as_secs()).collect();
    assert_eq!(at.len(), 5, "{at:?}");
    assert!(at[1] >= 10 && at[4] <= 15, "one a second after the pause, without a gap: {at:?}");
}

/// Another endpoint that names the endpoint as its group wants one breaker with it.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_another_ones_group_has_one_breaker() {
    let settings = triage_config::from_toml(
        "[upstreams.api]\nbase_url = \"http://api.invalid\"\n[upstreams.api.defaults]\nretry = { max_attempts = 1 }\n\
         breaker = { failure_threshold = 5 }\n[upstreams.api.endpoints.search]\nmethod = \"GET\"\npath = \"/search\"\n\
         group = \"any\"\n",
    )
    .unwrap();
    let stage = Stage::new(&settings, |_| Plan::status(500));
    for _ in 0..5 {
        stage.get("/search").await;
    }
    assert_eq!(stage.get("/other").await.problem(), "breaker-open");
    assert_eq!(stage.send(request(&Method::POST, "/")).await.problem(), "breaker-open");
}
