//! One breaker shared by Triage and Python workers with the real pybreaker, in two released versions.

use crate::support::{
    Answered,
    fleet::{Fleet, Member},
    redis_server::{RedisCluster, RedisServer},
};
use http::{Request, StatusCode};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::{task::block_in_place, time::sleep};
use triage_hospital::emulator::{Fault, Faults, When};

/// The latest version, and the last one that did not count successes.
const VERSIONS: [&str; 2] = ["1.4.1", "1.2.0"];
/// The Python client of Redis.
const CLIENT: &str = "redis==5.2.1";
/// Seconds, longer than any test.
const NEVER: u32 = 3600;

const UPSTREAM: &str = r#"
policy = "http-standard"
[upstreams.hospital.defaults]
group = "directory"
limits = []
retry.max_attempts = 1
attempt_timeout = "4s"
[upstreams.hospital.defaults.breaker]
failure_rate = "off"
open_for = "1s"
open_for_max = "60s"
jitter = 0
interop = "pybreaker"
interop_namespace = "NAMESPACE"
"#;

/// The library's folder in the user's cache. Installs it if necessary; prints why and returns none if that fails.
fn library(version: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    match cache.ok_or_else(|| "there is no HOME".to_owned()).and_then(|cache| installed(&cache, version)) {
        Ok(folder) => Some(folder),
        Err(why) => {
            println!("skipped 1 of {} versions, pybreaker {version}: {why}", VERSIONS.len());
            None
        }
    }
}

fn installed(cache: &Path, version: &str) -> Result<PathBuf, String> {
    let message = |error: std::io::Error| error.to_string();
    let tools = cache.join("triage/test-tools");
    let folder = tools.join(format!("pybreaker-{version}-{CLIENT}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&tools).map_err(message)?;
    // Install into another folder and rename it, so that an incomplete installation is never used.
    let beside = tempfile::Builder::new().prefix(".new-").tempdir_in(&tools).map_err(message)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]);
    pip.arg("--target").arg(beside.path()).args([&format!("pybreaker=={version}"), CLIENT]);
    let output = pip.output().map_err(|error| format!("python3 does not run: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pip: {}", said.lines().last().unwrap_or("failed")));
    }
    match fs::rename(beside.path(), &folder) {
        Ok(()) => drop(beside.keep()),
        // Another test installed it first.
        Err(_) if folder.is_dir() => {}
        Err(error) => return Err(message(error)),
    }
    Ok(folder)
}

/// A Python worker, killed on drop.
struct Worker {
    process: Child,
    tells: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Worker {
    fn start(library: &Path, url: &str, namespace: &str, reset_timeout: u32) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fleet/worker.py");
        let mut command = Command::new("python3");
        command.arg(script).args([url, namespace, &reset_timeout.to_string()]);
        command.env("PYTHONPATH", library).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tells, says) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, tells, says }
    }

    /// Whether the breaker admitted a call with this result.
    fn calls(&mut self, end: &str) -> bool {
        block_in_place(|| {
            writeln!(self.tells, "{end}").unwrap();
            let mut said = String::new();
            self.says.read_line(&mut said).unwrap();
            match said.trim() {
                "called" => true,
                "refused" => false,
                other => panic!("the worker says {other:?}"),
            }
        })
    }

    fn works(&mut self) -> bool {
        self.calls("works")
    }

    fn fails(&mut self) -> bool {
        self.calls("fails")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fleet(namespace: &str) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.upstream = UPSTREAM.replace("NAMESPACE", namespace);
    fleet
}

impl Fleet {
    fn breaks(&self) {
        self.emulator.set_faults(Faults::none().anywhere(When::Always, Fault::FailBefore(StatusCode::BAD_GATEWAY)));
    }

    fn heals(&self) {
        self.emulator.set_faults(Faults::none());
    }

    /// The state that a dashboard would read from the server.
    fn dashboard(&self, namespace: &str) -> String {
        self.server.ask(&["GET", &format!("{namespace}:pybreaker:state")])
    }
}

async fn get(host: &Member) -> Answered {
    host.send(Request::get("/hospitals/").body(bytes::Bytes::new()).unwrap()).await
}

/// The status, and the problem's type if it is one.
async fn call(host: &Member) -> (u16, String) {
    let answer = get(host).await;
    let problem =
        if answer.header("content-type").starts_with("application/problem") { answer.problem() } else { String::new() };
    (answer.status, problem)
}

fn refused() -> (u16, String) {
    (503, "breaker-open".to_owned())
}

async fn soon<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, mut got: impl AsyncFnMut() -> T) {
    let mut last = got().await;
    for _ in 0..1000 {
        if last == expected {
            return;
        }
        sleep(Duration::from_millis(10)).await;
        last = got().await;
    }
    panic!("not in 10 s: {what}: {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pybreaker_trips_and_triage_refuses_until_it_has_probed() {
    for version in VERSIONS {
        let Some(library) = library(version) else { continue };
        let fleet = fleet("hospital");
        let (one, other) = (fleet.host(), fleet.host());
        assert_eq!(call(&one).await.0, 200, "{version}");
        let [mut worker, mut second] =
            [(), ()].map(|()| Worker::start(&library, &fleet.server.url(), "hospital", NEVER));
        assert!(worker.works() && second.works(), "{version}");
        assert_eq!(fleet.dashboard("hospital"), "closed", "{version}");
        for failure in 1..=5 {
            assert!(worker.fails(), "{version}: {failure}");
        }
        assert_eq!((worker.works(), fleet.dashboard("hospital").as_str()), (false, "open"), "{version}");
        let arrivals = fleet.emulator.arrivals().len();
        for host in [&one, &other] {
            let answer = get(host).await;
            assert_eq!((answer.status, answer.problem().as_str()), (503, "breaker-open"), "{version}");
            assert!(answer.json()["detail"].as_str().unwrap().contains("pybreaker opened it"), "{version}: {answer:?}");
        }
        assert_eq!(fleet.emulator.arrivals().len(), arrivals, "{version}: nothing was sent");
        soon("a probe closes it", 200, async || call(&other).await.0).await;
        soon("all see it", 200, async || call(&one).await.0).await;
        assert_eq!(fleet.dashboard("hospital"), "closed", "{version}");
        assert!(worker.works() && second.works(), "{version}: both go on");
        // Consecutive failures of both together.
        assert!(worker.fails() && worker.fails(), "{version}");
        fleet.breaks();
        for _ in 0..3 {
            assert_eq!(call(&one).await.0, 502, "{version}");
        }
        soon("the fifth in a row", "open".to_owned(), async || fleet.dashboard("hospital")).await;
        assert!(!second.works(), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triage_trips_and_pybreaker_refuses_at_its_next_call() {
    for version in VERSIONS {
        let Some(library) = library(version) else { continue };
        let fleet = fleet("hospital");
        let (one, other) = (fleet.host(), fleet.host());
        let [mut worker, mut second] =
            [(), ()].map(|()| Worker::start(&library, &fleet.server.url(), "hospital", NEVER));
        assert!(worker.works() && second.works(), "{version}");
        fleet.breaks();
        for host in [&one, &one, &one, &other, &other] {
            assert_eq!(call(host).await.0, 502, "{version}");
        }
        soon("it is open", "open".to_owned(), async || fleet.dashboard("hospital")).await;
        assert!(!worker.works() && !second.works(), "{version}");
        // The state alternates between open and half-open while probes fail.
        for _ in 0..200 {
            call(&one).await;
            assert_eq!((worker.works(), fleet.dashboard("hospital").as_str()), (false, "open"), "{version}");
            sleep(Duration::from_millis(10)).await;
        }
        let values: Vec<String> = ["fail_counter", "success_counter", "opened_at"]
            .map(|what| fleet.server.ask(&["GET", &format!("hospital:pybreaker:{what}")]))
            .into();
        assert!(values.iter().all(|word| word.parse::<u64>().is_ok()), "{version}: {values:?}");
        fleet.heals();
        soon("a probe closes it", 200, async || call(&other).await.0).await;
        soon("all see it", 200, async || call(&one).await.0).await;
        assert_eq!(fleet.dashboard("hospital"), "closed", "{version}");
        assert!(worker.works() && second.works(), "{version}");
        assert_eq!((call(&one).await.0, call(&other).await.0), (200, 200), "{version}");
    }
}

/// The state on the server also holds for Triage: no host refuses because of its own failures after a worker's success has reset them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_success_ends_a_row_of_failures_for_triage_too() {
    for version in VERSIONS {
        let Some(library) = library(version) else { continue };
        let fleet = fleet("hospital");
        let host = fleet.host();
        let mut worker = Worker::start(&library, &fleet.server.url(), "hospital", NEVER);
        assert!(worker.works() && call(&host).await.0 == 200, "{version}");
        let failures = || fleet.server.ask::<String>(&["GET", "hospital:pybreaker:fail_counter"]);
        fleet.breaks();
        for _ in 0..4 {
            assert_eq!(call(&host).await.0, 502, "{version}");
        }
        soon("four in a row", "4".to_owned(), async || failures()).await;
        assert!(worker.works(), "{version}");
        assert_eq!(call(&host).await.0, 502, "{version}");
        soon("a row of one", "1".to_owned(), async || failures()).await;
        assert_eq!(fleet.dashboard("hospital"), "closed", "{version}");
        for failure in 2..=5 {
            assert_eq!(call(&host).await.0, 502, "{version}: closed, and refused at failure {failure}");
        }
        soon("five in a row", "open".to_owned(), async || fleet.dashboard("hospital")).await;
        assert_eq!(call(&host).await, refused(), "{version}");
    }
}

/// Nor does a worker probe while a probe of Triage hangs, or without calls to Triage. After the last host has ended, workers probe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_worker_probes_while_a_host_lives() {
    for version in VERSIONS {
        let Some(library) = library(version) else { continue };
        let fleet = fleet("hospital");
        let host = fleet.host();
        let mut workers = [(), (), ()].map(|()| Worker::start(&library, &fleet.server.url(), "hospital", 4));
        assert!(workers.iter_mut().all(Worker::works), "{version}");
        fleet.breaks();
        while call(&host).await != refused() {}
        let mut others = async |phase: &str, rounds: u32| {
            for _ in 0..rounds {
                for worker in &mut workers {
                    assert!(!worker.works(), "{version}: {phase}");
                }
                assert_eq!(fleet.dashboard("hospital"), "open", "{version}: {phase}");
                sleep(Duration::from_millis(50)).await;
            }
        };
        others("nobody calls Triage", 120).await;
        fleet.emulator.set_faults(Faults::none().anywhere(When::Always, Fault::StallBefore));
        let arrivals = fleet.emulator.arrivals().len();
        let own = host.clone();
        let probe = tokio::spawn(async move { call(&own).await });
        soon("the probe is under way", arrivals + 1, async || fleet.emulator.arrivals().len()).await;
        others("the probe hangs", 60).await;
        assert_eq!(probe.await.unwrap().0, 504, "{version}");
        others("it failed", 10).await;
        // The main check: without a host, workers probe, and the next host sees the result.
        drop(host);
        fleet.heals();
        soon("a worker probes", true, async || workers[0].works()).await;
        assert_eq!(fleet.dashboard("hospital"), "closed", "{version}");
        assert_eq!(call(&fleet.host()).await.0, 200, "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_it_where_the_namespace_says() {
    let Some(library) = library(VERSIONS[0]) else { return };
    let cluster = RedisCluster::start();
    let mut fleet = fleet("{hospital}:old");
    fleet.url = Some(cluster.url());
    let host = fleet.host();
    assert_eq!(call(&host).await.0, 200);
    let urls = cluster.0.iter().map(RedisServer::url).collect::<Vec<_>>().join(",");
    let mut worker = Worker::start(&library, &urls, "{hospital}:old", NEVER);
    assert!(worker.works());
    fleet.breaks();
    while call(&host).await != refused() {}
    assert!(!worker.works(), "Triage tripped it");
    fleet.heals();
    soon("a probe closes it", 200, async || call(&host).await.0).await;
    // The host reports the result in the background.
    soon("the worker sees it", true, async || worker.works()).await;
    for _ in 0..5 {
        assert!(worker.fails());
    }
    assert_eq!(call(&host).await, refused(), "Python tripped it");
}
