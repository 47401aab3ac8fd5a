//! A host without free file descriptors: its own failure, which opens no breaker.

use super::child::{Triage, triage};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// An upstream that closes each connection after its response, so that every request needs a new one.
fn closing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine");
        }
    });
    url
}

/// Sends a request on a persistent connection.
fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_some_and(|length| body.len() >= length) {
                return text;
            }
        }
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {text:?}");
        read.extend_from_slice(&buffer[..count]);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

#[test]
fn a_lack_of_descriptors_opens_no_breaker() {
    let upstream = closing();
    let binary =
        triage(&["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--workers", "1", "--upstream", &upstream]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]).arg(binary.get_program()).args(binary.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut host = Triage::start(&mut command);
    host.logs("the process may open fewer files");
    let line = host.says("listening on http://");
    let address: SocketAddr = line.rsplit("//").next().unwrap().parse().unwrap();
    let mut own = connect(address);
    assert!(ask(&mut own).starts_with("HTTP/1.1 200"));
    let idle: Vec<_> = (0..64).map(|_| connect(address)).collect();
    host.logs("a connection could not be accepted");
    // More failures than a breaker's threshold.
    for _ in 0..12 {
        let answer = ask(&mut own);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no file descriptor is left"), "{answer}");
        assert!(answer.contains("triage-sent: no"), "{answer}");
    }
    drop(idle);
    let served = (0..600).any(|_| {
        thread::sleep(Duration::from_millis(50));
        let answer = ask(&mut own);
        assert!(!answer.contains("breaker-open"), "{answer}");
        answer.starts_with("HTTP/1.1 200")
    });
    assert!(served, "it serves once there are descriptors");
}
