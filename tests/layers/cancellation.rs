//! A caller may leave at any await: its permits are returned, or its work is finished without it.

use super::{Answer, Plan, Stage, api, get, millis, polled, secs};
use crate::support::{World, create, read};
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout};
use triage_config as config;
use triage_hospital::emulator::Options;

/// Polls a request and its body `polls` times, then drops it. Returns whether it was completed.
async fn dropped_after(polls: usize, stage: &Arc<Stage>, path: &'static str) -> bool {
    let stage = Arc::clone(stage);
    let whole = async move { read(stage.host.call(get(path)).await).await };
    polled(polls, whole).await.is_some()
}

/// Holds a probe lease, a concurrency permit and a rate-limit reservation at once: the breaker is half-open with one probe, there is one
/// permit, and the next reservation is a second away.
#[tokio::test(start_paused = true)]
async fn a_safe_request_gives_back_what_it_held_at_every_poll() {
    let defaults = r#"
        retry = { max_attempts = 1 }
        concurrency = 1
        deadline = "10s"
        limits = [{ requests = 1, period = "2s" }]
        breaker = { failure_threshold = 1, open_for = "1s", open_for_max = "1s", jitter = 0, probes = 1 }
    "#;
    let (mut unsent, mut sent, mut polls) = (0, 0, 0);
    loop {
        let mut call = 0;
        let stage = Stage::new(&api(defaults), move |_| {
            call += 1;
            match call {
                1 => Plan::status(500),
                2 => Plan::of(Answer::Late(secs(1))).after(secs(1)),
                _ => Plan::status(200),
            }
        });
        let began = Instant::now();
        assert_eq!(stage.get("/").await.status, 500, "opens the breaker, takes the first moment");
        sleep(secs(1)).await;
        if dropped_after(polls, &stage, "/").await {
            break;
        }
        assert_eq!(stage.upstream.seen.lock().under_way, 0, "polls: {polls}: the send was dropped too");
        let was_sent = stage.arrived() == 2;
        if was_sent {
            sent += 1;
        } else {
            unsent += 1;
        }
        let answer = stage.get("/").await;
        assert_eq!(answer.status, 200, "polls: {polls}, sent: {was_sent}: place and probe are free: {answer:?}");
        let next = *stage.arrivals().last().unwrap() - began;
        let most = if was_sent { millis(4_010) } else { millis(2_010) };
        assert!(next <= most, "polls: {polls}, sent: {was_sent}: the moment was given back, not lost: {next:?}");
        polls += 1;
    }
    assert!(unsent >= 2 && sent >= 2, "every phase was cut: {unsent} before, {sent} after the send, {polls} in all");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_not_made_is_paid_back() {
    let defaults = r#"
        retry = { max_attempts = 2, min_wait = "1s", max_wait = "1s" }
        deadline = "30s"
        limits = [{ requests = 1, period = "3s" }]
        budget = { percent = 0, floor_per_second = 0, capacity = 1 }
        breaker = { enabled = false }
    "#;
    let (mut paid_back, mut spent, mut polls) = (0, 0, 0);
    loop {
        let stage = Stage::new(&api(defaults), |_| Plan::status(503).after(millis(100)));
        if dropped_after(polls, &stage, "/").await {
            break;
        }
        let retried = stage.arrived() == 2;
        let attempts = stage.get("/").await.header("triage-attempts").to_owned();
        let expected = if retried { "1" } else { "2" };
        assert_eq!(attempts, expected, "polls: {polls}, the dropped one had retried: {retried}");
        if retried {
            spent += 1;
        } else {
            paid_back += 1;
        }
        polls += 1;
    }
    assert!(paid_back >= 4 && spent >= 1, "{paid_back} paid back, {spent} spent");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_the_line_frees_it() {
    let mut polls = 0;
    loop {
        let stage = Stage::new(&api("concurrency = 1\ndeadline = \"10s\""), |_| Plan::status(200).after(secs(2)));
        let holder = stage.begin("/");
        tokio::task::yield_now().await;
        let over = dropped_after(polls, &stage, "/").await;
        let began = Instant::now();
        assert_eq!(stage.get("/").await.status, 200);
        assert!(began.elapsed() <= millis(4_010), "polls: {polls}: {:?}", began.elapsed());
        assert_eq!(holder.await.unwrap().status, 200);
        if over {
            break;
        }
        polls += 1;
    }
    assert!(polls >= 3, "{polls}");
}

/// A create waits for a permit, a lock and a reservation, is sent and recorded. Its caller disconnects at each half second.
#[tokio::test(start_paused = true)]
async fn an_unsafe_request_is_given_up_before_the_send_and_finished_after_it() {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.endpoints.create-hospital]
        concurrency = 1
        limits = [{ requests = 1, period = "8s" }]
    "#;
    let settings = config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    let (mut given_up, mut finished) = (0, 0);
    for half in 0..30 {
        // Avoid the times at which something happens.
        let after = millis(500 * half + 100);
        let world = Arc::new(World::new(&settings, Options::default()));
        let (first, twin) = (Arc::clone(&world), Arc::clone(&world));
        let first = tokio::spawn(async move { first.create("First", None).await.status });
        tokio::task::yield_now().await;
        let twin = tokio::spawn(async move { timeout(after, twin.create("Row", Some("key"))).await.is_ok() });
        assert_eq!(first.await.unwrap(), 200);
        let answered = twin.await.unwrap();
        sleep(secs(60)).await;
        let made = world.emulator.hospitals().iter().filter(|hospital| hospital.name == "Row").count();
        // The first call wakes the upstream and takes 0.3 s. The reservation is due 8 s later, and the response arrives 5 s after that.
        assert_eq!(made, usize::from(after > millis(8_300)), "hung up after {after:?}");
        assert_eq!(answered, after > millis(13_300), "hung up after {after:?}");
        if made == 0 {
            given_up += 1;
        } else {
            finished += 1;
        }
        let again = world.create("Row", Some("key")).await;
        let replay = if made == 1 { "true" } else { "" };
        assert_eq!((again.status, again.header("triage-replay")), (200, replay), "hung up after {after:?}: {again:?}");
        let other = timeout(secs(30), world.send(create("Row", None))).await;
        assert_eq!(other.expect("the turn is free").status, 200, "hung up after {after:?}");
        assert_eq!(world.emulator.hospitals().len(), 3, "hung up after {after:?}");
    }
    assert!(given_up > 10 && finished > 10, "{given_up} given up, {finished} finished");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_free_at_once_if_its_caller_left_before_the_send() {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.endpoints.create-hospital]
        concurrency = 1
    "#;
    let settings = config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    // One waits for a permit, the other for the lock of an equal request.
    for name in ["Other", "First"] {
        let world = Arc::new(World::new(&settings, Options::default()));
        let holder = Arc::clone(&world);
        let holder = tokio::spawn(async move { holder.create("First", None).await.status });
        sleep(millis(500)).await;
        assert!(timeout(secs(1), world.create(name, Some("key"))).await.is_err(), "{name} waits");
        let again = timeout(secs(60), world.create(name, Some("key"))).await.unwrap();
        assert_eq!((again.status, again.header("triage-replay")), (200, ""), "{name}: not 409: {again:?}");
        assert_eq!(holder.await.unwrap(), 200);
        assert_eq!(world.emulator.hospitals().len(), 2, "{name}");
    }
}
