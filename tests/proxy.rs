//! A proxy that behaves: what goes through the host on real sockets, and what does not.

mod bodies;
mod connections;
mod dns;
mod headers;
mod orphans;
mod own_tls;
mod protocol;
mod redirects;
mod routing;
mod tls;
