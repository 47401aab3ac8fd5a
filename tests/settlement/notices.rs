//! How operators learn of a settled write: admin API, metrics, an event, and a signed notice.

use crate::support::{
    create_in,
    front::Front,
    scripted::{Reply, Scripted, Seen, ok, status},
};
use ring::hmac;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, Options, When};

const KEY: &str = "0123456789abcdef0123456789abcdef";

struct Stage {
    front: Front,
    emulator: Arc<Emulator>,
    receiver: Scripted,
    _key: tempfile::NamedTempFile,
}

/// A host with an admin listener in front of an emulated directory, and a receiver of notices.
async fn stage(keys: &str, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Stage {
    let emulator = Emulator::new(Options::immediate());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(Arc::clone(&emulator).serve(listener, std::future::pending()));
    let receiver = Scripted::start(script).await;
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), format!("{KEY}\n")).unwrap();
    let front = Front::with_admin(
        "",
        &format!(
            "[settlement]\nnotify = \"{}/hooks/triage\"\nnotify_key_file = \"{}\"\ninterval = \"50ms\"\n{keys}\n\
             [upstreams.hospital]\nbase_url = \"http://{upstream}\"\npolicy = \"hospital-directory\"\n\
             [upstreams.hospital.defaults]\nlimits = []\nbreaker = {{ enabled = false }}\n\
             [upstreams.hospital.endpoints.create-hospital]\nlimits = []\nattempt_timeout = \"1s\"\ndeadline = \"2s\"\n\
             [upstreams.hospital.endpoints.list-batch]\nlimits = []\n",
            receiver.url(),
            key.path().display()
        ),
    );
    let blind = Faults::none().on(Call::ListBatch, When::Always, Fault::FailBefore(http::StatusCode::BAD_GATEWAY));
    emulator.set_faults(blind.on(Call::Create, When::Always, Fault::ResetAfter));
    Stage { front, emulator, receiver, _key: key }
}

impl Stage {
    async fn create(&self) -> crate::support::front::Got {
        self.create_with("idempotency-key: k\r\n").await
    }

    async fn create_with(&self, key: &str) -> crate::support::front::Got {
        let request = create_in(crate::support::BATCH, "Confidential Clinic", None);
        let body = String::from_utf8(request.body().to_vec()).unwrap();
        let headers = format!("content-type: application/json\r\n{key}");
        self.front.send("POST", "/hospitals/", &headers, &body).await
    }

    async fn records(&self) -> Vec<Value> {
        self.front.get_json("/api/v1/records").await.as_array().unwrap().clone()
    }

    async fn metric(&self, line: &str) -> f64 {
        let text = self.front.admin("GET", "/metrics", "", "").await.text();
        let found = text.lines().find_map(|own| own.strip_prefix(line)).unwrap_or_else(|| panic!("{line} in {text}"));
        found.trim().parse().unwrap()
    }

    /// Waits until the receiver got this number of notices.
    async fn noticed(&self, count: usize) -> Vec<Seen> {
        for _ in 0..2000 {
            let seen = self.receiver.seen();
            if seen.len() >= count {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} notices arrived", self.receiver.seen().len());
    }
}

fn verified(seen: &Seen) -> Value {
    let signature = seen.all("triage-signature")[0];
    let (time, mac) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mac: Vec<u8> = (0..mac.len()).step_by(2).map(|at| u8::from_str_radix(&mac[at..at + 2], 16).unwrap()).collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    let signed = [time.as_bytes(), b".", &seen.body].concat();
    hmac::verify(&key, &signed, &mac).expect("the signature is the key's");
    hmac::verify(&key, &[signed, b" ".to_vec()].concat(), &mac).expect_err("it signs the body");
    serde_json::from_slice(&seen.body).unwrap()
}

#[tokio::test]
async fn the_notice_of_a_settled_write_is_sent_until_it_is_taken() {
    let mut asked = 0;
    let stage = stage("", move |_| {
        asked += 1;
        if asked == 1 { status(503) } else { ok("", "") }
    })
    .await;
    let unknown = stage.create().await;
    assert_eq!(unknown.status(), "504", "{}", unknown.text());
    stage.emulator.set_faults(Faults::none());
    let notices = stage.noticed(2).await;
    assert_eq!(notices[0].line(), "post /hooks/triage http/1.1");
    assert_eq!(notices[0].body, notices[1].body, "what was not taken is sent again");
    let notice = verified(&notices[1]);
    assert_eq!(
        (&notice["type"], &notice["upstream"], &notice["endpoint"], &notice["class"]),
        (&json!("write-settled"), &json!("hospital"), &json!("create-hospital"), &json!("already-applied"))
    );
    assert!(!notices[1].head.contains("clinic") && !String::from_utf8_lossy(&notices[1].body).contains("Clinic"));
    let id = notice["record"].as_str().unwrap();
    assert_eq!(stage.records().await, Vec::<Value>::new());
    let gone = stage.front.admin("GET", &format!("/api/v1/records/{id}"), "", "").await;
    assert_eq!(gone.status(), "404", "{}", gone.text());
    let events = stage.front.get_json("/api/v1/events").await;
    let event = events.as_array().unwrap().iter().find(|event| event["kind"] == "write-settled").unwrap();
    assert_eq!(
        (&event["subject"], &event["text"]),
        (&json!("hospital/create-hospital"), &json!(format!("record {id}: already-applied")),)
    );
    assert!((stage.metric("triage_settlements_total{class=\"already-applied\"}").await - 1.0).abs() < 0.1);
    assert!(stage.metric("triage_record_oldest_unsettled_seconds").await.abs() < 0.1);
    for _ in 0..1000 {
        if stage.metric("triage_settlement_notices_total{result=\"delivered\"}").await > 0.5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let again = stage.create().await;
    assert_eq!((again.status(), again.header("triage-replay")), ("200", Some("true")), "{}", again.text());
    assert_eq!(stage.emulator.made(), 1);
}

/// A write without a key is settled too, although its caller cannot repeat it by key.
#[tokio::test]
async fn a_write_without_a_key_is_settled_too() {
    let stage = stage("", |_| ok("", "")).await;
    assert_eq!(stage.create_with("").await.status(), "504");
    stage.emulator.set_faults(Faults::none());
    let notice = verified(&stage.noticed(1).await[0]);
    assert_eq!((&notice["endpoint"], &notice["class"]), (&json!("create-hospital"), &json!("already-applied")));
    assert_eq!(stage.records().await, Vec::<Value>::new());
    assert_eq!(stage.emulator.made(), 1);
}

/// A receiver that never responds delays nothing.
#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_settling() {
    let stage = stage("", |_| Reply::Hang).await;
    assert_eq!(stage.create().await.status(), "504");
    stage.emulator.set_faults(Faults::none());
    stage.noticed(1).await;
    let again = stage.create().await;
    assert_eq!((again.status(), again.header("triage-replay")), ("200", Some("true")), "{}", again.text());
}

/// An unsettled write is listed and shown with its names only.
#[tokio::test]
async fn an_unknown_write_is_listed_and_shown() {
    let stage = stage("", |_| ok("", "")).await;
    assert_eq!(stage.create().await.status(), "504");
    let mut shown = Value::Null;
    // This also holds during repeated verifications.
    for _ in 0..20 {
        let records = stage.records().await;
        assert_eq!(records.len(), 1, "{records:?}");
        let id = records[0]["id"].as_str().unwrap();
        let got = stage.front.admin("GET", &format!("/api/v1/records/{id}"), "", "").await;
        assert_eq!(got.status(), "200", "{}", got.text());
        shown = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(shown["id"], records[0]["id"]);
        assert!((stage.metric("triage_records_unsettled").await - 1.0).abs() < 0.1);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    assert_eq!((&shown["upstream"], &shown["endpoint"]), (&json!("hospital"), &json!("create-hospital")));
    assert!(shown["verified_in_ms"].is_u64() && shown["sent_ms_ago"].is_u64(), "{shown}");
    assert!(!shown.to_string().contains("Clinic"), "{shown}");
}
