//! Checks the shipped service files against the host, and with the tools that run them.
//!
//! A check is skipped if its tool is not available. `.ci/run` installs them.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use triage_config as config;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn shipped(name: &str) -> String {
    read(&folder().join(name))
}

fn seconds(text: &str, before: &str) -> u64 {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before} in {text}"));
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// The kinds of the objects in manifests.
fn kinds(manifests: &str) -> BTreeSet<&str> {
    manifests.lines().filter_map(|line| line.strip_prefix("kind: ")).collect()
}

/// Kustomize's result for a folder of manifests; none without a `kubectl` that can render it.
fn rendered(name: &str) -> Option<String> {
    let rendered = Command::new("kubectl").arg("kustomize").arg(folder().join("kubernetes").join(name)).output();
    match rendered {
        Ok(rendered) if rendered.status.success() => Some(String::from_utf8(rendered.stdout).unwrap()),
        Ok(rendered) if is_recent_kubectl() => panic!("{name}: {}", String::from_utf8_lossy(&rendered.stderr)),
        _ => {
            println!("skipped: no kubectl from 1.21 on is here to render kubernetes/{name}");
            None
        }
    }
}

/// Whether `kubectl` knows the present format of Kustomize: Debian's package does not.
fn is_recent_kubectl() -> bool {
    let version = Command::new("kubectl").args(["version", "--client", "--output=json"]).output();
    let minor = version.ok().and_then(|version| {
        let version: serde_json::Value = serde_json::from_slice(&version.stdout).ok()?;
        let digits = version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').to_owned();
        digits.parse::<u32>().ok()
    });
    minor.is_some_and(|minor| minor >= 21)
}

/// What the schemas refuse in manifests: an empty text if they hold, none if the check is not available.
fn refused(manifests: &str) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/check-manifests");
    let checking = Command::new("manifest-python").arg(script).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut checking) = checking else {
        println!("skipped: manifest-python is not here to check manifests; .ci/run installs it");
        return None;
    };
    checking.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    let checked = checking.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.success(), message.is_empty(), "{message}");
    Some(message)
}

/// The lines of the alert rules that begin so, without the beginning and quotes.
fn of_rules<'a>(rules: &'a str, begin: &str) -> Vec<&'a str> {
    let lines = rules.lines().filter_map(|line| line.trim_start().strip_prefix(begin));
    lines.map(|rest| rest.trim_matches('\'')).collect()
}

#[test]
fn each_alert_leads_to_its_section_of_the_book() {
    let rules = shipped("prometheus-rules.yml");
    let alerts = of_rules(&rules, "- alert: ");
    let links: Vec<String> = alerts
        .iter()
        .map(|name| format!("https://triage-book.example/operation/alerts.html#{}", name.to_lowercase()))
        .collect();
    assert_eq!(of_rules(&rules, "runbook_url: "), links);
    let page = shipped("../docs/src/operation/alerts.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, alerts, "left: the sections of the page; right: the alerts, in their order");
    assert!(alerts.len() >= 17);
}

/// The assignments of a unit's `Environment=` lines.
fn environment(unit: &str) -> Vec<(String, String)> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let assignments = lines.flat_map(str::split_whitespace).map(|word| word.split_once('=').unwrap());
    assignments.map(|(name, value)| (name.to_owned(), value.replace("%d", "/run/credentials/triage.service"))).collect()
}

/// The credentials of a unit.
fn credentials(unit: &str) -> BTreeSet<&str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("LoadCredential="));
    lines.map(|line| line.split(':').next().unwrap()).collect()
}

#[test]
fn the_manifests_have_their_parts_and_a_configuration_that_holds() {
    let text = shipped("kubernetes/base/triage.yaml");
    assert!(!text.contains('\t'), "YAML knows no tabs");
    let wanted = ["ConfigMap", "Deployment", "Namespace", "PodDisruptionBudget", "Service"];
    assert_eq!(kinds(&text), BTreeSet::from(wanted));
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
    // The network policy lets the pod out to the upstream of the configuration, and nowhere else but to DNS.
    let policy = shipped("kubernetes/base/network-policy.yaml");
    let upstream = toml.lines().find_map(|line| line.strip_prefix("base_url = ")).unwrap().trim_matches('"');
    let (host, port) = upstream.strip_prefix("http://").unwrap().split_once(':').unwrap();
    let egress = policy.split("  egress:\n").nth(1).unwrap();
    let namespace = format!("kubernetes.io/metadata.name: {}", host.split('.').nth(1).unwrap());
    assert!(egress.contains(&namespace) && egress.contains(&format!("port: {port}\n")), "{upstream}: {egress}");
    assert_eq!(egress.matches("- to:").count(), 2, "{egress}");
}

/// Kubernetes sets `TRIAGE_SERVICE_HOST` and more for a Service of this name, unless the pod says no.
#[test]
fn no_pod_gets_variables_that_the_host_refuses() {
    let refused = loaded(vec![("TRIAGE_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())]).unwrap_err();
    assert!(refused.to_string().contains("TRIAGE_SERVICE_HOST"), "{refused}");
    assert!(shipped("kubernetes/base/triage.yaml").contains("      enableServiceLinks: false\n"));
}

#[test]
fn schemas_take_what_kustomize_renders() {
    let beside = ["kubernetes/secret.yaml", "kubernetes/fleet/secret.yaml", "kubernetes/pod-monitor.yaml"];
    let mut all: Vec<(String, String)> = beside.iter().map(|name| ((*name).to_owned(), shipped(name))).collect();
    all.extend(["base", "fleet"].into_iter().filter_map(|name| Some((name.to_owned(), rendered(name)?))));
    for (name, manifests) in &all {
        assert_eq!(refused(manifests).unwrap_or_default(), "", "{name}");
    }
    // A tripwire: a field of a wrong name is found, in an object of Kubernetes and in one of the Prometheus Operator.
    for (right, wrong) in [("stringData", "stringDate"), ("credentials", "credentialz")] {
        let (_, manifests) = all.iter().find(|(_, manifests)| manifests.contains(right)).unwrap();
        let Some(found) = refused(&manifests.replace(right, wrong)) else { return };
        assert!(found.contains(wrong), "{wrong}: {found}");
    }
}

#[test]
fn the_fleet_shares_state_in_its_redis() {
    let Some(fleet) = rendered("fleet") else { return };
    let wanted =
        ["ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"];
    assert_eq!(kinds(&fleet), BTreeSet::from(wanted));
    let deployment = fleet.split("---\n").find(|part| part.contains("kind: Deployment")).unwrap();
    assert_eq!(seconds(deployment, "replicas:"), 3);
    // Its variables, as the host reads them.
    let mut lines = deployment.lines().map(|line| line.trim_start().trim_start_matches("- "));
    let mut environment = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("name: ").filter(|name| name.starts_with("TRIAGE_")) {
            environment.push((name.to_owned(), lines.next().unwrap().strip_prefix("value: ").unwrap().to_owned()));
        }
    }
    assert_eq!(environment.len(), 3, "{environment:?}");
    loaded(environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(fleet.contains("maxmemory-policy noeviction") && fleet.contains("appendonly yes"));
}

/// A small configuration with these variables.
fn loaded(environment: Vec<(String, String)>) -> Result<config::Loaded, config::Problems> {
    let toml = "[upstreams.a]\nbase_url = \"http://a.example\"\n".to_owned();
    let file = Some(("triage.toml".to_owned(), toml));
    config::load(&config::Inputs { file, environment, ..config::Inputs::default() })
}

#[test]
fn the_units_give_the_host_its_secrets() {
    let (service, fleet) = (shipped("triage.service"), shipped("triage-fleet.conf"));
    for (name, unit) in [("triage.service", service.clone()), ("triage-fleet.conf", format!("{service}{fleet}"))] {
        let environment = environment(&unit);
        let files = environment.iter().filter(|(variable, _)| variable.ends_with("_FILE"));
        let named: BTreeSet<&str> = files.map(|(_, file)| file.rsplit('/').next().unwrap()).collect();
        assert_eq!(
            named,
            credentials(&unit),
            "{name}: left: files that variables name; right: credentials that are loaded"
        );
        let ours = environment.into_iter().filter(|(variable, _)| variable.starts_with("TRIAGE_")).collect();
        loaded(ours).unwrap_or_else(|problems| panic!("{name}: {problems}"));
    }
}

#[test]
fn the_units_hold_and_wait_for_the_drain() {
    let (service, socket) = (shipped("triage.service"), shipped("triage.socket"));
    let settings = config::for_upstream("http://a.example", "http-standard").unwrap();
    assert!(seconds(&service, "TimeoutStopSec") > settings.server.drain.as_secs());
    assert!(socket.contains(&format!("ListenStream={}", settings.server.listen)));
    assert!(!service.lines().any(|line| line.starts_with("MemoryDenyWriteExecute")), "no policy would load");
    let folder = tempfile::tempdir().unwrap();
    let there = service.replace("/usr/local/bin/triage", env!("CARGO_BIN_EXE_triage"));
    fs::write(folder.path().join("triage.service"), there).unwrap();
    fs::write(folder.path().join("triage.socket"), socket).unwrap();
    fs::create_dir(folder.path().join("triage.service.d")).unwrap();
    fs::write(folder.path().join("triage.service.d/fleet.conf"), shipped("triage-fleet.conf")).unwrap();
    let analyze =
        |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).current_dir(folder.path()).output();
    let verified = match analyze(&["verify", "--man=no", "./triage.service", "./triage.socket"]) {
        Ok(verified) => verified,
        Err(error) => return println!("skipped: systemd-analyze does not run here ({error})"),
    };
    let message = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !message.contains("triage."), "{message}");
    // 2.0 of 10 at most. The unit has 1.4 in systemd 252; other versions weigh a little differently.
    let rated = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager", "./triage.service"]).unwrap();
    let message = String::from_utf8_lossy(&rated.stdout).into_owned() + &String::from_utf8_lossy(&rated.stderr);
    if message.contains("unrecognized option") {
        return println!("skipped: this systemd-analyze cannot rate a unit that is not installed");
    }
    assert!(rated.status.success() && message.contains("exposure level"), "{message}");
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

/// Whether `.dockerignore` leaves a path out of the build's context. The last pattern that fits decides.
fn is_left_out(patterns: &[&str], path: &str) -> bool {
    let mut left_out = false;
    for pattern in patterns {
        let (pattern, keeps) = pattern.strip_prefix('!').map_or((*pattern, false), |kept| (kept, true));
        let hit = match pattern.strip_prefix("**/") {
            Some(name) => path.split('/').any(|part| is_like(part, name)),
            None if pattern == "*" => true,
            None => path == pattern || path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/')),
        };
        if hit {
            left_out = !keeps;
        }
    }
    left_out
}

/// Whether a name is like a pattern with stars.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else { return false };
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| is_like(&rest[at..], after))
        }
    }
}

/// Files below a folder that the repository has, without build results.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true if matches!(name.as_str(), "target" | "node_modules" | "__pycache__" | "fuzz") => {}
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// The context of the image's build has each file that a source includes, and no secret.
#[test]
fn the_images_context_has_what_the_build_reads() {
    let root = fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let text = read(&root.join(".dockerignore"));
    let patterns: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let mut sources = Vec::new();
    for part in ["src", "crates"] {
        files(&root.join("host").join(part), &mut sources);
    }
    let mut included = 0;
    for source in sources.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let within = source.strip_prefix(&root).unwrap().to_str().unwrap();
        assert!(!is_left_out(&patterns, within), "{within}");
        let text = read(source);
        for macro_name in ["include_str!(\"", "include_bytes!(\""] {
            for rest in text.split(macro_name).skip(1) {
                let target = source.parent().unwrap().join(rest.split('"').next().unwrap());
                let Ok(target) = fs::canonicalize(&target) else { continue };
                let target = target.strip_prefix(&root).unwrap().to_str().unwrap();
                assert!(!is_left_out(&patterns, target), "{target}, which {within} includes");
                included += 1;
            }
        }
    }
    assert!(included > 20, "{included}");
    for kept in ["Cargo.toml", "Cargo.lock", "host/Cargo.toml", "wit/types.wit"] {
        assert!(root.join(kept).exists() && !is_left_out(&patterns, kept), "{kept}");
    }
    for secret in [
        ".git/config",
        "target/debug/triage",
        "host/target/x",
        "host/deploy/tls/server.key",
        "host/ca.pem",
        "host/.env",
        "notes.txt",
    ] {
        assert!(is_left_out(&patterns, secret), "{secret}");
    }
}
