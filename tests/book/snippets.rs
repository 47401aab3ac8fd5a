//! Runs the programs of the page on timeouts with the real libraries, against a host in front of the emulated directory.
//!
//! A test is skipped if Python or the libraries are not available.

use super::{read, source_folder};
use crate::support::front::Front;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use triage_hospital::emulator::{Emulator, Options};

/// The libraries that the programs import.
const LIBRARIES: [&str; 3] = ["requests==2.32.5", "httpx==0.28.1", "celery==5.5.3"];

/// Calls a snippet's function with shortened waits, and prints the status of each response and the name in the last one.
const DRIVER: &str = r#"
import json, sys, time, snippet
snippet.TIMEOUT_S, snippet.WAIT_S = 4, 1
statuses = []
def noting(post):
    def noted(*args, **options):
        answer = post(*args, **options)
        statuses.append(answer.status_code)
        return answer
    return noted
if hasattr(snippet, "httpx"):
    snippet.httpx.Client.post = noting(snippet.httpx.Client.post)
else:
    snippet.requests.post = noting(snippet.requests.post)
hospital = {"name": sys.argv[2], "address": "1 Main St"}
if hasattr(snippet, "app"):
    # Without a broker a task runs at once, and so do its retries: their countdown is slept here.
    snippet.app.conf.update(task_always_eager=True)
    import celery
    task = celery.Task
    retry = task.retry
    def retry_later(self, *args, **options):
        time.sleep(options["countdown"])
        return retry(self, *args, **options)
    task.retry = retry_later
    status, body = snippet.create.delay(sys.argv[1], hospital, "key-" + sys.argv[2]).get()
else:
    body = snippet.create(sys.argv[1], hospital).json()
print(json.dumps([statuses[0], statuses[-1], body["name"]]))
"#;

/// The program of a page that begins with this comment.
fn snippet(page: &str, name: &str) -> String {
    let blocks = page.split("```python\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let found = blocks.map(|(code, _)| code).find(|code| code.starts_with(&format!("# {name}\n")));
    found.unwrap_or_else(|| panic!("the page has no program for {name}")).to_owned()
}

/// The folder of the libraries in the user's cache. Installs them if necessary.
fn libraries() -> Result<PathBuf, String> {
    let message = |error: std::io::Error| error.to_string();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let tools = cache.ok_or("there is no HOME")?.join("triage/test-tools");
    let folder = tools.join(LIBRARIES.join("-"));
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&tools).map_err(message)?;
    // Install into another folder and rename it, so that an incomplete installation is never used.
    let beside = tempfile::Builder::new().prefix(".new-").tempdir_in(&tools).map_err(message)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]);
    let output = pip.arg("--target").arg(beside.path()).args(LIBRARIES).output();
    let output = output.map_err(|error| format!("python3 does not run: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pip: {}", said.lines().last().unwrap_or("failed")));
    }
    match fs::rename(beside.path(), &folder) {
        Ok(()) => drop(beside.keep()),
        // Another test installed them first.
        Err(_) if folder.is_dir() => {}
        Err(error) => return Err(message(error)),
    }
    Ok(folder)
}

/// Runs a snippet and returns its output.
fn run(code: &str, libraries: &Path, base_url: &str, name: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    for (file, text) in [("snippet.py", code), ("driver.py", DRIVER)] {
        fs::write(folder.path().join(file), text).map_err(|error| error.to_string())?;
    }
    let mut python = Command::new("python3");
    python.arg("driver.py").args([base_url, name]).current_dir(folder.path()).env("PYTHONPATH", libraries);
    let output = python.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_on_timeouts_create_each_hospital_once() {
    let libraries = match tokio::task::spawn_blocking(libraries).await.unwrap() {
        Ok(libraries) => libraries,
        Err(why) => return println!("skipped: the programs of the page on timeouts were not run: {why}"),
    };
    // A create takes longer than the first wait of a caller, but less than two.
    let options = Options { create_delay: Duration::from_millis(2500), ..Options::default() };
    let emulator = Emulator::new(options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(Arc::clone(&emulator).serve(listener, std::future::pending()));
    let front = Front::of(&upstream, "policy = \"hospital-directory\"\n");
    let page = read(&source_folder().join("operation/timeouts.md"));
    let mut running = Vec::new();
    for name in ["requests", "httpx", "celery"] {
        let (code, libraries, base_url) = (snippet(&page, name), libraries.clone(), front.url(""));
        running.push((name, tokio::task::spawn_blocking(move || run(&code, &libraries, &base_url, name))));
    }
    for (name, ran) in running {
        let message = ran.await.unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(message, format!("[504, 200, \"{name}\"]"), "an early 504, then the answer");
    }
    assert_eq!((emulator.hospitals().len(), emulator.duplicates()), (3, 0));
    serving.abort();
}
