//! The `triage` command.
use triage::{config::settings::*, server::Server, upstream};
fn main() {
    let mut args = std::env::args().skip(1);
    let base = args.next().unwrap_or_default();
    let listen = args.next().unwrap_or_default();
    let defaults = Endpoint { limits: vec![triage::rate_limit::Quota { requests: 1_000_000.try_into().unwrap(), period: std::time::Duration::from_secs(1), burst: 1_000_000.try_into().unwrap() }], ..Endpoint::default() };
    let settings = Settings {
        server: triage::config::settings::Server { listen: listen.parse().unwrap(), workers: 2, max_connections: 10000, max_header_bytes: 65536, header_read_timeout: std::time::Duration::from_secs(10), drain: std::time::Duration::from_secs(5) },
        state: State::Memory,
        upstreams: vec![Upstream { name: "x".into(), connection: upstream::Settings::new(base.parse().unwrap()), path_prefix: None, host: None, listen: None, policy: PolicySource::Builtin, policy_settings: String::new(), reuse_instances: false, max_buffered_request_bytes: 1 << 20, deadline_header: http::HeaderName::from_static("triage-deadline-ms"), idempotency: Default::default(), defaults, endpoints: vec![] }],
    };
    let server = Server::start(&settings).unwrap();
    println!("{:?}", server.addresses());
    loop { std::thread::park(); }
}
