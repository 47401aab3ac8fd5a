//! The upstream's own idempotency key: a write of unknown effect is sent again with it, and applied once.

mod payments;
mod vectors;

use crate::support::{Answered, read};
use bytes::Bytes;
use http::Request;
use payments::{Faults, Payments};
use std::{collections::HashSet, sync::Arc, time::Duration};
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_core::{clock::Clock, rng::Rng};
use triage_upstream::Transport;

/// Settings that permit every retry. `keys` are further keys of every endpoint.
fn settings(keys: &str) -> Settings {
    let toml = format!(
        r#"
        [upstreams.pay]
        base_url = "http://pay.invalid"
        [upstreams.pay.defaults]
        deadline = "60s"
        breaker = {{ enabled = false }}
        budget = {{ percent = 100, floor_per_second = 1000000, capacity = 1000000 }}
        {keys}
        "#
    );
    config::from_toml(&toml).unwrap_or_else(|problems| panic!("{problems}"))
}

const KEY: &str = "upstream_key = { header = \"Idempotency-Key\" }";

fn host(settings: &Settings, upstream: Arc<dyn Transport>) -> Host {
    Host::with_transports(settings, Clock::anchored(1_767_225_600_000), Rng::seeded(7), vec![upstream]).unwrap()
}

fn payment(row: u32, key: Option<&str>) -> Request<Bytes> {
    let mut request = Request::post("/v1/charges");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(body(row)).unwrap()
}

fn body(row: u32) -> Bytes {
    format!("amount={row}").into()
}

async fn pay(host: &Host, row: u32, key: Option<&str>) -> Answered {
    read(host.call(payment(row, key)).await).await
}

const EVERYTHING: Faults = Faults { reset_before: 5, reset_after: 20, slow: 10, broken: 5, declined: 5, limited: 5 };

/// The promise: of many writes through every fault, none is applied twice, and most are known at the end.
#[tokio::test(start_paused = true)]
async fn three_thousand_payments_through_faults_are_made_once() {
    const ROWS: u32 = 3_000;
    let payments = Arc::new(Payments::new(EVERYTHING));
    let host = host(&settings(KEY), payments.clone());
    let mut sent = tokio::task::JoinSet::new();
    for row in 0..ROWS {
        let host = host.clone();
        sent.spawn(async move {
            // A third of the callers have no key; the others repeat with theirs.
            let key = (row % 3 > 0).then(|| format!("row-{row}"));
            let mut answer = pay(&host, row, key.as_deref()).await;
            for _ in 0..5 {
                if key.is_some() && answer.header("triage-verdict") == "unknown" {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    answer = pay(&host, row, key.as_deref()).await;
                }
            }
            (row, answer)
        });
    }
    let (mut applied, mut unknown) = (0, 0);
    while let Some(done) = sent.join_next().await {
        let (row, answer) = done.unwrap();
        let made = payments.books().payments.get(&body(row)).copied().unwrap_or(0);
        match answer.header("triage-verdict") {
            "applied" => {
                applied += 1;
                assert_eq!((answer.status, made), (200, 1), "row {row}: {answer:?}");
            }
            "rejected" => assert_eq!((answer.status, made), (402, 0), "row {row}: {answer:?}"),
            "unknown" => {
                unknown += 1;
                let books = payments.books();
                let shown = &books.answers[&body(row)];
                let stays_so = books.broken.contains(&body(row)) || row % 3 == 0;
                assert!(made <= 1 && stays_so, "row {row}: {shown:?} {answer:?}");
            }
            _ => assert_eq!((answer.status, made), (429, 0), "row {row}: {answer:?}"),
        }
    }
    let books = payments.books();
    assert_eq!(books.duplicates(), 0);
    // Of twenty rows, one is a stored 500 that stays unknown, and one is declined.
    assert!(applied > ROWS * 85 / 100, "applied: {applied}");
    assert!(unknown < ROWS * 8 / 100, "unknown: {unknown}");
    let injected = (books.resets, books.conflicts, books.replays);
    assert!(books.resets > 500 && books.conflicts > 100 && books.replays > 500, "faults were injected: {injected:?}");
}

/// Tripwire: without the setting, nothing is sent again; otherwise the books would show a second payment.
#[tokio::test(start_paused = true)]
async fn without_the_grant_an_unknown_payment_is_not_sent_again() {
    let payments = Arc::new(Payments::new(Faults { reset_after: 100, ..Faults::default() }));
    let plain = host(&settings(""), payments.clone());
    for _ in 0..2 {
        let answer = pay(&plain, 1, Some("k")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    }
    assert_eq!(payments.books().sent_keys.len(), 1, "sent once, by the first of the two");
    pay(&plain, 1, Some("other")).await;
    assert_eq!(payments.books().duplicates(), 1, "the books notice");
}

#[tokio::test(start_paused = true)]
async fn each_attempt_carries_the_callers_key_or_one_that_was_made_for_the_request() {
    let payments = Arc::new(Payments::new(Faults { reset_before: 100, ..Faults::default() }));
    let host = host(&settings(KEY), payments.clone());
    let mut seen = HashSet::new();
    for key in [Some("own-key"), None, None] {
        pay(&host, 1, key).await;
        let sent = std::mem::take(&mut payments.books().sent_keys);
        assert_eq!(sent.len(), 3, "{sent:?}");
        let first = sent[0].clone().expect("each send has a key");
        assert!(sent.iter().all(|sent| sent.as_deref() == Some(&first)), "{sent:?}");
        match key {
            Some(own) => assert_eq!(first, own),
            None => assert!(first.parse::<uuid::Uuid>().is_ok_and(|key| key.get_version_num() == 4), "{first}"),
        }
        assert!(seen.insert(first), "each request has its own");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_sends_the_same_key_while_the_upstream_keeps_it_and_never_after() {
    let payments = Arc::new(Payments::new(Faults { reset_after: 100, ..Faults::default() }));
    let keys = "upstream_key = { header = \"Idempotency-Key\", valid_for = \"1h\" }";
    let host = host(&settings(keys), payments.clone());
    let first = pay(&host, 1, Some("k")).await;
    assert_eq!((first.problem().as_str(), first.header("triage-attempts")), ("effect-unknown", "3"), "{first:?}");
    tokio::time::sleep(Duration::from_mins(50)).await;
    assert_eq!(pay(&host, 1, Some("k")).await.header("triage-attempts"), "3", "still valid: sent again at once");
    // The hour counts from the very first send, not from the last.
    tokio::time::sleep(Duration::from_mins(9)).await;
    let late = pay(&host, 1, Some("k")).await;
    assert_eq!(late.problem(), "effect-unknown", "{late:?}");
    let sends = payments.books().sent_keys.len();
    tokio::time::sleep(Duration::from_mins(2)).await;
    let late = pay(&host, 1, Some("k")).await;
    let shown = (late.problem(), late.header("triage-attempts"), late.header("triage-clamped"));
    assert_eq!(shown, ("effect-unknown".to_owned(), "0", "upstream-key"), "{late:?}");
    let books = payments.books();
    assert_eq!(books.sent_keys.len(), sends, "nothing was sent");
    assert_eq!((books.duplicates(), books.payments[&body(1)]), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_written_otherwise_is_another_key() {
    let payments = Arc::new(Payments::new(Faults { reset_after: 100, ..Faults::default() }));
    let host = host(&settings(KEY), payments.clone());
    pay(&host, 1, Some("abc")).await;
    let sends = payments.books().sent_keys.len();
    // To this host the same key (RFC 8941), but perhaps another one to the upstream.
    let quoted = pay(&host, 1, Some("\"abc\"")).await;
    assert_eq!((quoted.problem().as_str(), quoted.header("triage-clamped")), ("effect-unknown", "upstream-key"));
    assert_eq!(payments.books().sent_keys.len(), sends, "nothing was sent");
    assert_eq!(payments.books().duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_header_can_carry_the_key_and_generation_can_be_off() {
    let payments = Arc::new(Payments::new(Faults { reset_after: 100, ..Faults::default() }));
    let off = host(&settings("upstream_key = { header = \"Idempotency-Key\", generate = false }"), payments.clone());
    assert_eq!(pay(&off, 1, None).await.header("triage-attempts"), "1", "no key, no further send");
    assert_eq!(payments.books().sent_keys, [None]);
    let other = host(&settings("upstream_key = { header = \"PayPal-Request-Id\" }"), payments.clone());
    // The emulated API does not know this header; only the operator's setting counts.
    assert_eq!(pay(&other, 2, None).await.header("triage-attempts"), "3");
}

/// A caller that gives only the upstream's own key identifies its payment by it: another key is another payment, even with an equal body.
#[tokio::test(start_paused = true)]
async fn a_payment_with_another_upstream_key_is_not_adopted() {
    let payments = Arc::new(Payments::new(Faults::default()));
    let host = host(&settings("upstream_key = { header = \"PayPal-Request-Id\" }"), payments.clone());
    let send = |key: &'static str| {
        let host = host.clone();
        async move {
            let request = Request::post("/v1/charges").header("paypal-request-id", key).body(body(1)).unwrap();
            read(host.call(request).await).await
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(10), send("T1")).await.is_err(), "its caller leaves");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let made = || payments.books().payments[&body(1)];
    assert_eq!(made(), 1);
    let second = send("T2").await;
    assert_eq!((second.status, second.header("triage-adopted"), made()), (200, "", 2), "{second:?}");
    let first = send("T1").await;
    assert_eq!((first.status, first.header("triage-adopted"), made()), (200, "true", 2), "{first:?}");
}

/// A caller that may have sent the request through a host without its record cannot prove the time of the first send.
#[tokio::test(start_paused = true)]
async fn a_send_that_no_record_knows_is_not_repeated() {
    let payments = Arc::new(Payments::new(Faults::default()));
    let host = host(&settings(KEY), payments.clone());
    let mut request = payment(1, Some("k"));
    request.headers_mut().insert("triage-maybe-sent", http::HeaderValue::from_static("true"));
    let answer = read(host.call(request).await).await;
    assert_eq!((answer.problem().as_str(), answer.header("triage-attempts")), ("effect-unknown", "0"));
    assert!(payments.books().sent_keys.is_empty());
}
