//! A failing server: writes that need shared state are refused with a reason, reads continue, and no write is done twice later.

use crate::support::{
    Answered,
    fleet::{Fleet, Member},
    redis_server::{Proxy, RedisServer, Way},
};
use http::Request;
use std::time::Duration;

async fn read(host: &Member) -> Answered {
    host.send(Request::get("/hospitals/").body(bytes::Bytes::new()).unwrap()).await
}

/// Checks that creates are refused, with and without a key, and that a read is served.
async fn refuses_creates_and_serves_reads(host: &Member, what: &str) {
    for key in [Some("refused"), None] {
        let answer = host.create("Refused", key).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (503, "store-unavailable"),
            "{what}, {key:?}: {answer:?}"
        );
        assert_eq!((answer.header("triage-sent"), answer.header("retry-after")), ("no", "1"), "{what}: {answer:?}");
    }
    let answer = read(host).await;
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
}

/// Repeats with this key until the store works again.
async fn until_served(host: &Member, name: &str, key: &str) -> Answered {
    for _ in 0..400 {
        let answer = host.create(name, Some(key)).await;
        if answer.status != 503 {
            return answer;
        }
        assert_eq!(answer.problem(), "store-unavailable", "{answer:?}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the store is not used again");
}

#[tokio::test]
async fn a_server_that_is_killed() {
    let mut fleet = Fleet::new();
    let (one, other) = (fleet.host(), fleet.host());
    let first = one.create("A", Some("k")).await;
    assert_eq!(first.status, 200, "{first:?}");
    fleet.server.kill();
    refuses_creates_and_serves_reads(&one, "killed").await;
    fleet.server.restart();
    // The server restarted empty, and the first host restored its records.
    let again = until_served(&other, "A", "k").await;
    assert_eq!((again.status, again.header("triage-replay"), &again.body), (200, "true", &first.body), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

/// With `writes_alone`, the operator accepts possible repetitions: the host continues alone and remembers its own writes.
#[tokio::test]
async fn a_host_that_may_write_alone() {
    let mut fleet = Fleet::new();
    fleet.state = "writes_alone = true".to_owned();
    let host = fleet.host();
    assert_eq!(host.create("A", Some("before")).await.status, 200);
    fleet.server.kill();
    let first = host.create("B", Some("k")).await;
    assert_eq!((first.status, first.header("triage-replay")), (200, ""), "{first:?}");
    assert_eq!(host.create("C", None).await.status, 200);
    let reused = host.create("D", Some("k")).await;
    assert_eq!((reused.status, reused.problem().as_str()), (422, "key-reused"), "{reused:?}");
    for server_is in ["gone", "back"] {
        let again = host.create("B", Some("k")).await;
        assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body), "{server_is}: {again:?}");
        if server_is == "gone" {
            fleet.server.restart();
        }
    }
    assert_eq!(fleet.made(), 3);
}

#[tokio::test]
async fn a_server_that_is_swallowed_by_the_network() {
    let mut fleet = Fleet::new();
    let proxy = Proxy::before(fleet.server.port());
    fleet.url = Some(proxy.url());
    fleet.state = "timeout = \"20ms\"".to_owned();
    let host = fleet.host();
    assert_eq!(host.create("A", Some("k")).await.status, 200);
    // Longer than a read would wait for the store; a write waits longer.
    proxy.delay(Duration::from_millis(40));
    assert_eq!(host.create("B", Some("slow")).await.status, 200);
    proxy.delay(Duration::ZERO);
    proxy.set(Way::BlackHole);
    refuses_creates_and_serves_reads(&host, "black hole").await;
    proxy.set(Way::Open);
    let again = until_served(&host, "A", "k").await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    proxy.set(Way::Cut);
    refuses_creates_and_serves_reads(&host, "cut").await;
    proxy.set(Way::Open);
    let again = until_served(&host, "A", "k").await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    assert_eq!(fleet.made(), 2);
}

#[tokio::test]
async fn a_server_that_became_a_replica() {
    let fleet = Fleet::new();
    let host = fleet.host();
    assert_eq!(host.create("A", Some("k")).await.status, 200);
    // The replica of an unreachable master keeps its data and takes no writes.
    let () = fleet.server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    refuses_creates_and_serves_reads(&host, "replica").await;
    let () = fleet.server.ask(&["REPLICAOF", "NO", "ONE"]);
    let again = until_served(&host, "A", "k").await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts() {
    let fleet = Fleet::new();
    let host = fleet.host();
    for row in 0..4 {
        let answer = host.create(&format!("H{row}"), Some(&format!("k{row}"))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let () = fleet.server.ask(&["SCRIPT", "FLUSH"]);
    }
    let again = host.create("H0", Some("k0")).await;
    assert_eq!(again.header("triage-replay"), "true", "{again:?}");
    assert_eq!(fleet.made(), 4);
}

#[tokio::test]
async fn a_server_whose_memory_is_full() {
    let fleet = Fleet::of(RedisServer::with(&["--maxmemory-policy", "noeviction"]));
    let host = fleet.host();
    assert_eq!(host.create("A", Some("k")).await.status, 200);
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    refuses_creates_and_serves_reads(&host, "full").await;
    // Existing records can still be read.
    let again = host.create("A", Some("k")).await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(until_served(&host, "B", "l").await.status, 200);
    assert_eq!(fleet.made(), 2);
}

/// The memory is full between the send and the response. The caller gets its response, and a repetition is verified before it is sent.
#[tokio::test]
async fn a_server_whose_memory_is_full_when_the_answer_comes() {
    let mut fleet = Fleet::new();
    fleet.emulator = triage_hospital::emulator::Emulator::new(triage_hospital::emulator::Options {
        create_delay: Duration::from_millis(200),
        ..triage_hospital::emulator::Options::immediate()
    });
    let host = fleet.host();
    let own = host.clone();
    let sent = tokio::spawn(async move { own.create("A", Some("k")).await });
    while fleet.creates() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let first = sent.await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let again = until_settled(&host, "A", "k").await;
    assert_eq!((again.status, again.json()["id"].clone()), (200, first.json()["id"].clone()), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

/// Repeats with this key while the first request counts as running.
async fn until_settled(host: &Member, name: &str, key: &str) -> Answered {
    for _ in 0..400 {
        let answer = host.create(name, Some(key)).await;
        if !matches!(answer.status, 409 | 503) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the key stays in use");
}
