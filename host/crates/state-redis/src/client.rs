//! Makes connections to one server, a Cluster or the master behind Sentinels, and sends commands over them.

use super::{
    address::{Address, Node, Topology},
    error::OpenError,
};
use redis::{
    AsyncConnectionConfig, Client as OneClient, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::Mutex;

/// The most commands that may wait to be written. A worker never has that many under way, so the buffer does not fill.
const MAX_BUFFERED_COMMANDS: usize = 1024;
/// Interval of TCP keepalive probes on an idle connection. After three without a response the connection is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the Cluster client. The limit of [`super::RedisConnection`] is shorter; this one frees the client's own state.
const CLUSTER_REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes connections of one address.
pub(super) struct Client {
    kind: Kind,
    /// Index of the Cluster node for the next subscription: it rotates, so that a node that is down is left at the next try.
    next: AtomicUsize,
}

enum Kind {
    One(OneClient),
    Cluster { client: ClusterClient, nodes: Vec<OneClient> },
    Sentinel(Mutex<SentinelClient>),
}

/// A connection. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Client {
    /// Prepares a client without connecting. `password` takes precedence over the one in the address.
    pub(super) fn new(
        address: &Address,
        password: Option<&str>,
        authority_pem: Option<Vec<u8>>,
    ) -> Result<Self, OpenError> {
        let made = Self::make(address, password, authority_pem);
        made.map(|kind| Self { kind, next: AtomicUsize::new(0) }).map_err(OpenError::Client)
    }

    /// Whether keys of different hash slots may be on different nodes.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster { .. })
    }

    fn make(address: &Address, password: Option<&str>, authority_pem: Option<Vec<u8>>) -> RedisResult<Kind> {
        let password = password.or(address.password.as_ref().map(crate::secret::Secret::reveal));
        let certificates = authority_pem.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        let mut identity =
            RedisConnectionInfo::default().set_db(address.db).set_lib_name("triage", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &address.user {
            identity = identity.set_username(user);
        }
        if let Some(password) = password {
            identity = identity.set_password(password);
        }
        let info = |address: ConnectionAddr| -> RedisResult<ConnectionInfo> {
            Ok(address.into_connection_info()?.set_tcp_settings(tcp()).set_redis_settings(identity.clone()))
        };
        let node = |node: &Node| {
            let (host, port) = (node.host.clone(), node.port);
            if address.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        };
        let client = |address: ConnectionAddr| match (&certificates, &address) {
            (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
                OneClient::build_with_tls(info(address)?, certificates.clone())
            }
            _ => OneClient::open(info(address)?),
        };
        match &address.topology {
            Topology::One(own) => client(node(own)).map(Kind::One),
            Topology::Unix(path) => client(ConnectionAddr::Unix(path.clone())).map(Kind::One),
            Topology::Cluster(all) => {
                let infos: Vec<ConnectionInfo> = all.iter().map(|own| info(node(own))).collect::<RedisResult<_>>()?;
                let mut builder = ClusterClient::builder(infos)
                    // No automatic retries: a command that timed out may still have run.
                    .retries(0)
                    .response_timeout(CLUSTER_REPLY_TIMEOUT)
                    .connection_timeout(CLUSTER_REPLY_TIMEOUT)
                    .tcp_settings(tcp());
                if address.tls {
                    builder = builder.tls(TlsMode::Secure);
                }
                if let Some(certificates) = &certificates {
                    builder = builder.certs(certificates.clone());
                }
                let nodes = all.iter().map(|own| client(node(own))).collect::<RedisResult<_>>()?;
                Ok(Kind::Cluster { client: builder.build()?, nodes })
            }
            Topology::Sentinel { sentinels, master } => {
                let addresses = sentinels.iter().map(node);
                let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
                    .set_client_to_redis_db(address.db)
                    .set_client_to_redis_tcp_settings(tcp())
                    .set_client_to_sentinel_tcp_settings(tcp());
                if address.tls {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_sentinel_certificates(certificates.clone())
                        .set_client_to_redis_certificates(certificates);
                }
                if let Some(user) = &address.user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password);
                }
                builder.build().map(|client| Kind::Sentinel(Mutex::new(client)))
            }
        }
    }

    /// Opens a connection for commands, driven by the calling runtime. The caller sets the time limit.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(MAX_BUFFERED_COMMANDS);
        match &self.kind {
            Kind::Cluster { client, .. } => client.get_async_connection().await.map(Connection::Cluster),
            Kind::One(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
            }
            Kind::Sentinel(_) => {
                let client = self.master().await?;
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
            }
        }
    }

    /// Opens a connection for pub/sub. The caller sets the time limit.
    pub(super) async fn subscribe(&self) -> RedisResult<PubSub> {
        match &self.kind {
            Kind::One(client) => client.get_async_pubsub().await,
            Kind::Sentinel(_) => self.master().await?.get_async_pubsub().await,
            Kind::Cluster { nodes, .. } => {
                // A Cluster forwards each published message to all its nodes, so one subscription is enough.
                nodes[self.next.fetch_add(1, Relaxed) % nodes.len()].get_async_pubsub().await
            }
        }
    }

    /// Asks the Sentinels for the current master.
    async fn master(&self) -> RedisResult<OneClient> {
        match &self.kind {
            Kind::One(client) => Ok(client.clone()),
            Kind::Cluster { nodes, .. } => Ok(nodes[0].clone()),
            Kind::Sentinel(client) => {
                let found = client.lock().await.async_get_client().await?;
                let info = found.get_connection_info().clone();
                OneClient::open(info.set_tcp_settings(tcp()))
            }
        }
    }
}

impl Connection {
    /// Sends one command and waits for the reply.
    pub(super) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        use redis::aio::ConnectionLike as _;
        let answer = match self {
            Self::One(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer?.extract_error()
    }

    /// Sends a command to every master, and returns the replies by address. The address of a single server is empty.
    pub(super) async fn ask_masters(&mut self, command: Cmd) -> RedisResult<Vec<(String, Value)>> {
        let connection = match self {
            Self::One(_) => return Ok(vec![(String::new(), self.ask(&command).await?)]),
            Self::Cluster(connection) => connection,
        };
        let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answers = connection.route_command(command, everywhere).await?;
        redis::from_redis_value(answers).map_err(Into::into)
    }
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive).set_user_timeout(UNACKNOWLEDGED_TIMEOUT)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::One(_) => "Client::One",
            Kind::Cluster { .. } => "Client::Cluster",
            Kind::Sentinel(_) => "Client::Sentinel",
        })
    }
}
