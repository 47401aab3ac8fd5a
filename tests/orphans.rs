//! Clients without keys that time out and repeat: each row is created once.

use crate::support::{Answered, World, create_in, unlimited};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use triage_hospital::emulator::{Call, Fault, Faults, Options, When};

/// The counters of a run.
#[derive(Debug, Default)]
struct Tally {
    timeouts: AtomicUsize,
    adopted: AtomicUsize,
    given_up: AtomicUsize,
}

/// A typical client with a timeout of 2 s and up to three repetitions. None if it gives up.
async fn client(world: &World, batch: &str, name: &str, tally: &Tally) -> Option<Answered> {
    for wait in [0, 100, 200, 400] {
        sleep(Duration::from_millis(wait)).await;
        match timeout(Duration::from_secs(2), world.send(create_in(batch, name, None))).await {
            Ok(answer) if answer.status == 200 => {
                tally.adopted.fetch_add(usize::from(answer.header("triage-adopted") == "true"), Relaxed);
                return Some(answer);
            }
            Ok(answer) => assert!(matches!(answer.status, 409 | 503), "{name}: {answer:?}"),
            Err(_) => {
                tally.timeouts.fetch_add(1, Relaxed);
            }
        }
    }
    tally.given_up.fetch_add(1, Relaxed);
    None
}

/// A thousand rows; 20 % of the creates stall, and 10 % are applied and then reset. The user repeats rows that the client gave up, as after
/// an interrupted import. A create takes a third of a second: its ratio to the client's timeout is the same as that of the real 5 s to 30
/// s.
#[tokio::test(start_paused = true)]
async fn a_thousand_rows_of_a_client_that_repeats_itself_are_made_once_each() {
    const ROWS: usize = 1000;
    let options =
        Options { capacity: 20_000, create_delay: Duration::from_millis(330), handlers: 1000, ..Options::immediate() };
    let world = Arc::new(World::new(&unlimited(), options));
    let chance = When::Chance;
    world.emulator.set_faults(
        Faults::none()
            .on(Call::Create, chance(0.10), Fault::StallBefore)
            .on(Call::Create, chance(0.10), Fault::StallAfter)
            .on(Call::Create, chance(0.10), Fault::ResetAfter),
    );
    let tally = Arc::new(Tally::default());
    let rows: Arc<Mutex<VecDeque<usize>>> = Arc::new(Mutex::new((0..ROWS).collect()));
    let made = Arc::new(Mutex::new(Vec::new()));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (world, tally, rows, made) = (Arc::clone(&world), Arc::clone(&tally), Arc::clone(&rows), Arc::clone(&made));
        clients.spawn(async move {
            loop {
                let Some(row) = rows.lock().pop_front() else { return };
                let (batch, name) = (format!("7d3c5a52-0000-4000-8000-{:012}", row / 20), format!("H{row}"));
                match client(&world, &batch, &name, &tally).await {
                    Some(answer) => made.lock().push((answer.json()["id"].as_u64().unwrap(), name)),
                    None => rows.lock().push_back(row),
                }
            }
        });
    }
    while clients.join_next().await.transpose().unwrap().is_some() {}
    println!("{tally:?}");
    let made = made.lock();
    assert_eq!((made.len(), world.emulator.duplicates()), (ROWS, 0), "{tally:?}");
    assert_eq!(world.emulator.hospitals().len(), ROWS, "{tally:?}");
    for (id, name) in made.iter() {
        assert_eq!(&world.emulator.hospital(*id).unwrap().name, name);
    }
    let adopted = tally.adopted.load(Relaxed);
    assert!(adopted > 100 && tally.timeouts.load(Relaxed) > 100, "tripwire: nothing was adopted: {tally:?}");
}

/// Five equal rows of waiting callers are five hospitals, despite faults.
#[tokio::test(start_paused = true)]
async fn five_equal_rows_at_once_are_five_hospitals() {
    let world = Arc::new(World::new(&unlimited(), Options::default()));
    world.emulator.set_faults(Faults::none().on(Call::Create, When::every(2), Fault::ResetAfter));
    let mut rows = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let world = Arc::clone(&world);
        rows.spawn(async move { world.create("Twin", None).await });
    }
    while let Some(answer) = rows.join_next().await.transpose().unwrap() {
        assert_eq!((answer.status, answer.header("triage-adopted")), (200, ""), "{answer:?}");
    }
    assert_eq!(world.emulator.hospitals().len(), 5);
}
