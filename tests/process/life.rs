//! SIGHUP, socket activation, rolling restarts without a lost request, and processes in between.

use super::child::{Triage, get, triage};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// An upstream that handles many requests on one connection.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone");
                    }
                }
            });
        }
    });
    url
}

fn configured(folder: &Path, upstream: &str, further: &str) -> String {
    let file = folder.join("triage.toml");
    fs::write(&file, format!("[upstreams.api]\nbase_url = \"{upstream}\"\n{further}")).unwrap();
    file.display().to_string()
}

#[test]
fn sighup_puts_into_force_what_it_can_and_says_what_waits() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), upstream());
    let file = configured(folder.path(), &upstream, "");
    let (mut host, address) = Triage::serve(&["--config", &file]);
    assert!(get(address, "/a").starts_with("HTTP/1.1 200"));
    let limit = "[upstreams.api.defaults]\nlimits = [{ requests = 1, period = \"1h\" }]\ndeadline = \"6s\"\n";
    configured(folder.path(), &upstream, &format!("connect_timeout = \"1s\"\n{limit}"));
    host.signal("HUP");
    let line = host.logs("the configuration was read again");
    assert!(line.contains("changed=upstreams.api.defaults.deadline, upstreams.api.defaults.limits"), "{line}");
    assert!(line.contains("waiting=upstreams.api.connect_timeout"), "{line}");
    assert!(get(address, "/a").starts_with("HTTP/1.1 200"));
    assert!(get(address, "/a").starts_with("HTTP/1.1 429"), "the new limit holds");
    // An invalid file changes nothing.
    configured(folder.path(), &upstream, "[upstreams.api.defaults]\ndeadline = \"soon\"\n");
    host.signal("HUP");
    host.logs("the configuration was not read again; the present configuration stays in effect");
    assert!(get(address, "/a").starts_with("HTTP/1.1 429"));
    host.terminate();
    assert_eq!(host.ended().code, Some(0));
}

/// Starts a host on a socket of this process, like systemd.
fn on_socket(socket: &TcpListener, arguments: &[&str]) -> Triage {
    let listen = socket.local_addr().unwrap().to_string();
    let all = [&["serve", "--listen", &listen, "--admin", "off", "--workers", "1"][..], arguments].concat();
    let own = triage(&all);
    let mut command = Command::new("sh");
    // LISTEN_PID must be the id of the process itself.
    let fd = socket.as_raw_fd();
    command.args(["-c", &format!("export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<&{fd}; exec \"$0\" \"$@\"")]);
    command.arg(own.get_program()).args(own.get_args()).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut host = Triage::start(&mut command);
    host.says("listening on http://");
    host
}

/// A socket that child processes inherit.
fn shared_socket() -> TcpListener {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    socket
}

/// Sends one request on a new connection. Returns an error if it fails.
fn once(address: SocketAddr) -> Result<(), String> {
    let message = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(address).map_err(|error| message("connect", error))?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(|error| message("timeout", error))?;
    let request = b"GET /a HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request).map_err(|error| message("send", error))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| message("read", error))?;
    if text.starts_with("HTTP/1.1 200") && text.ends_with("done") { Ok(()) } else { Err(format!("answer: {text:?}")) }
}

/// Replaces hosts on a shared socket one after the other while callers send requests. Returns the number of responses.
fn rolling(hosts: usize, restarts: usize) -> u64 {
    let (socket, upstream) = (shared_socket(), upstream());
    let address = socket.local_addr().unwrap();
    let start = || on_socket(&socket, &["--upstream", &upstream, "--set", "server.drain=10s"]);
    let mut running: Vec<Triage> = (0..hosts).map(|_| start()).collect();
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    once(address)?;
                    answered.fetch_add(1, Relaxed);
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for round in 0..restarts {
        for place in &mut running {
            let before = answered.load(Relaxed);
            let old = std::mem::replace(place, start());
            old.terminate();
            let ended = old.ended();
            assert_eq!(ended.code, Some(0), "restart {round}: the drain did not end within its limit: {ended:?}");
            while answered.load(Relaxed) < before + 20 && callers.iter().any(|caller| !caller.is_finished()) {
                thread::yield_now();
            }
        }
    }
    stop.store(true, Relaxed);
    for caller in callers {
        caller.join().unwrap().unwrap_or_else(|error| panic!("a request was dropped: {error}"));
    }
    answered.load(Relaxed)
}

#[test]
fn hosts_on_a_shared_socket_are_replaced_without_a_dropped_request() {
    assert!(rolling(2, 2) >= 80);
}

/// The full run: `TRIAGE_SOAK=1 .ci/run`.
#[test]
#[ignore = "takes minutes"]
fn twenty_rolling_restarts_of_three_hosts_drop_nothing() {
    let answered = rolling(3, 20);
    println!("{answered} requests were answered, none was dropped");
    assert!(answered >= 1200);
}

#[test]
fn the_host_refuses_a_passed_socket_without_a_listener() {
    let socket = shared_socket();
    let own = triage(&["serve", "--upstream", "http://a.example", "--listen", "127.0.0.1:0", "--admin", "off"]);
    let fd = socket.as_raw_fd();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<&{fd}; exec \"$0\" \"$@\"")]);
    command.arg(own.get_program()).args(own.get_args()).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ended = Triage::start(&mut command).ended();
    let message = format!("the system passed sockets on {}, but no listener", socket.local_addr().unwrap());
    assert!(ended.code == Some(1) && ended.err.contains(&message), "{ended:?}");
}

/// Waits for a condition without a timeout, since the test runner has one.
fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        thread::sleep(Duration::from_millis(10));
    }
}

fn status(address: SocketAddr, path: &str, token: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {text:?}"))
}

/// The admin listener's address, from the host's output.
fn admin(host: &mut Triage) -> SocketAddr {
    let line = host.says("admin: ");
    line.trim().trim_start_matches("admin: http://").trim_end_matches('/').parse().unwrap()
}

#[test]
fn a_token_is_read_again_when_its_file_changes() {
    const OLD: &str = "an-old-token-of-some-length";
    const NEW: &str = "a-new-token-of-some-length";
    let (folder, upstream) = (tempfile::tempdir().unwrap(), upstream());
    let file = folder.path().join("token");
    fs::write(&file, OLD).unwrap();
    let set = format!("admin.write_token_file={}", file.display());
    let (mut host, _) = Triage::serve(&["--upstream", &upstream, "--set", &set]);
    let admin = admin(&mut host);
    let asks = |token: &str| status(admin, "/api/v1/status", token);
    assert_eq!((asks(OLD), asks(NEW)), (200, 401));
    fs::write(&file, NEW).unwrap();
    until(|| asks(NEW) == 200);
    assert_eq!(asks(OLD), 401);
    // A token that is too short is invalid, and the last valid one stays.
    fs::write(&file, "short").unwrap();
    host.logs("the configuration was not read again; the present configuration stays in effect");
    assert_eq!((asks(NEW), asks("short")), (200, 401));
}

#[test]
fn before_it_stops_the_host_says_that_it_is_not_ready_and_still_serves() {
    let upstream = upstream();
    let (mut host, address) = Triage::serve(&["--upstream", &upstream, "--set", "server.shutdown_delay=10m"]);
    let admin = admin(&mut host);
    assert_eq!((status(admin, "/readyz", ""), status(admin, "/healthz", "")), (200, 200));
    host.terminate();
    until(|| status(admin, "/readyz", "") == 503);
    assert_eq!(once(address), Ok(()), "on a connection opened after the signal");
    assert_eq!(status(admin, "/healthz", ""), 200);
    host.terminate();
    host.logs("a second signal");
}

#[test]
fn with_reuse_port_the_next_host_listens_before_the_last_one_stops() {
    let upstream = upstream();
    let reuse = ["--upstream", &upstream, "--set", "server.reuse_port=true"];
    let (first, address) = Triage::serve(&reuse);
    let listen = address.to_string();
    let beside = |further: &[&str]| {
        let all = [&["serve", "--listen", &listen, "--admin", "off", "--upstream", &upstream][..], further].concat();
        Triage::start(&mut triage(&all))
    };
    // Tripwire: without `reuse_port`, the address is in use.
    let refused = beside(&[]).ended();
    assert!(refused.code == Some(1) && refused.err.contains("cannot listen on"), "{refused:?}");
    let mut second = beside(&reuse[2..]);
    second.says("listening on http://");
    first.terminate();
    assert_eq!(first.ended().code, Some(0));
    for _ in 0..20 {
        assert_eq!(once(address), Ok(()));
    }
}

#[test]
fn the_host_notifies_systemd_when_it_is_ready_and_when_it_stops() {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), upstream());
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let message = || {
        let mut bytes = [0; 256];
        let read = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let (host, address) = Triage::serve_with(&["--upstream", &upstream], &environment);
    assert_eq!(message(), "READY=1");
    assert_eq!(once(address), Ok(()), "it is, by then");
    host.terminate();
    assert_eq!(message(), "STOPPING=1");
    assert_eq!(host.ended().code, Some(0));
}
