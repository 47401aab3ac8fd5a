//! Clients without keys that time out and repeat at random hosts, one of which is killed: each row is created once.

use super::*;
use crate::support::fleet::UPSTREAM;
use std::collections::VecDeque;
use tokio::time::timeout;
use triage_hospital::emulator::{Fault, Faults, When};

/// Settings for requests that outlive many attempts.
fn patient() -> String {
    let list = "[upstreams.hospital.endpoints.list-batch]\nlimits = []\n";
    format!("{UPSTREAM}attempt_timeout = \"800ms\"\ndeadline = \"110s\"\n{list}")
}

#[derive(Debug, Default)]
struct Seen {
    timeouts: usize,
    broken: usize,
    refused: usize,
    adopted: usize,
    given_up: usize,
}

/// A client with a timeout of 2 s and up to three repetitions. None if it gives up.
async fn client(row: usize, hosts: &Mutex<Vec<SocketAddr>>, seen: &Mutex<Seen>, entropy: &Rng) -> Option<u64> {
    let (batch, name) = (format!("7d3c5a52-0000-4000-8000-{:012}", row / 20), format!("H{row}"));
    for _ in 0..4 {
        let to = {
            let hosts = hosts.lock().unwrap();
            hosts[usize::try_from(entropy.next()).unwrap_or(0) % hosts.len()]
        };
        let got = timeout(Duration::from_secs(2), send(to, &batch, &name, None)).await;
        let mut seen = seen.lock().unwrap();
        match got {
            Ok(Ok(Got { status: 200, head, body })) => {
                seen.adopted += usize::from(head.contains("triage-adopted: true"));
                return body["id"].as_u64();
            }
            Ok(Ok(Got { status: 409 | 503, .. })) => seen.refused += 1,
            Ok(Ok(other)) => panic!("row {row}: {other:?}"),
            Ok(Err(_)) => seen.broken += 1,
            Err(_) => seen.timeouts += 1,
        }
    }
    seen.lock().unwrap().given_up += 1;
    None
}

/// Sends each row until it is created. Rows that a client gives up are sent again later. One host is killed meanwhile.
async fn asked_for(rows: usize, at_once: usize) {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(330)).await;
    let chance = When::Chance;
    emulator.set_faults(
        Faults::none()
            .on(Call::Create, chance(0.10), Fault::StallBefore)
            .on(Call::Create, chance(0.10), Fault::StallAfter)
            .on(Call::Create, chance(0.10), Fault::ResetAfter),
    );
    let began = Instant::now();
    let mut running: Vec<_> = (0..3).map(|_| host_of(&server.url(), upstream, &patient())).collect();
    let hosts = Arc::new(Mutex::new(running.iter().map(|(_, address)| *address).collect::<Vec<_>>()));
    let (seen, entropy) = (Arc::new(Mutex::new(Seen::default())), Rng::system());
    let waiting: Arc<Mutex<VecDeque<usize>>> = Arc::new(Mutex::new((0..rows).collect()));
    let made = Arc::new(Mutex::new(BTreeMap::new()));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (hosts, seen, entropy) = (Arc::clone(&hosts), Arc::clone(&seen), entropy.clone());
        let (waiting, made) = (Arc::clone(&waiting), Arc::clone(&made));
        clients.spawn(async move {
            while made.lock().unwrap().len() < rows {
                let Some(row) = waiting.lock().unwrap().pop_front() else {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                };
                match client(row, &hosts, &seen, &entropy).await {
                    Some(id) => drop(made.lock().unwrap().insert(row, id)),
                    None => waiting.lock().unwrap().push_back(row),
                }
            }
        });
    }
    while made.lock().unwrap().len() < rows / 2 {
        sleep(Duration::from_millis(5)).await;
    }
    let (victim, _) = running.remove(0);
    victim.kill();
    hosts.lock().unwrap().remove(0);
    while clients.join_next().await.transpose().unwrap().is_some() {}
    let (seen, made) = (seen.lock().unwrap(), made.lock().unwrap());
    println!("{rows} rows in {:?}: {seen:?}, {} creates sent", began.elapsed(), creates(&emulator));
    assert_eq!((made.len(), emulator.hospitals().len(), emulator.duplicates()), (rows, rows, 0), "{seen:?}");
    for (row, id) in made.iter() {
        let made = emulator.hospital(*id).unwrap_or_else(|| panic!("row {row} was answered with {id}"));
        assert_eq!(made.name, format!("H{row}"), "row {row} got another one's hospital");
    }
    assert!(seen.timeouts > 0 && seen.broken > 0 && seen.adopted > 0, "tripwire: nothing was interrupted: {seen:?}");
}

/// A write of a caller that has left one host is adopted by a caller at another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_comes_back_at_another_host_adopts() {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(700)).await;
    let ((_one, first), (_other, second)) =
        (host_of(&server.url(), upstream, &patient()), host_of(&server.url(), upstream, &patient()));
    let left = timeout(Duration::from_millis(300), send(first, crate::support::BATCH, "A", None)).await;
    assert!(left.is_err(), "it was answered too early: {left:?}");
    let got = send(second, crate::support::BATCH, "A", None).await.unwrap();
    assert_eq!((got.status, got.body["id"].as_u64()), (200, Some(1)), "{got:?}");
    assert!(got.head.contains("triage-adopted: true"), "{got:?}");
    assert_eq!((creates(&emulator), emulator.hospitals().len()), (1, 1));
    let next = send(first, crate::support::BATCH, "A", None).await.unwrap();
    assert_eq!((next.body["id"].as_u64(), emulator.hospitals().len()), (Some(2), 2), "{next:?}");
}

/// A host is killed with a create under way. The repetition at another host waits until its effect is known, and sends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_settles_the_unkeyed_write_of_a_killed_host() {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(700)).await;
    let ((one, first), (_other, second)) =
        (host_of(&server.url(), upstream, &patient()), host_of(&server.url(), upstream, &patient()));
    let caller = tokio::spawn(async move { send(first, crate::support::BATCH, "A", None).await });
    while creates(&emulator) == 0 {
        assert!(!caller.is_finished(), "it was too fast to be seen");
        sleep(Duration::from_millis(2)).await;
    }
    one.kill();
    assert!(caller.await.unwrap().is_err(), "the host was killed too late");
    let got = send(second, crate::support::BATCH, "A", None).await.unwrap();
    assert_eq!((got.status, got.body["id"].as_u64()), (200, Some(1)), "{got:?}");
    assert!(got.head.contains("triage-adopted: true"), "{got:?}");
    assert_eq!((creates(&emulator), emulator.hospitals().len()), (1, 1));
}

/// The full run of 1000 rows: `TRIAGE_SOAK=1 .ci/run`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_thousand_unkeyed_rows_through_a_killed_host_are_made_once_each() {
    asked_for(1000, 24).await;
}
