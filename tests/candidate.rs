//! Candidates in shadow and canary mode: no request is harmed, even if a candidate fails.

use crate::{
    hostile::guest::{Guest, SPIN, TRAP, at},
    support::{
        front::{Front, Got},
        scripted::{Reply, Scripted, Seen, ok, status},
        stage::prebuilt,
    },
};
use std::{fs, path::PathBuf, time::Duration};
use triage_config as config;
use triage_rollout::{CandidateReport, Difference, Event};
use triage_upstream_runtime::StagePhase;

/// A host with a policy folder, `http-standard` as the live policy, and a candidate `next.wasm` that may appear later.
struct Trial {
    folder: tempfile::TempDir,
    front: Front,
    upstream: Scripted,
}

impl Trial {
    async fn new(candidate: &str, before: Option<&[u8]>, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let next = folder.path().join("next.wasm");
        if let Some(bytes) = before {
            fs::write(&next, bytes).unwrap();
        }
        let upstream = Scripted::start(script).await;
        let front = Front::serve(&format!(
            "[policies]\ndir = {:?}\npoll = \"50ms\"\n[upstreams.api]\nbase_url = {:?}\n\
             candidate = {{ policy = {:?}, {candidate} }}\n[upstreams.api.defaults]\nbreaker = {{ enabled = false }}\n\
             budget = {{ percent = 100, floor_per_second = 1000, capacity = 1000 }}\n\
             retry = {{ min_wait = \"1ms\", max_wait = \"1ms\" }}\n",
            folder.path().display().to_string(),
            upstream.url(),
            next.display().to_string(),
        ));
        Self { folder, front, upstream }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn drop_in(&self, name: &str, bytes: &[u8]) {
        let beside = self.path("new.tmp");
        fs::write(&beside, bytes).unwrap();
        fs::rename(beside, self.path(name)).unwrap();
    }

    fn report(&self) -> CandidateReport {
        self.front.host().candidate("api").unwrap()
    }

    fn events(&self) -> Vec<Event> {
        self.front.host().policy_events("api").unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: {:?} {:?}", self.report(), self.events());
    }

    async fn tried(&self) {
        self.until("a candidate", |trial| matches!(trial.events().last(), Some(Event::Tried { .. }))).await;
    }

    /// The response to a request with this id, and the policy that decided it.
    async fn ask(&self, id: &str) -> (Got, String) {
        let got = self.front.ask("GET", "/a", &format!("x-request-id: {id}\r\n")).await;
        let policy = got.header("triage-policy").unwrap().split(';').next().unwrap().to_owned();
        (got, policy)
    }
}

fn spoilt(spoil: impl FnOnce(&mut Guest) -> &mut Guest) -> Vec<u8> {
    let mut guest = Guest::new();
    spoil(&mut guest);
    guest.build()
}

/// The same policy with another digest, by an additional custom section.
fn in_other_bytes(name: &str) -> Vec<u8> {
    let mut bytes = fs::read(prebuilt(name)).unwrap();
    bytes.extend_from_slice(&[0, 2, 1, b'x']);
    bytes
}

#[tokio::test]
async fn in_shadow_it_is_compared_and_changes_nothing() {
    let trial = Trial::new("mode = \"shadow\"", None, |_| status(404)).await;
    assert_eq!(trial.report().compared, 0, "it may come later");
    // It agrees with the live policy (rejected, deliver), except on the upstream's health.
    let bytes = Guest::new().build();
    trial.drop_in("next.wasm", &bytes);
    trial.tried().await;
    let told = trial.events().last().unwrap().to_string();
    assert!(told.ends_with(" decides in shadow: its verdicts are only compared"), "{told}");
    for asked in 0..100 {
        let (got, policy) = trial.ask(&asked.to_string()).await;
        assert_eq!((got.status(), policy.as_str()), ("404", "http-standard"), "{asked}");
    }
    trial.until("all are compared", |trial| trial.report().compared == 100).await;
    let report = trial.report();
    assert_eq!((report.differed, report.skipped, report.differences.len()), (100, 0, 64));
    let difference = Difference {
        endpoint: "any".to_owned(),
        outcome: "404".to_owned(),
        live: "rejected, success, deliver".to_owned(),
        candidate: "rejected, ignore, deliver".to_owned(),
    };
    assert!(report.differences.iter().all(|found| *found == difference), "{:?}", report.differences);
    assert_eq!(difference.to_string(), "any 404: rejected, success, deliver; candidate: rejected, ignore, deliver");
    // The same policy with another digest agrees, and the counters restart.
    trial.drop_in("next.wasm", &in_other_bytes("http-standard"));
    trial.until("another one", |trial| trial.report().compared == 0).await;
    for asked in 0..20 {
        trial.ask(&asked.to_string()).await;
    }
    trial.until("all are compared", |trial| trial.report().compared == 20).await;
    assert_eq!(trial.report().differed, 0, "{:?}", trial.report());
}

#[tokio::test]
async fn in_shadow_it_sees_settled_answers_too_where_it_would_judge_them() {
    let trial = Trial::new("mode = \"shadow\"", Some(&Guest::new().build()), |_| ok("", "")).await;
    trial.ask("1").await;
    trial.until("compared", |trial| trial.report().compared == 1).await;
    let [difference] = &trial.report().differences[..] else { panic!("{:?}", trial.report()) };
    assert_eq!(difference.to_string(), "any 200: applied, success, deliver; candidate: rejected, ignore, deliver");
}

#[tokio::test]
async fn in_shadow_it_is_not_asked_about_what_the_live_policy_did_not_read() {
    let curious = spoilt(|guest| guest.word(at::RESPONSE_BODY_BYTES, 100));
    let script = |_: &Seen| Reply::Bytes(b"HTTP/1.1 404 No\r\ncontent-length: 5\r\n\r\nhello".to_vec());
    let trial = Trial::new("mode = \"shadow\"", Some(&curious), script).await;
    let (got, _) = trial.ask("1").await;
    assert_eq!((got.status(), got.text().as_str()), ("404", "hello"));
    trial.until("skipped", |trial| trial.report().skipped == 1).await;
    assert_eq!(trial.report().compared, 0);
}

#[tokio::test]
async fn in_shadow_its_faults_are_its_own() {
    for (what, body, fault) in [
        ("spins", SPIN, "the policy ran longer than 5 ms; the host stopped the call"),
        ("traps", TRAP, "the policy trapped: wasm trap: wasm `unreachable` instruction executed"),
    ] {
        let bytes = Guest::new().decide(body).build();
        let trial = Trial::new("mode = \"shadow\"", Some(&bytes), |_| status(404)).await;
        for asked in 0..5 {
            let (got, policy) = trial.ask(&asked.to_string()).await;
            assert_eq!((got.status(), policy.as_str()), ("404", "http-standard"), "{what}");
        }
        trial.until("given up", |trial| matches!(trial.events().last(), Some(Event::GivenUp { .. }))).await;
        let told = trial.events().last().unwrap().to_string();
        let wanted = format!(
            " failed 3 of 3 decisions, the last time: {fault}; it no longer decides, and the component is quarantined: fix it and copy it into the folder again"
        );
        assert!(told.ends_with(&wanted), "{what}: {told}");
        assert_eq!(trial.report().digest, None, "{what}");
        // It is refused as the live policy too.
        trial.drop_in("http-standard.wasm", &bytes);
        let quarantined = |event: &Event| matches!(event, Event::Refused { step: StagePhase::Quarantine, .. });
        trial.until("refused", |trial| trial.events().iter().any(quarantined)).await;
        assert_eq!(trial.ask("x").await.1, "http-standard", "{what}");
    }
}

#[tokio::test]
async fn a_candidate_that_fails_a_check_is_refused_and_nothing_else_happens() {
    let trial = Trial::new("mode = \"canary\", share = 100", Some(b"#!/bin/sh"), |_| status(404)).await;
    assert!(matches!(trial.events()[..], [Event::Refused { step: StagePhase::Load, .. }, ..]), "{:?}", trial.events());
    assert_eq!(trial.ask("1").await.1, "http-standard");
    trial.drop_in("next.wasm", &Guest::new().build());
    trial.tried().await;
    assert_eq!(trial.ask("1").await.1, "hostile");
}

#[tokio::test]
async fn a_canary_decides_for_its_share_and_always_the_same_requests() {
    let trial = Trial::new("mode = \"canary\", share = 30", Some(&Guest::new().build()), |_| status(404)).await;
    let told = trial.events().last().unwrap().to_string();
    assert!(told.ends_with(" decides for 30 % of the requests"), "{told}");
    let mut by_canary = Vec::new();
    for asked in 0..300 {
        by_canary.push(trial.ask(&asked.to_string()).await.1 == "hostile");
    }
    let share = by_canary.iter().filter(|own| **own).count();
    assert!((60..120).contains(&share), "{share} of 300");
    for (asked, before) in by_canary.iter().enumerate().take(50) {
        let again = trial.ask(&asked.to_string()).await.1 == "hostile";
        assert_eq!(again, *before, "{asked}: as before");
    }
}

#[tokio::test]
async fn a_canary_keeps_a_key_over_attempts_and_replays() {
    // The first attempt of each request gets 429, which means that nothing was done.
    let mut asked = 0;
    let script = move |_: &Seen| {
        asked += 1;
        if asked % 2 == 1 { status(429) } else { ok("", "made") }
    };
    let trial = Trial::new("mode = \"canary\", share = 50", Some(&in_other_bytes("http-standard")), script).await;
    let mut deciders = std::collections::BTreeSet::new();
    for row in 0..12 {
        let key = format!("Idempotency-Key: key-{row}\r\n");
        let first = trial.front.send("POST", "/a", &key, "{}").await;
        assert_eq!((first.status(), first.header("triage-attempts")), ("200", Some("2")), "{row}: {first:?}");
        let again = trial.front.send("POST", "/a", &key, "{}").await;
        assert_eq!((again.status(), again.header("triage-replay")), ("200", Some("true")), "{row}: {again:?}");
        deciders.insert(first.header("triage-policy").unwrap().to_owned());
    }
    assert_eq!(trial.upstream.seen().len(), 24, "two attempts of each, and no more");
    assert_eq!(deciders.len(), 2, "{deciders:?}");
}

#[tokio::test]
async fn where_a_canary_fails_the_live_policy_decides() {
    let mut asked = 0;
    // A read fails once and then succeeds; a write's response leaves the effect unknown.
    let script = move |seen: &Seen| {
        asked += 1;
        if seen.line().starts_with("post") || asked == 1 { status(503) } else { ok("", "well") }
    };
    let bytes = Guest::new().decide(TRAP).build();
    let trial = Trial::new("mode = \"canary\", share = 100", Some(&bytes), script).await;
    let (got, policy) = trial.ask("1").await;
    assert_eq!((got.status(), got.header("triage-attempts")), ("200", Some("2")), "{got:?}");
    assert_eq!(policy, "hostile", "it serves the request to its end");
    let canary = trial.front.send("POST", "/a", "", "{}").await;
    assert_eq!(canary.header("triage-policy").map(|policy| &policy[..7]), Some("hostile"));
    trial.until("given up", |trial| matches!(trial.events().last(), Some(Event::GivenUp { .. }))).await;
    let live = trial.front.send("POST", "/a", "", "{}").await;
    assert_eq!(live.header("triage-policy").map(|policy| &policy[..13]), Some("http-standard"));
    let facts = |got: &Got| (got.status().to_owned(), got.header("triage-verdict").map(str::to_owned), got.text());
    assert_eq!(facts(&canary), facts(&live), "as without it");
}

#[tokio::test]
async fn of_two_policies_the_stricter_one_says_what_a_request_may_do() {
    let trial =
        Trial::new("mode = \"canary\", share = 100", Some(&spoilt(|guest| guest.retry(0))), |_| status(500)).await;
    assert_eq!(trial.ask("1").await.0.header("triage-attempts"), Some("3"), "a read may be repeated");
    // The live policy knows that this endpoint is not a read.
    trial.drop_in("http-standard.wasm", &spoilt(|guest| guest.text(at::NAME, "strict").byte(at::EFFECT, 2)));
    trial.until("installed", |trial| matches!(trial.events().last(), Some(Event::Installed { .. }))).await;
    let (got, policy) = trial.ask("1").await;
    assert_eq!(policy, "hostile");
    assert_eq!((got.header("triage-attempts"), got.header("triage-clamped")), (Some("1"), Some("effect")), "{got:?}");
}

#[test]
fn a_candidate_must_be_another_policy() {
    for (keys, told) in [
        (
            "candidate.policy = \"http-standard\"",
            "upstreams.a.candidate.policy: got http-standard; must be a policy other than the upstream's own",
        ),
        ("candidate = { policy = \"fhir\", mode = \"half\" }", "must be \"shadow\" or \"canary\""),
        ("candidate = { policy = \"fhir\", share = 0 }", "must be a whole number of percent, from 1 to 100"),
    ] {
        let text = format!("[upstreams.a]\nbase_url = \"http://a.invalid\"\n{keys}\n");
        let problems = config::from_toml(&text).unwrap_err().to_string();
        assert!(problems.contains(told), "{keys}: {problems}");
    }
}
