//! Timelines without gaps: each wait of a request has a name, a refused request has no permit, and no line says what another one says.

use super::{Answer, Plan, Stage, api, millis, secs};
use crate::support::{World, create_in, settings};
use bytes::Bytes;
use http::{Request, StatusCode};
use std::time::Duration;
use tokio::time::sleep;
use triage::Host;
use triage_hospital::emulator::{Call, ColdStart, Fault, Faults, Meanwhile, Options, When};
use triage_telemetry::{RequestTimeline, TimelineEvent};

/// The timelines of the latest rows, the oldest first. Equal refusals are one row.
fn timelines(host: &Host, most: usize) -> Vec<RequestTimeline> {
    let workers = &host.shared.workers;
    let rows = workers.latest(most, false, |_| true);
    rows.iter().rev().map(|row| workers.timeline(row.id).expect("it is kept")).collect()
}

fn latest(host: &Host) -> RequestTimeline {
    timelines(host, 1).pop().expect("a timeline")
}

/// The latest timeline that ends with the host's own answer.
fn refused(host: &Host) -> RequestTimeline {
    let workers = &host.shared.workers;
    let rows = workers.latest(1, true, |row| row.reason.is_some());
    workers.timeline(rows[0].id).expect("it is kept")
}

fn texts(timeline: &RequestTimeline) -> Vec<String> {
    timeline.steps.iter().map(|timed| timed.step.to_string()).collect()
}

/// The time before an event that the event itself names.
fn named(event: &TimelineEvent) -> Duration {
    match event {
        TimelineEvent::Answered { took, .. } | TimelineEvent::Failed { took, .. } => *took,
        TimelineEvent::Permit { wait, .. }
        | TimelineEvent::Paced { wait, .. }
        | TimelineEvent::Queued { wait }
        | TimelineEvent::Waited { wait, .. }
        | TimelineEvent::Denied { wait, .. }
        | TimelineEvent::Refused { denied_after: Some(wait), .. } => *wait,
        _ => Duration::ZERO,
    }
}

/// The time after an event that the event announces.
fn announced(event: &TimelineEvent) -> Duration {
    match event {
        TimelineEvent::Waits { wait } => *wait,
        // The health calls that follow are not events.
        TimelineEvent::Waking { .. } => Duration::MAX,
        _ => Duration::ZERO,
    }
}

/// Fails if the timeline has a gap that no event names, a permit that was none, or a line twice in a row.
fn check(timeline: &RequestTimeline) {
    let told = texts(timeline).join("\n");
    let mut before: Option<&triage_telemetry::TimedEvent> = None;
    for timed in &timeline.steps {
        let gap = timed.at.saturating_sub(before.map_or(Duration::ZERO, |before| before.at));
        let covered = named(&timed.step).max(before.map_or(Duration::ZERO, |before| announced(&before.step)));
        assert!(gap <= covered.saturating_add(millis(2)), "{gap:?} before {:?} have no name:\n{told}", timed.step);
        before = Some(timed);
    }
    let end = timeline.took.saturating_sub(before.map_or(Duration::ZERO, |before| before.at));
    assert!(end <= millis(2), "{end:?} at the end have no name:\n{told}");
    let is_permit = |event: &TimelineEvent| matches!(event, TimelineEvent::Permit { .. });
    for pair in timeline.steps.windows(2) {
        let is_sent = matches!(pair[1].step, TimelineEvent::Sent { .. } | TimelineEvent::VerificationSent { .. });
        assert!(!is_permit(&pair[0].step) || is_sent, "a permit that is none:\n{told}");
        assert_ne!(pair[0].step.to_string(), pair[1].step.to_string(), "a line twice:\n{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_calls_that_wake_an_upstream_are_steps() {
    let meanwhile = Meanwhile::Answer(StatusCode::SERVICE_UNAVAILABLE);
    let cold = ColdStart { idle: secs(900), waking: secs(30), meanwhile, asleep: true };
    let world = std::sync::Arc::new(World::new(&settings(), Options { cold_start: Some(cold), ..Options::default() }));
    let first = {
        let world = std::sync::Arc::clone(&world);
        let batch = "7d3c5a52-0000-4000-8000-000000000001";
        tokio::spawn(async move { world.send(create_in(batch, "First", None)).await })
    };
    sleep(secs(5)).await;
    let second = world.send(create_in("7d3c5a52-0000-4000-8000-000000000002", "Second", None)).await;
    assert_eq!((first.await.unwrap().status, second.status), (200, 200));
    let both = timelines(&world.host, 2);
    let told = texts(&both[0]);
    assert_eq!(told[0], "health call sent: is the upstream well?", "{told:#?}");
    assert!(told[1].starts_with("answered 503 after "), "{told:#?}");
    assert_eq!(told[2], "the upstream is not awake: a health call follows every 1 s", "{told:#?}");
    assert!(told[3].starts_with("health call ") && told[3].ends_with(" sent"), "{told:#?}");
    assert!(told[4].starts_with("answered 200 after "), "{told:#?}");
    assert_eq!((told[5].as_str(), told[6].as_str()), ("permit", "attempt 1 begins"), "{told:#?}");
    let told = texts(&both[1]);
    assert!(
        told[0].starts_with("waited ") && told[0].ends_with("for another request that wakes the upstream"),
        "{told:#?}"
    );
    both.iter().for_each(check);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_wake_is_no_gap() {
    let cold = ColdStart { idle: secs(900), waking: secs(3600), meanwhile: Meanwhile::Hold, asleep: true };
    let world = World::new(&settings(), Options { cold_start: Some(cold), ..Options::default() });
    assert_eq!(world.create("Never", None).await.problem(), "upstream-asleep");
    let timeline = latest(&world.host);
    let told = texts(&timeline);
    assert!(told.last().unwrap().starts_with("no permit, so the host answers itself: upstream-asleep"), "{told:#?}");
    check(&timeline);
}

#[tokio::test(start_paused = true)]
async fn a_health_call_before_a_probe_is_a_step_and_its_failure_leaves_no_permit() {
    let world = super::with_health_call();
    let list = || async { world.host.call(super::get("/hospitals/")).await.status().as_u16() };
    world.emulator.set_faults(Faults::none().anywhere(When::Always, Fault::FailBefore(StatusCode::BAD_GATEWAY)));
    for _ in 0..5 {
        assert_eq!(list().await, 502);
    }
    assert_eq!(list().await, 503);
    assert_eq!(texts(&refused(&world.host)), ["no permit, so the host answers itself: breaker-open"]);
    sleep(secs(10)).await;
    assert_eq!(list().await, 503);
    let timeline = refused(&world.host);
    let told = texts(&timeline);
    assert_eq!(told.len(), 3, "{told:#?}");
    assert_eq!(told[0], "health call sent: is the upstream well?");
    assert!(told[1].starts_with("answered 502 after "), "{told:#?}");
    assert_eq!(told[2], "no permit, so the host answers itself: breaker-open");
    check(&timeline);
    world.emulator.set_faults(Faults::none());
    sleep(secs(20)).await;
    assert_eq!(list().await, 200);
    let told = texts(&latest(&world.host));
    assert_eq!(told[2], "permit, as a probe of the half-open breaker", "{told:#?}");
    check(&latest(&world.host));
}

#[tokio::test(start_paused = true)]
async fn waits_for_permits_have_names_whether_they_end_well_or_not() {
    let concurrency = "concurrency = 1\ndeadline = \"5s\"\nattempt_timeout = \"5s\"";
    let stage = Stage::new(&api(concurrency), |_| Plan::status(200).after(secs(2)));
    let crowd: Vec<_> = (0..4).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        answer.await.unwrap();
    }
    let all = timelines(&stage.host, 4);
    let told: Vec<String> = all.iter().flat_map(texts).collect();
    let words = "for one of the endpoint's concurrent requests to end (concurrency)";
    assert!(told.contains(&format!("waited 2 s {words}")), "{told:#?}");
    assert!(told.contains(&"no permit, so the host answers itself: overloaded, after 5 s".to_owned()), "{told:#?}");
    all.iter().for_each(check);

    let limits = "deadline = \"5s\"\nattempt_timeout = \"1s\"\nlimits = [{ requests = 1, period = \"2s\" }]";
    let stage = Stage::new(&api(limits), |_| Plan::status(200));
    let crowd: Vec<_> = (0..5).map(|_| stage.begin("/")).collect();
    for answer in crowd {
        answer.await.unwrap();
    }
    let all = timelines(&stage.host, 5);
    let told: Vec<String> = all.iter().flat_map(texts).collect();
    assert!(told.contains(&"permit, after a wait of 2 s for the rate limit".to_owned()), "{told:#?}");
    assert!(told.contains(&"no permit, so the host answers itself: rate-limited".to_owned()), "{told:#?}");
    all.iter().for_each(check);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_during_a_wait_names_the_wait() {
    let keys = "deadline = \"20s\"\nattempt_timeout = \"1s\"\nretry = { max_attempts = 1 }\n\
                limits = [{ requests = 1, period = \"3s\" }]\nbreaker = { failure_threshold = 1 }";
    let stage = Stage::new(&api(keys), |_| Plan::status(200));
    assert_eq!(stage.get("/").await.status, 200);
    let waiting = stage.begin("/");
    let failing = stage.begin("/");
    stage.then(|_| Plan::status(503));
    waiting.await.unwrap();
    assert_eq!(failing.await.unwrap().problem(), "breaker-open");
    let timeline = refused(&stage.host);
    assert_eq!(texts(&timeline), ["no permit, so the host answers itself: breaker-open, after 6 s"]);
    check(&timeline);
}

#[tokio::test(start_paused = true)]
async fn waits_for_equal_requests_and_for_bodies_have_names() {
    let keys = "retry = { max_attempts = 1 }\ndeadline = \"60s\"\nattempt_timeout = \"30s\"";
    let stage = Stage::new(&api(keys), |_| Plan::of(Answer::Late(secs(3))).after(secs(2)));
    let keyed = Request::post("/orders").header("idempotency-key", "\"k\"").body(Bytes::from_static(b"row")).unwrap();
    assert_eq!(stage.send(keyed).await.status, 200);
    let timeline = latest(&stage.host);
    let told = texts(&timeline);
    assert_eq!(told.last().unwrap(), "waited 3 s for the body of the answer", "{told:#?}");
    check(&timeline);

    // The next equal request takes the orphan over once it has ended.
    let post = || Request::post("/orders").body(Bytes::from_static(b"orphan")).unwrap();
    let left = tokio::time::timeout(secs(1), stage.send(post())).await;
    assert!(left.is_err());
    stage.send(post()).await;
    let timeline = latest(&stage.host);
    let told = texts(&timeline);
    assert!(told[0].starts_with("waited ") && told[0].ends_with(" for an equal request under way"), "{told:#?}");
    check(&timeline);
}

/// The emulator answers a create late, so that the host verifies it after the policy's delay.
#[tokio::test(start_paused = true)]
async fn a_verification_and_a_retry_are_announced_by_their_waits() {
    let world = World::new(&settings(), Options::default());
    world.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter));
    let answer = world.send(create_in("7d3c5a52-0000-4000-8000-000000000003", "Verified", Some("k"))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let timeline = latest(&world.host);
    let told = texts(&timeline);
    assert!(told.iter().any(|text| text.starts_with("verification 1 sent")), "{told:#?}");
    check(&timeline);
    let stage = Stage::new(&api("retry = { max_attempts = 3 }"), |_| Plan::status(503));
    stage.get("/").await;
    let told = texts(&latest(&stage.host));
    assert!(told.iter().any(|text| text.starts_with("waits ")), "{told:#?}");
    check(&latest(&stage.host));
}
