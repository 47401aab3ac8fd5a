//! Checks the shipped service files against the host.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};
use triage_config as config;

fn shipped(name: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn seconds(text: &str, before: &str) -> u64 {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before} in {text}"));
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn the_manifests_have_their_parts_and_a_configuration_that_holds() {
    let text = shipped("kubernetes/triage.yaml");
    assert!(!text.contains('\t'), "YAML knows no tabs");
    let kinds: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    let wanted = ["ConfigMap", "Deployment", "Namespace", "PodDisruptionBudget", "Service"];
    assert_eq!(kinds, BTreeSet::from(wanted));
    for part in [
        "path: /readyz",
        "path: /healthz",
        "startupProbe:",
        "readinessProbe:",
        "livenessProbe:",
        "name: triage-policies",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let block = text.split("  triage.toml: |\n").nth(1).unwrap();
    let toml: String =
        block.lines().take_while(|line| line.starts_with("    ")).flat_map(|line| [line.trim_start(), "\n"]).collect();
    let settings = config::from_toml(&toml).unwrap_or_else(|problems| panic!("{problems}"));
    let least = (settings.server.drain + settings.server.shutdown_delay).as_secs();
    assert!(seconds(&text, "terminationGracePeriodSeconds") > least, "the pod would be killed in its drain");
    assert!(text.contains(&format!("containerPort: {}", settings.server.listen.port())));
}

#[test]
fn the_units_hold_and_wait_for_the_drain() {
    let (service, socket) = (shipped("triage.service"), shipped("triage.socket"));
    let settings = config::for_upstream("http://a.example", "http-standard").unwrap();
    assert!(seconds(&service, "TimeoutStopSec") > settings.server.drain.as_secs());
    assert!(socket.contains(&format!("ListenStream={}", settings.server.listen)));
    let folder = tempfile::tempdir().unwrap();
    let there = service.replace("/usr/local/bin/triage", env!("CARGO_BIN_EXE_triage"));
    fs::write(folder.path().join("triage.service"), there).unwrap();
    fs::write(folder.path().join("triage.socket"), socket).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "./triage.service", "./triage.socket"])
        .current_dir(folder.path())
        .output();
    match verified {
        Ok(verified) => {
            let told = String::from_utf8_lossy(&verified.stderr).into_owned();
            assert!(verified.status.success() && !told.contains("triage."), "{told}");
        }
        Err(error) => println!("skipped: systemd-analyze does not run here ({error})"),
    }
}

#[test]
fn the_container_runs_what_is_built() {
    let text = shipped("Containerfile");
    let rust = include_str!("../Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(
        text.contains(&format!("rust:{}-", rust.trim_matches('"'))),
        "the image's Rust is the one that the crate asks for"
    );
    assert!(text.contains("--locked --bin triage") && text.contains("nonroot"), "{text}");
}
