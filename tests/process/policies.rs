//! A policy change in a fleet: real hosts, real commands, under load.

use super::child::{Ended, Triage, triage};
use crate::{
    hostile::guest::{Guest, at},
    support::policies::{Own, Policies, trapping},
};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::time::Instant;

/// The command printed in the book.
fn printed() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/guide/roll-out.md")).unwrap();
    let line = page.lines().find(|line| line.starts_with("triage policy push") && line.contains("--announce"));
    line.expect("the page shows how to announce").split(' ').skip(1).map(str::to_owned).collect()
}

/// Two policies with recognizable results: one retries once and the other does not, and they use different classes.
fn marked() -> [Vec<u8>; 2] {
    let (mut twice, mut once) = (Guest::new(), Guest::new());
    twice.retry(0).text(at::NAME, "twice");
    once.text(at::NAME, "once");
    [twice.build(), once.build()]
}

/// The name, attempts and class that each policy leaves in a response.
const MARKS: [(&str, &str, &str); 2] = [("twice", "2", "not-applied"), ("once", "1", "rejected")];

/// Real host processes.
struct Fleet {
    policies: Policies,
    file: String,
    hosts: Vec<Host>,
}

struct Host {
    process: Triage,
    address: SocketAddr,
    admin: String,
}

impl Fleet {
    fn start(runtime: &tokio::runtime::Runtime, hosts: usize) -> Option<Self> {
        let mut policies = runtime.block_on(Policies::start())?;
        policies.configured = runtime.block_on(policies.push(marked()[0].clone()));
        let file = policies.folder.path().join("triage.toml").display().to_string();
        let cache = policies.folder.path().join("cache").display().to_string();
        let text = policies.toml(&Own { policies: &format!("cache_dir = {cache:?}"), ..Own::default() });
        let text = text.replace(
            "retry = { max_attempts = 1 }",
            "retry = { max_attempts = 2, min_wait = \"1ms\", max_wait = \"1ms\" }\n\
             budget = { percent = 100, floor_per_second = 100000, capacity = 100000 }",
        );
        std::fs::write(&file, text).unwrap();
        let mut fleet = Self { policies, file, hosts: Vec::new() };
        for _ in 0..hosts {
            fleet.join();
        }
        fleet.await_line(&format!(", {hosts} hosts"));
        Some(fleet)
    }

    fn join(&mut self) {
        let (mut process, address) = Triage::serve(&["--config", &self.file]);
        let admin = process.says("admin: ").trim().trim_start_matches("admin: ").to_owned();
        self.hosts.push(Host { process, address, admin });
    }

    /// Runs a command against the first host.
    fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = triage(arguments);
        command.current_dir(self.policies.folder.path());
        command.env("TRIAGE_ADMIN_URL", &self.hosts[0].admin);
        command.env("TRIAGE_REGISTRY_AUTH", self.policies.registry.credentials());
        Triage::start(&mut command).ended()
    }

    /// Runs the book's command, with the test registry's name.
    fn announce(&self, component: &[u8]) -> Ended {
        std::fs::write(self.policies.folder.path().join("next.wasm"), component).unwrap();
        let repository = format!("oci://{}/{}", self.policies.registry.address, crate::support::policies::REPOSITORY);
        let words: Vec<String> =
            printed().iter().map(|word| word.replace("oci://registry.example/team/next", &repository)).collect();
        assert!(words.contains(&repository), "{words:?}");
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until `triage policy list` prints a text.
    fn await_line(&self, text: &str) -> String {
        for _ in 0..600 {
            let listed = self.run(&["policy", "list"]);
            assert_eq!(listed.code, Some(0), "{listed:?}");
            if listed.out.contains(text) {
                return listed.out;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("never listed: {text}; {:?}", self.run(&["policy", "list"]));
    }

    /// Starts a caller for each host, which sends requests until stopped. Each records when the deciding policy changes.
    fn callers(&self, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<Served>> {
        let one = |host: &Host| {
            let (address, stop) = (host.address, Arc::clone(stop));
            thread::spawn(move || {
                let mut caller = Caller::to(address);
                let (mut served, mut changes) = (0, Vec::<(Instant, String)>::new());
                while !stop.load(Relaxed) {
                    let policy = caller.get();
                    if changes.last().is_none_or(|(_, before)| *before != policy) {
                        changes.push((Instant::now(), policy));
                    }
                    served += 1;
                }
                (served, changes)
            })
        };
        self.hosts.iter().map(one).collect()
    }
}

/// The number of responses, and the times at which the deciding policy changed.
type Served = (usize, Vec<(Instant, String)>);

/// A persistent connection of a caller.
struct Caller(BufReader<TcpStream>);

impl Caller {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    /// The policy that decided one GET. Checks that no other policy took part.
    fn get(&mut self) -> String {
        self.0.get_mut().write_all(b"GET /a HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "the connection was closed: {head}");
        }
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {name} in {head}"))
        };
        let mut body =
            vec![0; head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        let policy = header("triage-policy").split(';').next().unwrap().to_owned();
        let judged = (policy.as_str(), header("triage-attempts"), header("triage-verdict"));
        assert!(MARKS.contains(&judged), "two generations judged one request: {judged:?}");
        policy
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// As described in the book. Prints how far apart the hosts switched.
#[test]
fn a_fleet_switches_together_under_load_and_goes_back_together() {
    let runtime = runtime();
    let Some(fleet) = Fleet::start(&runtime, 3) else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let callers = fleet.callers(&stop);
    let announced = fleet.announce(&marked()[1]);
    assert_eq!((announced.code, announced.err.as_str()), (Some(0), ""), "{announced:?}");
    let last = announced.out.lines().last().unwrap();
    assert_eq!(last, "api: the fleet's generation 1 serves at 3 of 3 hosts");
    let listed = fleet.await_line("fleet: generation 1 (");
    assert!(listed.contains(", agreed, 3 hosts\n"), "{listed}");
    let back = fleet.run(&["policy", "rollback", "api"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    fleet.await_line("fleet: generation 2 (");
    thread::sleep(Duration::from_secs(2));
    stop.store(true, Relaxed);
    let mut switches = [Vec::new(), Vec::new()];
    let mut all = 0;
    for caller in callers {
        let (served, changes) = caller.join().unwrap();
        all += served;
        let policies: Vec<&str> = changes.iter().map(|(_, policy)| policy.as_str()).collect();
        assert_eq!(policies, ["twice", "once", "twice"], "after {served} requests");
        assert!(served > 20, "the load ran: {served}");
        for (switch, (at, _)) in switches.iter_mut().zip(&changes[1..]) {
            switch.push(*at);
        }
    }
    println!("{all} requests, none failed, none was judged by two generations");
    for (what, switch) in ["announced", "rolled back"].iter().zip(&switches) {
        let spread = *switch.iter().max().unwrap() - *switch.iter().min().unwrap();
        println!("{what}: first and last host switched {spread:?} apart, as their callers saw it");
    }
    let history = fleet.run(&["policy", "history", "api"]);
    for text in
        ["is announced to the fleet by ", "the fleet's generation 1 serves here", "an operator rolled back to it at "]
    {
        assert!(history.out.contains(text), "{text}: {history:?}");
    }
    let digest = listed.split_once("fleet: generation 1 (").unwrap().1;
    let again = fleet.announce(&marked()[1]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.err.contains("this component was rolled back before"), "{again:?}");
    let full = again.out.trim().rsplit_once("@sha256:").unwrap().1.trim_end_matches('"').to_owned();
    assert!(digest.starts_with(&full[..12]), "{digest} {full}");
    let promoted = fleet.run(&["policy", "promote", "api", &format!("sha256:{full}")]);
    assert_eq!(promoted.code, Some(0), "{promoted:?}");
    assert!(promoted.out.starts_with("api: the fleet's generation 3 serves at "), "{promoted:?}");
}

/// A host that was silent for a while is not waited for, and catches up. A killed host that restarts begins with the fleet's policy.
#[test]
fn a_host_that_was_stopped_or_killed_comes_back_to_the_fleets_generation() {
    let runtime = runtime();
    let Some(mut fleet) = Fleet::start(&runtime, 3) else { return };
    fleet.hosts[2].process.signal("STOP");
    let announced = fleet.announce(&marked()[1]);
    assert_eq!((announced.code, announced.err.as_str()), (Some(0), ""), "{announced:?}");
    fleet.await_line("fleet: generation 1 (");
    fleet.hosts[2].process.signal("CONT");
    let mut caller = Caller::to(fleet.hosts[2].address);
    for _ in 0..6000 {
        if caller.get() == "once" {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(caller.get(), "once");
    fleet.hosts.remove(2).process.kill();
    fleet.join();
    assert_eq!(Caller::to(fleet.hosts[2].address).get(), "once", "its first answer");
}

/// A component that was rolled back at once is reported as such, and not as pending.
#[test]
fn policy_announce_reports_a_component_that_is_rolled_back_at_once() {
    let runtime = runtime();
    let Some(fleet) = Fleet::start(&runtime, 2) else { return };
    let (stop, address) = (Arc::new(AtomicBool::new(false)), fleet.hosts[1].address);
    let calls = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            while !stop.load(Relaxed) {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /a HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").unwrap();
                stream.read_to_end(&mut Vec::new()).unwrap();
            }
        })
    };
    let announced = fleet.announce(&trapping("bad"));
    stop.store(true, Relaxed);
    calls.join().unwrap();
    assert_eq!(announced.code, Some(1), "{announced:?}");
    let expected = "the fleet switched to it and back, to generation 2: it failed at host ";
    assert!(announced.err.contains(expected), "{announced:?}");
}

/// A component that `push` rejects is neither published nor announced. If a host refuses one, the command reports the step.
#[test]
fn a_component_that_fails_its_cases_is_not_even_published() {
    let runtime = runtime();
    let Some(fleet) = Fleet::start(&runtime, 1) else { return };
    let head = include_str!("../vectors/http-standard.csv").lines().next().unwrap();
    let cases = fleet.policies.folder.path().join("next.cases.csv");
    std::fs::write(&cases, format!("{head}\nGET,/a,request,1,no,,,200,,,,,unknown,,,,,,doubt\n")).unwrap();
    let wrong = fleet.announce(&marked()[1]);
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(1), ""), "{wrong:?}");
    assert!(wrong.err.contains("next.wasm does not pass next.cases.csv"), "{wrong:?}");
    std::fs::write(&cases, format!("{head}\nGET,/a,request,1,no,,,503,,,,,rejected,,,,,,as it does\n")).unwrap();
    let right = fleet.announce(&marked()[1]);
    assert_eq!(right.code, Some(0), "{right:?}");
    std::fs::remove_file(&cases).unwrap();
    let nowhere = fleet.run(&[
        "policy",
        "push",
        "next.wasm",
        &format!("oci://{}/elsewhere", fleet.policies.registry.address),
        "--announce",
        "gone",
    ]);
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    assert!(nowhere.err.contains("there is no such upstream"), "{nowhere:?}");
}
