//! A proxy that behaves: what goes through the host on real sockets, and what does not.

mod bodies;
mod connections;
mod headers;
mod routing;
mod tls;
