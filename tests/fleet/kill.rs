//! Real host processes, killed and stopped at random: no write is applied twice, and no key stays in use.

mod orphans;

use crate::{
    process::child::Triage,
    support::{
        create_in,
        fleet::KEY,
        redis_server::{Proxy, RedisServer},
        scripted::message,
    },
};
use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};
use triage_core::rng::Rng;
use triage_hospital::emulator::{Call, Emulator, Options};

/// Settings of the upstream without breaker, budget and limits, but with the policy's real commit time.
pub(super) fn settings(lock: &str, attempt_timeout: &str, deadline: &str) -> String {
    format!(
        r#"
policy = "hospital-directory"
idempotency.lock = "{lock}"
[upstreams.hospital.defaults]
breaker = {{ enabled = false }}
limits = []
budget = {{ percent = 100, floor_per_second = 1000000, capacity = 1000000 }}
attempt_timeout = "{attempt_timeout}"
deadline = "{deadline}"
[upstreams.hospital.endpoints.create-hospital]
limits = []
concurrency = 10000
attempt_timeout = "{attempt_timeout}"
deadline = "{deadline}"
[upstreams.hospital.endpoints.activate-batch]
deadline = "{deadline}"
"#
    )
}

/// Starts `triage serve`; the process is killed on drop.
fn host(state: &str, upstream: SocketAddr) -> (Triage, SocketAddr) {
    host_with(state, upstream, "")
}

/// The same with further endpoint settings.
pub(super) fn host_with(state: &str, upstream: SocketAddr, endpoints: &str) -> (Triage, SocketAddr) {
    // A short lock, so that the keys of a killed host are free soon.
    host_of(state, upstream, &format!("{}{endpoints}", settings("4s", "2s", "4s")))
}

/// The same with other upstream settings.
pub(super) fn host_of(state: &str, upstream: SocketAddr, settings: &str) -> (Triage, SocketAddr) {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let text = format!(
        "[server]\nworkers = 1\n[state]\nurl = \"{state}\"\ntimeout = \"5s\"\n\
         [upstreams.hospital]\nbase_url = \"http://{upstream}\"\n{settings}"
    );
    file.write_all(text.as_bytes()).unwrap();
    Triage::serve_with(&["--config", file.path().to_str().unwrap()], &[("TRIAGE_STATE_KEY", KEY)])
}

/// The emulated directory on its own port; it stops on drop.
pub(super) async fn directory(create_delay: Duration) -> (Arc<Emulator>, SocketAddr, JoinHandle<()>) {
    let options = Options { create_delay, handlers: 1000, capacity: 20_000, ..Options::immediate() };
    let emulator = Emulator::new(options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(Arc::clone(&emulator).serve(listener, std::future::pending()));
    (emulator, address, serving)
}

pub(super) fn creates(emulator: &Emulator) -> usize {
    emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Create).count()
}

/// A host's response: status, problem or verdict, body.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: serde_json::Value,
}

/// Sends a create; an error if the host is gone. Dropping the future closes the connection.
pub(super) async fn send(to: SocketAddr, batch: &str, name: &str, key: Option<&str>) -> io::Result<Got> {
    send_again(to, batch, name, key, false).await
}

/// The same. `maybe_sent`: whether the caller marks the request as possibly sent before.
pub(super) async fn send_again(
    to: SocketAddr,
    batch: &str,
    name: &str,
    key: Option<&str>,
    maybe_sent: bool,
) -> io::Result<Got> {
    let request = create_in(batch, name, None);
    let body = request.body();
    let key = key.map_or(String::new(), |key| format!("idempotency-key: {key}\r\n"));
    let maybe_sent = if maybe_sent { "triage-maybe-sent: true\r\n" } else { "" };
    let head = format!(
        "POST /hospitals/ HTTP/1.1\r\nhost: fleet.test\r\ncontent-type: application/json\r\n{key}{maybe_sent}\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let answer = message(&mut stream, &mut Vec::new()).await?;
    let (head, body) = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let body = serde_json::from_slice(&body).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    Ok(Got { status, head, body })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_settles_the_writes_of_a_killed_host() {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(700)).await;
    let ((one, first), (_other, second)) = (host(&server.url(), upstream), host(&server.url(), upstream));
    let caller = tokio::spawn(async move { send(first, crate::support::BATCH, "A", Some("k")).await });
    while creates(&emulator) == 0 {
        assert!(!caller.is_finished(), "it was too fast to be seen");
        sleep(Duration::from_millis(2)).await;
    }
    one.kill();
    assert!(caller.await.unwrap().is_err(), "the host was killed too late");
    let got = loop {
        let got = send(second, crate::support::BATCH, "A", Some("k")).await.unwrap();
        if got.status != 409 {
            break got;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((got.status, got.body["id"].as_u64()), (200, Some(1)), "{got:?}");
    assert!(got.head.contains("triage-verdict: already-applied"), "{got:?}");
    assert_eq!((creates(&emulator), emulator.hospitals().len()), (1, 1));
}

/// Killed with the lock, but before its send: another host sends the create once the lock expires, without waiting for a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_sends_the_write_that_a_killed_host_had_begun() {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::ZERO).await;
    let proxy = Proxy::before(server.port());
    let ((one, first), (_other, second)) = (host(&proxy.url(), upstream), host(&server.url(), upstream));
    assert_eq!(send(first, crate::support::BATCH, "before", Some("before")).await.unwrap().status, 200);
    proxy.delay(Duration::from_millis(300));
    let caller = tokio::spawn(async move { send(first, crate::support::BATCH, "A", Some("k")).await });
    let mut connection = server.connection();
    let mut begun = || redis::cmd("KEYS").arg("triage:{twin-*}:queue").query::<Vec<String>>(&mut connection).unwrap();
    while begun().is_empty() {
        assert!(!caller.is_finished(), "it was too fast to be seen");
        sleep(Duration::from_millis(2)).await;
    }
    one.kill();
    assert!(caller.await.unwrap().is_err());
    let got = loop {
        let got = send(second, crate::support::BATCH, "A", Some("k")).await.unwrap();
        if got.status != 409 {
            break got;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((got.status, got.body["name"].as_str()), (200, Some("A")), "{got:?}");
    assert_eq!((creates(&emulator), emulator.hospitals().len()), (2, 2));
}

/// A host is stopped between writing its `sent` marker and its first byte, for longer than its lock. By then another host has the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_stopped_past_its_lock_sends_nothing_when_it_wakes() {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::ZERO).await;
    let proxy = Proxy::before(server.port());
    let ((sleeper, first), (_other, second)) = (host(&proxy.url(), upstream), host(&server.url(), upstream));
    // The connection exists. The delay creates time between the server's action and the host's knowledge of it.
    let before = send(first, crate::support::BATCH, "before", Some("before")).await.unwrap();
    assert_eq!(before.status, 200, "{before:?}");
    proxy.delay(Duration::from_millis(300));
    let caller = tokio::spawn(async move { send(first, crate::support::BATCH, "A", Some("k")).await });
    let mut connection = server.connection();
    let mut marked = || -> bool {
        let keys: Vec<String> = redis::cmd("KEYS").arg("triage:{idem-*}:*").query(&mut connection).unwrap();
        let fields = |key: &String| -> Vec<Option<String>> {
            redis::cmd("HMGET").arg(key).arg(&["s", "t"]).query(&mut connection).unwrap_or_default()
        };
        keys.iter().map(fields).any(|own| matches!(&own[..], [Some(state), Some(_)] if state == "h"))
    };
    while !marked() {
        assert!(!caller.is_finished(), "it was too fast to be seen");
        sleep(Duration::from_millis(2)).await;
    }
    sleeper.signal("STOP");
    assert_eq!(creates(&emulator), 1, "it was stopped too late");
    // The other host waits until the lock expires. Then it verifies, and finds no permission to send.
    let got = loop {
        let got = send(second, crate::support::BATCH, "A", Some("k")).await.unwrap();
        if got.status != 409 {
            break got;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(got.status, 504, "{got:?}");
    sleeper.signal("CONT");
    let woken = caller.await.unwrap().unwrap();
    assert_eq!(woken.status, 503, "{woken:?}");
    assert_eq!(woken.body["type"], "urn:triage:problem:store-unavailable", "{woken:?}");
    assert!(woken.head.contains("triage-sent: no"), "{woken:?}");
    assert_eq!((creates(&emulator), emulator.hospitals().len()), (1, 1), "it sent after it woke");
}

/// The counters of a run.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    broken: usize,
    in_flight: usize,
    refused: usize,
    unknown: usize,
    adopted: usize,
    replayed: usize,
    /// The longest time that a key stayed in use without a living host.
    stuck: Duration,
}

/// Sends `rows` keyed creates through three hosts, and kills one of them again and again until the last row is done.
async fn killed_at_random(rows: usize, at_once: usize, pause_ms: u64) -> Tally {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(60)).await;
    let url: Arc<str> = server.url().into();
    let entropy = Rng::system();
    let start = || async {
        let url = Arc::clone(&url);
        tokio::task::spawn_blocking(move || host(&url, upstream)).await.unwrap()
    };
    let mut running = Vec::new();
    let addresses = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let (own, address) = start().await;
        running.push(own);
        addresses.lock().unwrap().push(address);
    }
    let tally = Arc::new(Mutex::new(Tally::default()));
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let answered = Arc::new(Mutex::new(BTreeMap::new()));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (next, done, answered) = (Arc::clone(&next), Arc::clone(&done), Arc::clone(&answered));
        let (addresses, tally, entropy) = (Arc::clone(&addresses), Arc::clone(&tally), entropy.clone());
        callers.spawn(async move {
            loop {
                let row = next.fetch_add(1, SeqCst);
                if row >= rows {
                    return;
                }
                let id = settled(row, &addresses, &tally, &entropy).await;
                answered.lock().unwrap().insert(row, id);
                done.fetch_add(1, SeqCst);
            }
        });
    }
    while next.load(SeqCst) < rows {
        sleep(Duration::from_millis(pause_ms + entropy.next() % pause_ms)).await;
        let victim = usize::try_from(entropy.next() % 3).unwrap();
        let (own, address) = start().await;
        // The replacement takes the address before the old process is killed.
        addresses.lock().unwrap()[victim] = address;
        std::mem::replace(&mut running[victim], own).kill();
        tally.lock().unwrap().kills += 1;
    }
    while callers.join_next().await.transpose().unwrap().is_some() {}
    let answered = answered.lock().unwrap();
    assert_eq!(answered.len(), rows);
    let hospitals = emulator.hospitals();
    assert_eq!((hospitals.len(), emulator.duplicates()), (rows, 0), "{:?}", tally.lock().unwrap());
    for (row, id) in answered.iter() {
        let made = emulator.hospital(*id).unwrap_or_else(|| panic!("row {row} was answered with {id}"));
        assert_eq!(made.name, format!("H{row}"), "row {row} got another one's hospital");
    }
    std::mem::take(&mut tally.lock().unwrap())
}

/// Repeats a row with its key at random hosts until it gets a response. Returns its hospital's id.
async fn settled(row: usize, addresses: &Mutex<Vec<SocketAddr>>, tally: &Mutex<Tally>, entropy: &Rng) -> u64 {
    let batch = format!("7d3c5a52-0000-4000-8000-{:012}", row / 20);
    let (name, key) = (format!("H{row}"), format!("key-{row}"));
    // The last time that a host had the key and finished or died.
    let mut since = None;
    loop {
        let to = addresses.lock().unwrap()[usize::try_from(entropy.next() % 3).unwrap()];
        let got = send(to, &batch, &name, Some(&key)).await;
        {
            let mut tally = tally.lock().unwrap();
            match &got {
                Ok(Got { status: 200, head, body }) => {
                    tally.adopted += usize::from(head.contains("triage-verdict: already-applied"));
                    tally.replayed += usize::from(head.contains("triage-replay: true"));
                    return body["id"].as_u64().unwrap();
                }
                Ok(Got { status: 409, .. }) => {
                    tally.in_flight += 1;
                    let since = since.unwrap_or_else(|| panic!("row {row} is in flight, and nobody was asked before"));
                    tally.stuck = tally.stuck.max(Instant::now() - since);
                }
                Ok(Got { status: 503, .. }) => tally.refused += 1,
                Ok(Got { status: 504, .. }) => tally.unknown += 1,
                Ok(other) => panic!("row {row}: {other:?}"),
                Err(_) => tally.broken += 1,
            }
            if !matches!(got, Ok(Got { status: 409, .. })) {
                since = Some(Instant::now());
            }
        }
        sleep(Duration::from_millis(if got.is_ok() { 200 } else { 10 })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_killed_at_random_do_nothing_twice() {
    let tally = killed_at_random(150, 12, 100).await;
    println!("{tally:?}");
    assert!(tally.kills > 0 && tally.broken > 0, "tripwire: nothing was interrupted: {tally:?}");
}

/// The full run: `TRIAGE_SOAK=1 .ci/run`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn five_thousand_creates_through_killed_hosts() {
    let tally = killed_at_random(5000, 48, 300).await;
    println!("{tally:?}");
    assert!(tally.kills >= 20, "{tally:?}");
    // The lock, and the delay of a busy machine.
    assert!(tally.stuck <= Duration::from_secs(4 + 2), "{tally:?}");
}
