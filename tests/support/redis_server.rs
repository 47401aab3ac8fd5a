//! Redis servers for one test: started on free ports, killed, stopped, emptied and cut off.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// A server, killed on drop.
pub struct RedisServer {
    process: Option<Child>,
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts an empty server without persistence.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// The same with further arguments, such as `["--maxmemory", "2mb"]`.
    pub fn with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::launched(folder, arguments.iter().map(|&argument| argument.to_owned()).collect())
    }

    fn launched(folder: tempfile::TempDir, arguments: Vec<String>) -> Self {
        let mut server = Self { process: None, port: 0, folder, arguments };
        for _ in 0..20 {
            // Another test may take the port first. The server then exits, and the loop tries another port.
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("no redis-server started: {}", std::fs::read_to_string(server.log()).unwrap_or_default());
    }

    /// Starts a Sentinel with these configuration lines.
    pub fn sentinel(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, lines).unwrap();
        let arguments = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        Self::launched(folder, arguments)
    }

    /// Starts a server that also offers TLS, on the next port; none if this build of Redis has no TLS.
    pub fn tls(certificate: &str, key: &str) -> Option<Self> {
        // The client and the server are built with the same options.
        let cli = Command::new("redis-cli").arg("--help").output().unwrap();
        if ![cli.stdout, cli.stderr].iter().any(|text| String::from_utf8_lossy(text).contains("--tls")) {
            return None;
        }
        let words = [
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            key,
            "--tls-ca-cert-file",
            certificate,
            "--tls-auth-clients",
            "no",
        ];
        let arguments = words.map(str::to_owned).to_vec();
        Some(Self::launched(tempfile::tempdir().unwrap(), arguments))
    }

    /// The port for TLS.
    pub fn tls_port(&self) -> u16 {
        self.port + 1
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn launch(&mut self) -> bool {
        let folder = self.folder.path().to_str().unwrap();
        let (port, log, socket) = (self.port.to_string(), self.log(), self.socket());
        let mut command = Command::new("redis-server");
        // A configuration file must be the first argument.
        let (first, rest) =
            self.arguments.split_at(usize::from(self.arguments.first().is_some_and(|word| !word.starts_with("--"))));
        command.args(first).args(["--port", &port, "--bind", "127.0.0.1", "--dir", folder, "--daemonize", "no"]);
        command.args(["--logfile", log.to_str().unwrap()]);
        if first.is_empty() {
            command.args(["--save", "", "--appendonly", "no", "--unixsocket", socket.to_str().unwrap()]);
        }
        if rest.iter().any(|word| word == "--tls-cert-file") {
            command.args(["--tls-port", &self.tls_port().to_string()]);
        }
        command.args(rest);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut process = spawned.expect("redis-server is missing; .ci/run installs it");
        for _ in 0..500 {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            // Another server may have the port; the log shows whether this one is ready.
            let ready = std::fs::read_to_string(self.log())
                .is_ok_and(|log| log.contains("Ready to accept connections") || log.contains("Sentinel ID is"));
            if ready {
                self.process = Some(process);
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = process.kill();
        let _ = process.wait();
        false
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection for the test's own commands.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Runs a command, such as `["GET", "a"]`.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The number of calls of a command since the last `CONFIG RESETSTAT`.
    pub fn calls(&self, name: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Restarts it on the same port, empty unless it persists its data.
    pub fn restart(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(self.log());
        for _ in 0..50 {
            if self.launch() {
                return;
            }
            // Connections to the previous process may still hold the port.
            thread::sleep(Duration::from_millis(50));
        }
        panic!("redis-server did not come back: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
    }

    /// Sends SIGSTOP: connections stay open without responses.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Sends SIGCONT.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("the server runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A free port, low enough that the port of a Cluster's bus (10,000 higher) is valid.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 55_000 {
            return port;
        }
    }
}

/// Three masters that share the hash slots.
pub struct RedisCluster(pub Vec<RedisServer>);

impl RedisCluster {
    pub fn start() -> Self {
        let one = |_| RedisServer::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        let nodes: Vec<RedisServer> = (0..3).map(one).collect();
        for (index, node) in nodes.iter().enumerate() {
            let slots = (16_384 * index / 3)..(16_384 * (index + 1) / 3);
            let mut command = redis::cmd("CLUSTER");
            command.arg("ADDSLOTS").arg(slots.collect::<Vec<_>>());
            command.exec(&mut node.connection()).unwrap();
            if index > 0 {
                let () = node.ask(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port().to_string()]);
            }
        }
        let whole = |node: &RedisServer| {
            let info: String = node.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        for _ in 0..600 {
            if nodes.iter().all(whole) {
                return Self(nodes);
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the three masters do not agree");
    }

    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.0.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis://{}", nodes.join(","))
    }
}

/// How a [`Proxy`] treats traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Forwards it.
    Open,
    /// Closes connections and refuses new ones.
    Cut,
    /// Accepts it without forwarding it in either direction; connections stay open.
    BlackHole,
}

/// A TCP proxy in front of a server.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    way: AtomicU8,
    delay_ms: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn way(&self) -> Way {
        match self.way.load(SeqCst) {
            0 => Way::Open,
            1 => Way::Cut,
            _ => Way::BlackHole,
        }
    }
}

impl Proxy {
    pub fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for caller in listener.incoming() {
                let Ok(caller) = caller else { return };
                if Arc::strong_count(&own) == 1 {
                    return;
                }
                if own.way() == Way::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                for (from, to) in [(&caller, &server), (&server, &caller)] {
                    let _ = from.set_nodelay(true);
                    let (from, to, own) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&own));
                    own.open.lock().unwrap().push(from.try_clone().unwrap());
                    thread::spawn(move || carry(from, to, &own));
                }
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn set(&self, way: Way) {
        self.shared.way.store(way as u8, SeqCst);
        if way == Way::Cut {
            self.close();
        }
    }

    /// Delays traffic in both directions.
    pub fn delay(&self, by: Duration) {
        self.shared.delay_ms.store(u64::try_from(by.as_millis()).unwrap(), SeqCst);
    }

    fn close(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close();
        // Connecting wakes the listener, which then ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut bytes = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        match shared.delay_ms.load(SeqCst) {
            0 => {}
            delay => thread::sleep(Duration::from_millis(delay)),
        }
        if shared.way() == Way::BlackHole {
            continue;
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
