//! Candidates in shadow and canary mode: no request is harmed, even if a candidate fails.

use crate::{
    hostile::guest::{Guest, SPIN, TRAP, at},
    process::child::run,
    support::{
        front::{Front, Got},
        scripted::{Reply, Scripted, Seen, ok, status},
        stage::prebuilt,
    },
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};
use triage_config as config;
use triage_rollout::{CandidateReport, Difference, Event, TrialState};
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
        let toml = format!(
            "[policies]\ndir = {:?}\npoll = \"50ms\"\n[upstreams.api]\nbase_url = {:?}\n\
             candidate = {{ policy = {:?}, {candidate} }}\n[upstreams.api.defaults]\nbreaker = {{ enabled = false }}\n\
             budget = {{ percent = 100, floor_per_second = 1000, capacity = 1000 }}\n\
             retry = {{ min_wait = \"1ms\", max_wait = \"1ms\" }}\n",
            folder.path().display().to_string(),
            upstream.url(),
            next.display().to_string(),
        );
        let front = Front::with_admin("", &toml);
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
        self.until("a candidate", |trial| trial.report().state == TrialState::OnTrial).await;
    }

    /// The `candidate` that the admin API shows.
    async fn shown(&self) -> Value {
        self.front.get_json("/api/v1/policies/api").await["candidate"].clone()
    }

    /// The counters of the upstream's candidates in a scrape: compared, differed, skipped, decisions, faults.
    async fn scraped(&self) -> [u64; 5] {
        let text = self.front.admin("GET", "/metrics", "", "").await.text();
        ["compared", "differed", "skipped", "decisions", "faults"].map(|name| {
            let sample = format!("triage_candidate_{name}_total{{upstream=\"api\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&sample)?.parse().ok()).unwrap_or_else(|| panic!("{sample}"))
        })
    }

    /// The texts of the candidate's events, each with its kind.
    async fn candidate_events(&self) -> Vec<(String, String)> {
        let events = self.front.get_json("/api/v1/events").await;
        let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
        let all = events.as_array().unwrap().iter().map(|event| (text(event, "kind"), text(event, "text")));
        all.filter(|(kind, _)| kind.starts_with("candidate-")).collect()
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
    assert_eq!(trial.report().state, TrialState::Missing, "it may come later");
    assert_eq!((&trial.shown().await["state"], trial.scraped().await), (&json!("missing"), [0; 5]));
    // It agrees with the live policy (rejected, deliver), except on the upstream's health.
    let bytes = Guest::new().build();
    trial.drop_in("next.wasm", &bytes);
    trial.tried().await;
    let message = trial.events().last().unwrap().to_string();
    assert!(message.ends_with(" decides in shadow: its verdicts are only compared"), "{message}");
    for asked in 0..100 {
        let (got, policy) = trial.ask(&asked.to_string()).await;
        assert_eq!((got.status(), policy.as_str()), ("404", "http-standard"), "{asked}");
    }
    trial.until("all are compared", |trial| trial.report().counts.compared == 100).await;
    let report = trial.report();
    assert_eq!((report.counts.differed, report.skipped, report.ungrouped), (100, 0, 0));
    let difference = Difference {
        endpoint: "any".to_owned(),
        outcome: "404".to_owned(),
        live: "rejected, success, deliver".to_owned(),
        candidate: "rejected, ignore, deliver".to_owned(),
    };
    assert!(matches!(&report.groups[..], [own] if own.difference == difference && own.count == 100), "{report:?}");
    assert_eq!(difference.to_string(), "any 404: rejected, success, deliver; candidate: rejected, ignore, deliver");
    // The same policy with another digest agrees, and the counters restart.
    trial.drop_in("next.wasm", &in_other_bytes("http-standard"));
    trial.until("another one", |trial| trial.report().counts.compared == 0).await;
    for asked in 0..20 {
        trial.ask(&asked.to_string()).await;
    }
    trial.until("all are compared", |trial| trial.report().counts.compared == 20).await;
    assert_eq!(trial.report().counts.differed, 0, "{:?}", trial.report());
    assert_eq!(trial.scraped().await, [120, 100, 0, 120, 0], "the metrics count on");
}

/// The results that an operator gets: in the events, the admin API, the metrics and on the command line.
#[tokio::test]
async fn a_difference_is_told_once_and_shown_with_its_count_and_time_wherever_an_operator_looks() {
    let trial = Trial::new("mode = \"shadow\"", Some(&Guest::new().build()), |_| status(404)).await;
    for asked in 0..30 {
        trial.ask(&asked.to_string()).await;
    }
    trial.until("all are compared", |trial| trial.report().counts.compared == 30).await;
    let digest = trial.report().component.unwrap().digest.unwrap();
    let difference = "any 404: rejected, success, deliver; candidate: rejected, ignore, deliver";
    let first = format!("candidate {} decides differently for the first time: {difference}", digest.short());
    let events = trial.candidate_events().await;
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["candidate-tried", "candidate-differed"], "{events:?}");
    assert_eq!(events[1].1, first);
    let mut shown = trial.shown().await;
    let (began, latest) = (shown["began_unix_ms"].take(), shown["differences"][0]["latest_unix_ms"].take());
    assert!(began.as_u64().unwrap() <= latest.as_u64().unwrap(), "{began} {latest}");
    assert_eq!(
        shown,
        json!({
            "source": trial.path("next.wasm"), "mode": "shadow", "share_percent": null, "state": "on-trial",
            "name": "hostile", "version": "0.1.0", "digest": digest.to_string(), "began_unix_ms": null,
            "decisions": 30, "compared": 30, "differed": 30, "skipped": 0, "faults": 0, "ungrouped": 0,
            "differences": [{
                "endpoint": "any", "outcome": "404", "live": "rejected, success, deliver",
                "candidate": "rejected, ignore, deliver", "count": 30, "latest_unix_ms": null,
            }],
        })
    );
    assert_eq!(trial.front.get_json("/api/v1/policies").await[0]["candidate"]["differed"], 30);
    assert_eq!(trial.scraped().await, [30, 30, 0, 30, 0]);
    let admin = format!("http://{}", trial.front.admin_address());
    let listed = run(&["policy", "list", "--admin", &admin]).out;
    assert!(
        listed.contains("shadow, on trial: 30 decisions, 30 compared, 30 differed, 0 skipped, 0 faults\n"),
        "{listed}"
    );
    assert!(listed.contains(&format!("    {difference} (30 x, latest ")), "{listed}");
    let history = run(&["policy", "history", "api", "--admin", &admin]).out;
    assert!(
        history.contains("decides in shadow: its verdicts are only compared") && history.contains(&first),
        "{history}"
    );
}

#[tokio::test]
async fn after_a_thousand_equal_decisions_a_candidate_is_told_once_to_be_ready() {
    let trial = Trial::new("mode = \"shadow\"", Some(&in_other_bytes("http-standard")), |_| status(404)).await;
    for asked in 0..1010 {
        trial.ask(&asked.to_string()).await;
        // One case at a time, so that none is skipped.
        trial.until("compared", |trial| trial.report().counts.compared == asked + 1).await;
    }
    assert_eq!((trial.report().state, trial.shown().await["state"].clone()), (TrialState::Ready, json!("ready")));
    let events = trial.candidate_events().await;
    let [_, (kind, text)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(kind, "candidate-ready");
    let wanted = " is ready to promote: it decided 1000 times as the live policy did; to promote a candidate, copy its file \
                  over the live policy's";
    assert!(text.ends_with(wanted), "{text}");
}

#[tokio::test]
async fn in_shadow_it_sees_settled_answers_too_where_it_would_judge_them() {
    let trial = Trial::new("mode = \"shadow\"", Some(&Guest::new().build()), |_| ok("", "")).await;
    trial.ask("1").await;
    trial.until("compared", |trial| trial.report().counts.compared == 1).await;
    let [group] = &trial.report().groups[..] else { panic!("{:?}", trial.report()) };
    assert_eq!(
        group.difference.to_string(),
        "any 200: applied, success, deliver; candidate: rejected, ignore, deliver"
    );
}

#[tokio::test]
async fn in_shadow_it_is_not_asked_about_what_the_live_policy_did_not_read() {
    let curious = spoilt(|guest| guest.word(at::RESPONSE_BODY_BYTES, 100));
    let script = |_: &Seen| Reply::Bytes(b"HTTP/1.1 404 No\r\ncontent-length: 5\r\n\r\nhello".to_vec());
    let trial = Trial::new("mode = \"shadow\"", Some(&curious), script).await;
    let (got, _) = trial.ask("1").await;
    assert_eq!((got.status(), got.text().as_str()), ("404", "hello"));
    trial.until("skipped", |trial| trial.report().skipped == 1).await;
    assert_eq!(trial.report().counts.compared, 0);
    assert_eq!(trial.scraped().await, [0, 0, 1, 0, 0]);
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
        let message = trial.events().last().unwrap().to_string();
        let wanted = format!(
            " failed 3 of 3 decisions, the last time: {fault}; it no longer decides, and the component is quarantined: fix it and copy it into the folder again"
        );
        assert!(message.ends_with(&wanted), "{what}: {message}");
        assert_eq!(
            (trial.report().state, trial.shown().await["state"].clone()),
            (TrialState::GivenUp, json!("given-up"))
        );
        assert_eq!(trial.scraped().await, [3, 3, 0, 3, 3], "{what}: its results stay");
        let kinds: Vec<String> = trial.candidate_events().await.into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["candidate-tried", "candidate-differed", "candidate-given-up"], "{what}");
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
    let message = trial.events().last().unwrap().to_string();
    assert!(message.ends_with(" decides for 30 % of the requests"), "{message}");
    let mut by_canary = Vec::new();
    for asked in 0..300 {
        by_canary.push(trial.ask(&asked.to_string()).await.1 == "hostile");
    }
    let share = by_canary.iter().filter(|own| **own).count();
    assert!((60..120).contains(&share), "{share} of 300");
    let decided = u64::try_from(share).unwrap();
    assert_eq!(trial.scraped().await, [0, 0, 0, decided, 0], "a canary is not compared");
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
    assert_eq!(trial.scraped().await, [0, 0, 0, 3, 3]);
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
    for (keys, message) in [
        (
            "candidate.policy = \"http-standard\"",
            "upstreams.a.candidate.policy: got http-standard; must be a policy other than the upstream's own",
        ),
        ("candidate = { policy = \"fhir\", mode = \"half\" }", "must be \"shadow\" or \"canary\""),
        ("candidate = { policy = \"fhir\", share = 0 }", "must be a whole number of percent, from 1 to 100"),
    ] {
        let text = format!("[upstreams.a]\nbase_url = \"http://a.invalid\"\n{keys}\n");
        let problems = config::from_toml(&text).unwrap_err().to_string();
        assert!(problems.contains(message), "{keys}: {problems}");
    }
}
