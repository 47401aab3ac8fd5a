//! Proxy behaviour on real sockets: what the host forwards, and what it does not.

mod bodies;
mod connections;
mod dns;
mod headers;
mod orphans;
mod own_tls;
mod protocol;
mod redirects;
mod routing;
pub mod tls;
