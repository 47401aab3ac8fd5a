//! The address of shared state: one Redis (or Valkey), a Cluster, or a master that Sentinels name.
//!
//! The crate `url` cannot parse several addresses in one URL, and it percent-encodes an unescaped `@` of a password.

use crate::secret::Secret;
use std::{fmt, path::PathBuf};

/// The accepted forms of `state.url`, for error messages.
pub const RULE: &str = "\"memory:\", or the URL of a Redis or Valkey: \"redis://host:6379/0\", \"rediss://host\" with TLS, \
                        \"unix:///path/of.sock\", \"redis://a:6379,b:6379\" for a Cluster, or \
                        \"redis+sentinel://a:26379,b:26379/master\"";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
/// More nodes than a Cluster or a Sentinel setup needs to name.
const MAX_NODES: usize = 64;
/// Redis has 16 databases by default; a configuration may raise that.
const MAX_DB: i64 = 65_535;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    /// A host name or an IP address; IPv6 without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

/// The kind of server behind the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    One(Node),
    /// One server, over a Unix domain socket.
    Unix(PathBuf),
    /// A Cluster. The nodes listed need not be all: the client discovers the rest.
    Cluster(Vec<Node>),
    /// The master that the Sentinels name at the moment of connecting.
    Sentinel {
        /// The Sentinels to ask; they need not be all.
        sentinels: Vec<Node>,
        /// The name of the master in the Sentinels' configuration.
        master: String,
    },
}

/// Address, user and password of shared state. `Display` and `Debug` hide the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// One server, a Cluster or a Sentinel setup.
    pub topology: Topology,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The user name; `None` for the server's default user.
    pub user: Option<String>,
    /// The password, where the URL has one.
    pub password: Option<Secret>,
    /// The database number; 0 on a Cluster.
    pub db: i64,
}

impl Address {
    /// Whether the URL has a scheme of Redis or Valkey, valid or not.
    pub fn is_meant(text: &str) -> bool {
        text.split_once(':').is_some_and(|(scheme, _)| Scheme::of(scheme).is_some())
    }

    /// Parses a URL.
    ///
    /// # Errors
    /// The rule that the URL breaks. The text quotes nothing of the URL, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rule = || RULE.to_owned();
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(rule)?;
        let scheme = Scheme::of(scheme).ok_or_else(rule)?;
        if rest.contains('#') {
            return Err("a URL without a fragment; write a `#` in a password as %23".to_owned());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
        // The last `@` separates: a password may contain an unescaped one.
        let (identity, hosts) = authority.rsplit_once('@').map_or((None, authority), |(who, at)| (Some(who), at));
        let (user, password) = identity.map(identified).transpose()?.unwrap_or_default();
        let mut db = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("db" | "virtual_host", number) => db = Some(database(number)?),
                // A parameter of Celery's URLs. Certificates are verified in any case.
                ("ssl_cert_reqs", "required" | "CERT_REQUIRED") => {}
                ("ssl_cert_reqs", _) => {
                    return Err(
                        "a URL whose ssl_cert_reqs is required: the host always verifies certificates".to_owned()
                    );
                }
                _ => return Err("a URL whose query has no parameter but db".to_owned()),
            }
        }
        let topology = match scheme.kind {
            Kind::Unix if hosts.is_empty() && !path.is_empty() => Topology::Unix(format!("/{}", decoded(path)?).into()),
            Kind::Unix => return Err("the absolute path of a socket, such as \"unix:///run/redis.sock\"".to_owned()),
            Kind::Sentinel => {
                let (master, number) = path.split_once('/').map_or((path, None), |(master, db)| (master, Some(db)));
                if master.is_empty() {
                    return Err("a URL with the name of the master that the Sentinels monitor: \
                                \"redis+sentinel://host:26379/NAME\""
                        .to_owned());
                }
                db = number.filter(|number| !number.is_empty()).map(database).transpose()?.or(db);
                Topology::Sentinel { sentinels: nodes(hosts, SENTINEL_PORT)?, master: decoded(master)? }
            }
            Kind::Server | Kind::Cluster => {
                db = Some(path).filter(|number| !number.is_empty()).map(database).transpose()?.or(db);
                let mut nodes = nodes(hosts, PORT)?;
                match (nodes.len(), scheme.kind) {
                    (1, Kind::Server) => Topology::One(nodes.remove(0)),
                    _ if db.is_some_and(|db| db != 0) => {
                        return Err("a URL without a database: a Cluster has only 0".to_owned());
                    }
                    _ => Topology::Cluster(nodes),
                }
            }
        };
        Ok(Self { topology, tls: scheme.tls, user, password, db: db.unwrap_or(0) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Unix,
    Cluster,
    Sentinel,
}

#[derive(Debug, Clone, Copy)]
struct Scheme {
    kind: Kind,
    tls: bool,
}

impl Scheme {
    fn of(name: &str) -> Option<Self> {
        let (kind, tls) = match name {
            "redis" | "valkey" => (Kind::Server, false),
            "rediss" | "valkeys" => (Kind::Server, true),
            "unix" | "redis+unix" | "redis+socket" | "valkey+unix" => (Kind::Unix, false),
            "redis+cluster" | "valkey+cluster" => (Kind::Cluster, false),
            "rediss+cluster" | "valkeys+cluster" => (Kind::Cluster, true),
            "redis+sentinel" | "valkey+sentinel" => (Kind::Sentinel, false),
            "rediss+sentinel" | "valkeys+sentinel" => (Kind::Sentinel, true),
            _ => return None,
        };
        Some(Self { kind, tls })
    }
}

/// Splits `user:password`, `:password` or `user`.
fn identified(identity: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (user, password) = identity.split_once(':').map_or((identity, None), |(user, word)| (user, Some(word)));
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    let password = password.map(decoded).transpose()?.and_then(filled);
    Ok((filled(decoded(user)?), password.map(Secret::new)))
}

fn database(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number| (0..=MAX_DB).contains(number));
    number.ok_or_else(|| "a URL whose path is the number of a database, such as \"redis://host/0\"".to_owned())
}

fn nodes(hosts: &str, usual: u16) -> Result<Vec<Node>, String> {
    let nodes: Vec<Node> =
        hosts.split(',').take(MAX_NODES + 1).map(|host| node(host, usual)).collect::<Result<_, _>>()?;
    if nodes.len() > MAX_NODES {
        return Err(format!("a URL with at most {MAX_NODES} hosts"));
    }
    Ok(nodes)
}

fn node(text: &str, usual: u16) -> Result<Node, String> {
    let rule = || "a URL with hosts and ports, such as \"redis://host:6379\"".to_owned();
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(rule)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| rule())?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(rule)?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    if host.is_empty() || host.len() > 253 || !host.bytes().all(named) {
        return Err(rule());
    }
    let port = port.map_or(Ok(usual), str::parse).ok().filter(|port| *port != 0).ok_or_else(rule)?;
    Ok(Node { host: host.to_owned(), port })
}

/// Decodes percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let rule = || "a URL with valid percent-encoding of UTF-8; write a `%` in a password as %25".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(rule)?, digit().ok_or_else(rule)?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| rule())
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The URL, with `***` for the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secured = if self.tls { "rediss" } else { "redis" };
        let (kind, hosts) = match &self.topology {
            Topology::One(node) => ("", node.to_string()),
            Topology::Unix(_) => ("+unix", String::new()),
            Topology::Cluster(nodes) => ("+cluster", listed(nodes)),
            Topology::Sentinel { sentinels, .. } => ("+sentinel", listed(sentinels)),
        };
        write!(f, "{secured}{kind}://")?;
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "{user}:***@")?,
            (Some(user), None) => write!(f, "{user}@")?,
            (None, Some(_)) => f.write_str(":***@")?,
            (None, None) => {}
        }
        f.write_str(&hosts)?;
        match &self.topology {
            Topology::One(_) => write!(f, "/{}", self.db),
            Topology::Cluster(_) => Ok(()),
            Topology::Unix(path) if self.db == 0 => write!(f, "{}", path.display()),
            Topology::Unix(path) => write!(f, "{}?db={}", path.display(), self.db),
            Topology::Sentinel { master, .. } => write!(f, "/{master}/{}", self.db),
        }
    }
}

fn listed(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_without_its_password() {
        for (text, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://h:7000/3", "redis://h:7000/3"),
            ("valkey://h?db=2", "redis://h:6379/2"),
            ("rediss://ada:p%40ss@h/1?ssl_cert_reqs=required", "rediss://ada:***@h:6379/1"),
            ("redis://:p@ss:geheim@h", "redis://:***@h:6379/0"),
            ("redis://ada@[::1]:7000", "redis://ada@[::1]:7000/0"),
            ("redis://[::1]", "redis://[::1]:6379/0"),
            ("unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis+socket:///run/r%20s.sock?virtual_host=4", "redis+unix:///run/r s.sock?db=4"),
            ("redis+unix://:geheim@/run/redis.sock", "redis+unix://:***@/run/redis.sock"),
            ("redis://a:7000,b:7001,c", "redis+cluster://a:7000,b:7001,c:6379"),
            ("valkeys+cluster://a", "rediss+cluster://a:6379"),
            ("redis+sentinel://:geheim@a,b:5000/mymaster", "redis+sentinel://:***@a:26379,b:5000/mymaster/0"),
            ("rediss+sentinel://a/mymaster/2", "rediss+sentinel://a:26379/mymaster/2"),
        ] {
            let address = Address::parse(text).unwrap_or_else(|rule| panic!("{text}: {rule}"));
            assert_eq!(address.to_string(), shown, "{text}");
            let debug = format!("{address:?}");
            assert!(!debug.contains("geheim") && !debug.contains("p@ss"), "{text}: {debug}");
        }
        let password = |text| Address::parse(text).unwrap().password.unwrap().reveal().to_owned();
        assert_eq!(password("redis://:p%40ss%25@h"), "p@ss%");
        assert_eq!(password("redis://:p@ss:geheim@h"), "p@ss:geheim");
    }

    #[test]
    fn the_error_for_an_invalid_address_does_not_repeat_it() {
        for text in [
            "",
            "redis:",
            "redis://",
            "http://h",
            "amqp://h",
            "redis://h:0",
            "redis://h:x",
            "redis://h:70000",
            "redis://h/x",
            "redis://h/-1",
            "redis://h/0#secret",
            "redis://h?protocol=resp3",
            "redis://:secret%4@h",
            "redis://:secret%ff@h",
            "redis://a,b/1",
            "redis://a,,b",
            "redis://[::1",
            "redis://[secret]",
            "unix://host/path",
            "unix://",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel://a/m/x",
            "rediss://:secret@h?ssl_cert_reqs=none",
            "redis://h ost",
        ] {
            let rule = Address::parse(text).expect_err(text);
            assert!(!rule.contains("secret"), "{text}: {rule}");
        }
        assert!(Address::is_meant("redis://%") && !Address::is_meant("amqp://h") && !Address::is_meant("memory:"));
    }
}
