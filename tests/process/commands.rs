//! Other commands than `serve`.

use super::child::{Triage, run, triage};
use std::path::Path;

/// The line of `config show` for this key.
fn shown(ended: &super::child::Ended, key: &str) -> String {
    let line = ended.out.lines().find(|line| line.starts_with(&format!("{key} =")));
    let line = line.unwrap_or_else(|| panic!("{key} is not shown: {ended:?}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_environment_goes_over_the_file_and_flags_over_both() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[server]\ndrain = \"1s\"\nlisten = \"127.0.0.1:1\"\nworkers = 1\n[upstreams.a]\nbase_url = \"http://a.example\"\n";
    std::fs::write(folder.path().join("triage.toml"), text).unwrap();
    let mut command = triage(&["config", "show", "--config", "triage.toml", "--listen", "127.0.0.1:3"]);
    command.current_dir(folder.path()).envs([("TRIAGE_LISTEN", "127.0.0.1:2"), ("TRIAGE_WORKERS", "2")]);
    let ended = Triage::start(&mut command).ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(shown(&ended, "server.drain"), "server.drain = \"1s\" # file triage.toml:2");
    assert_eq!(shown(&ended, "server.workers"), "server.workers = 2 # env TRIAGE_WORKERS");
    assert_eq!(shown(&ended, "server.listen"), "server.listen = \"127.0.0.1:3\" # flag --listen");
}

#[test]
fn config_check_says_what_holds() {
    let ended = run(&["config", "check", "--upstream", "http://a.example", "--policy", "fhir"]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.out, "the configuration holds: default at http://a.example/\n");
}

#[test]
fn a_file_that_is_not_there_is_the_operators_problem() {
    let ended = run(&["config", "check", "--config", "gone.toml"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    let message = "the configuration has 1 problem:\n  --config: gone.toml cannot be read: ";
    assert!(ended.err.starts_with(message) && ended.err.ends_with("(flag --config)\n"), "{ended:?}");
}

#[test]
fn the_demo_ends_with_its_sums() {
    let ended = run(&["demo", "--no-pause"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let sums = ended.out.split("\nIn total\n").nth(1).unwrap_or_else(|| panic!("no sums in {ended:?}"));
    let sum = |name: &str| {
        let line = sums.lines().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name:?} in {sums}")).trim().to_owned()
    };
    assert_eq!([sum("requested rows"), sum("created hospitals"), sum("duplicates")], ["21", "21", "0"], "{sums}");
    assert_eq!(sum("requests sent while it was open"), "0", "{sums}");
    assert!(sum("attempts to create").parse::<u32>().unwrap() >= 21, "{sums}");
    assert!(sum("time").ends_with(" s"), "{sums}");
    assert!(!ended.err.contains('\u{1b}') && !ended.out.contains('\u{1b}'), "colours where no terminal is: {ended:?}");
}

#[test]
fn policy_build_without_a_toolchain_says_what_to_install() {
    // Debian's compiler finds a system-wide WebAssembly linker even without PATH.
    if ["/usr/bin/wasm-ld", "/usr/bin/rust-lld"].iter().any(|linker| Path::new(linker).exists()) {
        return;
    }
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-policies/http-standard");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.wasm");
    let mut command = triage(&["policy", "build", policy, "--out", out.to_str().unwrap()]);
    let ended = Triage::start(command.env("PATH", "")).ended();
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{ended:?}");
    assert_eq!(
        ended.err,
        "triage: no standard library for wasm32-unknown-unknown was found; install one: `rustup target add \
         wasm32-unknown-unknown`, or on Debian `apt-get install rustc-web cargo-web rust-web-src` (with rustup's toolchain for \
         its linker)\n"
    );
    assert!(!out.exists());
}

#[test]
fn policy_build_refuses_a_folder_without_a_project_before_it_needs_a_toolchain() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(&["policy", "build", folder.path().to_str().unwrap()]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.ends_with(" contains no Cargo.toml, package.json or pyproject.toml; name the folder of a policy\n"),
        "{ended:?}"
    );
}

#[test]
fn a_fault_that_is_none_is_refused() {
    let ended = run(&["emulator", "--fault", "create=explode"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.err.contains("\"explode\" is not a fault"), "{ended:?}");
}

/// Runs the commands of the book's page on policies, and checks the response that they change.
#[test]
fn a_new_policy_is_built_tested_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let within = |arguments: &[&str]| {
        let mut command = triage(arguments);
        command.current_dir(folder.path());
        let ended = Triage::start(&mut command).ended();
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended.out
    };
    let message = within(&["policy", "new", "parcels"]);
    assert!(message.contains("triage policy build parcels\n  triage policy test parcels/parcels.wasm\n"), "{message}");
    within(&["policy", "build", "parcels"]);
    let passed = "11 cases pass, and the host would follow each verdict\n";
    assert_eq!(within(&["policy", "test", "parcels/parcels.wasm"]), passed);
    let inspected = within(&["policy", "inspect", "parcels/parcels.wasm"]);
    let last = "  any: * /{*rest} (reads response headers retry-after, retry-after-ms, x-ms-retry-after-ms, \
                x-should-retry, stripe-should-retry, 200 bytes of the response)\n";
    assert!(inspected.starts_with("parcels 0.1.0  ") && inspected.ends_with(last), "{inspected}");
    let component = folder.path().join("parcels/parcels.wasm");
    // The same sources in another folder give the same bytes, although both policies share a target folder.
    let copied = std::process::Command::new("cp").args(["-r", "parcels", "copy"]).current_dir(folder.path()).status();
    assert!(copied.unwrap().success());
    std::fs::remove_file(folder.path().join("copy/parcels.wasm")).unwrap();
    within(&["policy", "build", "copy"]);
    assert!(
        std::fs::read(&component).unwrap() == std::fs::read(folder.path().join("copy/parcels.wasm")).unwrap(),
        "two digests of the same sources"
    );
    let upstream = "http://127.0.0.1:9";
    let (_host, address) = Triage::serve(&["--upstream", upstream, "--policy", component.to_str().unwrap()]);
    let answer = super::child::get(address, "/a");
    assert!(answer.contains("triage-policy: parcels;digest="), "{answer}");
}

#[test]
fn policy_test_reports_a_case_that_differs_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let component = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/prebuilt/http-standard.wasm");
    let head = include_str!("../vectors/http-standard.csv").lines().next().unwrap();
    let cases = folder.path().join("wrong.csv");
    std::fs::write(&cases, format!("{head}\nGET,/a,request,1,no,,,200,,,,,unknown,,,,,,doubt\n")).unwrap();
    let ended = run(&["policy", "test", component.to_str().unwrap(), "--cases", cases.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("wrong.csv:2: GET /a 200 (doubt): class \"applied\", not \"unknown\""), "{ended:?}");
}

/// The verdict is as the case has it, but the host would not repeat the write.
#[test]
fn policy_test_reports_a_verdict_that_the_host_would_not_follow() {
    let folder = tempfile::tempdir().unwrap();
    let component = crate::support::stage::prebuilt("liar");
    let cases = folder.path().join("a.csv");
    let test = |rows: &str, more: &[&str]| {
        std::fs::write(&cases, format!("method,path,condition,class,next,clamped,note\n{rows}")).unwrap();
        let all = ["policy", "test", component.to_str().unwrap(), "--cases", cases.to_str().unwrap()];
        run(&[&all[..], more].concat())
    };
    let ended = test("POST,/a,500,not-applied,retry,,again\n", &[]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{ended:?}");
    let told = format!(
        "triage: 1 of 1 cases differ:\n{}:2: POST /a 500 (again): the host would not follow this: effect: the write may have been \
         applied, and nothing proves that it was not; instead the caller gets the upstream's answer, and the effect counts as unknown\n",
        cases.display()
    );
    assert_eq!(ended.err, told);
    let expected = test("POST,/a,500,not-applied,retry,effect,again\n", &[]);
    assert_eq!(expected.code, Some(0), "{expected:?}");
    let trusted = test("POST,/a,500,not-applied,retry,effect,again\n", &["--settle"]);
    assert!(
        trusted.err.contains("clamped \"no\", not \"effect\": the host would follow this, and it sends"),
        "{trusted:?}"
    );
    let empty = test("", &[]);
    assert_eq!(empty.code, Some(1), "{empty:?}");
    assert!(empty.err.ends_with("a.csv:1: there is no case: each line below the header is one\n"), "{empty:?}");
}

#[test]
fn policy_check_finds_what_repeats_a_write_without_proof_and_what_fails() {
    let check = |name: &str, more: &[&str]| {
        let component = crate::support::stage::prebuilt(name).display().to_string();
        run(&[&["policy", "check", &component], more].concat())
    };
    let good = check("http-standard", &[]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(
        good.out.ends_with("no verdict frees a key or repeats a write without proof, and no decision fails\n"),
        "{good:?}"
    );
    let liar = check("liar", &[]);
    assert_eq!(liar.code, Some(1), "{liar:?}");
    let repeats = "\nwith `settle = true` the host would repeat a write without proof that it was not applied:\n  any, unsafe: \
                   200-306, 309-399, 408, 460, 499-500, 502-504, 506-510, 512-599, send+sent, reset+sent, timeout+sent, \
                   protocol+sent, body+sent [nothing unknown before]: not-applied, retry; it sends the request again\n";
    assert!(liar.out.contains(repeats), "{}", liar.out);
    assert!(liar.out.contains("\nthe host would not follow:\n"), "{}", liar.out);
    let trap = check("trap", &["--json"]);
    assert_eq!(trap.code, Some(1), "{trap:?}");
    let report: serde_json::Value = serde_json::from_str(&trap.out).unwrap();
    let finding = &report["findings"][0];
    assert_eq!((&finding["kind"], &finding["endpoint"]), (&"fault".into(), &"any".into()), "{finding}");
    assert!(finding["says"].as_str().unwrap().starts_with("the policy trapped"), "{finding}");
    assert_eq!(finding["outcomes"][0], "100-600", "{finding}");
}

/// Tripwire: fails if the commands compile a component again that they compiled before.
#[test]
fn a_component_is_compiled_once_for_all_commands() {
    let folder = tempfile::tempdir().unwrap();
    let component = crate::support::stage::prebuilt("http-standard");
    let cases = folder.path().join("a.csv");
    std::fs::write(&cases, "method,path,condition,class\nGET,/a,200,applied\n").unwrap();
    let cache = folder.path().join("compiled");
    let command = |name: &str, more: &[&str]| {
        let all = ["policy", name, component.to_str().unwrap(), "--cache-dir", cache.to_str().unwrap()];
        let mut command = triage(&[&all[..], more].concat());
        let state = folder.path().join("state");
        let ended = Triage::start(command.env("XDG_STATE_HOME", state).env("TRIAGE_LOG", "triage=debug")).ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    };
    let compiles = |ended: &super::child::Ended| ended.err.matches("compiled component=").count();
    let unknown = command("inspect", &[]);
    assert_eq!(compiles(&unknown), 0, "{unknown:?}");
    assert!(
        unknown
            .out
            .ends_with("name and endpoints: not known before its first `triage policy test`, which compiles it\n"),
        "{unknown:?}"
    );
    let with_cases = ["--cases", cases.to_str().unwrap()];
    let first = command("test", &with_cases);
    assert_eq!(compiles(&first), 1, "{first:?}");
    let second = command("test", &with_cases);
    assert_eq!(compiles(&second), 0, "{second:?}");
    assert_eq!(compiles(&command("bench", &["-n", "10"])), 0);
    let known = command("inspect", &[]);
    assert_eq!(compiles(&known), 0);
    assert!(known.out.starts_with("http-standard ") && known.out.contains("\n  any: * /{*rest} ("), "{known:?}");
}

#[test]
fn inspect_tells_whose_work_a_component_is_and_where_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("http-standard.wasm");
    let bytes = std::fs::read(crate::support::stage::prebuilt("http-standard")).unwrap();
    std::fs::write(&component, &bytes).unwrap();
    let inspected = |arguments: &[&str]| {
        let ended = run(&[&["policy", "inspect", component.to_str().unwrap()], arguments].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let mut lines = ended.out.lines().skip(1).map(str::to_owned);
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let (state, contract) = inspected(&[]);
    assert_eq!(state, "not signed; no checksum");
    assert_eq!(contract, "contract triage:policy@0.1, runs on the fast tier: up to 16 MiB, no imports");
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let signature = minisign::sign(None, &pair.sk, std::io::Cursor::new(&bytes), None, None).unwrap().into_string();
    std::fs::write(folder.path().join("http-standard.wasm.minisig"), signature).unwrap();
    let sum = format!("{}  http-standard.wasm\n", triage_engine::Digest::of(&bytes));
    std::fs::write(folder.path().join("http-standard.wasm.sha256"), sum).unwrap();
    assert_eq!(inspected(&[]).0, "signed, but not checked against a key: give --key; checksum matches");
    assert_eq!(inspected(&["--key", &pair.pk.to_base64()]).0, "signed by the given key; checksum matches");
    let stranger = minisign::KeyPair::generate_unencrypted_keypair().unwrap().pk.to_base64();
    let message = inspected(&["--key", &stranger]).0;
    assert!(message.starts_with("none of `policies.keys` has signed"), "{message}");
    std::fs::write(folder.path().join("http-standard.wasm.sha256"), format!("{}  x\n", "0".repeat(64))).unwrap();
    let message = inspected(&[]).0;
    assert!(message.contains("the component's SHA-256 is "), "{message}");
}

#[test]
fn policy_bench_measures_and_reports_a_policy_that_fails() {
    let component = |name: &str| crate::support::stage::prebuilt(name).display().to_string();
    let ended = run(&["policy", "bench", &component("http-standard"), "-n", "50"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let kinds: Vec<&str> =
        ended.out.lines().filter_map(|line| line.split_once(": p50 ")).map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["a fresh instance each", "reused instances"], "{ended:?}");
    let ended = run(&["policy", "bench", &component("trap"), "-n", "50"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("the policy failed in decision 1: the policy trapped"), "{ended:?}");
    let ended = run(&["policy", "bench", &component("panic"), "-n", "50"]);
    let told =
        "the policy failed in decision 1: the policy panicked at testing/panic/src/lib.rs:17:9: no verdict for \"/\"\n";
    assert!(ended.err.ends_with(told), "{ended:?}");
}
