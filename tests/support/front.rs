//! A host on a real socket, and requests to it.

use super::scripted::message;
use std::net::SocketAddr;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use triage::server::{ReloadError, Server};
use triage_config::{self as config, settings::Settings};

/// A running host, stopped on drop.
pub struct Front {
    server: Server,
    settings: Settings,
}

/// A received response.
#[derive(Debug)]
pub struct Got {
    /// Status line and header lines in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    pub fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| *own == name).map(|(_, value)| value).next()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Front {
    /// Serves a configuration on a free port, with one worker that sees every connection.
    pub fn serve(toml: &str) -> Self {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain = \"1s\"\n[admin]\nlisten = \"off\"\n{toml}"
        );
        let settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        Self { server: Server::start(&settings).unwrap(), settings }
    }

    /// Serves a configuration with an admin listener on a free port. `keys` are its further keys.
    pub fn with_admin(keys: &str, toml: &str) -> Self {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain = \"1s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{keys}{toml}"
        );
        let settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        Self { server: Server::start(&settings).unwrap(), settings }
    }

    /// Serves existing settings.
    pub fn of_settings(settings: Settings) -> Self {
        Self { server: Server::start(&settings).unwrap(), settings }
    }

    /// Serves a complete configuration.
    pub fn start(toml: &str) -> Self {
        let settings = config::from_toml(toml).unwrap_or_else(|problems| panic!("{problems}"));
        Self { server: Server::start(&settings).unwrap(), settings }
    }

    /// Wraps a running server.
    pub fn of_server(server: Server, settings: Settings) -> Self {
        Self { server, settings }
    }

    /// Reloads certificates and tokens.
    pub fn reload(&self) -> Result<config::Reload, ReloadError> {
        self.server.reload(&self.settings)
    }

    /// Sends a request to the admin listener.
    pub async fn admin(&self, method: &str, path: &str, headers: &str, body: &str) -> Got {
        let (address, length) = (self.server.admin().unwrap(), body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n{headers}\r\n");
        raw(address, format!("{head}{body}").as_bytes()).await
    }

    /// The JSON at a path of the admin listener.
    pub async fn get_json(&self, path: &str) -> serde_json::Value {
        let got = self.admin("GET", path, "", "").await;
        assert_eq!(got.status(), "200", "{path}: {}", got.text());
        serde_json::from_slice(&got.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", got.text()))
    }

    /// A host in front of one upstream, with further keys of the server.
    pub fn with_server(keys: &str, base_url: &str) -> Self {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n{keys}[admin]\nlisten = \"off\"\n[upstreams.api]\nbase_url = \"{base_url}\"\n"
        );
        let settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        Self { server: Server::start(&settings).unwrap(), settings }
    }

    /// A host in front of one upstream, with further keys of that upstream.
    pub fn of(base_url: &str, keys: &str) -> Self {
        Self::serve(&format!("[upstreams.api]\nbase_url = \"{base_url}\"\n{keys}"))
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.server.admin().unwrap()
    }

    /// Drains and stops the host. Returns whether all requests were finished.
    pub fn stop(self) -> bool {
        self.server.stop()
    }

    pub fn host(&self) -> &triage::Host {
        self.server.host()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Sends bytes on a new connection and reads one response.
    pub async fn raw(&self, request: &str) -> Got {
        raw(self.address(), request.as_bytes()).await
    }

    /// Sends a request without a body.
    pub async fn ask(&self, method: &str, path: &str, headers: &str) -> Got {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: triage.test\r\n{headers}\r\n")).await
    }

    /// Sends a request with a body.
    pub async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Got {
        let length = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: triage.test\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
        .await
    }
}

pub async fn raw(address: SocketAddr, request: &[u8]) -> Got {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut read = Vec::new();
    loop {
        let (head, body) = message(&mut stream, &mut read).await.unwrap().expect("an answer");
        if !head.starts_with("http/1.1 1") {
            return Got { head, body };
        }
    }
}
