//! One policy for a whole fleet: announced at one host, switched and rolled back at all.

mod withdrawn;

use crate::{
    admin::conforms,
    hostile::guest::{Guest, at},
    support::{
        front::Front,
        policies::{Own, Policies, act, announce, event_texts, fleet, judge, named, serves, trapping, until},
        redis_server::{Proxy, Way},
    },
};
use minisign::KeyPair;
use serde_json::Value;
use std::{io::Cursor, time::Duration};
use triage_config as config;
use triage_engine::Digest;

/// The main check: each line fails if announcements do nothing.
#[tokio::test]
async fn a_component_announced_at_one_host_serves_at_all_hosts() {
    let Some(policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    serves(&hosts, "v1").await;
    let next = policies.push(named("v2")).await;
    announce(&hosts[0], next).await;
    serves(&hosts, "v2").await;
    for host in &hosts {
        until("all have said that it serves", || async {
            fleet(host).await["hosts"].as_array().unwrap().iter().all(|own| own["behind"] == false)
        })
        .await;
        let fleet = fleet(host).await;
        let stands = ["generation", "digest", "why", "phase", "behind", "proposal"].map(|key| fleet[key].clone());
        let expected: [Value; 5] =
            [1.into(), next.to_string().into(), "announced".into(), "agreed".into(), false.into()];
        assert_eq!(stands[..5], expected, "{fleet}");
        assert_eq!(stands[5], Value::Null, "{fleet}");
        let switched = event_texts(host, "policy-switched").await;
        assert!(
            switched.len() == 1 && switched[0].starts_with("the fleet's generation 1 serves here, "),
            "{switched:?}"
        );
        let metrics = host.admin("GET", "/metrics", "", "").await.text();
        assert!(metrics.contains("triage_policy_fleet_generation{upstream=\"api\"} 1.0"), "{metrics}");
        assert!(metrics.contains("triage_policy_fleet_behind{upstream=\"api\"} 0.0"), "{metrics}");
    }
    is_as_documented(&hosts[0]).await;
    let again = act(&hosts[1], "announce", Some(next)).await;
    assert_eq!(again.status(), "409", "{}", again.text());
    assert!(again.text().contains("the fleet's generation 1 already is this component"), "{}", again.text());
    assert_eq!(event_texts(&hosts[0], "action").await.len(), 1, "each announcement is audited, where it was taken");
}

/// Without pub/sub messages, hosts learn of an announcement by the heartbeat.
#[tokio::test]
async fn without_any_message_the_heartbeat_brings_it() {
    let Some(policies) = Policies::start().await else { return };
    let () = policies.redis.ask(&["ACL", "SETUSER", "default", "-subscribe"]);
    let hosts = policies.hosts().await;
    announce(&hosts[0], policies.push(named("v2")).await).await;
    serves(&hosts, "v2").await;
}

#[tokio::test]
async fn a_host_that_was_cut_off_catches_up() {
    let Some(policies) = Policies::start().await else { return };
    let proxy = Proxy::before(policies.redis.port());
    let cut_off = policies.host_with(&Own { redis: Some(proxy.url()), ..Own::default() });
    let hosts = [policies.host(), policies.host()];
    until("three", || async { fleet(&hosts[0]).await["hosts"].as_array().unwrap().len() == 3 }).await;
    proxy.set(Way::Cut);
    announce(&hosts[0], policies.push(named("v2")).await).await;
    // A host that was silent for five seconds is no longer waited for.
    serves(&hosts, "v2").await;
    assert_eq!(judge(&cut_off).await, "v1", "it goes on with what it has");
    until("it says so", || async { fleet(&cut_off).await["phase"] == "unreachable" }).await;
    let refused = act(&cut_off, "announce", Some(policies.push(named("v3")).await)).await;
    assert_eq!(refused.status(), "409", "{}", refused.text());
    assert!(refused.text().contains("shared state cannot be reached now"), "{}", refused.text());
    proxy.set(Way::Open);
    serves(&[cut_off], "v2").await;
}

#[tokio::test]
async fn a_late_joiner_starts_with_the_fleets_generation() {
    let Some(policies) = Policies::start().await else { return };
    let first = policies.host();
    announce(&first, policies.push(named("v2")).await).await;
    serves(std::slice::from_ref(&first), "v2").await;
    let late = policies.host();
    assert_eq!(judge(&late).await, "v2", "its first answer");
    let policy = late.get_json("/api/v1/policies/api").await;
    assert_eq!((&policy["serving"]["generation"], &policy["fleet"]["generation"]), (&1.into(), &1.into()), "{policy}");
    drop(first);
    let alone = policies.host();
    assert_eq!(judge(&alone).await, "v2", "also where no other host lives");
}

/// A host without store and registry starts with its configured policy, and catches up later.
#[tokio::test]
async fn a_host_without_store_and_registry_starts_with_its_own_policy() {
    let Some(policies) = Policies::start().await else { return };
    let redis = Proxy::before(policies.redis.port());
    let registry_port: u16 = policies.registry.address.rsplit(':').next().unwrap().parse().unwrap();
    let registry = Proxy::before(registry_port);
    let own = || Own {
        redis: Some(redis.url()),
        registry: Some(format!("127.0.0.1:{}", registry.port())),
        kept: Some(policies.folder.path().join("kept")),
        ..Own::default()
    };
    // The first start pulls the component into the folder.
    drop(policies.host_with(&own()));
    let other = policies.host();
    announce(&other, policies.push(named("v2")).await).await;
    serves(std::slice::from_ref(&other), "v2").await;
    registry.set(Way::Cut);
    let without_registry = policies.host_with(&own());
    assert_eq!(judge(&without_registry).await, "v1");
    let fleet_there = fleet(&without_registry).await;
    assert_eq!((&fleet_there["generation"], &fleet_there["behind"]), (&1.into(), &true.into()), "{fleet_there}");
    let behind = event_texts(&without_registry, "policy-behind").await;
    assert!(behind[0].starts_with("this host is behind: the fleet's generation 1 ("), "{behind:?}");
    redis.set(Way::Cut);
    let without_both = policies.host_with(&own());
    assert_eq!(judge(&without_both).await, "v1");
    registry.set(Way::Open);
    redis.set(Way::Open);
    serves(&[without_registry, without_both], "v2").await;
}

/// A bad component is refused to the operator who announces it; other hosts never see it.
#[tokio::test]
async fn a_bad_component_is_refused_at_once_and_no_host_switches() {
    let Some(policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    let head = include_str!("../vectors/http-standard.csv").lines().next().unwrap();
    let wrong = format!("{head}\nGET,/a,request,1,no,,,200,,,,,unknown,,,,,,doubt\n");
    let cases = policies.publish(named("v2"), None, Some(wrong)).await;
    let no_component = policies.push(b"\0asm\x01\0\0\0".to_vec()).await;
    let traps = policies.push(Guest::new().text(at::NAME, "v3").configure("unreachable").build()).await;
    for (what, digest, expected) in [
        ("wrong cases", cases, "refused the component at step cases: 1 of 1 cases differ"),
        ("a core module", no_component, "refused the component at step load: the file is a core WebAssembly module"),
        ("a trap in configure", traps, "refused the component at step load: the policy failed in `configure`"),
        ("not in the registry", Digest::of(b"none"), "refused the component at step pull: registry 127.0.0.1:"),
    ] {
        let got = act(&hosts[0], "announce", Some(digest)).await;
        assert_eq!(got.status(), "409", "{what}: {}", got.text());
        assert!(got.text().contains(expected) && got.text().contains("it is not announced"), "{what}: {}", got.text());
    }
    for body in ["", "{\"digest\": \"latest\"}", "{\"digest\": \"oci://evil.example/a\"}", "{\"digest\": 5}"] {
        let got = hosts[0].admin("POST", "/api/v1/policies/api/announce", "", body).await;
        assert_eq!(got.status(), "400", "{body}: {}", got.text());
    }
    for host in &hosts {
        assert_eq!(judge(host).await, "v1");
        assert_eq!(fleet(host).await["generation"], 0);
        assert_eq!(event_texts(host, "policy-announced").await, [""; 0]);
    }
}

/// If one host only accepts signed components, an unsigned one serves at no host.
#[tokio::test]
async fn one_host_that_refuses_ends_it_for_all() {
    let Some(policies) = Policies::start().await else { return };
    let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().unwrap();
    let sign = |bytes: &[u8]| minisign::sign(None, &sk, Cursor::new(bytes), None, None).unwrap().into_string();
    let signed = policies.publish(named("v1"), Some(sign(&named("v1"))), None).await;
    let keys = format!("keys = [{:?}]", pk.to_base64());
    let strict = policies.host_with(&Own { policies: &keys, configured: Some(signed), ..Own::default() });
    let hosts = [policies.host(), policies.host()];
    until("three", || async { fleet(&hosts[0]).await["hosts"].as_array().unwrap().len() == 3 }).await;
    announce(&hosts[0], policies.push(named("v2")).await).await;
    for host in hosts.iter().chain([&strict]) {
        until("the abort is reported", || async { event_texts(host, "policy-aborted").await.len() == 1 }).await;
        let aborted = event_texts(host, "policy-aborted").await;
        let by = fleet(&strict).await["host"].as_str().unwrap().to_owned();
        assert!(
            aborted[0].contains(&format!("host {by} refused it at step signature: the artifact is not signed")),
            "{aborted:?}"
        );
        assert_eq!((judge(host).await, &fleet(host).await["generation"]), ("v1".to_owned(), &0.into()));
        is_as_documented(host).await;
    }
    let v3 = policies.publish(named("v3"), Some(sign(&named("v3"))), None).await;
    announce(&hosts[1], v3).await;
    serves(&hosts, "v3").await;
    serves(&[strict], "v3").await;
}

/// A host that cannot reach the registry delays the others by at most half a minute. It reports the problem and catches up later.
#[tokio::test]
async fn a_host_that_cannot_reach_the_registry_is_left_behind() {
    let Some(policies) = Policies::start().await else { return };
    let port: u16 = policies.registry.address.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::before(port);
    let own = Own { registry: Some(format!("127.0.0.1:{}", proxy.port())), ..Own::default() };
    let cut_off = policies.host_with(&own);
    let hosts = [policies.host(), policies.host()];
    until("three", || async { fleet(&hosts[0]).await["hosts"].as_array().unwrap().len() == 3 }).await;
    proxy.set(Way::Cut);
    announce(&hosts[0], policies.push(named("v2")).await).await;
    until("the event is raised", || async { !event_texts(&cut_off, "policy-behind").await.is_empty() }).await;
    assert_eq!(fleet(&hosts[0]).await["phase"], "staging", "the others wait");
    is_as_documented(&hosts[0]).await;
    assert_eq!(judge(&hosts[0]).await, "v1");
    serves(&hosts, "v2").await;
    until("it is behind", || async { fleet(&cut_off).await["behind"] == true }).await;
    assert_eq!(judge(&cut_off).await, "v1");
    let metrics = cut_off.admin("GET", "/metrics", "", "").await.text();
    assert!(metrics.contains("triage_policy_fleet_behind{upstream=\"api\"} 1.0"), "{metrics}");
    let name = fleet(&cut_off).await["host"].clone();
    until("the others know which one", || async {
        let seen = fleet(&hosts[0]).await;
        let hosts = seen["hosts"].as_array().unwrap();
        let behind: Vec<&Value> = hosts.iter().filter(|host| host["behind"] == true).collect();
        behind.len() == 1 && behind[0]["name"] == name
    })
    .await;
    proxy.set(Way::Open);
    serves(&[cut_off], "v2").await;
}

/// Only one announced component is pulled at a time, even if its caller disconnects.
#[tokio::test]
async fn an_announcement_whose_caller_left_blocks_others_until_its_pull_ends() {
    let Some(policies) = Policies::start().await else { return };
    let port: u16 = policies.registry.address.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::before(port);
    let host = policies.host_with(&Own { registry: Some(format!("127.0.0.1:{}", proxy.port())), ..Own::default() });
    let next = policies.push(named("v2")).await;
    proxy.set(Way::BlackHole);
    let refused = |text: String| text.contains("another announcement is under way");
    // The first caller disconnects before the response.
    let hasty = || tokio::time::timeout(Duration::from_millis(300), act(&host, "announce", Some(next)));
    assert!(hasty().await.is_err(), "its component cannot have come");
    until("its caller has left, and it goes on", || async { hasty().await.is_ok_and(|got| refused(got.text())) }).await;
    proxy.set(Way::Cut);
    until("it has ended", || async { !refused(act(&host, "announce", Some(next)).await.text()) }).await;
    proxy.set(Way::Open);
    until("it is taken", || async { act(&host, "announce", Some(next)).await.status() == "200" }).await;
    serves(&[host], "v2").await;
}

#[tokio::test]
async fn an_operator_rolls_the_whole_fleet_back() {
    let Some(policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    let next = policies.push(named("v2")).await;
    announce(&hosts[0], next).await;
    serves(&hosts, "v2").await;
    let back = act(&hosts[2], "rollback", None).await;
    assert_eq!(back.status(), "200", "{}", back.text());
    serves(&hosts, "v1").await;
    let fleet = fleet(&hosts[0]).await;
    assert_eq!((&fleet["generation"], &fleet["why"]), (&2.into(), &"operator".into()), "{fleet}");
    assert_eq!(fleet["quarantined"][0], next.to_string());
    let none = act(&hosts[1], "rollback", None).await;
    assert!(none.text().contains("the fleet has no earlier generation"), "{}", none.text());
    let again = act(&hosts[0], "announce", Some(next)).await;
    assert_eq!(again.status(), "409", "{}", again.text());
    assert!(again.text().contains("this component was rolled back before"), "{}", again.text());
    let promoted = act(&hosts[0], "promote", Some(next)).await;
    assert_eq!(promoted.status(), "200", "{}", promoted.text());
    serves(&hosts, "v2").await;
}

/// The host that sees the failure rolls back at once; the others follow without seeing it.
#[tokio::test]
async fn a_policy_that_fails_at_one_host_is_rolled_back_at_all() {
    let Some(policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    let bad = policies.push(trapping("bad")).await;
    announce(&hosts[0], bad).await;
    for host in &hosts {
        until("it serves", || async { fleet(host).await["generation"] == 1 && fleet(host).await["behind"] == false })
            .await;
    }
    // Only one host has traffic.
    serves(&hosts[1..2], "v1").await;
    for host in &hosts {
        until("it is gone", || async { fleet(host).await["generation"] == 2 && fleet(host).await["behind"] == false })
            .await;
        assert_eq!(judge(host).await, "v1");
        assert_eq!(fleet(host).await["quarantined"][0], bad.to_string());
        let texts = event_texts(host, "policy-switched").await;
        assert!(texts.last().unwrap().contains("the previous generation failed at "), "{texts:?}");
    }
    // After a promotion it fails and is rolled back again.
    let promoted = act(&hosts[1], "promote", Some(bad)).await;
    assert_eq!(promoted.status(), "200", "{}", promoted.text());
    until("it is back", || async { fleet(&hosts[1]).await["generation"] == 3 }).await;
    until("and gone", || async {
        judge(&hosts[1]).await;
        fleet(&hosts[1]).await["generation"] == 4
    })
    .await;
    serves(&hosts, "v1").await;
}

/// After the server has lost its data, hosts keep their policy, and the next generation continues the numbering.
#[tokio::test]
async fn a_server_that_lost_its_data_moves_no_host_back() {
    let Some(mut policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    announce(&hosts[0], policies.push(named("v2")).await).await;
    serves(&hosts, "v2").await;
    policies.redis.restart();
    assert_eq!(judge(&hosts[0]).await, "v2", "nothing changes while it is away");
    until("it is written back", || async {
        policies.redis.ask::<Option<String>>(&["HGET", "triage:{policy-api}:agreement", "ge"]).as_deref() == Some("1")
    })
    .await;
    for host in &hosts {
        until("they know each other again", || async {
            let fleet = fleet(host).await;
            fleet["phase"] == "agreed" && fleet["hosts"].as_array().unwrap().len() == 3
        })
        .await;
        assert_eq!((judge(host).await, &fleet(host).await["generation"]), ("v2".to_owned(), &1.into()));
    }
    announce(&hosts[1], policies.push(named("v3")).await).await;
    serves(&hosts, "v3").await;
    assert_eq!(fleet(&hosts[2]).await["generation"], 2);
}

/// No host runs while the server loses its data. A host remembers at its start what it knew at its end.
#[tokio::test]
async fn a_fleet_that_ended_as_a_whole_begins_where_it_was() {
    let Some(mut policies) = Policies::start().await else { return };
    let kept = policies.folder.path().join("kept");
    let own = || Own { kept: Some(kept.clone()), ..Own::default() };
    let first = policies.host_with(&own());
    announce(&first, policies.push(named("v2")).await).await;
    serves(std::slice::from_ref(&first), "v2").await;
    drop(first);
    policies.redis.restart();
    let again = policies.host_with(&own());
    assert_eq!(judge(&again).await, "v2", "its first answer");
    assert_eq!(policies.redis.ask::<String>(&["HGET", "triage:{policy-api}:agreement", "ge"]), "1");
    drop(again);
    policies.redis.kill();
    let alone = policies.host_with(&own());
    assert_eq!(judge(&alone).await, "v2", "also where the server cannot be reached");
    assert_eq!(fleet(&alone).await["phase"], "unreachable");
    let behind = event_texts(&alone, "policy-behind").await;
    assert!(behind[0].starts_with("this host starts without shared state"), "{behind:?}");
}

/// Invalid data in shared state neither changes nor breaks a host.
#[tokio::test]
async fn hosts_ignore_and_report_invalid_data_in_shared_state() {
    let Some(policies) = Policies::start().await else { return };
    let hosts = policies.hosts().await;
    let next = policies.push(named("v2")).await;
    announce(&hosts[0], next).await;
    serves(&hosts, "v2").await;
    let key = "triage:{policy-api}:agreement";
    let huge = "9".repeat(1 << 20);
    for (field, value) in
        [("ch", "garbage"), ("ch", "oci://evil.example/a"), ("ge", "-7"), ("ge", "99999999999999999999"), ("qu", &huge)]
    {
        let before = flaws(&hosts).await;
        let () = policies.redis.ask(&["HSET", key, field, value]);
        until("the event is raised", || async { flaws(&hosts).await > before }).await;
        let kept: Vec<String> = policies.redis.ask(&["HMGET", key, "ge", "ch"]);
        assert_eq!(kept, ["1".to_owned(), next.to_string()], "{field}");
    }
    let () = policies.redis.ask(&["DEL", key]);
    let () = policies.redis.ask(&["SET", key, "a string"]);
    // An unknown digest: hosts keep their policy and report that they are behind.
    let nobodys = Digest::of(b"nobody's").to_string();
    until("it is ours again", || async { policies.redis.ask::<String>(&["TYPE", key]) == "hash" }).await;
    let () = policies.redis.ask(&["HSET", key, "ch", &nobodys]);
    for host in &hosts {
        until("it is behind", || async { fleet(host).await["behind"] == true }).await;
        assert_eq!(judge(host).await, "v2");
    }
    announce(&hosts[0], policies.push(named("v3")).await).await;
    serves(&hosts, "v3").await;
}

/// Checks that the admin listener's response matches the schema in its document.
async fn is_as_documented(host: &Front) {
    let document: Value = serde_json::from_str(triage_admin::openapi()).unwrap();
    let schema = serde_json::json!({ "$ref": "#/components/schemas/Policy" });
    conforms(&document, &schema, &host.get_json("/api/v1/policies/api").await, "policies/api");
}

async fn flaws(hosts: &[Front]) -> usize {
    let mut all = 0;
    for host in hosts {
        all += event_texts(host, "policy-flawed").await.len();
    }
    all
}

#[test]
fn follow_fleet_needs_shared_state_and_a_registry() {
    let problems = |state: &str, policy: &str| {
        let text = format!(
            "[state]\nurl = \"{state}\"\n[upstreams.a]\nbase_url = \"http://a.example\"\npolicy = \"{policy}\"\nfollow_fleet = true\n"
        );
        config::from_toml(&text).map(drop).map_err(|problems| problems.to_string())
    };
    let oci = format!("oci://registry.example/a@sha256:{}", "0".repeat(64));
    assert_eq!(problems("redis://127.0.0.1:1", &oci), Ok(()));
    let memory = problems("memory:", &oci).unwrap_err();
    assert!(memory.contains("upstreams.a.follow_fleet") && memory.contains("state.url is \"memory:\""), "{memory}");
    let embedded = problems("redis://127.0.0.1:1", "fhir").unwrap_err();
    assert!(embedded.contains("the components of a fleet must be in a registry"), "{embedded}");
}
