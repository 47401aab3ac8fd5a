//! Policies at runtime: dropped in, refused, watched and rolled back while requests continue.

use crate::support::{
    front::Front,
    scripted::{Scripted, ok, status},
    stage::{Stage, prebuilt},
};
use std::{fs, time::Duration};
use triage_rollout::Event;
use triage_upstream_runtime::StagePhase;

mod load;

#[tokio::test]
async fn a_component_dropped_in_serves_and_a_replaced_one_gives_way() {
    let stage = Stage::new(&[]).await;
    assert_eq!(stage.policy().await, "http-standard", "the embedded one");
    stage.drop_guest("always-retry");
    stage.installed(2).await;
    assert_eq!(stage.policy().await, "always-retry");
    stage.drop_guest("fhir");
    stage.installed(3).await;
    assert_eq!(stage.policy().await, "fhir");
}

#[tokio::test]
async fn a_component_that_is_there_already_serves_from_the_first_request() {
    let stage = Stage::new(&[("http-standard.wasm", "always-retry")]).await;
    assert_eq!(stage.policy().await, "always-retry");
}

#[tokio::test]
async fn the_same_bytes_again_are_no_new_generation() {
    let stage = Stage::new(&[]).await;
    stage.drop_guest("http-standard");
    stage.drop_guest("fhir");
    stage.installed(2).await;
    stage.drop_guest("fhir");
    stage.drop_guest("always-retry");
    stage.installed(3).await;
    assert_eq!(stage.events().len(), 2, "{:?}", stage.events());
}

#[tokio::test]
async fn a_link_that_is_exchanged_brings_what_it_leads_to() {
    let stage = Stage::new(&[]).await;
    let data = |name: &str, guest: &str| {
        fs::create_dir(stage.path(name)).unwrap();
        fs::copy(prebuilt(guest), stage.path(name).join("http-standard.wasm")).unwrap();
    };
    // Like a mounted ConfigMap: a link into a folder that is itself a link, which is replaced.
    data("..1", "always-retry");
    std::os::unix::fs::symlink("..1", stage.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/http-standard.wasm", stage.path("http-standard.wasm")).unwrap();
    stage.installed(2).await;
    assert_eq!(stage.policy().await, "always-retry");
    data("..2", "fhir");
    std::os::unix::fs::symlink("..2", stage.path("..data.new")).unwrap();
    fs::rename(stage.path("..data.new"), stage.path("..data")).unwrap();
    stage.installed(3).await;
    assert_eq!(stage.policy().await, "fhir");
}

#[tokio::test]
async fn a_component_that_fails_a_check_never_serves_and_the_event_says_why() {
    let good = fs::read(prebuilt("fhir")).unwrap();
    for (what, bytes, step, reason) in [
        ("empty", Vec::new(), StagePhase::Load, "not a valid WebAssembly component"),
        ("garbage", b"#!/bin/sh\nexit 0\n".to_vec(), StagePhase::Load, "not a valid WebAssembly component"),
        ("truncated", good[..good.len() / 2].to_vec(), StagePhase::Load, "not a valid WebAssembly component"),
        ("a core module", b"\0asm\x01\0\0\0".to_vec(), StagePhase::Load, "build it with `triage policy build`"),
        ("precompiled", b"\x7fELF and more".to_vec(), StagePhase::Load, "which the host compiles itself"),
        (
            "another world",
            b"\0asm\x0d\0\x01\0".to_vec(),
            StagePhase::Load,
            "it must export describe, configure and decide",
        ),
    ] {
        let stage = Stage::new(&[]).await;
        stage.drop_in(&bytes);
        let event = stage.until(what, |event| matches!(event, Event::Refused { .. })).await;
        let Event::Refused { file, step: at, reason: message, .. } = &event else { unreachable!() };
        assert_eq!((file, *at), (&stage.path("http-standard.wasm"), step), "{what}: {event}");
        assert!(message.contains(reason), "{what}: {event}");
        assert!(event.to_string().ends_with("the previous generation continues to serve"), "{what}: {event}");
        assert_eq!(stage.policy().await, "http-standard", "{what}");
        stage.drop_guest("fhir");
        stage.installed(2).await;
    }
}

#[tokio::test]
async fn golden_cases_that_differ_keep_a_component_out() {
    let stage = Stage::new(&[]).await;
    let head = include_str!("vectors/http-standard.csv").lines().next().unwrap();
    let case = "GET,/a,request,1,no,,,200,,,,,rejected,,,,,,a wrong hope\n";
    fs::write(stage.path("http-standard.cases.csv"), format!("{head}\n{case}")).unwrap();
    stage.drop_guest("fhir");
    let event = stage.until("refused", |event| matches!(event, Event::Refused { step: StagePhase::Cases, .. })).await;
    assert!(event.to_string().contains("line 2: GET /a 200 (a wrong hope): class"), "{event}");
    assert_eq!(stage.policy().await, "http-standard");
}

#[tokio::test]
async fn a_generation_that_traps_is_rolled_back_and_not_taken_again() {
    let stage = Stage::new(&[]).await;
    stage.drop_guest("trap");
    let event = stage.until("rolled back", |event| matches!(event, Event::RolledBack { .. })).await;
    assert!(matches!(event, Event::RolledBack { generation: 2, to: Some(1), .. }), "{event}");
    assert!(event.to_string().contains("the policy of generation 1 serves again"), "{event}");
    assert_eq!(stage.policy().await, "http-standard");
    // A changed file with the same bytes.
    stage.drop_guest("trap");
    let event = stage.until("refused", |event| matches!(event, Event::Refused { .. })).await;
    assert!(matches!(event, Event::Refused { step: StagePhase::Quarantine, .. }), "{event}");
    assert_eq!(stage.policy().await, "http-standard");
    stage.drop_guest("fhir");
    stage.installed(3).await;
    assert_eq!(stage.policy().await, "fhir", "another component is taken");
}

#[tokio::test]
async fn a_component_from_the_folder_must_be_trusted_before_it_settles_writes() {
    let upstream = Scripted::start(|_| status(503)).await;
    let folder = tempfile::tempdir().unwrap();
    let front = Front::serve(&format!(
        "[policies]\ndir = \"{}\"\n[upstreams.api]\nbase_url = \"{}\"\npolicy = \"hospital-directory\"\n",
        folder.path().display(),
        upstream.url()
    ));
    // The same policy with another digest, by an additional custom section.
    let mut bytes = fs::read(prebuilt("hospital-directory")).unwrap();
    bytes.extend_from_slice(&[0, 2, 1, b'x']);
    fs::write(folder.path().join("hospital-directory.wasm"), bytes).unwrap();
    let event = loop {
        if let Some(event) = front.host().policy_events("api").unwrap().pop() {
            break event;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let message = event.to_string();
    assert!(message.starts_with("generation 2 ("), "{event}");
    assert!(
        message.ends_with(
            ") serves; it may not settle unknown writes until you trust it: set \
             `upstreams.api.endpoints.create-hospital.settle = true`, \
             `upstreams.api.endpoints.activate-batch.settle = true`, and send the host SIGHUP; no restart is needed"
        ),
        "{event}"
    );
}

#[tokio::test]
async fn a_component_that_a_configuration_names_must_be_trusted_too_and_keys_say_so() {
    let upstream = Scripted::start(|_| status(503)).await;
    let served = |keys: &str| {
        let file = prebuilt("hospital-directory");
        Front::of(&upstream.url(), &format!("policy = {:?}\n{keys}", file.display().to_string()))
    };
    let events = served("").host().policy_events("api").unwrap();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert!(event.to_string().contains("set `upstreams.api.endpoints.create-hospital.settle = true`"), "{event}");
    let trusted = served(
        "[upstreams.api.endpoints.create-hospital]\nsettle = true\n[upstreams.api.endpoints.activate-batch]\nsettle = true\n",
    );
    assert_eq!(trusted.host().policy_events("api").unwrap(), [], "nothing is left to say");
}

/// The event of the load says that SIGHUP applies `settle`; the host does not start again for it.
#[tokio::test]
async fn a_reload_of_the_configuration_lets_a_loaded_component_settle_writes() {
    let upstream =
        Scripted::start(|seen| if seen.line().starts_with("get / ") { ok("", "{}") } else { status(503) }).await;
    let file = prebuilt("hospital-directory");
    let text = |keys: &str| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"off\"\n[upstreams.api]\nbase_url = \"{}\"\n\
             policy = {:?}\n[upstreams.api.endpoints.create-hospital]\ndeadline = \"8s\"\nattempt_timeout = \"1s\"\n{keys}",
            upstream.url(),
            file.display().to_string()
        )
    };
    let settings = |keys: &str| triage_config::from_toml(&text(keys)).unwrap_or_else(|problems| panic!("{problems}"));
    let front = Front::start(&text(""));
    let body = r#"{"name":"A","address":"B","creation_batch_id":"7d3c5a52-0000-4000-8000-000000000001"}"#;
    let create = || front.send("POST", "/hospitals/", "content-type: application/json\r\n", body);
    let verifications =
        || upstream.seen().iter().filter(|seen| seen.line().starts_with("get /hospitals/batch/")).count();
    create().await;
    assert_eq!(verifications(), 0, "without a grant");
    front.host().reload(&triage_config::reload(&settings(""), &settings("settle = true\n")).unwrap()).unwrap();
    create().await;
    assert!(verifications() > 0, "{:?}", upstream.seen());
}
