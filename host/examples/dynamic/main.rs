//! Adaptive settings, on and off, in paused time: `cargo run --release --example dynamic`.
//!
//! ```text
//! scene       an upstream that throttles or fails, the real pipeline in front of it, and callers
//! gradient    two concurrency limits without the pipeline: this host's by Little's law, and a gradient
//! ```

mod gradient;
mod scene;

use scene::{Tally, Throttle, Upstream, host, offer};
use std::{error::Error, time::Duration};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        rates().await?;
        baselines().await
    })?;
    gradient::compare();
    Ok(())
}

const OFFERED: u64 = 25;
const MINUTE: u64 = 60;

/// Offers 25 requests a second for half an hour. The upstream takes 20, but only 10 from minute 10 to 20.
async fn rates() -> Result<(), Box<dyn Error>> {
    let limits = [(0, 20.0), (10 * MINUTE, 10.0), (20 * MINUTE, 20.0)];
    println!(
        "An adaptive rate: 25 requests a second for 30 minutes; the upstream takes 20 a second, meanwhile (10 min) 10."
    );
    println!(
        "It takes 30000 of 45000, and some hundreds more: a window keeps the size that it opened with, and who waits in \
         the end is served.\n"
    );
    println!(
        "upstream                                  rate            delivered  429s   refused  429s got  retries  p50 s  p99 s"
    );
    let upstreams = [
        ("a minute's window, no Retry-After", Throttle::Window, "http-standard"),
        ("the same, a policy that pauses a minute", Throttle::Window, "hospital-directory"),
        ("a token bucket with Retry-After", Throttle::Bucket, "http-standard"),
    ];
    for (name, throttle, policy) in upstreams {
        for (kind, keys) in [
            ("none", "limits = []"),
            ("adaptive", "limits = []\nadaptive_rate = { enabled = true }"),
            ("adaptive, limit", "limits = [{ requests = 20, period = \"1s\" }]\nadaptive_rate = { enabled = true }"),
            ("a limit of 20", "limits = [{ requests = 20, period = \"1s\" }]"),
            ("a limit of 10", "limits = [{ requests = 10, period = \"1s\" }]"),
        ] {
            let upstream = Upstream::throttling(throttle, &limits);
            let tally = offer(&host(&upstream, policy, keys)?, OFFERED, 30 * MINUTE).await;
            let Tally { delivered, passed_on, refused, retries, mut waits, .. } = tally;
            waits.sort_unstable();
            let percentile = |percent: usize| waits.get(waits.len() * percent / 100).map_or(0.0, Duration::as_secs_f64);
            let [p50, p99] = [50, 99].map(percentile);
            let throttled = upstream.seen().throttled;
            println!(
                "{name:41} {kind:15} {delivered:9} {throttled:6} {refused:8} {passed_on:9} {retries:8} {p50:6.2} {p99:6.2}"
            );
        }
    }
    println!();
    Ok(())
}

async fn baselines() -> Result<(), Box<dyn Error>> {
    println!("A breaker's baseline: failures rise from 0.1 % to 10 % after an hour; 20 calls a second, two hours.\n");
    println!(
        "breaker                       trips  failed calls before the first  seconds until it  failed calls in all"
    );
    let kinds = [("fixed: 5 in a row, 50 %", ""), ("baseline: 5 points above", "breaker.baseline = 5\n")];
    for (name, keys) in kinds {
        let upstream = Upstream::failing(&[(0, 1), (60 * MINUTE, 100)]);
        let keys = format!("limits = []\nretry.max_attempts = 1\n{keys}");
        let host = host(&upstream, "http-standard", &keys)?;
        let before = offer(&host, 20, 60 * MINUTE).await;
        let after = offer(&host, 20, 60 * MINUTE).await;
        let first = after.first_trip.map_or("-".to_owned(), |(failed, _)| failed.to_string());
        let when = after.first_trip.map_or("-".to_owned(), |(_, at)| format!("{:.1}", at.as_secs_f64()));
        println!("{name:29} {:5} {first:>30} {when:>17} {:>20}", before.trips + after.trips, after.failed);
    }
    println!("\nAn endpoint of which 30 % fail always: a day, 2 calls a second.\n");
    println!("breaker                       false trips  calls held back");
    for (name, keys) in kinds {
        let upstream = Upstream::failing(&[(0, 300)]);
        let keys = format!("limits = []\nretry.max_attempts = 1\n{keys}");
        let tally = offer(&host(&upstream, "http-standard", &keys)?, 2, Duration::from_hours(24).as_secs()).await;
        println!("{name:29} {:11} {:16}", tally.trips, tally.held_back);
    }
    println!();
    Ok(())
}
