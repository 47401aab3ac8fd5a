//! An upstream on a real socket that follows a script byte by byte, and records requests.

use bytes::Bytes;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

/// A received request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// Request line and header lines in lower case.
    pub head: String,
    /// The body without its framing.
    pub body: Vec<u8>,
}

impl Seen {
    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| *own == name).map(|(_, value)| value).collect()
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// How the upstream treats a request.
pub enum Reply {
    /// Sends these bytes and keeps the connection open.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Part(Vec<u8>),
    /// Closes the connection without a response.
    Close,
    /// Never responds.
    Hang,
    /// Sends bytes when the test provides them.
    Paced(mpsc::Receiver<Bytes>),
}

/// A response 200 with a body.
pub fn ok(headers: &str, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into())
}

/// A response with a status and no body.
pub fn status(status: u16) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n").into())
}

/// The running upstream, stopped on drop.
pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    pub async fn start(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    pub async fn start_at(address: SocketAddr, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(script));
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connection = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (script, noted) = (Arc::clone(&script), Arc::clone(&noted));
                tokio::spawn(async move {
                    let _ = converse(stream, connection, |seen| {
                        noted.lock().unwrap().push(seen.clone());
                        (script.lock().unwrap())(seen)
                    })
                    .await;
                });
                connection += 1;
            }
        });
        Self { address, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    mut script: impl FnMut(&Seen) -> Reply,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let Some((head, body)) = message(&mut stream, &mut read).await? else { return Ok(()) };
        match script(&Seen { connection, head, body }) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::Part(bytes) => return stream.write_all(&bytes).await,
            Reply::Close => return Ok(()),
            Reply::Hang => std::future::pending().await,
            Reply::Paced(mut parts) => {
                while let Some(part) = parts.recv().await {
                    stream.write_all(&part).await?;
                    stream.flush().await?;
                }
            }
        }
    }
}

/// Reads one message: the head in lower case, and the body without its framing. None at the end of the stream.
pub async fn message(stream: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let end = loop {
        if let Some(end) = find(read, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
    read.drain(..end + 4);
    let named = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()));
    if named("transfer-encoding:").is_some() {
        return Ok(Some((head, chunks(stream, read).await?)));
    }
    let length = named("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
    while read.len() < length {
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, read.drain(..length).collect())))
}

async fn chunks(stream: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        while let Some(end) = find(read, b"\r\n") {
            let size = usize::from_str_radix(&String::from_utf8_lossy(&read[..end]), 16).unwrap_or(0);
            if read.len() < end + 2 + size + 2 {
                break;
            }
            body.extend_from_slice(&read[end + 2..end + 2 + size]);
            read.drain(..end + 2 + size + 2);
            if size == 0 {
                return Ok(body);
            }
        }
        if stream.read_buf(read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
