//! Unknown writes are settled, never repeated without proof.

use crate::support::{BATCH, World, create, create_in, read, settings, unlimited};
use bytes::Bytes;
use http::{Request, StatusCode};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;
use triage_config as config;
use triage_hospital::emulator::{Call, Fault, Faults, Options, When};

#[tokio::test(start_paused = true)]
async fn a_create_is_answered_with_its_hospital() {
    let world = World::new(&settings(), Options::default());
    let answer = world.create("A", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["id"], 1);
    assert_eq!(answer.header("triage-attempts"), "1");
    assert_eq!(answer.header("triage-verdict"), "applied");
    assert!(answer.header("triage-policy").starts_with("hospital-directory;digest="), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn equal_rows_stay_separate() {
    let world = Arc::new(World::new(&settings(), Options::default()));
    world.emulator.set_faults(Faults::none().on(Call::Create, When::every(2), Fault::ResetAfter));
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let world = Arc::clone(&world);
        sent.spawn(async move { world.create("Twin", None).await });
    }
    let mut ids = BTreeSet::new();
    while let Some(answer) = sent.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.insert(answer.json()["id"].as_u64().unwrap());
    }
    assert_eq!(ids.len(), 5, "each request has a hospital of its own: {ids:?}");
    assert_eq!(world.emulator.hospitals().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn three_rows_through_dropped_connections_make_three_hospitals() {
    let world = World::new(&settings(), Options::default());
    world.emulator.set_faults(Faults::none().on(Call::Create, When::every(3), Fault::ResetAfter));
    for name in ["A", "B", "C"] {
        let answer = world.create(name, None).await;
        assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some(name)), "{answer:?}");
    }
    assert_eq!(world.emulator.hospitals().len(), 3);
}

/// The main promise, 10,000 times.
#[tokio::test(start_paused = true)]
async fn ten_thousand_creates_through_faults_lose_and_repeat_nothing() {
    let world = Arc::new(World::new(&unlimited(), Options { capacity: 20_000, ..Options::immediate() }));
    let chance = When::Chance;
    world.emulator.set_faults(
        Faults::none()
            .on(Call::Create, chance(0.10), Fault::ResetAfter)
            .on(Call::Create, chance(0.05), Fault::Unreadable)
            .on(Call::Create, chance(0.05), Fault::FailAfter(StatusCode::INTERNAL_SERVER_ERROR)),
    );
    let mut answered = 0;
    for wave in 0..500 {
        let batch = format!("7d3c5a52-0000-4000-8000-{wave:012}");
        let mut sent = tokio::task::JoinSet::new();
        for row in 0..20 {
            let (world, batch) = (Arc::clone(&world), batch.clone());
            sent.spawn(async move {
                let name = format!("H{wave}-{row}");
                let answer = world.send(create_in(&batch, &name, Some(&format!("key-{wave}-{row}")))).await;
                (name, answer)
            });
        }
        while let Some(done) = sent.join_next().await {
            let (name, answer) = done.unwrap();
            if answer.status == 200 {
                answered += 1;
                let id = answer.json()["id"].as_u64().unwrap();
                let held = world.emulator.hospital(id);
                assert_eq!(held.map(|hospital| hospital.name), Some(name), "the answer is true: {answer:?}");
            }
        }
    }
    assert!(answered >= 9_990, "answered 200: {answered} of 10000");
    assert_eq!(world.emulator.hospitals().len(), 10_000, "lost or repeated");
    assert_eq!(world.emulator.duplicates(), 0);
    assert!(world.emulator.faults_injected() > 1_500, "faults were injected");
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_is_found_not_repeated() {
    let world = Arc::new(World::new(
        &unlimited(),
        Options { create_delay: Duration::ZERO, limit_window: None, ..Options::default() },
    ));
    let late = Duration::ZERO..=Duration::from_secs(60);
    world.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetThenCommit(late)));
    let mut sent = tokio::task::JoinSet::new();
    for row in 0..10 {
        let world = Arc::clone(&world);
        sent.spawn(async move { world.create(&format!("Late{row}"), None).await });
    }
    while let Some(answer) = sent.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.status == 200 || answer.problem() == "effect-unknown", "{answer:?}");
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.emulator.duplicates(), 0);
    assert_eq!(world.emulator.hospitals().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_leaves_a_finished_record() {
    let world = World::new(&settings(), Options::default());
    let hung_up = tokio::time::timeout(Duration::from_secs(3), world.create("Gone", Some("gone"))).await;
    assert!(hung_up.is_err(), "the create takes 5 s");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let again = world.create("Gone", Some("gone")).await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    assert_eq!(world.emulator.hospitals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_cannot_be_settled_says_so_and_the_key_settles_it_later() {
    let world = World::new(&settings(), Options::default());
    world.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter).on(
        Call::ListBatch,
        When::First(100),
        Fault::FailBefore(StatusCode::BAD_GATEWAY),
    ));
    let answer = world.create("Lost", Some("k1")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    assert_eq!(answer.header("triage-verdict"), "unknown");
    world.emulator.set_faults(Faults::none());
    let again = world.create("Lost", Some("k1")).await;
    assert_eq!((again.status, again.json()["id"].as_u64()), (200, Some(1)), "{again:?}");
    assert_eq!(world.emulator.hospitals().len(), 1, "settled, not repeated");
}

/// An import is interrupted while its host proves a row's absence. The next run uses that proof.
#[tokio::test(start_paused = true)]
async fn a_proof_of_absence_outlasts_the_caller_that_asked_for_it() {
    let world = World::new(&settings(), Options::default());
    let maybe_sent = || {
        let mut request = create("Perhaps", Some("k1"));
        request.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
        request
    };
    let left = tokio::time::timeout(Duration::from_secs(30), world.send(maybe_sent())).await;
    assert!(left.is_err(), "absence is proven after 75 s");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.emulator.hospitals().len(), 0, "sent although its caller had left");
    let began = Instant::now();
    let answer = world.send(maybe_sent()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "the proof began anew: {:?}", began.elapsed());
    assert_eq!(world.emulator.hospitals().len(), 1);
}

/// A verification that was sent before `commit-within` and answered after it proves no absence, since the create was applied in between.
#[tokio::test(start_paused = true)]
async fn a_look_counts_from_when_it_was_sent() {
    let other_delay = Duration::from_millis(3_200);
    let world = World::new(&unlimited(), Options { other_delay, limit_window: None, ..Options::default() });
    let late = Duration::from_millis(74_900);
    let commits_late = Fault::ResetThenCommit(late..=late);
    world.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), commits_late));
    let answer = world.create("Late", None).await;
    assert_eq!((answer.status, answer.json()["id"].as_u64()), (200, Some(1)), "{answer:?}");
    assert_eq!(answer.header("triage-attempts"), "1", "it was sent again: {answer:?}");
    assert_eq!(world.emulator.hospitals().len(), 1);
}

/// The duration of a create says nothing about that of a verification. A verification waits for a permit as long as there is time.
#[tokio::test(start_paused = true)]
async fn a_look_waits_for_a_place_for_as_long_as_there_is_time() {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.endpoints.create-hospital]
        deadline = "28s"
        [upstreams.hospital.endpoints.list-batch]
        limits = [{ requests = 1, period = "25s" }]
    "#;
    let options = Options { create_delay: Duration::from_secs(8), ..Options::default() };
    let world = World::new(&config::from_toml(text).unwrap(), options);
    assert_eq!(world.create("Usual", None).await.status, 200);
    let list = Request::get(format!("/hospitals/batch/{BATCH}")).body(Bytes::new()).unwrap();
    assert_eq!(world.send(list).await.status, 200);
    world.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter));
    let lost = world.create("Lost", None).await;
    assert_eq!((lost.status, lost.json()["name"].as_str()), (200, Some("Lost")), "{lost:?}");
}

/// The writes of a group share 10 a second. Each endpoint also keeps the limit of its server, which the policy knows.
#[tokio::test(start_paused = true)]
async fn the_limits_of_a_group_replace_no_limit_of_the_policy() {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.defaults]
        group = "hospital"
        limits = [{ requests = 10, period = "1s" }]
    "#;
    let world = Arc::new(World::new(&config::from_toml(text).unwrap(), Options::default()));
    let mut sent = tokio::task::JoinSet::new();
    for row in 0..45 {
        let world = Arc::clone(&world);
        let batch = format!("{}{:02}", &BATCH[..BATCH.len() - 2], row / 20);
        sent.spawn(async move { world.send(create_in(&batch, &format!("Row{row}"), None)).await });
    }
    let mut created = 0;
    while let Some(answer) = sent.join_next().await {
        created += u32::from(answer.unwrap().status == 200);
    }
    let most = world.emulator.most_within(Call::Create, Duration::from_secs(60));
    assert!(most <= 30, "creates in a window of 60 s: {most}");
    let in_a_second = world.emulator.most_within(Call::Create, Duration::from_secs(1));
    assert!(in_a_second <= 20, "creates in a second, of 10 and a burst of 10: {in_a_second}");
    assert!(created > 30, "{created} of 45 were created within their deadline");
}

/// Creates that are lost and then found do not count as failures of the upstream, unless the operator says so.
#[tokio::test(start_paused = true)]
async fn writes_that_verification_finds_applied_open_no_breaker() {
    for (settled, expected) in [("ignore", 200), ("failure", 503)] {
        let text = format!(
            "[upstreams.hospital]\nbase_url = \"http://hospital.invalid\"\npolicy = \"hospital-directory\"\n\
             defaults.breaker = {{ failure_threshold = 3, settled = \"{settled}\" }}\n"
        );
        let world = World::new(&config::from_toml(&text).unwrap(), Options::default());
        world.emulator.set_faults(Faults::none().on(Call::Create, When::First(3), Fault::ResetAfter));
        for row in 0..3 {
            let found = world.create(&format!("Row{row}"), None).await;
            assert_eq!((found.status, found.header("triage-verdict")), (200, "already-applied"), "{found:?}");
        }
        let next = world.create("Next", None).await;
        assert_eq!(next.status, expected, "breaker.settled = {settled}: {next:?}");
    }
}

/// Creates that a verification does not find count as failures.
#[tokio::test(start_paused = true)]
async fn a_create_that_is_not_found_counts_against_the_upstream() {
    let text = "[upstreams.hospital]\nbase_url = \"http://hospital.invalid\"\npolicy = \"hospital-directory\"\n\
                defaults.breaker = { failure_threshold = 3 }\ndefaults.retry.max_attempts = 1\n";
    let world = World::new(&config::from_toml(text).unwrap(), Options::default());
    world.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetBefore));
    for row in 0..3 {
        assert_ne!(world.create(&format!("Row{row}"), None).await.status, 200);
    }
    assert_eq!(world.create("Next", None).await.problem(), "breaker-open");
}

/// While a half-open breaker's probe is being verified, others wait no longer than the probe's lease.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_verified_does_not_hold_a_half_open_breaker() {
    let text = "[upstreams.hospital]\nbase_url = \"http://hospital.invalid\"\npolicy = \"hospital-directory\"\n\
                defaults.breaker = { failure_threshold = 1, open_for = \"10s\", jitter = 0 }\n";
    let world = Arc::new(World::new(&config::from_toml(text).unwrap(), Options::default()));
    let blind = |faults: Faults| faults.on(Call::ListBatch, When::Always, Fault::FailBefore(StatusCode::BAD_GATEWAY));
    world.emulator.set_faults(Faults::none().on(
        Call::Create,
        When::First(1),
        Fault::FailBefore(StatusCode::BAD_GATEWAY),
    ));
    let mut request = create("Trips", None);
    request.headers_mut().insert("triage-deadline-ms", "6000".parse().unwrap());
    assert_eq!(world.send(request).await.problem(), "effect-unknown");
    assert_eq!(world.create("Refused", None).await.problem(), "breaker-open");
    tokio::time::sleep(Duration::from_secs(10)).await;
    // The probe is lost, and its effect stays unknown as long as verifications fail.
    world.emulator.set_faults(blind(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter)));
    let probing = Arc::clone(&world);
    let probe = tokio::spawn(async move { probing.create("Probe", None).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(world.create("Beside", None).await.problem(), "breaker-open", "one probe at a time");
    world.emulator.set_faults(blind(Faults::none()));
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(world.create("Next", None).await.status, 200, "another probe passes while the first is still verified");
    assert!(!probe.is_finished());
    world.emulator.set_faults(Faults::none());
    assert_eq!(probe.await.unwrap().status, 200);
}

/// While verifications fail, every repetition finds the key still in use.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_again_frees_no_key() {
    let world = World::new(&settings(), Options::default());
    let blind = Faults::none().on(Call::ListBatch, When::Always, Fault::FailBefore(StatusCode::BAD_GATEWAY));
    world.emulator.set_faults(blind.clone().on(Call::Create, When::First(1), Fault::ResetAfter));
    for time in 1..=4 {
        let answer = world.create("Lost", Some("k1")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "time {time}: {answer:?}");
    }
    world.emulator.set_faults(Faults::none());
    assert_eq!(world.create("Lost", Some("k1")).await.status, 200);
    assert_eq!(world.emulator.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn maybe_sent_looks_before_it_sends() {
    let world = World::new(&settings(), Options::default());
    assert_eq!(world.create("Before", None).await.status, 200);
    let mut request = create("Before", Some("resumed"));
    request.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
    // The claim of the first, unkeyed request exists. This request may be another row, so it is sent after its absence is certain.
    let answer = world.send(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(world.emulator.hospitals().len(), 2);
    let mut request = create("Fresh", Some("resumed-2"));
    request.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
    let began = Instant::now();
    assert_eq!(world.send(request).await.status, 200);
    assert!(
        began.elapsed() >= Duration::from_secs(75),
        "absence counts only after commit-within: {:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_twenty_row_file_takes_one_wave_and_the_window_holds() {
    let world = Arc::new(World::new(&settings(), Options::default()));
    let began = Instant::now();
    let mut sent = tokio::task::JoinSet::new();
    for row in 0..20 {
        let world = Arc::clone(&world);
        sent.spawn(async move { world.create(&format!("Row{row}"), None).await.status });
    }
    while let Some(status) = sent.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert!(began.elapsed() <= Duration::from_secs(9), "20 rows warm: {:?}", began.elapsed());
    for row in 20..45 {
        let world = Arc::clone(&world);
        let batch = format!("{}{row:02}", &BATCH[..BATCH.len() - 2]);
        sent.spawn(async move { read(world.host.call(create_in(&batch, "More", None)).await).await.status });
    }
    while sent.join_next().await.is_some() {}
    let most = world.emulator.most_within(Call::Create, Duration::from_secs(60));
    assert!(most <= 30, "creates in a window of 60 s: {most}");
}
