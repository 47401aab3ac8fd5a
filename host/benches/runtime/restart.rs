//! A restart with policies that compile slowly.

use crate::stage::percentile;
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tokio::time::Instant;

/// The measured executable.
const TRIAGE: &str = env!("CARGO_BIN_EXE_triage");

/// Measures a Python and a JavaScript policy: the first start compiles them, later ones load the code from the cache.
pub fn from_the_cache() {
    const TIMES: usize = 5;
    let folder = TempDir::new().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/examples");
    let mut upstreams = String::new();
    for language in ["python", "javascript"] {
        let out = folder.path().join(language).with_extension("wasm");
        let mut build = Command::new(TRIAGE);
        build.args(["policy", "build"]).arg(examples.join(language)).arg("--out").arg(&out);
        if !build.status().unwrap().success() {
            println!("skipped: a policy in {language} cannot be built here");
            return;
        }
        println!("{language}: {} MB", fs::metadata(&out).unwrap().len() / 1_000_000);
        let _ = write!(
            upstreams,
            "[upstreams.{language}]\nbase_url = \"http://127.0.0.1:1\"\npolicy = \"{}\"\npath_prefix = \"/{language}\"\n",
            out.display()
        );
    }
    let config = folder.path().join("triage.toml");
    let cache = folder.path().join("cache").display().to_string();
    let head = "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"off\"\n[policies]\n";
    fs::write(&config, format!("{head}cache_dir = {cache:?}\n{upstreams}")).unwrap();
    // A start ends when the host listens, since every policy is loaded then.
    let started = || {
        let began = Instant::now();
        let mut child = Command::new(TRIAGE)
            .args(["serve", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listens = lines.map_while(Result::ok).any(|line| line.contains("listening on"));
        let took = began.elapsed();
        assert!(listens, "it did not start");
        stop(child);
        took
    };
    let first = started();
    let mut next: Vec<_> = (0..TIMES).map(|_| started()).collect();
    println!("start with both: {first:.1?} when they are compiled, {:.0?} from the cache", percentile(&mut next, 50));
}

fn stop(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}
