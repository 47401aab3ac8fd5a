//! State in a Redis (or Valkey), shared by a fleet: the only user of `redis`.
//!
//! ```text
//! address   where it is, from a URL             client   how connections are made
//! link      run a script, within 20 ms          slot     one thread's connection, and what becomes of it
//! script    one atomic step, known by digest    census   which server this is, and whether it lost data
//! keys      how everything is named             reply    what came back
//! push      what hosts tell each other        records   idempotency records, claims and turns
//! agreement which policy serves the fleet
//! ```
//!
//! Each worker has a connection of its own, driven by its own runtime: a request's step costs no wake-up of another thread.
//! What nobody waits for goes by the way of one more thread, `triage-state`, which also watches the server.

mod address;
pub mod admission;
pub mod agreement;
mod client;
mod connection;
mod keys;
mod metrics;
mod pubsub;
pub mod records;
pub mod reply;
mod script;
mod server_identity;
mod settings;
#[cfg(test)]
#[path = "../../../tests/support/redis_server.rs"]
pub(crate) mod test_server;
mod thread_connection;

pub use address::{Address, Node, RULE, Topology};
pub use connection::{Condition, LinkError, OpenError, RedisConnection};
pub use keys::Keys;
pub use metrics::Steps;
pub use pubsub::Pushed;
pub use script::Script;
pub use server_identity::{Loss, Lost};
pub use settings::Settings;

/// What a server answers, and what it says when it cannot.
pub use redis::{RedisError, Value};
