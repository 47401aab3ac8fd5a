//! A server in trouble: what needs an exactly-once answer is refused with a reason, reads go on, and nothing is done twice after.

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

/// Keyed or not, a create is refused, and a read is served.
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

/// Asks with this key until the store answers again.
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
    // It came back empty, and was given back what the first host knows.
    let again = until_served(&other, "A", "k").await;
    assert_eq!((again.status, again.header("triage-replay"), &again.body), (200, "true", &first.body), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

/// Where the operator would rather risk a repetition: the host goes on alone, and does not forget what it did.
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
    // Longer than a read would wait: a write does.
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
    // Of a master that nobody reaches: it keeps what it has and takes no writes.
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
    // What is there is still known.
    let again = host.create("A", Some("k")).await;
    assert_eq!((again.status, again.header("triage-replay")), (200, "true"), "{again:?}");
    let () = fleet.server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(until_served(&host, "B", "l").await.status, 200);
    assert_eq!(fleet.made(), 2);
}

/// Full between the send and the answer: the caller gets its answer, and who repeats the request looks before it sends.
#[tokio::test]
async fn a_server_whose_memory_is_full_when_the_answer_comes() {
    let mut fleet = Fleet::new();
    fleet.emulator = triage::emulator::Emulator::new(triage::emulator::Options {
        create_delay: Duration::from_millis(200),
        ..triage::emulator::Options::immediate()
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

/// Asks with this key for as long as the first request counts as under way.
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
