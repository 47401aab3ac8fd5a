//! Writes of unknown effect are settled in the background: within the limits of the endpoint that is read, by one owner, and never by
//! another send.

mod commands;
mod notices;
mod partitions;

use crate::support::{Answered, World, create_in};
use std::{sync::Arc, time::Duration};
use tokio::task::{JoinHandle, JoinSet};
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, Options, When};

/// The policy's own value: how late a create may be applied.
const COMMIT_WITHIN: Duration = Duration::from_secs(75);
/// The deadline of a create in these tests, so that callers leave long before the commit time.
const DEADLINE: Duration = Duration::from_secs(20);

/// Settings for the hospital directory with a short deadline, a limit for verifications per minute, and further keys.
fn settings(looks_a_minute: u32, keys: &str) -> Settings {
    let half = looks_a_minute / 2;
    let text = format!(
        r#"
        {keys}
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.defaults]
        breaker = {{ enabled = false }}
        budget = {{ percent = 100, floor_per_second = 1000000, capacity = 1000000 }}
        [upstreams.hospital.endpoints.create-hospital]
        attempt_timeout = "15s"
        deadline = "20s"
        limits = []
        concurrency = 10000
        [upstreams.hospital.endpoints.list-batch]
        limits = [{{ requests = {half}, period = "60s", burst = {half} }}]
        "#
    );
    config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn blind() -> Faults {
    Faults::none().on(Call::ListBatch, When::Always, Fault::FailBefore(http::StatusCode::BAD_GATEWAY))
}

/// Settles in the background until it is dropped.
struct Settling(JoinHandle<()>);

impl Settling {
    fn at(host: &Host) -> Self {
        let host = host.clone();
        Self(tokio::spawn(async move { host.settle_writes().await }))
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn world(settings: &Settings, options: Options) -> Arc<World> {
    let options = Options { handlers: 1000, capacity: 20_000, limit_window: None, ..options };
    Arc::new(World::new(settings, options))
}

/// Sends a row with its key: twenty rows per batch.
async fn row(world: &World, row: usize) -> Answered {
    let batch = format!("7d3c5a52-0000-4000-8000-{:012}", row / 20);
    world.send(create_in(&batch, &format!("H{row}"), Some(&format!("key-{row}")))).await
}

/// Sends rows at once, none of which gets a response.
async fn left_unknown(world: &Arc<World>, rows: usize) {
    let mut sent = JoinSet::new();
    for number in 0..rows {
        let world = Arc::clone(world);
        sent.spawn(async move { row(&world, number).await });
    }
    while let Some(answer) = sent.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    }
}

fn creates(emulator: &Emulator) -> usize {
    emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Create).count()
}

/// The main check: half of the writes were applied, half were not, and no caller returns.
#[tokio::test(start_paused = true)]
async fn two_hundred_writes_are_settled_within_their_commit_time() {
    const ROWS: usize = 200;
    let world = world(&settings(120, ""), Options::default());
    world.emulator.set_faults(blind().on(Call::Create, When::every(2), Fault::ResetAfter).on(
        Call::Create,
        When::Always,
        Fault::ResetBefore,
    ));
    left_unknown(&world, ROWS).await;
    assert_eq!((creates(&world.emulator), world.emulator.hospitals().len()), (ROWS, ROWS / 2));
    let _settling = Settling::at(&world.host);
    world.emulator.set_faults(Faults::none());
    // The last byte was sent before the deadline.
    tokio::time::sleep(COMMIT_WITHIN + Duration::from_secs(10)).await;
    assert_eq!(creates(&world.emulator), ROWS, "a write was sent again");
    let most = world.emulator.most_within(Call::ListBatch, Duration::from_secs(60));
    assert!(most <= 120, "{most} verifications in a minute");
    // Verifications fail from here on, so that the next try shows the state of the records.
    world.emulator.set_faults(blind());
    let (mut replayed, mut sent) = (0, 0);
    for number in 0..ROWS {
        let answer = row(&world, number).await;
        assert_eq!(answer.status, 200, "row {number} was not settled: {answer:?}");
        assert_eq!(answer.json()["name"], format!("H{number}"), "another row's hospital");
        if answer.header("triage-replay") == "true" {
            assert_eq!(answer.header("triage-verdict"), "already-applied", "{answer:?}");
            replayed += 1;
        } else {
            assert_eq!(answer.header("triage-attempts"), "1", "{answer:?}");
            sent += 1;
        }
    }
    assert_eq!((replayed, sent), (ROWS / 2, ROWS / 2));
    assert_eq!((world.emulator.hospitals().len(), world.emulator.duplicates()), (ROWS, 0));
}

/// Absence is proven only after no create can be applied any more, however often it was verified before.
#[tokio::test(start_paused = true)]
async fn a_late_commit_is_adopted_and_frees_no_key() {
    const ROWS: usize = 40;
    let world = world(&settings(120, ""), Options { create_delay: Duration::ZERO, ..Options::default() });
    let late = Duration::from_secs(30)..=Duration::from_secs(74);
    world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetThenCommit(late)));
    left_unknown(&world, ROWS).await;
    let _settling = Settling::at(&world.host);
    world.emulator.set_faults(Faults::none());
    tokio::time::sleep(COMMIT_WITHIN + Duration::from_secs(10)).await;
    world.emulator.set_faults(blind());
    for number in 0..ROWS {
        let answer = row(&world, number).await;
        assert_eq!((answer.status, answer.header("triage-replay")), (200, "true"), "row {number}: {answer:?}");
    }
    assert_eq!((creates(&world.emulator), world.emulator.hospitals().len()), (ROWS, ROWS));
}

/// Two writes may share one verification. Its result counts for each from the time of its request, since the write may have been applied
/// later.
#[tokio::test(start_paused = true)]
async fn a_shared_look_proves_no_absence_of_a_younger_write() {
    let options = Options { create_delay: Duration::ZERO, other_delay: Duration::from_secs(4), ..Options::default() };
    let world = world(&settings(120, "settlement.interval = \"10ms\""), options);
    let late = Duration::from_millis(74_900);
    world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetThenCommit(late..=late)));
    let other = Arc::clone(&world);
    let first = tokio::spawn(async move { row(&other, 0).await });
    // The first one is verified from 75 s to 79 s after its send. That result exists when the second one's commit time is over.
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    assert_eq!(row(&world, 1).await.problem(), "effect-unknown");
    assert_eq!(first.await.unwrap().problem(), "effect-unknown");
    let _settling = Settling::at(&world.host);
    world.emulator.set_faults(Faults::none());
    tokio::time::sleep(COMMIT_WITHIN + Duration::from_secs(20)).await;
    for number in 0..2 {
        let answer = row(&world, number).await;
        assert_eq!((answer.status, answer.header("triage-replay")), (200, "true"), "row {number}: {answer:?}");
    }
    assert_eq!(world.emulator.hospitals().len(), 2);
}

/// A caller that returns finds its key in use for at most a second, or settles the write itself.
#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_is_not_kept_out() {
    let world = world(&settings(120, ""), Options::default());
    world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
    left_unknown(&world, 20).await;
    let _settling = Settling::at(&world.host);
    // The upstream is slow to respond, but does in the end.
    world.emulator.set_faults(Faults::none().on(Call::ListBatch, When::First(6), Fault::StallBefore));
    let mut sent = JoinSet::new();
    for number in 0..20 {
        let world = Arc::clone(&world);
        sent.spawn(async move {
            let mut busy = 0;
            loop {
                let answer = row(&world, number).await;
                if answer.status == 200 {
                    return busy;
                }
                assert!(matches!(answer.status, 409 | 504), "{answer:?}");
                busy += u32::from(answer.status == 409);
                let wait = answer.header("retry-after").parse().unwrap_or(1);
                assert!(answer.status == 504 || wait <= 10, "row {number} is kept out for {wait} s");
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
        });
    }
    while let Some(busy) = sent.join_next().await {
        assert!(busy.unwrap() <= 12, "kept out again and again");
    }
    assert_eq!((creates(&world.emulator), world.emulator.hospitals().len()), (20, 20));
}

/// A hospital that an equal request is about to claim belongs to it: while that request runs, nothing is adopted.
#[tokio::test(start_paused = true)]
async fn an_equal_request_under_way_keeps_its_hospital() {
    let world = world(&settings(120, ""), Options::default());
    let twin = |key: &str| create_in(crate::support::BATCH, "Twin", Some(key));
    world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetBefore));
    assert_eq!(world.send(twin("first")).await.problem(), "effect-unknown");
    let _settling = Settling::at(&world.host);
    // The first write is verified again at twice its age, about 16 s from here. By then the second one's hospital is in the list (after 8 +
    // 5 s), while the second one still waits for its response (until 8 + 15 s).
    tokio::time::sleep(Duration::from_secs(8)).await;
    world.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::StallAfter));
    let second = world.send(twin("second")).await;
    assert_eq!((second.status, second.json()["id"].as_u64()), (200, Some(1)), "{second:?}");
    tokio::time::sleep(COMMIT_WITHIN + Duration::from_secs(10)).await;
    let first = world.send(twin("first")).await;
    assert_eq!((first.status, first.json()["id"].as_u64()), (200, Some(2)), "{first:?}");
    assert_eq!(first.header("triage-attempts"), "1", "its key was free: {first:?}");
}

/// If verification never succeeds, the write is left to an operator. After the margin, the upstream is not asked any more.
#[tokio::test(start_paused = true)]
async fn verification_ends_after_the_margin() {
    let world = world(&settings(120, "settlement.margin = \"2m\""), Options::default());
    world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
    left_unknown(&world, 1).await;
    let _settling = Settling::at(&world.host);
    let verifications = || world.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::ListBatch).count();
    let before = verifications();
    tokio::time::sleep(COMMIT_WITHIN + Duration::from_secs(60)).await;
    let halfway = verifications();
    assert!(halfway > before, "it is not verified");
    tokio::time::sleep(Duration::from_secs(70)).await;
    let end = verifications();
    assert!(end > halfway, "verification ended early");
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(verifications(), end, "it goes on");
    // It is given up once: a caller's try that settles nothing starts no new verifications.
    for _ in 0..3 {
        assert_eq!(row(&world, 0).await.problem(), "effect-unknown");
        let after_the_try = verifications();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(verifications(), after_the_try, "each try begins it again");
    }
    // Its caller can still settle it.
    world.emulator.set_faults(Faults::none());
    let answer = row(&world, 0).await;
    assert_eq!((answer.status, answer.json()["id"].as_u64()), (200, Some(1)), "{answer:?}");
    assert_eq!(creates(&world.emulator), 1);
}

/// A write whose request must not be stored, or with settlement disabled, is left to its caller.
#[tokio::test(start_paused = true)]
async fn the_host_settles_no_write_if_disabled_or_above_max_request() {
    for keys in ["settlement.enabled = false", "settlement.max_request = \"10B\""] {
        let world = world(&settings(120, keys), Options::default());
        world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
        left_unknown(&world, 1).await;
        let _settling = Settling::at(&world.host);
        world.emulator.set_faults(Faults::none());
        let verifications =
            || world.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::ListBatch).count();
        let before = verifications();
        tokio::time::sleep(COMMIT_WITHIN * 2).await;
        assert_eq!(verifications(), before, "{keys}");
        let answer = row(&world, 0).await;
        assert_eq!((answer.status, answer.header("triage-replay")), (200, ""), "{keys}: {answer:?}");
    }
}

/// Settling that is dropped during a verification releases the record, so that the next run or a caller can continue.
#[tokio::test(start_paused = true)]
async fn settling_may_be_dropped_at_any_time() {
    for ms in [0, 1, 100, 250, 299, 301, 2_000, 2_100] {
        let world = world(&settings(120, ""), Options::default());
        world.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
        left_unknown(&world, 1).await;
        world.emulator.set_faults(Faults::none());
        let settling = Settling::at(&world.host);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        drop(settling);
        tokio::task::yield_now().await;
        let answer = row(&world, 0).await;
        assert_eq!((answer.status, answer.json()["id"].as_u64()), (200, Some(1)), "after {ms} ms: {answer:?}");
        assert_eq!(creates(&world.emulator), 1, "after {ms} ms");
    }
}

#[test]
fn the_deadline_is_shorter_than_the_commit_time() {
    assert!(DEADLINE < COMMIT_WITHIN);
}
