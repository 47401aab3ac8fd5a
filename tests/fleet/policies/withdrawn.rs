//! A component that was rolled back serves at no host again, after any kind of fault and under any manifest.

use crate::support::{
    policies::{Own, Policies, act, announce, event_texts, fleet, judge, named, serves, trapping, until},
    redis_server::{Proxy, RedisServer, Way},
};
use minisign::KeyPair;
use std::{io::Cursor, time::Duration};
use triage_engine::Digest;

/// While a component is being staged, an operator's rollback aborts it. The serving component is good.
#[tokio::test]
async fn an_operator_takes_back_what_does_not_serve_yet() {
    let Some(policies) = Policies::start().await else { return };
    let port: u16 = policies.registry.address.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::before(port);
    let own = Own { registry: Some(format!("127.0.0.1:{}", proxy.port())), ..Own::default() };
    let hosts = [policies.host_with(&own), policies.host()];
    until("two", || async { fleet(&hosts[1]).await["hosts"].as_array().unwrap().len() == 2 }).await;
    let good = policies.push(named("v2")).await;
    announce(&hosts[1], good).await;
    serves(&hosts, "v2").await;
    until("it is there", || async { fleet(&hosts[0]).await["generation"] == 1 }).await;
    proxy.set(Way::Cut);
    let next = policies.push(named("v3")).await;
    announce(&hosts[1], next).await;
    until("it is staged", || async { fleet(&hosts[0]).await["phase"] == "staging" }).await;
    let other = act(&hosts[0], "rollback", Some(good)).await;
    assert_eq!(other.status(), "409", "{}", other.text());
    let back = act(&hosts[0], "rollback", Some(next)).await;
    assert_eq!(back.status(), "200", "{}", back.text());
    for host in &hosts {
        until("the event is raised", || async { !event_texts(host, "policy-aborted").await.is_empty() }).await;
        let fleet = fleet(host).await;
        assert_eq!((judge(host).await, &fleet["generation"]), ("v2".to_owned(), &1.into()), "{fleet}");
        assert_eq!((&fleet["aborted"]["step"], &fleet["quarantined"]), (&"operator".into(), &[""; 0][..].into()));
    }
    assert_eq!(
        event_texts(&hosts[0], "action").await,
        ["an operator withdraws the component that was announced to the fleet"]
    );
    let nobodys = act(&hosts[0], "rollback", Some(Digest::of(b"nobody's"))).await;
    assert_eq!(nobodys.status(), "409", "{}", nobodys.text());
    assert!(nobodys.text().contains("neither serves the fleet nor is proposed"), "{}", nobodys.text());
    assert_eq!(act(&hosts[0], "rollback", Some(good)).await.status(), "200");
    serves(&hosts, "v1").await;
}

#[tokio::test]
async fn a_fault_after_a_rollback_brings_nothing_back() {
    let Some(policies) = Policies::start().await else { return };
    let bad = policies.push(trapping("bad")).await;
    let host = policies.host_with(&Own { configured: Some(bad), ..Own::default() });
    announce(&host, policies.push(named("v2")).await).await;
    serves(std::slice::from_ref(&host), "v2").await;
    let promoted = act(&host, "promote", None).await;
    assert_eq!(promoted.status(), "200", "it has proven itself: {}", promoted.text());
    assert_eq!(act(&host, "rollback", None).await.status(), "200");
    until("it is gone", || async { fleet(&host).await["generation"] == 2 && fleet(&host).await["behind"] == false })
        .await;
    for asked in 0..20 {
        assert_ne!(judge(&host).await, "v2", "{asked}");
    }
    assert!(!event_texts(&host, "policy-rolled-back").await.is_empty(), "the other one failed meanwhile");
}

/// The same component with a signature in another manifest: the failing code is the same.
#[tokio::test]
async fn no_other_manifest_brings_it_back() {
    let Some(policies) = Policies::start().await else { return };
    let KeyPair { sk, .. } = KeyPair::generate_unencrypted_keypair().unwrap();
    let signature = minisign::sign(None, &sk, Cursor::new(named("v2")), None, None).unwrap().into_string();
    let hosts = policies.hosts().await;
    let first = policies.push(named("v2")).await;
    announce(&hosts[0], first).await;
    serves(&hosts, "v2").await;
    assert_eq!(act(&hosts[1], "rollback", None).await.status(), "200");
    serves(&hosts, "v1").await;
    let again = policies.publish(named("v2"), Some(signature), None).await;
    assert_ne!(first, again);
    for host in &hosts {
        let got = act(host, "announce", Some(again)).await;
        assert_eq!(got.status(), "409", "{}", got.text());
        assert!(
            got.text().contains("refused the component at step quarantine: this component was rolled back before"),
            "{}",
            got.text()
        );
    }
    let promoted = act(&hosts[0], "promote", Some(again)).await;
    assert_eq!(promoted.status(), "200", "{}", promoted.text());
    serves(&hosts, "v2").await;
}

/// A host that knows the component's failure reports it before the others switch.
#[tokio::test]
async fn a_host_where_it_failed_refuses_it_for_all() {
    let Some(policies) = Policies::start().await else { return };
    let bad = policies.push(trapping("bad")).await;
    let burnt = policies.host_with(&Own { configured: Some(bad), ..Own::default() });
    let other = policies.host();
    until("two", || async { fleet(&other).await["hosts"].as_array().unwrap().len() == 2 }).await;
    until("it fails", || async {
        judge(&burnt).await;
        !event_texts(&burnt, "policy-rolled-back").await.is_empty()
    })
    .await;
    announce(&other, bad).await;
    until("the event is raised", || async { !event_texts(&other, "policy-aborted").await.is_empty() }).await;
    let aborted = event_texts(&other, "policy-aborted").await;
    assert!(aborted[0].contains("refused it at step quarantine: this component was rolled back before"), "{aborted:?}");
    assert_eq!((judge(&other).await, &fleet(&other).await["generation"]), ("v1".to_owned(), &0.into()));
}

/// A host that does not accept the fleet's rollback target still stops serving the component that was rolled back.
#[tokio::test]
async fn a_rolled_back_component_serves_at_no_host() {
    let Some(policies) = Policies::start().await else { return };
    let bad = policies.push(trapping("bad")).await;
    let own = || Own { configured: Some(bad), ..Own::default() };
    let hosts = [policies.host_with(&own()), policies.host_with(&own())];
    until("two", || async { fleet(&hosts[0]).await["hosts"].as_array().unwrap().len() == 2 }).await;
    until("it fails at one", || async {
        judge(&hosts[1]).await;
        !event_texts(&hosts[1], "policy-rolled-back").await.is_empty()
    })
    .await;
    announce(&hosts[0], policies.push(named("v2")).await).await;
    serves(&hosts, "v2").await;
    assert_eq!(act(&hosts[0], "rollback", None).await.status(), "200");
    until("it has left", || async { !event_texts(&hosts[1], "policy-withdrawn").await.is_empty() }).await;
    let policy = hosts[1].get_json("/api/v1/policies/api").await;
    assert_eq!(policy["serving"]["standing"], "suspended", "nothing has proven itself there: {policy}");
    let withdrawn = event_texts(&hosts[1], "policy-withdrawn").await;
    assert!(withdrawn.len() == 1 && withdrawn[0].contains("was withdrawn by its fleet; "), "{withdrawn:?}");
    let stands = fleet(&hosts[1]).await;
    assert_eq!((&stands["generation"], &stands["behind"]), (&2.into(), &true.into()), "{stands}");
    assert!(stands["why_behind"].as_str().unwrap().starts_with("quarantine: "), "{stands}");
    let promoted = act(&hosts[1], "promote", Some(bad)).await;
    assert_eq!(promoted.status(), "200", "{}", promoted.text());
    until("it takes it once more", || async { fleet(&hosts[1]).await["behind"] == false }).await;
    assert!(
        event_texts(&hosts[1], "action").await[0].starts_with("an operator makes this host load the fleet's sha256:")
    );
}

/// A command that may have been done is not reported as failed, and it is audited even if its caller has disconnected.
#[tokio::test]
async fn an_unconfirmed_announcement_is_not_reported_as_failed() {
    let Some(policies) = Policies::start().await else { return };
    let proxy = Proxy::before(policies.redis.port());
    let host = policies.host_with(&Own { redis: Some(proxy.url()), ..Own::default() });
    let at_hand = policies.push(named("v2")).await;
    for (name, digest) in [("v2", at_hand), ("v3", policies.push(named("v3")).await)] {
        announce(&host, digest).await;
        serves(std::slice::from_ref(&host), name).await;
    }
    proxy.set(Way::BlackHole);
    let hasty = tokio::time::timeout(Duration::from_millis(500), act(&host, "announce", Some(at_hand))).await;
    assert!(hasty.is_err(), "no answer can have come: {}", hasty.unwrap().text());
    let unsure = "; shared state did not confirm it";
    until("it is audited", || async { event_texts(&host, "action").await.iter().any(|text| text.ends_with(unsure)) })
        .await;
    proxy.set(Way::Open);
    until("it is heard again", || async { fleet(&host).await["phase"] == "agreed" }).await;
    let other = policies.push(named("v4")).await;
    proxy.set(Way::BlackHole);
    let got = act(&host, "announce", Some(other)).await;
    assert_eq!(got.status(), "409", "{}", got.text());
    assert!(got.text().contains("shared state did not confirm the announcement; run"), "{}", got.text());
}

/// No host runs while the server is replaced or loses its data.
#[tokio::test]
async fn the_file_of_a_host_restores_a_fleet_but_overrules_no_younger_one() {
    let Some(mut policies) = Policies::start().await else { return };
    let kept = policies.folder.path().join("kept");
    let own = || Own { kept: Some(kept.clone()), ..Own::default() };
    let old = policies.host_with(&own());
    for name in ["v2", "v3"] {
        announce(&old, policies.push(named(name)).await).await;
        serves(std::slice::from_ref(&old), name).await;
    }
    drop(old);
    let elsewhere = RedisServer::start();
    let moved = policies.host_with(&Own { redis: Some(elsewhere.url()), ..own() });
    assert_eq!((judge(&moved).await, &fleet(&moved).await["generation"]), ("v3".to_owned(), &2.into()));
    drop(moved);
    policies.redis.restart();
    let young = policies.host();
    announce(&young, policies.push(named("v4")).await).await;
    serves(std::slice::from_ref(&young), "v4").await;
    let old = policies.host_with(&own());
    assert_eq!(judge(&old).await, "v4", "its first answer");
    for host in [&old, &young] {
        until("all stands", || async { fleet(host).await["hosts"].as_array().unwrap().len() == 2 }).await;
        assert_eq!((judge(host).await, &fleet(host).await["generation"]), ("v4".to_owned(), &1.into()));
    }
}

/// The event at the start also names the check that a component failed.
#[tokio::test]
async fn a_start_says_at_which_step_the_fleets_component_was_refused() {
    let Some(policies) = Policies::start().await else { return };
    let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().unwrap();
    let signature = minisign::sign(None, &sk, Cursor::new(named("v1")), None, None).unwrap().into_string();
    let signed = policies.publish(named("v1"), Some(signature), None).await;
    let host = policies.host();
    announce(&host, policies.push(named("v2")).await).await;
    serves(std::slice::from_ref(&host), "v2").await;
    let keys = format!("keys = [{:?}]", pk.to_base64());
    let strict = policies.host_with(&Own { policies: &keys, configured: Some(signed), ..Own::default() });
    assert_eq!(judge(&strict).await, "v1");
    let behind = event_texts(&strict, "policy-behind").await;
    assert!(behind[0].contains("does not serve here, step signature: the artifact is not signed"), "{behind:?}");
}
