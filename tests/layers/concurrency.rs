//! Concurrency permits, and the one request that wakes a sleeping upstream for all.

use super::{Plan, Stage, api, secs};
use crate::support::{World, create_in, settings};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};
use triage_hospital::emulator::{Call, ColdStart, Meanwhile, Options};

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_are_under_way_and_the_others_wait() {
    let stage = Stage::new(&api("concurrency = 3\ndeadline = \"15s\""), |_| Plan::status(200).after(secs(1)));
    let began = Instant::now();
    let crowd: Vec<_> = (0..12).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!((stage.most_under_way(), stage.arrived()), (3, 12));
    assert!((secs(4)..secs(5)).contains(&began.elapsed()), "four waves: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_permit_by_its_deadline_gets_a_503() {
    let stage = Stage::new(&api("concurrency = 1\ndeadline = \"5s\"\nattempt_timeout = \"5s\""), |_| {
        Plan::status(200).after(secs(4))
    });
    let crowd: Vec<_> = (0..3).map(|_| stage.begin("/")).collect();
    let mut problems = Vec::new();
    for answer in crowd {
        let answer = answer.await.unwrap();
        if answer.status != 200 {
            problems.push((answer.status, answer.problem(), answer.header("triage-sent").to_owned()));
        }
    }
    assert!(problems.contains(&(503, "overloaded".to_owned(), "no".to_owned())), "{problems:?}");
    assert_eq!(stage.get("/").await.status, 200, "every place is free again");
}

#[tokio::test(start_paused = true)]
async fn a_place_is_not_held_between_attempts() {
    let mut call = 0;
    let defaults = "concurrency = 1\nretry = { max_attempts = 2, min_wait = \"5s\", max_wait = \"5s\" }";
    let stage = Stage::new(&api(defaults), move |_| {
        call += 1;
        Plan::status(if call == 1 { 503 } else { 200 })
    });
    let retrying = stage.begin("/");
    tokio::task::yield_now().await;
    let began = Instant::now();
    assert_eq!(stage.get("/").await.status, 200);
    assert_eq!(began.elapsed(), Duration::ZERO, "the other one waits for its retry without a place");
    assert_eq!(retrying.await.unwrap().status, 200);
}

fn asleep(meanwhile: Meanwhile) -> Options {
    let cold = ColdStart { idle: secs(900), waking: secs(30), meanwhile, asleep: true };
    Options { cold_start: Some(cold), ..Options::default() }
}

/// A create that a sleeping upstream delays for 30 s would lose its response, so a harmless call wakes the upstream first.
#[tokio::test(start_paused = true)]
async fn a_sleeping_upstream_is_woken_once_before_any_create_is_sent() {
    for meanwhile in [Meanwhile::Hold, Meanwhile::Answer(http::StatusCode::SERVICE_UNAVAILABLE)] {
        let world = Arc::new(World::new(&settings(), asleep(meanwhile)));
        let began = Instant::now();
        let mut sent = JoinSet::new();
        for row in 0..10 {
            let world = Arc::clone(&world);
            let batch = format!("7d3c5a52-0000-4000-8000-{row:012}");
            sent.spawn(async move { world.send(create_in(&batch, "Cold", None)).await });
        }
        while let Some(answer) = sent.join_next().await {
            let answer = answer.unwrap();
            assert_eq!((answer.status, answer.header("triage-attempts")), (200, "1"), "{meanwhile:?}: {answer:?}");
        }
        let arrivals = world.emulator.arrivals();
        let creates = arrivals.iter().filter(|arrival| arrival.call == Call::Create).count();
        assert_eq!(creates, 10, "{meanwhile:?}");
        assert_eq!(world.emulator.hospitals().len(), 10, "{meanwhile:?}");
        assert!(began.elapsed() >= secs(30), "{meanwhile:?}: nothing was sent before it was awake");
        let woken = arrivals.len() - creates;
        assert!((1..=2).contains(&woken), "{meanwhile:?}: one wakes it for all: {woken} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_wake_gets_no_create() {
    let cold = ColdStart { idle: secs(900), waking: secs(3600), meanwhile: Meanwhile::Hold, asleep: true };
    let world = World::new(&settings(), Options { cold_start: Some(cold), ..Options::default() });
    let answer = world.create("Never", None).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "upstream-asleep"), "{answer:?}");
    assert_eq!(answer.header("triage-sent"), "no");
    tokio::time::sleep(secs(7200)).await;
    assert_eq!(world.emulator.made(), 0);
}

/// Tripwire: without the limit, the first test would fail.
#[tokio::test(start_paused = true)]
async fn tripwire_without_places_all_are_under_way_at_once() {
    let stage = Stage::new(&api(""), |_| Plan::status(200).after(secs(1)));
    let crowd: Vec<_> = (0..12).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(stage.most_under_way(), 12);
}
