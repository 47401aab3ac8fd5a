//! Reloads under constant load: no request is lost or decided by two generations, and no memory of old generations remains.

use crate::{
    hostile::guest::{Guest, at},
    support::front::Front,
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use triage_engine::Digest;
use triage_rollout::Event;

/// Concurrent callers.
const CALLERS: usize = 4;

/// Two policies with recognizable results: one retries once and the other does not, and they use different classes.
fn policies() -> [Vec<u8>; 2] {
    let (mut twice, mut once) = (Guest::new(), Guest::new());
    twice.retry(0).text(at::NAME, "twice");
    once.text(at::NAME, "once");
    [twice.build(), once.build()]
}

/// The name, attempts and class that each policy leaves in a response.
const MARKS: [(&str, &str, &str); 2] = [("twice", "2", "not-applied"), ("once", "1", "rejected")];

/// The resident memory of this process.
fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// An upstream that responds 503 and stores nothing, so that growing memory is the host's.
async fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = stream.write_all(b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    url
}

struct Seen {
    served: usize,
    /// Resident memory after a fifth of the reloads, and at the end.
    resident: [usize; 2],
}

async fn reloaded(reloads: usize) -> Seen {
    let upstream = upstream().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let front = Front::serve(&format!(
        "[policies]\ndir = {:?}\ncache_dir = {:?}\n[upstreams.api]\nbase_url = {:?}\n[upstreams.api.defaults]\n\
         retry = {{ max_attempts = 2, min_wait = \"1ms\", max_wait = \"1ms\" }}\nbreaker = {{ enabled = false }}\n\
         budget = {{ percent = 100, floor_per_second = 100000, capacity = 100000 }}\n",
        path(""),
        path("cache"),
        upstream
    ));
    let policies = policies();
    drop_in(&front, folder.path(), &policies[0]).await;
    let over = AtomicBool::new(false);
    let callers = (0..CALLERS).map(|_| async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut served = 0;
        while !over.load(Ordering::Relaxed) {
            let got = client.get(front.url("/a")).send().await.expect("an answer");
            assert_eq!(got.status(), 503);
            let header = |name: &str| got.headers().get(name).map(|value| value.to_str().unwrap());
            let policy = header("triage-policy").unwrap().split(';').next().unwrap();
            let judged = (policy, header("triage-attempts").unwrap(), header("triage-verdict").unwrap());
            assert!(MARKS.contains(&judged), "two generations judged one request: {judged:?}");
            assert_eq!(header("triage-clamped").filter(|clamped| *clamped != "attempts"), None, "{judged:?}");
            served += 1;
        }
        served
    });
    let reload = async {
        let mut resident = [0; 2];
        for number in 1..=reloads {
            drop_in(&front, folder.path(), &policies[number % 2]).await;
            if number == reloads / 5 {
                resident[0] = resident_bytes();
            }
        }
        resident[1] = resident_bytes();
        over.store(true, Ordering::Relaxed);
        resident
    };
    let (served, resident) = tokio::join!(futures_util::future::join_all(callers), reload);
    assert!(front.stop(), "a request was cut off");
    Seen { served: served.iter().sum(), resident }
}

/// Replaces the file atomically, and waits until the component serves.
async fn drop_in(front: &Front, folder: &Path, component: &[u8]) {
    let own = Digest::of(component);
    fs::write(folder.join("new.tmp"), component).unwrap();
    fs::rename(folder.join("new.tmp"), folder.join("http-standard.wasm")).unwrap();
    for _ in 0..10_000 {
        match front.host().policy_events("api").unwrap().iter().rev().find(|event| !matches!(event, Event::Good { .. }))
        {
            Some(Event::Installed { digest, .. }) if *digest == Some(own) => return,
            Some(Event::Installed { .. }) | None => tokio::time::sleep(Duration::from_millis(2)).await,
            Some(event) => panic!("{event}"),
        }
    }
    panic!("it never served");
}

#[tokio::test]
async fn reloads_under_load_lose_no_request() {
    let seen = reloaded(20).await;
    assert!(seen.served > 20, "the load ran: {}", seen.served);
}

/// The same with as many reloads as in a year of operation. Prints the book's figures.
#[tokio::test]
#[ignore = "minutes"]
async fn a_thousand_reloads_under_load_lose_no_request_and_no_memory() {
    let Seen { served, resident: [early, late] } = reloaded(1000).await;
    println!("1000 reloads, {served} requests, none failed; resident {early} bytes after 200, {late} after all");
    assert!(served > 1000, "the load ran: {served}");
    assert!(late < early + early / 20, "memory grew by more than 5 %: {early} to {late}");
}
