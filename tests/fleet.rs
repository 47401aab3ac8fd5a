//! Several hosts around one Redis share keys, claims and locks.

mod kill;
mod loss;
mod policies;
mod pybreaker;
mod trouble;
mod unattended;

use crate::support::{create, fleet::Fleet, front::Front, redis_server::RedisServer};
use http::{HeaderValue, Request};
use std::{collections::BTreeSet, time::Duration};
use tokio::task::JoinSet;
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, Options, When};

/// The main check: each line fails if the hosts share nothing.
#[tokio::test]
async fn a_key_is_honoured_by_whichever_host_gets_it() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.host(), fleet.host());
    let first = one.create("A", Some("k")).await;
    assert_eq!((first.status, first.header("triage-replay")), (200, ""), "{first:?}");
    let again = other.create("A", Some("k")).await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    assert_eq!((&first.body, first.header("triage-policy")), (&again.body, again.header("triage-policy")));
    let reused = other.create("B", Some("k")).await;
    assert_eq!((reused.status, reused.problem().as_str()), (422, "key-reused"), "{reused:?}");
    assert_eq!(fleet.made(), 1);
}

#[tokio::test]
async fn a_request_under_way_at_one_host_is_in_flight_at_another() {
    let mut fleet = Fleet::new();
    fleet.emulator = Emulator::new(Options { create_delay: Duration::from_secs(1), ..Options::immediate() });
    let (one, other) = (fleet.host(), fleet.host());
    let first = tokio::spawn(async move { one.create("A", Some("k")).await });
    while fleet.creates() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = other.create("A", Some("k")).await;
    assert_eq!((second.status, second.problem().as_str()), (409, "in-flight"), "{second:?}");
    assert!(!second.header("retry-after").is_empty());
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(fleet.made(), 1);
}

/// Equal rows at different hosts, with broken connections: no row adopts another's hospital, because the hosts use a lock, and a found
/// hospital is claimed.
#[tokio::test]
async fn equal_rows_of_two_hosts_stay_separate() {
    let fleet = Fleet::new();
    fleet.emulator.set_faults(Faults::none().on(Call::Create, When::every(2), Fault::ResetAfter));
    let hosts = [fleet.host(), fleet.host()];
    let mut sent = JoinSet::new();
    for row in 0..6 {
        let host = hosts[row % 2].clone();
        let key = (row < 4).then(|| format!("k{row}"));
        sent.spawn(async move { host.create("Twin", key.as_deref()).await });
    }
    let mut ids = BTreeSet::new();
    while let Some(answer) = sent.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.insert(answer.json()["id"].as_u64().unwrap());
    }
    assert_eq!((ids.len(), fleet.made()), (6, 6), "each request has a hospital of its own: {ids:?}");
}

#[tokio::test]
async fn tenants_routes_and_fingerprints_are_kept_apart() {
    let mut fleet = Fleet::new();
    fleet.upstream = format!("idempotency.tenant_header = \"x-tenant\"\n{}", fleet.upstream);
    let (one, other) = (fleet.host(), fleet.host());
    let of = |tenant: &'static str, name: &str| {
        let mut request: Request<_> = create(name, Some("k"));
        request.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
        request
    };
    let first = one.send(of("a", "A")).await;
    assert_eq!((first.status, first.header("triage-replay")), (200, ""), "{first:?}");
    let stranger = other.send(of("b", "A")).await;
    assert_eq!((stranger.status, stranger.header("triage-replay")), (200, ""), "another tenant's answer: {stranger:?}");
    assert_ne!(first.json()["id"], stranger.json()["id"]);
    let changed = other.send(of("a", "B")).await;
    assert_eq!((changed.status, changed.problem().as_str()), (422, "key-reused"), "{changed:?}");
    let mut elsewhere = of("a", "A");
    *elsewhere.uri_mut() = "/hospitals/?x=1".parse().unwrap();
    let elsewhere = other.send(elsewhere).await;
    assert_eq!((elsewhere.status, elsewhere.problem().as_str()), (422, "key-reused"), "{elsewhere:?}");
    let again = other.send(of("a", "A")).await;
    assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body));
    assert_eq!(fleet.made(), 2);
    // The server stores no confidential data in key names either.
    let held: Vec<String> = fleet.server.ask(&["KEYS", "*"]);
    assert!(!held.is_empty() && held.iter().all(|key| key.starts_with("triage:")), "{held:?}");
}

/// All stored responses, as the server would write them to disk.
fn dump(fleet: &Fleet) -> Vec<u8> {
    let mut connection = fleet.server.connection();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    let mut all = Vec::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).unwrap();
        let command = match kind.as_str() {
            "hash" => redis::cmd("HGETALL").arg(&key).to_owned(),
            "zset" => redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).to_owned(),
            _ => redis::cmd("GET").arg(&key).to_owned(),
        };
        let values: redis::Value = command.query(&mut connection).unwrap();
        let values: Vec<Vec<u8>> = match values {
            redis::Value::Array(_) => redis::from_redis_value(values).unwrap(),
            one => vec![redis::from_redis_value(one).unwrap_or_default()],
        };
        all.extend(key);
        all.extend(values.concat());
    }
    all
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn answers_are_sealed_and_keys_are_rotated() {
    const NEW: &str = "//////////////////////////////////////////8=";
    const BOTH: &str = "//////////////////////////////////////////8=\n000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let mut fleet = Fleet::new();
    let old = fleet.host();
    let first = old.create("St. Secret", Some("my-secret-key")).await;
    assert_eq!(first.status, 200, "{first:?}");
    let everything = dump(&fleet);
    assert!(everything.len() > 200, "tripwire: there is something to search");
    for text in ["Secret", "creation_batch_id", "my-secret-key", "1 Main St"] {
        assert!(!holds(&everything, text), "{text} can be read on the server");
    }
    fleet.key = Some(BOTH);
    let both = fleet.host();
    let again = both.create("St. Secret", Some("my-secret-key")).await;
    assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body), "{again:?}");
    let second = both.create("B", Some("l")).await;
    fleet.key = Some(NEW);
    let new = fleet.host();
    let replayed = new.create("B", Some("l")).await;
    assert_eq!((replayed.header("triage-replay"), &replayed.body), ("true", &second.body), "the first key seals");
    // Without the key, the stored response cannot be read; the request is not sent again.
    let unread = new.create("St. Secret", Some("my-secret-key")).await;
    assert_eq!((unread.status, unread.problem().as_str()), (503, "store-unavailable"), "{unread:?}");
    assert_eq!(fleet.made(), 2);
}

/// Without a key for encryption, a response does not leave the host. A repetition only learns that it was answered, and with which status.
#[tokio::test]
async fn without_a_key_a_repetition_gets_no_answer_and_is_not_sent() {
    let mut fleet = Fleet::new();
    fleet.key = None;
    let (one, other) = (fleet.host(), fleet.host());
    assert_eq!(one.create("St. Secret", Some("k")).await.status, 200);
    assert!(!holds(&dump(&fleet), "Secret"));
    let again = other.create("St. Secret", Some("k")).await;
    assert_eq!((again.status, again.problem().as_str()), (409, "answer-not-kept"), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

/// Counts round trips on the server. A keyed create needs three before the send (begin with the lock, acquire, sent), and two between the
/// upstream's response and the caller's (claim, finish).
#[tokio::test]
async fn a_keyed_create_asks_three_times_before_it_is_sent_and_a_read_once() {
    let mut fleet = Fleet::new();
    fleet.upstream = fleet.upstream.replace("breaker = { enabled = false }", "");
    fleet.emulator = Emulator::new(Options { create_delay: Duration::from_millis(300), ..Options::immediate() });
    let host = fleet.host();
    // The first create loads the scripts and opens the connection.
    assert_eq!(host.create("A", Some("before")).await.status, 200);
    // The background thread's recheck, once a second, may fall into one of the rounds.
    let (mut before, mut after) = (u64::MAX, u64::MAX);
    for row in 0..3 {
        let creates = fleet.creates();
        let () = fleet.server.ask(&["CONFIG", "RESETSTAT"]);
        let own = host.clone();
        let answer = tokio::spawn(async move { own.create("A", Some(&format!("k{row}"))).await });
        while fleet.creates() == creates {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        before = before.min(fleet.server.calls("evalsha"));
        assert_eq!(answer.await.unwrap().status, 200);
        after = after.min(fleet.server.calls("evalsha"));
    }
    assert_eq!((before, (5..=6).contains(&after)), (3, true), "{before} before the send, {after} in all");
    let () = fleet.server.ask(&["CONFIG", "RESETSTAT"]);
    for _ in 0..20 {
        let read = host.send(Request::get("/hospitals/").body(bytes::Bytes::new()).unwrap()).await;
        assert_eq!(read.status, 200, "{read:?}");
    }
    // The heartbeats of all groups, once a second, may be included.
    let asked = fleet.server.calls("evalsha");
    assert!((20..=32).contains(&asked), "{asked} scripts for 20 reads");
}

/// Waits until the admin listener's page at `path` contains `text`.
async fn until(front: &Front, path: &str, text: &str) {
    let mut page = String::new();
    for _ in 0..1000 {
        page = front.admin("GET", path, "", "").await.text();
        if page.contains(text) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path} never held {text:?}: {page}");
}

/// The status reports a server that would evict keys when full, and one that is gone.
#[tokio::test]
async fn the_status_reports_a_server_that_evicts_and_one_that_is_gone() {
    let mut fleet = Fleet::of(RedisServer::with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]));
    fleet.state = "required = true".to_owned();
    let front = Front::of_settings(fleet.settings());
    until(&front, "/metrics", "\ntriage_state_up 1").await;
    until(&front, "/metrics", "\ntriage_state_evicts 1").await;
    until(&front, "/readyz", "\"ready\":true").await;
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    until(&front, "/metrics", "\ntriage_state_evicts 0").await;
    assert!(!front.admin("GET", "/metrics", "", "").await.text().contains("\ntriage_state_lost_seconds "));
    until(&front, "/metrics", "\ntriage_state_step_seconds_bucket{le=\"1.0\"} ").await;
    let page = front.admin("GET", "/metrics", "", "").await.text();
    assert!(!page.contains("\ntriage_state_step_seconds_count 0\n"), "steps are counted: {page}");
    fleet.server.kill();
    until(&front, "/metrics", "\ntriage_state_up 0").await;
    let page = front.admin("GET", "/metrics", "", "").await.text();
    assert!(page.contains("\ntriage_state_failures_total{why=\"down\"} "), "{page}");
    until(&front, "/readyz", "state.required").await;
    assert_eq!(front.admin("GET", "/readyz", "", "").await.status(), "503");
    fleet.server.restart();
    until(&front, "/metrics", "\ntriage_state_up 1").await;
    until(&front, "/metrics", "\ntriage_state_lost_seconds ").await;
    until(&front, "/readyz", "\"ready\":true").await;
}
