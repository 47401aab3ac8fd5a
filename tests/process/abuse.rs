//! Abusive load against the real executable, in a control group of 512 MB if possible: the host survives, and other callers are served.
//! `TRIAGE_SOAK_SECONDS` sets the duration of each load; the default is ten minutes.

use super::child::{Triage, triage};
use bytes::Bytes;
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const GROUP_BYTES: u64 = 512 << 20;

fn lasts() -> Duration {
    let seconds = std::env::var("TRIAGE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

/// A control group of 512 MB, removed on drop.
struct Group {
    dir: PathBuf,
    is_v1: bool,
}

impl Group {
    /// None if control groups are not available.
    fn new(name: &str) -> Option<Self> {
        let name = format!("triage-soak-{name}-{}", std::process::id());
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let is_v1 = v1.is_dir();
        let dir = if is_v1 { v1 } else { PathBuf::from("/sys/fs/cgroup") }.join(name);
        fs::create_dir(&dir).ok()?;
        let group = Self { dir, is_v1 };
        let file = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.dir.join(file), GROUP_BYTES.to_string()).ok()?;
        Some(group)
    }

    /// The memory used without the page cache, which fills a group up to its limit and is reclaimed before the kernel kills a process.
    fn used(&self) -> u64 {
        let (file, reclaimable) = if self.is_v1 {
            ("memory.usage_in_bytes", ["total_inactive_file ", "total_active_file "])
        } else {
            ("memory.current", ["inactive_file ", "active_file "])
        };
        let read = |file: &str| fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        let stat = read("memory.stat");
        let part = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)).map_or(0, number);
        number(&read(file)).saturating_sub(reclaimable.map(part).iter().sum())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group can be removed after its last process has ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A host in its group, in front of an upstream.
struct Stage {
    host: Triage,
    address: SocketAddr,
    group: Option<Group>,
    /// The highest memory usage of all samples.
    peak_bytes: u64,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new(name: &str, server: &str) -> Self {
        let upstream = upstream().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("triage.toml");
        let group = Group::new(name);
        // Breaker and overload shedding are off, so that only the host's own limits refuse requests. Without a control group, the
        // configuration sets the same memory limit.
        let limit = if group.is_some() { "" } else { "memory_limit = \"460MiB\"\n" };
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n{limit}{server}[admin]\nlisten = \"off\"\n[policies]\ncache = false\n\
             [upstreams.api]\nbase_url = \"http://{upstream}\"\n[upstreams.api.overload]\nenabled = false\n\
             [upstreams.api.defaults]\nlimits = []\nbreaker = {{ enabled = false }}\n"
        );
        fs::write(&file, text).unwrap();
        let own = triage(&[]);
        // Another build, for comparison.
        let binary = std::env::var_os("TRIAGE_SOAK_BINARY").unwrap_or_else(|| own.get_program().to_owned());
        let mut command = Command::new("sh");
        let enter = match &group {
            Some(group) => format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.dir.display()),
            None => "exec \"$@\"".to_owned(),
        };
        // These variables must not reach the host, which would reject them as configuration.
        command.env_remove("TRIAGE_SOAK_BINARY").env_remove("TRIAGE_SOAK_SECONDS").env_remove("TRIAGE_SOAK");
        command.args(["-c", &enter, "sh"]).arg(binary).args(["serve", "--config"]).arg(&file);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut host = Triage::start(&mut command);
        let line = host.says("listening on http://");
        let address = line.rsplit("//").next().unwrap().parse().unwrap();
        Self { host, address, group, peak_bytes: 0, _folder: folder }
    }

    /// Runs a load from `127.0.0.2`, sends requests from `127.0.0.9` meanwhile, and counts how many of those were served and refused.
    async fn under(&mut self, load: impl Fn(SocketAddr) -> JoinSet<()>) -> (u64, u64) {
        let mut load = load(self.address);
        let (mut served, mut refused) = (0, 0);
        let end = Instant::now() + lasts();
        while Instant::now() < end {
            match timeout(
                Duration::from_secs(10),
                ask(self.address, "GET /alive HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            )
            .await
            {
                Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => served += 1,
                _ => refused += 1,
            }
            self.peak_bytes = self.peak_bytes.max(self.group.as_ref().map_or(0, Group::used));
            sleep(Duration::from_millis(50)).await;
        }
        load.abort_all();
        while load.join_next().await.is_some() {}
        (served, refused)
    }

    /// Checks that the host survived, and serves again after the load.
    async fn survived(self, what: &str, (served, refused): (u64, u64)) {
        for _ in 0..200 {
            let answer = ask(self.address, "GET /after HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            if answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                let peak_mib = self.peak_bytes >> 20;
                println!("{what}: {:?}, served {served}, refused {refused}, at most {peak_mib} MiB used", lasts());
                self.host.terminate();
                let ended = self.host.ended();
                assert!(ended.code.is_some(), "{what}: killed");
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{what}: it serves no more");
    }
}

/// An upstream that responds at once, but never to `/slow`.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut buffer) = (Vec::new(), [0; 16 << 10]);
                loop {
                    let Some(end) = read.windows(4).position(|window: &[u8]| window == b"\r\n\r\n") else {
                        match stream.read(&mut buffer).await {
                            Ok(count) if count > 0 => read.extend_from_slice(&buffer[..count]),
                            _ => return,
                        }
                        continue;
                    };
                    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
                    let length =
                        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
                    let mut left = (end + 4 + length.unwrap_or(0_usize)).saturating_sub(read.len());
                    while left > 0 {
                        match stream.read(&mut buffer).await {
                            Ok(count) if count > 0 => left = left.saturating_sub(count),
                            _ => return,
                        }
                    }
                    read.clear();
                    if head.contains("/slow") {
                        std::future::pending::<()>().await;
                    }
                    let body = if head.contains("/large") { "x".repeat(4 << 20) } else { "fine".to_owned() };
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn connect(own: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((own, 0).into())?;
    socket.connect(to).await
}

async fn ask(to: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = connect([127, 0, 0, 9], to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Starts this number of callers, each of which repeats the same action.
fn crowd<F: Future<Output = std::io::Result<()>> + Send + 'static>(
    callers: usize,
    act: impl Fn() -> F + Send + Clone + 'static,
) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for _ in 0..callers {
        let act = act.clone();
        all.spawn(async move {
            loop {
                if act().await.is_err() {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    all
}

/// H2: endless keyed writes. Reads are always served, and new keys are refused in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes"]
async fn keyed_writes_without_end() {
    let mut stage = Stage::new("keys", "").await;
    let (next, full) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&full);
    let answers = stage
        .under(move |to| {
            let (next, full) = (Arc::clone(&next), Arc::clone(&counted));
            crowd(16, move || {
                let (next, full) = (Arc::clone(&next), Arc::clone(&full));
                async move {
                    let mut stream = connect([127, 0, 0, 2], to).await?;
                    for _ in 0..1000 {
                        let key = next.fetch_add(1, Relaxed);
                        let request = format!(
                            "POST /rows HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \"{key}\"\r\nContent-Length: 100\r\n\r\n{key:0100}"
                        );
                        stream.write_all(request.as_bytes()).await?;
                        let mut answer = [0; 4096];
                        let count = stream.read(&mut answer).await?;
                        if answer[..count].windows(9).any(|window| window == b"keys-full") {
                            full.fetch_add(1, Relaxed);
                        }
                        if count == 0 {
                            return Ok(());
                        }
                    }
                    Ok(())
                }
            })
        })
        .await;
    println!("refused keys: {}", full.load(Relaxed));
    assert_eq!(answers.1, 0, "every read is served");
    stage.survived("keyed writes", answers).await;
}

/// H4: endless heads of 62 kB, and uploads of 1 MiB that stop before their last byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes"]
async fn heads_and_uploads_without_end() {
    let mut stage = Stage::new("heads", "").await;
    let mut head = b"GET /a HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
    head.resize(62_000, b'x');
    let head = Bytes::from(head);
    let mut upload = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n".to_vec();
    upload.resize(upload.len() + (1 << 20) - 1, b'x');
    let upload = Bytes::from(upload);
    let answers = stage
        .under(move |to| {
            let mut all = JoinSet::new();
            for n in 0..4000_usize {
                let bytes = if n % 2 == 0 { head.clone() } else { upload.clone() };
                all.spawn(async move {
                    loop {
                        let held = async {
                            let mut stream = connect([127, 0, 0, 2], to).await?;
                            stream.write_all(&bytes).await?;
                            stream.read(&mut [0; 1]).await
                        };
                        let _ = held.await;
                        sleep(Duration::from_millis(50)).await;
                    }
                });
            }
            all
        })
        .await;
    stage.survived("heads and uploads", answers).await;
}

/// H3: one peer uses all its connections, some with unread responses, others idle. H6: writes that are abandoned at once, over HTTP/2 and
/// HTTP/1.1. No other caller is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes"]
async fn callers_that_do_not_read_and_writes_that_are_left() {
    let mut stage = Stage::new("left", "max_connections = 60\n").await;
    let answers = stage
        .under(move |to| {
            let mut all = crowd(60, move || async move {
                let mut stream = connect([127, 0, 0, 2], to).await?;
                stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                sleep(Duration::from_secs(3600)).await;
                Ok(())
            });
            for _ in 0..8 {
                all.spawn(async move {
                    loop {
                        let _ = reset_writes(to).await;
                        sleep(Duration::from_millis(5)).await;
                    }
                });
                all.spawn(async move {
                    loop {
                        if let Ok(mut stream) = connect([127, 0, 0, 3], to).await {
                            let _ =
                                stream.write_all(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
                        }
                        sleep(Duration::from_millis(5)).await;
                    }
                });
            }
            all
        })
        .await;
    assert_eq!(answers.1, 0, "no other caller is refused");
    stage.survived("unread answers and left writes", answers).await;
}

async fn reset_writes(to: SocketAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (sender, connection) = h2::client::handshake(connect([127, 0, 0, 4], to).await?).await?;
    let driven = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    for _ in 0..2000 {
        let request = http::Request::post("http://x/slow").body(())?;
        let (answer, mut stream) = sender.send_request(request, true)?;
        tokio::task::yield_now().await;
        stream.send_reset(h2::Reason::CANCEL);
        drop::<h2::client::ResponseFuture>(answer);
        sender = sender.ready().await?;
        let _: &h2::client::SendRequest<Bytes> = &sender;
    }
    driven.abort();
    Ok(())
}
