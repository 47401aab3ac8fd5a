//! Real host processes around one server and one upstream: their breakers open together, probe one at a time, and their limits hold.

use crate::{process::child::Triage, support::redis_server::RedisServer};
use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{
            AtomicBool, AtomicU16, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::time::Instant;

/// The times of requests at the upstream, with the numbers in their paths.
type Asked = Mutex<Vec<(Instant, u64)>>;

/// An upstream that responds with one status and records requests.
struct Upstream {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<Asked>,
}

impl Upstream {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = Self {
            address: listener.local_addr().unwrap(),
            status: Arc::new(AtomicU16::new(status)),
            asked: Arc::default(),
        };
        let (status, asked) = (Arc::clone(&own.status), Arc::clone(&own.asked));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (status, asked) = (Arc::clone(&status), Arc::clone(&asked));
                thread::spawn(move || answer(stream, &status, &asked));
            }
        });
        own
    }

    fn asked(&self) -> Vec<(Instant, u64)> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, status: &AtomicU16, asked: &Asked) {
    let _ = stream.set_nodelay(true);
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut number = 0;
    while let Some(Ok(line)) = lines.next() {
        if let Some(path) = line.strip_prefix("GET /") {
            number = path.split(' ').next().unwrap().parse().unwrap();
        }
        if line.is_empty() {
            asked.lock().unwrap().push((Instant::now(), number));
            let status = status.load(SeqCst);
            // Status 0 stands for no response.
            if status == 0 {
                continue;
            }
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(head.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// A persistent connection of a caller.
struct Caller {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Caller {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream: BufReader::new(stream), address }
    }

    /// The status and the header fields of one GET.
    fn get(&mut self, number: u64) -> (u16, String) {
        let request = format!("GET /{number} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            let read = self.stream.read_line(&mut line).unwrap();
            assert!(read > 0, "{} closed the connection", self.address);
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

/// Hosts that share one server.
struct Fleet {
    server: RedisServer,
    upstream: Upstream,
    hosts: Vec<(Triage, SocketAddr)>,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn start(hosts: usize, status: u16, endpoint: &str) -> Self {
        Self::with_timeout(hosts, status, endpoint, "5s")
    }

    fn with_timeout(hosts: usize, status: u16, endpoint: &str, timeout: &str) -> Self {
        let (server, upstream) = (RedisServer::start(), Upstream::start(status));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("triage.toml");
        let text = format!(
            "[server]\nworkers = 1\n[state]\nurl = \"{}\"\ntimeout = \"{timeout}\"\n[upstreams.api]\nbase_url = \"http://{}\"\n\
             [upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n{endpoint}\n",
            server.url(),
            upstream.address
        );
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let hosts: Vec<_> = (0..hosts).map(|_| Triage::serve(&["--config", &file])).collect();
        let fleet = Self { server, upstream, hosts, _folder: folder };
        fleet.live();
        fleet
    }

    /// Waits until each host has registered.
    fn live(&self) {
        let key = "triage:{api/any}:instances";
        for _ in 0..3000 {
            let live: usize = self.server.ask(&["ZCARD", key]);
            if live == self.hosts.len() {
                // Also wait until each host has learned of the others.
                return thread::sleep(Duration::from_millis(1200));
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the hosts did not find each other");
    }

    /// Starts a caller for each host, which sends requests until stopped and passes on the results.
    fn callers(
        &self,
        pause: Duration,
        stop: &Arc<AtomicBool>,
        see: impl Fn(Seen) + Clone + Send + 'static,
    ) -> Vec<JoinHandle<()>> {
        let one = |(host, (_, address)): (usize, &(Triage, SocketAddr))| {
            let (address, stop, see) = (*address, Arc::clone(stop), see.clone());
            thread::spawn(move || {
                let mut caller = Caller::to(address);
                let mut number = host as u64;
                while !stop.load(Relaxed) {
                    let at = Instant::now();
                    let (status, body) = caller.get(number);
                    see(Seen { host, number, at, status, body });
                    number += 1000;
                    thread::sleep(pause);
                }
            })
        };
        self.hosts.iter().enumerate().map(one).collect()
    }
}

/// The result of a request.
struct Seen {
    host: usize,
    number: u64,
    /// The time at which it was sent.
    at: Instant,
    status: u16,
    body: String,
}

fn join(callers: Vec<JoinHandle<()>>) {
    for caller in callers {
        caller.join().unwrap();
    }
}

/// Checks the number of requests before all hosts refuse, and after that one probe per open period.
fn opens_together_and_probes_one_at_a_time(hosts: usize, periods: usize) {
    let open_for = Duration::from_millis(150);
    let fleet = Fleet::start(
        hosts,
        500,
        "attempt_timeout = \"2s\"\nbreaker = { open_for = \"150ms\", open_for_max = \"150ms\", jitter = 0, probe_lease = \"5s\", failure_rate = \"off\" }",
    );
    let stop = Arc::new(AtomicBool::new(false));
    let refused: Arc<Vec<AtomicU64>> = Arc::new((0..hosts).map(|_| AtomicU64::new(0)).collect());
    let (own, first, before) = (Arc::clone(&refused), Arc::new(OnceLock::new()), Arc::new(Mutex::new(Vec::new())));
    let (first_refusal, under_way) = (Arc::clone(&first), Arc::clone(&before));
    let callers = fleet.callers(Duration::from_millis(1), &stop, move |seen| match seen.status {
        500 if first_refusal.get().is_none_or(|first| seen.at < *first) => under_way.lock().unwrap().push(seen.number),
        500 => {}
        503 if seen.body.contains("breaker-open") => {
            first_refusal.get_or_init(Instant::now);
            own[seen.host].fetch_add(1, Relaxed);
        }
        status => panic!("host {}: {status} {}", seen.host, seen.body),
    });
    while fleet.upstream.asked().len() < 8 + hosts + periods {
        thread::sleep(Duration::from_millis(20));
        assert!(!callers.iter().any(JoinHandle::is_finished), "a caller failed");
    }
    stop.store(true, Relaxed);
    join(callers);
    let asked = fleet.upstream.asked();
    // The threshold, the quorum, and one running call per host.
    let before = before.lock().unwrap();
    assert!(before.len() <= 5 + 2 + hosts, "{} calls before all refused", before.len());
    // A probe is sent only after the breaker was open for its time since the last probe's report.
    let probes: Vec<Instant> = asked.iter().filter(|(_, number)| !before.contains(number)).map(|(at, _)| *at).collect();
    let early: Vec<_> = probes.windows(2).map(|two| two[1] - two[0]).filter(|gap| *gap < open_for).collect();
    assert!(early.is_empty(), "of {} half-open periods, a second probe was sent after {early:?}", probes.len());
    assert!(refused.iter().all(|count| count.load(Relaxed) > 0), "each host refused: {refused:?}");
    println!("{} calls before all refused; {} half-open periods, one probe each", before.len(), probes.len());
}

#[test]
fn three_hosts_open_together_and_probe_one_at_a_time() {
    opens_together_and_probes_one_at_a_time(3, 5);
}

#[test]
#[ignore = "a minute"]
fn eight_hosts_open_together_and_probe_one_at_a_time() {
    opens_together_and_probes_one_at_a_time(8, 200);
}

/// The probing host is killed. Another one probes after the lease has expired.
#[test]
fn a_prober_that_is_killed_is_replaced() {
    let lease = Duration::from_secs(2);
    let mut fleet = Fleet::start(
        3,
        500,
        "attempt_timeout = \"500ms\"\nbreaker = { open_for = \"300ms\", open_for_max = \"300ms\", jitter = 0, probe_lease = \"2s\", failure_rate = \"off\" }",
    );
    let stop = Arc::new(AtomicBool::new(false));
    let (open, all) = (Arc::new(AtomicBool::new(false)), Arc::clone(&stop));
    let seen_open = Arc::clone(&open);
    // The callers of the killed host end with it.
    let callers = fleet.callers(Duration::from_millis(1), &stop, move |seen| {
        seen_open.fetch_or(seen.status == 503, Relaxed);
    });
    let wait = |upstream: &Upstream, count: usize| {
        while upstream.asked().len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        upstream.asked()[count - 1]
    };
    while !open.load(Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    fleet.upstream.status.store(0, SeqCst);
    // Requests that were running when the breaker opened have arrived by then.
    thread::sleep(Duration::from_millis(200));
    let (probed, number) = wait(&fleet.upstream, fleet.upstream.asked().len() + 1);
    let prober = usize::try_from(number % 1000).unwrap();
    fleet.hosts.remove(prober).0.kill();
    fleet.upstream.status.store(200, SeqCst);
    let (replaced, number) = wait(&fleet.upstream, fleet.upstream.asked().len() + 1);
    assert_ne!(usize::try_from(number % 1000).unwrap(), prober);
    let after = replaced - probed;
    assert!(after >= lease, "its lease was still running: {after:?}");
    println!("a prober that was killed was replaced {:?} after its lease had run out", after.saturating_sub(lease));
    all.store(true, Relaxed);
    let ended = callers.into_iter().filter_map(|caller| caller.join().ok()).count();
    assert_eq!(ended, 2, "the callers of the two others");
}

/// The server is killed and restarted under load, without effect on reads.
fn outlives_its_server(hosts: usize, gone: Duration) {
    let mut fleet = Fleet::with_timeout(hosts, 200, "attempt_timeout = \"2s\"", "20ms");
    let stop = Arc::new(AtomicBool::new(false));
    let times: Arc<Mutex<Vec<(Instant, Duration)>>> = Arc::default();
    let own = Arc::clone(&times);
    let callers = fleet.callers(Duration::from_millis(2), &stop, move |seen| {
        assert_eq!(seen.status, 200, "host {}: {}", seen.host, seen.body);
        own.lock().unwrap().push((seen.at, seen.at.elapsed()));
    });
    thread::sleep(Duration::from_secs(1));
    let killed = Instant::now();
    fleet.server.kill();
    thread::sleep(gone);
    fleet.server.restart();
    let back = Instant::now();
    let key = "triage:{api/any}:instances";
    while fleet.server.ask::<usize>(&["ZCARD", key]) < hosts {
        assert!(!callers.iter().any(JoinHandle::is_finished), "a read failed");
        thread::sleep(Duration::from_millis(5));
    }
    let healthy = back.elapsed();
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Relaxed);
    join(callers);
    let times = times.lock().unwrap();
    let of = |from: Instant, to: Instant| {
        let mut some: Vec<_> = times.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took).collect();
        some.sort_unstable();
        let at = |percent: usize| some[(some.len() - 1) * percent / 100];
        format!("{} reads, p50 {:?}, p99 {:?}, at most {:?}", some.len(), at(50), at(99), at(100))
    };
    println!("before: {}", of(killed - Duration::from_secs(1), killed));
    println!("gone:   {}", of(killed, back));
    println!("after:  {}; shared again {healthy:?} after its return", of(back, Instant::now()));
}

#[test]
fn two_hosts_outlive_their_server() {
    outlives_its_server(2, Duration::from_secs(1));
}

#[test]
#[ignore = "ten seconds of load"]
fn four_hosts_outlive_their_server_for_ten_seconds() {
    outlives_its_server(4, Duration::from_secs(10));
}

/// The time from the first host's refusal until all others refuse too.
#[test]
#[ignore = "a minute"]
fn eight_hosts_see_that_a_breaker_is_open() {
    const ROUNDS: usize = 60;
    let fleet = Fleet::start(
        8,
        200,
        "attempt_timeout = \"2s\"\nbreaker = { open_for = \"400ms\", open_for_max = \"400ms\", jitter = 0, probe_lease = \"5s\", failure_rate = \"off\" }",
    );
    let stop = Arc::new(AtomicBool::new(false));
    let answers: Arc<Mutex<Vec<(Instant, usize, u16)>>> = Arc::default();
    let own = Arc::clone(&answers);
    let callers = fleet.callers(Duration::from_millis(1), &stop, move |seen| {
        own.lock().unwrap().push((Instant::now(), seen.host, seen.status));
    });
    let seen = |status: u16, since: Instant| {
        let answers = answers.lock().unwrap();
        let mut first = [None; 8];
        for (at, index, _) in answers.iter().filter(|(at, _, found)| *at > since && *found == status) {
            first[*index].get_or_insert(*at);
        }
        first.into_iter().collect::<Option<Vec<Instant>>>()
    };
    let wait_for = |status: u16, since: Instant| loop {
        if let Some(first) = seen(status, since) {
            return first;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut lags = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        wait_for(200, began);
        fleet.upstream.status.store(500, SeqCst);
        let refused = wait_for(503, began);
        let first = *refused.iter().min().unwrap();
        lags.extend(refused.iter().map(|at| *at - first));
        fleet.upstream.status.store(200, SeqCst);
        answers.lock().unwrap().clear();
    }
    stop.store(true, Relaxed);
    join(callers);
    lags.sort_unstable();
    let at = |percent: usize| lags[(lags.len() - 1) * percent / 100];
    println!(
        "open everywhere after p50 {:?}, p99 {:?}, at most {:?} ({ROUNDS} times, 8 hosts)",
        at(50),
        at(99),
        at(100)
    );
}

/// A call as seen by its caller.
struct Call {
    asked: Instant,
    answered: Instant,
    status: u16,
}

/// Maximum time of a run on a busy machine that admits few calls.
const RUN_TIMEOUT: Duration = Duration::from_mins(5);

/// Checks that no window exceeds the limit, and that the limit is fully used while it refuses. The exact time of a call's permit is not
/// visible from outside; it is between the caller's send and the call's arrival at the upstream. A window therefore counts only calls that
/// lie in it completely, which is correct even on a busy machine.
fn keeps_its_limit(hosts: usize, lasts: Duration, leased: bool, rate: u32, burst: u32) {
    let endpoint = format!(
        "leased = {leased}\nattempt_timeout = \"40ms\"\ndeadline = \"40ms\"\nbreaker = {{ enabled = false }}\nlimits = [{{ requests = {rate}, period = \"1s\", burst = {burst} }}]"
    );
    let fleet = Fleet::start(hosts, 200, &endpoint);
    let stop = Arc::new(AtomicBool::new(false));
    let calls: Arc<Mutex<HashMap<u64, Call>>> = Arc::default();
    let own = Arc::clone(&calls);
    let callers = fleet.callers(Duration::ZERO, &stop, move |seen| match seen.status {
        status @ (200 | 429 | 503 | 504) => {
            let call = Call { asked: seen.at, answered: Instant::now(), status };
            own.lock().unwrap().insert(seen.number, call);
        }
        status => panic!("host {}: {status} {}", seen.host, seen.body),
    });
    let least = (u128::from(rate) * lasts.as_millis() / 2000) as usize;
    let began = Instant::now();
    while began.elapsed() < lasts || fleet.upstream.asked().len() < least {
        thread::sleep(Duration::from_millis(20));
        assert!(!callers.iter().any(JoinHandle::is_finished), "a caller failed");
        let asked = fleet.upstream.asked().len();
        assert!(began.elapsed() < RUN_TIMEOUT, "{asked} of {least} calls at least: the limit is used");
    }
    stop.store(true, Relaxed);
    join(callers);
    let calls = calls.lock().unwrap();
    let mut spans: Vec<_> =
        fleet.upstream.asked().into_iter().map(|(reached, number)| (calls[&number].asked, reached)).collect();
    spans.sort_unstable_by_key(|(_, reached)| *reached);
    // The permits that a host prefetches: see `lot` in the gate.
    let outstanding = if leased { (rate / 10).min(burst) } else { 0 };
    let mut over = 0;
    for (start, _) in &spans {
        let within = spans.iter().filter(|(asked, _)| asked >= start).enumerate();
        for (before, (_, end)) in within {
            let most = u128::from(burst + outstanding) * 1_000_000 + u128::from(rate) * (*end - *start).as_micros();
            over += usize::from((before as u128 + 1) * 1_000_000 > most);
        }
    }
    assert_eq!(over, 0, "windows with too many, of {} calls", spans.len());
    let lost = calls.values().filter(|call| matches!(call.status, 503 | 504)).count();
    let used_up = used_up(&calls, Duration::from_secs(1) * burst / rate);
    let expected = u128::from(rate) * used_up.as_micros() / 1_000_000;
    assert!((spans.len() + lost) as u128 * 2 >= expected, "{} calls where {expected} were possible", spans.len());
    println!(
        "{} calls of {hosts} hosts, {rate} a second and {burst} at once, used up for {used_up:?}: no window over",
        spans.len()
    );
}

/// The minimum time for which a limit was exhausted. Between two refusals that are closer together than the time to refill it, all permits
/// were used.
fn used_up(calls: &HashMap<u64, Call>, fills_in: Duration) -> Duration {
    let mut refusals: Vec<_> = calls.values().filter(|call| call.status == 429).collect();
    refusals.sort_unstable_by_key(|call| call.answered);
    let stretches = refusals.chunk_by(|one, next| next.answered - one.asked < fills_in);
    let lengths = stretches.filter_map(|all| Some(all.last()?.asked.saturating_duration_since(all.first()?.answered)));
    lengths.sum()
}

#[test]
fn three_hosts_keep_a_limit_together() {
    keeps_its_limit(3, Duration::from_secs(2), false, 50, 10);
}

#[test]
fn three_hosts_keep_a_leased_limit_together() {
    keeps_its_limit(3, Duration::from_secs(2), true, 500, 100);
}

#[test]
#[ignore = "a minute"]
fn eight_hosts_keep_a_limit_together() {
    keeps_its_limit(8, Duration::from_secs(20), false, 50, 10);
    keeps_its_limit(8, Duration::from_secs(20), true, 500, 200);
    // Too small to share, so the limit stays exact.
    keeps_its_limit(8, Duration::from_secs(20), true, 20, 5);
}
