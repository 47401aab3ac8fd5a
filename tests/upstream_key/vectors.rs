//! The documented rules of a payment API, row by row, through a whole host.

use super::{KEY, host, pay, payments::inbound, settings};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::StatusCode;
use std::sync::{Arc, Mutex};
use triage_engine::contract::{Failure, FailureKind};
use triage_upstream::{Inbound, Outbound, Transport};

/// Responds by its script, and repeats the last response. One host plays every row, so that its policy is compiled once.
#[derive(Debug, Default)]
struct Script(Mutex<Vec<String>>);

impl Script {
    fn answer(&self) -> Result<Inbound, Failure> {
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        let mut words = answer.split('+');
        let status = words.next().unwrap();
        if status == "lost" {
            return Err(Failure::new(FailureKind::Reset, true));
        }
        let (mut replayed, mut body) = (false, Bytes::new());
        for word in words {
            match word {
                "replayed" => replayed = true,
                "in-use" => body = r#"{"error": {"code": "idempotency_key_in_use"}}"#.into(),
                "mismatch" => body = r#"{"error": {"type": "idempotency_error"}}"#.into(),
                other => panic!("{other}: no word of the vectors"),
            }
        }
        let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
        Ok(inbound(status, String::from_utf8(body.to_vec()).unwrap(), replayed))
    }
}

impl Transport for Script {
    fn stops_when_dropped(&self) -> bool {
        true
    }

    fn send(&self, _: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let answer = self.answer();
        Box::pin(async move { answer })
    }
}

#[tokio::test(start_paused = true)]
async fn the_rules_of_a_payment_api() {
    let mut rows = csv::Reader::from_reader(include_str!("../vectors/upstream-key-stripe.csv").as_bytes());
    let script = Arc::new(Script::default());
    let host = host(&settings(KEY), script.clone());
    let mut played = 0;
    for row in rows.records() {
        let row = row.unwrap();
        let [api, answers, status, verdict, attempts, why] = [0, 1, 2, 3, 4, 5].map(|column| row[column].to_owned());
        *script.0.lock().unwrap() = answers.split(' ').map(str::to_owned).collect();
        let answer = pay(&host, played, Some(&format!("row-{played}"))).await;
        let got = (answer.status.to_string(), answer.header("triage-verdict"), answer.header("triage-attempts"));
        assert_eq!(got, (status, verdict.as_str(), attempts.as_str()), "{api}: {answers}: {why}");
        played += 1;
    }
    assert!(played >= 20, "only {played} rows");
}
