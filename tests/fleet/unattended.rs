//! Writes whose hosts were killed and whose callers never return: another host of the fleet settles them.

use super::kill::{creates, directory, host_with, send};
use crate::support::{
    BATCH,
    fleet::{Fleet, KEY, Member, UPSTREAM},
    redis_server::RedisServer,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use triage::Host;
use triage_config::settings::Settings;
use triage_core::{clock::Clock, rng::Rng};
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, InProcess, When};
use triage_state::idempotency::RecordId;

/// Lists per minute: half of them at once, the rest evenly spread.
const LISTS: u32 = 120;

/// Like the settings for killed hosts, plus limits for the endpoint that verifications use.
const LIST_LIMITS: &str = r#"
[upstreams.hospital.endpoints.list-batch]
limits = [{ requests = 60, period = "60s", burst = 60 }]
"#;

fn blind() -> Faults {
    Faults::none().on(Call::ListBatch, When::Always, Fault::FailBefore(http::StatusCode::BAD_GATEWAY))
}

fn batch(row: usize) -> String {
    format!("7d3c5a52-0000-4000-8000-{:012}", row / 20)
}

/// Sends rows, all at once, and counts those with this status. A row that a busy host refuses unsent is repeated.
async fn rows_at(to: SocketAddr, rows: usize, status: u16) -> usize {
    let mut sent = JoinSet::new();
    for row in 0..rows {
        sent.spawn(async move {
            for _ in 0..50 {
                let got = send(to, &batch(row), &format!("H{row}"), Some(&format!("key-{row}"))).await;
                match got {
                    Ok(got) if got.head.contains("triage-sent: no") => sleep(Duration::from_millis(100)).await,
                    got => return got.is_ok_and(|got| got.status == status),
                }
            }
            false
        });
    }
    let mut answered = 0;
    while let Some(was) = sent.join_next().await {
        answered += usize::from(was.unwrap());
    }
    answered
}

/// The number of records that may be unsettled.
fn open(server: &RedisServer) -> usize {
    let one = |part: u8| server.ask::<usize>(&["ZCARD", &format!("triage:{{idem-{part:x}}}:open")]);
    (0..16).map(one).sum()
}

async fn until_settled(server: &RedisServer) {
    while open(server) > 0 {
        sleep(Duration::from_millis(100)).await;
    }
}

/// Repeats each row while verifications fail, and counts replays and new sends, which shows the state of the records.
async fn repeated(to: SocketAddr, emulator: &Emulator, rows: usize) -> (usize, usize) {
    emulator.set_faults(blind());
    let (mut replayed, mut sent) = (0, 0);
    for row in 0..rows {
        let got = send(to, &batch(row), &format!("H{row}"), Some(&format!("key-{row}"))).await.unwrap();
        assert_eq!((got.status, got.body["name"].as_str()), (200, Some(&*format!("H{row}"))), "row {row}: {got:?}");
        let was_replayed = got.head.contains("triage-replay: true");
        replayed += usize::from(was_replayed);
        sent += usize::from(!was_replayed);
    }
    assert_eq!((emulator.hospitals().len(), emulator.duplicates()), (rows, 0));
    (replayed, sent)
}

/// The owner is killed with 200 writes of unknown effect whose callers have left.
async fn of_a_killed_owner(faults: Faults) -> (usize, usize, Duration) {
    const ROWS: usize = 200;
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::ZERO).await;
    let ((owner, first), (_other, second)) =
        (host_with(&server.url(), upstream, LIST_LIMITS), host_with(&server.url(), upstream, LIST_LIMITS));
    emulator.set_faults(faults);
    assert_eq!(rows_at(first, ROWS, 504).await, ROWS, "a write was answered");
    assert_eq!(creates(&emulator), ROWS);
    let last =
        emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Create).map(|own| own.at).max().unwrap();
    owner.kill();
    emulator.set_faults(Faults::none());
    until_settled(&server).await;
    let took = Instant::now() - last;
    assert_eq!(creates(&emulator), ROWS, "a write was sent again");
    let most = emulator.most_within(Call::ListBatch, Duration::from_secs(60));
    assert!(most <= LISTS as usize, "{most} lists in a minute");
    let (replayed, sent) = repeated(second, &emulator, ROWS).await;
    (replayed, sent, took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_writes_of_a_killed_owner_are_settled_by_another_host() {
    let (replayed, sent, took) = of_a_killed_owner(blind().on(Call::Create, When::Always, Fault::ResetAfter)).await;
    println!("settled {took:?} after the last write");
    assert_eq!((replayed, sent), (200, 0));
}

/// Half of them had no effect, which is only certain after 75 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the policy's commit time"]
async fn two_hundred_writes_of_which_half_took_effect_are_settled_by_another_host() {
    let faults =
        blind().on(Call::Create, When::every(2), Fault::ResetAfter).on(Call::Create, When::Always, Fault::ResetBefore);
    let (replayed, sent, took) = of_a_killed_owner(faults).await;
    println!("settled {took:?} after the last write");
    assert_eq!((replayed, sent), (100, 100));
}

/// Killed between a write's `sent` marker and its response: the request is stored before the send, so it can be verified.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_way_at_a_killed_host_are_settled_by_another_host() {
    const ROWS: usize = 40;
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(1500)).await;
    let ((owner, first), (_other, second)) =
        (host_with(&server.url(), upstream, LIST_LIMITS), host_with(&server.url(), upstream, LIST_LIMITS));
    let callers = tokio::spawn(rows_at(first, ROWS, 200));
    while creates(&emulator) < ROWS {
        assert!(!callers.is_finished(), "it was too fast to be seen");
        sleep(Duration::from_millis(2)).await;
    }
    owner.kill();
    assert!(callers.await.unwrap() < ROWS, "the host was killed too late");
    until_settled(&server).await;
    assert_eq!(creates(&emulator), ROWS, "a write was sent again");
    assert_eq!(repeated(second, &emulator, ROWS).await, (ROWS, 0));
}

/// A fleet that settles often, and whose requests have a deadline of 2 s.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new();
    "[settlement]\ninterval = \"50ms\"\n".clone_into(&mut fleet.state);
    fleet.upstream = format!("{UPSTREAM}attempt_timeout = \"1s\"\ndeadline = \"2s\"\n");
    fleet.emulator.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
    fleet
}

/// Settles at a host until it is dropped.
struct Settling(JoinHandle<()>);

impl Settling {
    fn at(member: &Member) -> Self {
        let host = member.0.clone();
        Self(tokio::spawn(async move { host.settle_writes().await }))
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends rows at one host. None of them gets a response.
async fn left_unknown(member: &Member, rows: usize) {
    let mut sent = JoinSet::new();
    for row in 0..rows {
        let member = member.clone();
        sent.spawn(async move {
            member.create_in(&batch(row), &format!("H{row}"), Some(&format!("key-{row}"))).await.problem()
        });
    }
    while let Some(problem) = sent.join_next().await {
        assert_eq!(problem.unwrap(), "effect-unknown");
    }
}

#[tokio::test]
async fn three_hosts_at_once_settle_each_write_once() {
    const ROWS: usize = 60;
    let fleet = fleet();
    let hosts = [fleet.host(), fleet.host(), fleet.host()];
    left_unknown(&hosts[0], ROWS).await;
    let settling: Vec<Settling> = hosts.iter().map(Settling::at).collect();
    fleet.emulator.set_faults(Faults::none());
    until_settled(&fleet.server).await;
    drop(settling);
    fleet.emulator.set_faults(blind());
    for row in 0..ROWS {
        let again = hosts[1].create_in(&batch(row), &format!("H{row}"), Some(&format!("key-{row}"))).await;
        assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "row {row}: {again:?}");
        assert_eq!(again.json()["name"], format!("H{row}"), "another row's hospital");
    }
    assert_eq!((fleet.creates(), fleet.made(), fleet.emulator.duplicates()), (ROWS, ROWS, 0));
}

/// The current policy verifies. One that cannot verify the write leaves it to another.
#[tokio::test]
async fn a_write_waits_for_a_policy_that_can_verify_it() {
    let mut fleet = fleet();
    let able = fleet.host();
    left_unknown(&able, 1).await;
    able.0.drained().await;
    fleet.emulator.set_faults(Faults::none());
    let upstream = std::mem::replace(&mut fleet.upstream, "policy = \"http-standard\"\n".to_owned());
    let unable = fleet.host();
    let settling = Settling::at(&unable);
    // The host took the record if it is no longer due.
    let now = || {
        let (seconds, micros) = fleet.server.ask::<(u64, u64)>(&["TIME"]);
        seconds * 1_000_000 + micros
    };
    let due = |until: u64| -> usize {
        let one = |part: u8| {
            let key = format!("triage:{{idem-{part:x}}}:due");
            fleet.server.ask::<usize>(&["ZCOUNT", &key, "-inf", &until.to_string()])
        };
        (0..16).map(one).sum()
    };
    while due(now()) > 0 {
        sleep(Duration::from_millis(20)).await;
    }
    drop(settling);
    unable.0.drained().await;
    assert_eq!((open(&fleet.server), fleet.creates()), (1, 1));
    fleet.upstream = upstream;
    let later = fleet.host();
    let _settling = Settling::at(&later);
    until_settled(&fleet.server).await;
    let again = later.create_in(&batch(0), "H0", Some("key-0")).await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    assert_eq!((fleet.creates(), fleet.made()), (1, 1));
}

/// A write that no host can verify becomes due rarely, and is given up once.
#[tokio::test]
async fn a_write_of_an_upstream_that_is_gone_is_given_up() {
    let fleet = fleet();
    let owner = fleet.host();
    left_unknown(&owner, 1).await;
    owner.0.drained().await;
    let mut gone = fleet.settings();
    "renamed".clone_into(&mut gone.upstreams[0].name);
    let at = |settings: &Settings| {
        let transport = Arc::new(InProcess(Arc::clone(&fleet.emulator)));
        Member(Host::with_transports(settings, Clock::system(), Rng::system(), vec![transport]).unwrap())
    };
    let due = || -> Vec<(String, Vec<u8>, f64)> {
        let mut found = Vec::new();
        for part in 0..16_u8 {
            let key = format!("triage:{{idem-{part:x}}}:due");
            let ids: Vec<(Vec<u8>, f64)> = fleet.server.ask(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]);
            found.extend(ids.into_iter().map(|(id, at)| (key.clone(), id, at)));
        }
        found
    };
    // A host that cannot verify the record postpones it beyond its own lease.
    let is_far = || {
        let (seconds, _) = fleet.server.ask::<(u64, u64)>(&["TIME"]);
        due().iter().all(|(.., at)| *at > (seconds + 30) as f64 * 1e6)
    };
    let waiting = at(&gone);
    let settling = Settling::at(&waiting);
    while !is_far() {
        sleep(Duration::from_millis(20)).await;
    }
    drop(settling);
    waiting.0.drained().await;
    // A host gives up a record whose margin is over.
    let [(key, id, _)] = &due()[..] else { panic!("{:?}", due()) };
    let mut connection = fleet.server.connection();
    redis::cmd("ZADD").arg(key).arg("XX").arg(0).arg(id).exec(&mut connection).unwrap();
    gone.settlement.margin = Duration::ZERO;
    let last = at(&gone);
    let _settling = Settling::at(&last);
    while !due().is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    // The record stays for its caller and for operators, but the request is deleted.
    assert_eq!((open(&fleet.server), fleet.creates()), (1, 1));
    let id = RecordId::from_bytes(id[..].try_into().unwrap());
    let record = key.replace(":due", &format!(":{id}"));
    assert!(fleet.server.ask::<bool>(&["HEXISTS", &record, "l"]), "{record} is not the record");
    assert!(!fleet.server.ask::<bool>(&["HEXISTS", &record, "i"]), "the request is kept for nothing");
}

/// Without an encryption key, shared state contains nothing of a request.
#[tokio::test]
async fn the_request_of_a_write_is_sealed_in_shared_state() {
    for key in [Some(KEY), None] {
        let mut fleet = fleet();
        fleet.key = key;
        let host = fleet.host();
        let unknown = host.create_in(BATCH, "Confidential Clinic", Some("k")).await;
        assert_eq!(unknown.problem(), "effect-unknown", "{unknown:?}");
        host.0.drained().await;
        let keys: Vec<String> = fleet.server.ask(&["KEYS", "triage:{idem-*}:*"]);
        let mut kept = Vec::new();
        for name in keys {
            if fleet.server.ask::<String>(&["TYPE", &name]) == "hash" {
                kept.extend(fleet.server.ask::<Vec<Vec<u8>>>(&["HGETALL", &name]));
            }
        }
        let all = kept.concat();
        let holds = |text: &str| all.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("hospital/create-hospital"), "{key:?}: the names are not kept");
        assert!(!holds("Clinic") && !holds(BATCH), "{key:?}: the request can be read");
        assert_eq!(kept.iter().any(|field| field == b"i"), key.is_some(), "the request");
        let due: usize =
            (0..16).map(|part| fleet.server.ask::<usize>(&["ZCARD", &format!("triage:{{idem-{part:x}}}:due")])).sum();
        assert_eq!(due, usize::from(key.is_some()), "{key:?}");
    }
}
