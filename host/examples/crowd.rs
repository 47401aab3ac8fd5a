//! Overload: many callers, and an upstream that cannot serve them, each in its own process.
//!
//! ```text
//! crowd upstream 127.0.0.1:18000 20 20          # handles 20 at once for 20 ms each: 1000 a second; the others queue
//! triage serve --upstream http://127.0.0.1:18000
//! crowd offer http://127.0.0.1:8080/a 1000 PID  # 10 s at 80 % of that rate, 30 s at 500 %, 15 s at 80 %
//! ```
//!
//! The callers send without waiting for responses, like independent callers.

use http_body_util::Full;
use hyper::{body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

type Failure = Box<dyn Error + Send + Sync>;

/// The longest time that a caller waits.
const PATIENCE: Duration = Duration::from_secs(15);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.as_slice() {
        ["upstream", listen, slots, ms] => runtime.block_on(upstream(listen, slots.parse()?, ms.parse()?)),
        ["offer", url, capacity, process] => runtime.block_on(offer(url, capacity.parse()?, process.parse()?)),
        _ => Err("usage: crowd upstream LISTEN SLOTS MS | crowd offer URL CAPACITY PID".into()),
    }
}

async fn upstream(listen: &str, slots: usize, ms: u64) -> Result<(), Failure> {
    let (listener, slots) = (TcpListener::bind(listen).await?, Arc::new(Semaphore::new(slots)));
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let slots = Arc::clone(&slots);
        let service = service_fn(move |_| {
            let slots = Arc::clone(&slots);
            // Like most servers, the upstream finishes requests whose callers have left.
            let work = tokio::spawn(async move {
                let _slot = slots.acquire_owned().await;
                sleep(Duration::from_millis(ms)).await;
            });
            async move {
                work.await?;
                Ok::<_, Failure>(http::Response::new(Full::new(Bytes::from_static(b"done"))))
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
}

async fn offer(url: &str, capacity: u64, process: u32) -> Result<(), Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(20_000).timeout(PATIENCE).build()?;
    println!("  s   asked  answered  refused  failed  slowest ms  resident MB");
    let (mut second, mut served) = (0, Vec::new());
    for (share, seconds) in [(80, 10), (500, 30), (80, 15)] {
        let (rate, began) = (capacity * share / 100, Instant::now());
        for number in 0..seconds {
            let tally = Arc::new(Tally::default());
            for request in 0..rate {
                let at = Duration::from_secs(number) + Duration::from_micros(request * 1_000_000 / rate);
                sleep_until(began + at).await;
                let (client, url, tally) = (client.clone(), url.to_owned(), Arc::clone(&tally));
                tokio::spawn(async move { ask(&client, &url, &tally).await });
            }
            second += 1;
            served.push((second, rate, tally, resident(process)));
        }
    }
    sleep(PATIENCE).await;
    for (second, rate, tally, resident) in served {
        let [answered, refused, failed, slowest] =
            [&tally.answered, &tally.refused, &tally.failed, &tally.slowest_ms].map(|count| count.load(Relaxed));
        println!("{second:3}  {rate:6}  {answered:8}  {refused:7}  {failed:6}  {slowest:10}  {resident:11}");
    }
    Ok(())
}

async fn ask(client: &reqwest::Client, url: &str, tally: &Tally) {
    let began = Instant::now();
    let status = match client.get(url).send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            answer.bytes().await.map(|_| status).ok()
        }
        Err(_) => None,
    };
    let count = match status {
        Some(200) => {
            tally.slowest_ms.fetch_max(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
            &tally.answered
        }
        Some(503) => &tally.refused,
        _ => &tally.failed,
    };
    count.fetch_add(1, Relaxed);
}

/// The resident memory of a process in megabytes.
fn resident(process: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    pages
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4096 / 1_000_000)
}
