//! A server that loses its data: what hosts know is given back, and what is in doubt is not given to another row.

use crate::support::{
    Answered, create, create_in,
    fleet::{Fleet, Member},
    front::Front,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use triage::{
    emulator::{Call, Emulator, Fault, Faults, Options, When},
    entropy::Entropy,
};

fn flush(fleet: &Fleet) {
    let () = fleet.server.ask(&["FLUSHALL"]);
}

fn id(answer: &Answered) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_u64().unwrap()
}

/// The record that an answer says is in doubt since a loss.
fn in_doubt(answer: &Answered) -> Option<String> {
    let is_unknown = answer.status == 504 && answer.problem() == "effect-unknown";
    let detail = is_unknown.then(|| answer.json()["detail"].as_str().unwrap_or_default().to_owned())?;
    let record = detail.strip_prefix("shared state has lost its data")?.split("settle record ").nth(1)?;
    Some(record.split(' ').next().unwrap().to_owned())
}

/// Asks until the request before has left its record: that is not waited for.
async fn settled(host: &Member, request: impl Fn() -> http::Request<bytes::Bytes>) -> Answered {
    loop {
        let answer = host.send(request()).await;
        if answer.status != 409 {
            return answer;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Two equal rows are two hospitals. The host that made them has ended, and the server has lost its data: nothing says whose they
/// are, and a third equal row is given neither.
#[tokio::test]
async fn a_row_is_not_given_an_equal_ones_hospital_after_a_loss() {
    for (after_loss, adopts) in [("", false), ("after_loss = \"ask\"", false), ("after_loss = \"adopt\"", true)] {
        let mut fleet = Fleet::new();
        fleet.state = after_loss.to_owned();
        let (gone, host) = (fleet.host(), fleet.host());
        let made =
            BTreeSet::from([id(&gone.create("Twin", Some("a")).await), id(&gone.create("Twin", Some("b")).await)]);
        assert_eq!((made.len(), host.create("Other", Some("o")).await.status), (2, 200));
        drop(gone);
        flush(&fleet);
        let third = host.create("Twin", Some("c")).await;
        if adopts {
            assert!(made.contains(&id(&third)), "{third:?}");
            continue;
        }
        let record = in_doubt(&third).unwrap_or_else(|| panic!("{third:?}"));
        let said = ["triage-verdict", "triage-sent"].map(|name| third.header(name));
        assert_eq!((record.is_empty(), said), (false, ["unknown", "no"]), "{third:?}");
        let again = settled(&host, || create("Twin", Some("c"))).await;
        assert_eq!(in_doubt(&again), Some(record), "it is in doubt no more: {again:?}");
        assert_eq!(fleet.made(), 3);
    }
}

/// A create whose caller says that it may have sent it before.
fn sent_before(key: &str) -> http::Request<bytes::Bytes> {
    let mut again = create("Twin", Some(key));
    again.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
    again
}

/// A caller's word says that its row was sent, not which of two hospitals is its own: neither is given to it, and neither is
/// claimed for it. One alone is given to it.
#[tokio::test]
async fn of_several_hospitals_without_a_claim_none_is_adopted() {
    for (equal, after_loss, adopts) in [(1, "ask", true), (2, "ask", false), (2, "adopt", true)] {
        let mut fleet = Fleet::new();
        fleet.state = format!("after_loss = \"{after_loss}\"");
        let (gone, host) = (fleet.host(), fleet.host());
        let mut made = BTreeSet::new();
        for row in 0..equal {
            made.insert(id(&gone.create("Twin", Some(&format!("row-{row}"))).await));
        }
        assert_eq!((made.len(), host.create("Other", Some("o")).await.status), (equal, 200));
        drop(gone);
        flush(&fleet);
        let told = host.send(sent_before("c")).await;
        if adopts {
            assert!(made.contains(&id(&told)), "{equal} equal, {after_loss}: {told:?}");
            continue;
        }
        let record = in_doubt(&told).unwrap_or_else(|| panic!("{told:?}"));
        let said = ["triage-verdict", "triage-sent"].map(|name| told.header(name));
        assert_eq!(said, ["unknown", "maybe"], "{told:?}");
        // A claim that the first one had made would leave the second one a single match.
        for key in ["d", "c"] {
            let again = settled(&host, || sent_before(key)).await;
            assert!(in_doubt(&again).is_some(), "{key}: {again:?}");
        }
        let own = made.last().copied().unwrap();
        let admin = Front::of_settings(fleet.settings());
        let word = json!({ "body": json!({ "id": own }).to_string() }).to_string();
        let path = format!("/api/v1/records/{record}/applied");
        let mut refused = 0;
        // Refused while the request above leaves its record.
        while admin.admin("POST", &path, "", &word).await.status() != "200" {
            refused += 1;
            assert!(refused < 1_000, "record {record} is not settled");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(id(&settled(&host, || create("Twin", Some("c"))).await), own);
        assert_eq!(fleet.made(), 3);
    }
}

/// A row that this host has sent itself is told apart from equal ones no better: where its own hospital is not the only one without
/// a claim, none is adopted.
#[tokio::test]
async fn a_row_that_was_just_sent_adopts_its_own_hospital_only() {
    for equal in [0, 1] {
        let mut fleet = Fleet::new();
        // Else a row without a key may be the repetition of one whose caller had gone before the loss, and is verified first.
        fleet.upstream = format!("idempotency.orphans = \"off\"\n{}", fleet.upstream);
        let (gone, host) = (fleet.host(), fleet.host());
        for row in 0..equal {
            id(&gone.create("Twin", Some(&format!("row-{row}"))).await);
        }
        assert_eq!(host.create("Other", Some("o")).await.status, 200);
        drop(gone);
        flush(&fleet);
        // By this the host knows of the loss.
        let known = host.create("Other", Some("o")).await;
        assert_eq!(known.header("triage-replay"), "true", "{known:?}");
        fleet.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetAfter));
        let told = host.create("Twin", None).await;
        assert_eq!(fleet.made(), equal + 2, "{told:?}");
        if equal == 0 {
            assert_eq!(id(&told), 2);
        } else {
            assert!(in_doubt(&told).is_some(), "{told:?}");
        }
    }
}

/// What a host that lives has made is known again, by its key and by its claim, at every host.
#[tokio::test]
async fn what_a_living_host_knows_is_given_back() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.host(), fleet.host());
    let first = one.create("Twin", Some("a")).await;
    assert_eq!((id(&first), other.create("Other", Some("o")).await.status), (1, 200));
    flush(&fleet);
    let again = other.create("Twin", Some("a")).await;
    assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body), "{again:?}");
    // An equal row is looked for, and passes over what is claimed.
    let mut equal = create("Twin", Some("c"));
    equal.headers_mut().insert("triage-deadline-ms", "3000".parse().unwrap());
    let equal = other.send(equal).await;
    assert_eq!((equal.status, equal.problem().as_str(), in_doubt(&equal)), (504, "effect-unknown", None), "{equal:?}");
    assert_eq!(fleet.made(), 2);
}

/// A write that is under way when the server loses its data is finished, and its key is known afterwards.
#[tokio::test]
async fn a_write_under_way_outlasts_a_loss() {
    let mut fleet = Fleet::new();
    fleet.emulator = Emulator::new(Options { create_delay: Duration::from_secs(5), ..Options::immediate() });
    let (one, other) = (fleet.host(), fleet.host());
    let first = tokio::spawn(async move { one.create("A", Some("k")).await });
    while fleet.creates() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    flush(&fleet);
    let second = other.create("A", Some("k")).await;
    assert_eq!((second.status, second.problem().as_str()), (409, "in-flight"), "{second:?}");
    let first = first.await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    let again = other.create("A", Some("k")).await;
    assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body), "{again:?}");
    assert_eq!(fleet.made(), 1);
}

/// Short, so that what is in doubt is settled soon; the policy's own commit time is the real one.
const UPSTREAM: &str = r#"
policy = "hospital-directory"
idempotency.lock = "15s"
[upstreams.hospital.defaults]
breaker = { enabled = false }
limits = []
budget = { percent = 100, floor_per_second = 1000000, capacity = 1000000 }
attempt_timeout = "3s"
deadline = "15s"
[upstreams.hospital.endpoints.create-hospital]
limits = []
concurrency = 10000
attempt_timeout = "3s"
deadline = "15s"
[upstreams.hospital.endpoints.activate-batch]
deadline = "15s"
"#;

const ROWS: usize = 500;
const BATCH_ROWS: usize = 20;
/// Rows begin within this time, and the server loses its data three times meanwhile.
const BEGUN_WITHIN: Duration = Duration::from_secs(120);

/// A row: its batch, its name, which it shares with another row of the batch, and its key.
fn row(number: usize) -> (String, String, String) {
    let (batch, place) = (number / BATCH_ROWS, number % BATCH_ROWS);
    // Six pairs of equal rows in each batch, and eight rows of their own.
    let name = if place < 12 { format!("Twin {}", place / 2) } else { format!("Row {place}") };
    (format!("7d3c5a52-0000-4000-8000-{batch:012}"), name, format!("key-{number}"))
}

fn ask(number: usize) -> http::Request<bytes::Bytes> {
    let (batch, name, key) = row(number);
    create_in(&batch, &name, Some(&key))
}

/// How a row stands.
#[derive(Debug, Clone, Copy)]
enum Row {
    Made(u64),
    InDoubt,
}

/// Asks for a row until it is made or in doubt, at whichever host.
async fn until_told(hosts: [Member; 3], number: usize, chance: Entropy) -> (usize, Row) {
    let until = Instant::now() + Duration::from_secs(600);
    loop {
        let host = &hosts[chance.next() as usize % hosts.len()];
        let answer = host.send(ask(number)).await;
        if answer.status == 200 {
            return (number, Row::Made(id(&answer)));
        }
        if in_doubt(&answer).is_some() {
            return (number, Row::InDoubt);
        }
        assert!(matches!(answer.status, 409 | 502 | 503 | 504), "row {number}: {answer:?}");
        assert!(Instant::now() < until, "row {number} has no end: {answer:?}");
        sleep(Duration::from_millis(500 + chance.next() % 1_000)).await;
    }
}

/// As an operator would: a row that has a hospital which no other row was told gets that one, any other was not sent.
async fn settle(fleet: &Fleet, admin: &Front, host: &Member, number: usize, told: &BTreeSet<u64>) -> u64 {
    let (batch, name, _) = row(number);
    for _ in 0..300 {
        let answer = host.send(ask(number)).await;
        if answer.status == 200 {
            return id(&answer);
        }
        if let Some(record) = in_doubt(&answer) {
            let stands = fleet.emulator.hospitals();
            let mut own = stands.iter().filter(|one| {
                let in_batch = one.creation_batch_id.is_some_and(|own| own.to_string() == batch);
                in_batch && one.name == name && !told.contains(&one.id)
            });
            let (verb, word) = match own.next() {
                Some(one) => ("applied", json!({ "body": json!({ "id": one.id }).to_string() }).to_string()),
                None => ("not-applied", String::new()),
            };
            // Refused while the request above leaves its record, or where a later loss has taken it.
            admin.admin("POST", &format!("/api/v1/records/{record}/{verb}"), "", &word).await;
        } else {
            assert!(matches!(answer.status, 409 | 502 | 503 | 504), "row {number}: {answer:?}");
        }
        sleep(Duration::from_millis(500)).await;
    }
    panic!("row {number} is not settled");
}

/// Equal and different rows, three hosts, three in ten creates in trouble, three losses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits out the directory's 75 s after the last loss: about five minutes"]
async fn five_hundred_rows_through_three_losses() {
    let mut fleet = Fleet::new();
    fleet.upstream = UPSTREAM.to_owned();
    fleet.emulator = Emulator::new(Options { capacity: 10_000, ..Options::immediate() });
    let trouble = Faults::none()
        .on(Call::Create, When::Chance(0.15), Fault::ResetAfter)
        .on(Call::Create, When::Chance(0.08), Fault::Unreadable)
        .on(Call::Create, When::Chance(0.09), Fault::FailAfter(http::StatusCode::INTERNAL_SERVER_ERROR));
    fleet.emulator.set_faults(trouble);
    let seed = Entropy::system().next();
    println!("seed {seed}");
    let chance = Entropy::seeded(seed);
    let hosts = [fleet.host(), fleet.host(), fleet.host()];
    let mut rows = JoinSet::new();
    for number in 0..ROWS {
        let (hosts, own) = (hosts.clone(), Entropy::seeded(chance.next()));
        let begins = Duration::from_millis(chance.next() % BEGUN_WITHIN.as_millis() as u64);
        rows.spawn(async move {
            sleep(begins).await;
            until_told(hosts, number, own).await
        });
    }
    for _ in 0..3 {
        sleep(Duration::from_secs(10 + chance.next() % 20)).await;
        flush(&fleet);
    }
    let mut told = BTreeMap::new();
    let mut in_doubt = Vec::new();
    while let Some(row) = rows.join_next().await {
        match row.unwrap() {
            (number, Row::Made(id)) => drop(told.insert(number, id)),
            (number, Row::InDoubt) => in_doubt.push(number),
        }
    }
    println!("{} rows were answered, {} were told as unknown after a loss", told.len(), in_doubt.len());
    let admin = Front::of_settings(fleet.settings());
    let [host, ..] = hosts;
    for number in in_doubt {
        let ids: BTreeSet<u64> = told.values().copied().collect();
        let own = settle(&fleet, &admin, &host, number, &ids).await;
        told.insert(number, own);
    }
    let ids: BTreeSet<u64> = told.values().copied().collect();
    println!("{} hospitals, {} told", fleet.made(), ids.len());
    assert_eq!((told.len(), ids.len()), (ROWS, ROWS), "two rows were told the same hospital");
    assert_eq!(fleet.made(), ROWS, "a row was made twice or not at all");
    for (number, id) in told {
        let (batch, name, _) = row(number);
        let stands = fleet.emulator.hospital(id).unwrap();
        let in_batch = stands.creation_batch_id.map(|batch| batch.to_string());
        assert_eq!((stands.name, in_batch), (name, Some(batch)), "row {number}");
    }
    assert!(fleet.emulator.faults_struck() > 100, "the faults struck");
    let _: Value = admin.look("/api/v1/status").await;
}
