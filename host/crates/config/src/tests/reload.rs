//! Which values SIGHUP takes from a changed file.

use super::*;
use crate::schema::KEYS;

fn settings(text: &str) -> Settings {
    from_toml(text).unwrap_or_else(|problems| panic!("{problems}"))
}

const FILE: &str = "[server]\nlisten = \"127.0.0.1:9090\"\nworkers = 2\ndrain = \"5s\"\n\
    [upstreams.a]\nbase_url = \"http://a.example\"\n[upstreams.a.defaults]\ndeadline = \"20s\"\n\
    [upstreams.a.endpoints.report]\nmethod = \"GET\"\npath = \"/report\"\n";

#[test]
fn nothing_changed_changes_nothing() {
    let old = settings(FILE);
    let same = reload(&old, &settings(FILE)).unwrap();
    assert_eq!((same.settings, same.changed.len(), same.waiting.len()), (old, 0, 0));
}

#[test]
fn a_reload_applies_reloadable_keys_and_the_others_wait() {
    let old = settings(FILE);
    let text = FILE
        .replace("drain = \"5s\"", "drain = \"9s\"")
        .replace("workers = 2", "workers = 3")
        .replace("a.example", "b.example")
        .replace("deadline = \"20s\"", "deadline = \"170s\"\nbreaker = { open_for = \"3s\" }")
        .replace("path = \"/report\"", "path = \"/reports\"\nconcurrency = 3")
        + "[upstreams.late]\nbase_url = \"http://late.example\"\npath_prefix = \"/late\"\n";
    let Reload { settings, changed, waiting } = reload(&old, &self::settings(&text)).unwrap();
    assert_eq!(
        changed,
        [
            "server.drain",
            "upstreams.a.defaults.deadline",
            "upstreams.a.defaults.breaker.open_for",
            "upstreams.a.endpoints.report.concurrency",
            "upstreams.a.endpoints.report.path",
        ]
    );
    assert_eq!(waiting, ["server.workers", "upstreams.a.base_url", "upstreams.late"]);
    assert_eq!((settings.server.drain, settings.server.workers), (Duration::from_secs(9), 2));
    assert_eq!(settings.upstreams[0].connection, old.upstreams[0].connection);
    assert_eq!(settings.upstreams[0].idempotency.lock, Duration::from_secs(200), "it grows with the deadline");
    assert_eq!(show(&settings, &[]).matches("\"http://a.example/\"").count(), 1, "{}", show(&settings, &[]));
}

#[test]
fn a_reload_opens_no_listener_that_neither_configuration_would() {
    let public =
        "[admin]\nlisten = \"0.0.0.0:9464\"\nread_token_file = \"t\"\n[upstreams.a]\nbase_url = \"http://a.example\"\n";
    let local = "[upstreams.a]\nbase_url = \"http://a.example\"\n";
    let problems = reload(&settings(public), &settings(local)).unwrap_err().to_string();
    assert!(problems.starts_with("admin.listen: got \"0.0.0.0:9464\", but no token is set"), "{problems}");
}

#[test]
fn every_key_that_is_said_to_be_reloaded_is_a_key() {
    let reloaded = KEYS
        .iter()
        .filter(|key| key.is_reloaded() && matches!(key.scope, schema::Scope::Host | schema::Scope::Upstream));
    assert_eq!(reloaded.count(), schema::RELOADED.len());
}

#[test]
fn a_certificate_without_its_key_is_a_problem() {
    let text = format!("[server]\ntls = {{ certificate = \"own.pem\" }}\n{LEAST}");
    let problems = from_toml(&text).unwrap_err().to_string();
    assert!(
        problems.contains("server.tls.certificate: got \"own.pem\", but server.tls.key is not given"),
        "{problems}"
    );
}
