//! A server that loses its data: hosts restore what they know, and no row adopts a hospital that may be another's.

use super::kill::{Got, directory, host_of, send_again, settings};
use crate::support::{
    Answered, create,
    fleet::{self, Fleet, KEY, Member},
    front::Front,
    redis_server::RedisServer,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use triage_core::rng::Rng;
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, Options, When};

fn flush(fleet: &Fleet) {
    let () = fleet.server.ask(&["FLUSHALL"]);
}

fn id(answer: &Answered) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_u64().unwrap()
}

/// The record that a response reports as in doubt since a loss.
fn in_doubt(answer: &Answered) -> Option<String> {
    if answer.status == 504 { record_in_doubt(&answer.json()) } else { None }
}

/// The same from a problem's body.
fn record_in_doubt(problem: &Value) -> Option<String> {
    let detail = problem["detail"].as_str().filter(|_| problem["type"] == "urn:triage:problem:effect-unknown")?;
    let record = detail.strip_prefix("shared state has lost its data")?.split("settle record ").nth(1)?;
    Some(record.split(' ').next().unwrap().to_owned())
}

/// Repeats while the response is 409, because an earlier request still holds the record.
async fn settled(host: &Member, request: impl Fn() -> http::Request<bytes::Bytes>) -> Answered {
    loop {
        let answer = host.send(request()).await;
        if answer.status != 409 {
            return answer;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Two equal rows are two hospitals. Their host has ended and the server has lost its data, so nothing links hospitals to rows. A third
/// equal row must adopt neither.
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

/// A create that its caller marks as possibly sent before.
fn sent_before(key: &str) -> http::Request<bytes::Bytes> {
    let mut again = create("Twin", Some(key));
    again.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
    again
}

/// After a loss, a caller's mark does not prove that its row was sent, since its host may have been killed before the send. The row adopts
/// no hospital without a claim, and claims none.
#[tokio::test]
async fn a_callers_word_adopts_nothing_after_a_loss() {
    for (equal, after_loss, adopts) in [(1, "ask", false), (2, "ask", false), (2, "adopt", true)] {
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
        let response = host.send(sent_before("c")).await;
        if adopts {
            assert!(made.contains(&id(&response)), "{equal} equal, {after_loss}: {response:?}");
            continue;
        }
        let record = in_doubt(&response).unwrap_or_else(|| panic!("{equal} equal: {response:?}"));
        let said = ["triage-verdict", "triage-sent"].map(|name| response.header(name));
        assert_eq!(said, ["unknown", "no"], "{response:?}");
        // If the first row had claimed a match, the second one would find none.
        for key in ["d", "c"] {
            let again = settled(&host, || sent_before(key)).await;
            assert!(in_doubt(&again).is_some(), "{key}: {again:?}");
        }
        let own = made.last().copied().unwrap();
        let admin = Front::of_settings(fleet.settings());
        let word = json!({ "body": json!({ "id": own }).to_string() }).to_string();
        let path = format!("/api/v1/records/{record}/applied");
        let mut refused = 0;
        // Refused while the request above still holds its record.
        while admin.admin("POST", &path, "", &word).await.status() != "200" {
            refused += 1;
            assert!(refused < 1_000, "record {record} is not settled");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(id(&settled(&host, || create("Twin", Some("c"))).await), own);
        assert_eq!(fleet.made(), equal + 1);
    }
}

/// The request with a deadline of 1 s.
fn briefly(mut request: http::Request<bytes::Bytes>) -> http::Request<bytes::Bytes> {
    request.headers_mut().insert("triage-deadline-ms", "1000".parse().unwrap());
    request
}

/// A host that received a caller's mark before the loss restores no send, because it knows of none.
#[tokio::test]
async fn a_callers_word_from_before_a_loss_adopts_nothing_after_it() {
    let fleet = Fleet::new();
    let (gone, host) = (fleet.host(), fleet.host());
    assert_eq!(id(&gone.create("Twin", Some("row")).await), 1);
    // The only match has a claim from before the loss.
    let before = host.send(briefly(sent_before("c"))).await;
    let said = ["triage-verdict", "triage-sent"].map(|name| before.header(name));
    assert_eq!((before.status, in_doubt(&before), said), (504, None, ["unknown", "maybe"]), "{before:?}");
    drop(gone);
    flush(&fleet);
    let after = settled(&host, || sent_before("c")).await;
    assert!(in_doubt(&after).is_some(), "{after:?}");
    assert_eq!(fleet.made(), 1);
}

/// A row that was not sent since the loss, and without a match, must not be reported as sent: its caller would repeat that mark.
#[tokio::test]
async fn the_answer_for_a_row_not_sent_since_a_loss_says_so() {
    let fleet = Fleet::new();
    let host = fleet.host();
    assert_eq!(host.create("Other", Some("o")).await.status, 200);
    flush(&fleet);
    for (time, request) in [("first", create("Twin", Some("c"))), ("again", sent_before("c"))] {
        // Longer than hosts take to restore their records.
        let response = settled(&host, || {
            let mut request = request.clone();
            request.headers_mut().insert("triage-deadline-ms", "5000".parse().unwrap());
            request
        });
        let response = response.await;
        let said = ["triage-verdict", "triage-sent", "triage-retry-after-unknown"].map(|name| response.header(name));
        assert_eq!((response.status, said), (504, ["unknown", "no", "same-key"]), "{time}: {response:?}");
        let detail = response.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(
            detail.starts_with("shared state has lost its data") && in_doubt(&response).is_none(),
            "{time}: {response:?}"
        );
        assert!(!response.header("retry-after").is_empty(), "{time}: {response:?}");
    }
    assert_eq!(fleet.made(), 1);
}

/// Even a row that this host sent itself cannot be distinguished from equal ones. If several hospitals have no claim, it adopts none.
#[tokio::test]
async fn a_row_that_was_just_sent_adopts_its_own_hospital_only() {
    for equal in [0, 1] {
        let mut fleet = Fleet::new();
        // Otherwise a row without a key might repeat one whose caller left before the loss, and would be verified first.
        fleet.upstream = format!("idempotency.orphans = \"off\"\n{}", fleet.upstream);
        let (gone, host) = (fleet.host(), fleet.host());
        for row in 0..equal {
            id(&gone.create("Twin", Some(&format!("row-{row}"))).await);
        }
        assert_eq!(host.create("Other", Some("o")).await.status, 200);
        drop(gone);
        flush(&fleet);
        // This request lets the host notice the loss.
        let known = host.create("Other", Some("o")).await;
        assert_eq!(known.header("triage-replay"), "true", "{known:?}");
        fleet.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetAfter));
        let response = host.create("Twin", None).await;
        assert_eq!(fleet.made(), equal + 2, "{response:?}");
        if equal == 0 {
            assert_eq!(id(&response), 2);
        } else {
            assert!(in_doubt(&response).is_some(), "{response:?}");
        }
    }
}

/// A living host restores its rows, by key and by claim, for every host.
#[tokio::test]
async fn a_living_host_restores_its_rows_after_a_loss() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.host(), fleet.host());
    let first = one.create("Twin", Some("a")).await;
    assert_eq!((id(&first), other.create("Other", Some("o")).await.status), (1, 200));
    flush(&fleet);
    let again = other.create("Twin", Some("a")).await;
    assert_eq!((again.header("triage-replay"), &again.body), ("true", &first.body), "{again:?}");
    // An equal row is verified, and skips claimed hospitals.
    let mut equal = create("Twin", Some("c"));
    equal.headers_mut().insert("triage-deadline-ms", "3000".parse().unwrap());
    let equal = other.send(equal).await;
    assert_eq!((equal.status, equal.problem().as_str(), in_doubt(&equal)), (504, "effect-unknown", None), "{equal:?}");
    assert_eq!(fleet.made(), 2);
}

/// A write that is under way during the loss is finished, and its key is known afterwards.
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

/// The same without a key: the caller gets the response, and lock and record are restored until then.
#[tokio::test]
async fn a_write_without_a_key_outlasts_a_loss() {
    let mut fleet = Fleet::new();
    fleet.emulator = Emulator::new(Options { create_delay: Duration::from_secs(6), ..Options::immediate() });
    let one = fleet.host();
    let first = tokio::spawn(async move { one.create("A", None).await });
    while fleet.creates() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    flush(&fleet);
    let first = first.await.unwrap();
    assert_eq!((first.status, first.header("triage-adopted")), (200, ""), "{first:?}");
    assert_eq!(fleet.made(), 1);
}

const ROWS: usize = 500;
const BATCH_ROWS: usize = 20;
/// The time in which rows begin. The server loses its data three times in it.
const BEGUN_WITHIN: Duration = Duration::from_secs(120);

/// A row: its batch, its name (which another row of the batch may share), and its key.
fn row(number: usize) -> (String, String, String) {
    let (batch, place) = (number / BATCH_ROWS, number % BATCH_ROWS);
    // Each batch has six pairs of equal rows, and eight unique rows.
    let name = if place < 12 { format!("Twin {}", place / 2) } else { format!("Row {place}") };
    (format!("7d3c5a52-0000-4000-8000-{batch:012}"), name, format!("key-{number}"))
}

/// The result of a row.
#[derive(Debug, Clone, Copy)]
enum Row {
    Made(u64),
    InDoubt,
}

/// The addresses of the running hosts.
type Hosts = Arc<Mutex<Vec<SocketAddr>>>;

/// A row's caller. It knows only the responses it got.
#[derive(Debug)]
struct Caller {
    number: usize,
    hosts: Hosts,
    chance: Rng,
    /// Whether the row may have been sent: a response said so, or there was no response.
    maybe_sent: bool,
}

impl Caller {
    /// Sends once to a random host. None without a response.
    async fn ask(&mut self) -> Option<Got> {
        let to = {
            let hosts = self.hosts.lock().unwrap();
            hosts[self.chance.next() as usize % hosts.len()]
        };
        let (batch, name, key) = row(self.number);
        let got = send_again(to, &batch, &name, Some(&key), self.maybe_sent).await.ok();
        let was_sent = got.as_ref().is_none_or(|got| got.status != 200 && !got.head.contains("triage-sent: no"));
        self.maybe_sent |= was_sent;
        if let Some(got) = &got {
            assert!(matches!(got.status, 200 | 409 | 502 | 503 | 504), "row {}: {got:?}", self.number);
        }
        got
    }

    /// Repeats until the row is created or in doubt.
    async fn until_told(mut self) -> (Self, Row) {
        let until = Instant::now() + Duration::from_secs(600);
        loop {
            let got = self.ask().await;
            match &got {
                Some(got) if got.status == 200 => return (self, Row::Made(got.body["id"].as_u64().unwrap())),
                Some(got) if record_in_doubt(&got.body).is_some() => return (self, Row::InDoubt),
                _ => {}
            }
            assert!(Instant::now() < until, "row {} has no end: {got:?}", self.number);
            sleep(Duration::from_millis(500 + self.chance.next() % 1_000)).await;
        }
    }

    /// Settles like an operator: a row with a hospital that no other row got gets it; any other row was not sent.
    async fn until_settled(mut self, emulator: &Emulator, admin: &Front, reported: &BTreeSet<u64>) -> u64 {
        let (batch, name, _) = row(self.number);
        for _ in 0..300 {
            let got = self.ask().await;
            if let Some(got) = got.as_ref().filter(|got| got.status == 200) {
                return got.body["id"].as_u64().unwrap();
            }
            if let Some(record) = got.as_ref().and_then(|got| record_in_doubt(&got.body)) {
                let stands = emulator.hospitals();
                let mut own = stands.iter().filter(|one| {
                    let in_batch = one.creation_batch_id.is_some_and(|own| own.to_string() == batch);
                    in_batch && one.name == name && !reported.contains(&one.id)
                });
                let (verb, word) = match own.next() {
                    Some(one) => ("applied", json!({ "body": json!({ "id": one.id }).to_string() }).to_string()),
                    None => ("not-applied", String::new()),
                };
                // Refused while the request above still holds its record.
                admin.admin("POST", &format!("/api/v1/records/{record}/{verb}"), "", &word).await;
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("row {} is not settled", self.number);
    }
}

/// Equal and unique rows, three hosts, faults in 30 % of the creates, three losses. `killed`: right before each loss a host is killed and
/// replaced.
async fn rows_through_losses(killed: bool) {
    let server = RedisServer::start();
    let (emulator, upstream, _serving) = directory(Duration::from_millis(100)).await;
    let trouble = Faults::none()
        .on(Call::Create, When::Chance(0.15), Fault::ResetAfter)
        .on(Call::Create, When::Chance(0.08), Fault::Unreadable)
        .on(Call::Create, When::Chance(0.09), Fault::FailAfter(http::StatusCode::INTERNAL_SERVER_ERROR));
    emulator.set_faults(trouble);
    let seed = Rng::system().next();
    println!("seed {seed}");
    let chance = Rng::seeded(seed);
    // A short lock, so that rows in doubt are settled soon.
    let settings = settings("15s", "3s", "15s");
    let start = || async {
        let (url, settings) = (server.url(), settings.clone());
        tokio::task::spawn_blocking(move || host_of(&url, upstream, &settings)).await.unwrap()
    };
    let mut running = Vec::new();
    let hosts = Hosts::default();
    for _ in 0..3 {
        let (own, address) = start().await;
        running.push(own);
        hosts.lock().unwrap().push(address);
    }
    let mut rows = JoinSet::new();
    for number in 0..ROWS {
        let chance_of_row = Rng::seeded(chance.next());
        let caller = Caller { number, hosts: Arc::clone(&hosts), chance: chance_of_row, maybe_sent: false };
        let begins = Duration::from_millis(chance.next() % BEGUN_WITHIN.as_millis() as u64);
        rows.spawn(async move {
            sleep(begins).await;
            caller.until_told().await
        });
    }
    for _ in 0..3 {
        sleep(Duration::from_secs(10 + chance.next() % 20)).await;
        if killed {
            let victim = chance.next() as usize % running.len();
            let (own, address) = start().await;
            // The replacement takes the address before the old process is killed.
            hosts.lock().unwrap()[victim] = address;
            std::mem::replace(&mut running[victim], own).kill();
            sleep(Duration::from_millis(chance.next() % 4_000)).await;
        }
        let () = server.ask(&["FLUSHALL"]);
    }
    let mut reported = BTreeMap::new();
    let mut in_doubt = Vec::new();
    let mut maybe_sent = 0;
    while let Some(row) = rows.join_next().await {
        let (caller, row) = row.unwrap();
        maybe_sent += usize::from(caller.maybe_sent);
        match row {
            Row::Made(id) => drop(reported.insert(caller.number, id)),
            Row::InDoubt => in_doubt.push(caller),
        }
    }
    let unknown = in_doubt.len();
    println!(
        "{} rows were answered, {unknown} were reported as unknown after a loss, {maybe_sent} callers said that they may have sent theirs",
        reported.len()
    );
    let admin =
        Front::of_settings(fleet::shared(&server.url(), "", &format!("http://{upstream}"), &settings, Some(KEY)));
    let answered: BTreeSet<u64> = reported.values().copied().collect();
    println!("{} of the answered rows were merged", reported.len() - answered.len());
    for caller in in_doubt {
        let ids: BTreeSet<u64> = reported.values().copied().collect();
        let number = caller.number;
        let own = caller.until_settled(&emulator, &admin, &ids).await;
        reported.insert(number, own);
    }
    let ids: BTreeSet<u64> = reported.values().copied().collect();
    let made = emulator.hospitals().len();
    println!("{unknown} of {unknown} unknown rows were settled; {made} hospitals, {} reported", ids.len());
    assert_eq!((reported.len(), ids.len()), (ROWS, ROWS), "two rows got the same hospital");
    assert_eq!(made, ROWS, "a row was made twice or not at all");
    for (number, id) in reported {
        let (batch, name, _) = row(number);
        let stands = emulator.hospital(id).unwrap();
        let in_batch = stands.creation_batch_id.map(|batch| batch.to_string());
        assert_eq!((stands.name, in_batch), (name, Some(batch)), "row {number}");
    }
    assert!(emulator.faults_injected() > 100, "faults were injected");
    assert!(!killed || maybe_sent > 0, "no caller lost its host");
    let _: Value = admin.get_json("/api/v1/status").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits out the directory's 75 s after the last loss: about five minutes"]
async fn five_hundred_rows_through_three_losses() {
    rows_through_losses(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits out the directory's 75 s after the last loss: about five minutes"]
async fn five_hundred_rows_through_three_losses_and_killed_hosts() {
    rows_through_losses(true).await;
}
