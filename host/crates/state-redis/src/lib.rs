//! Shared state of a fleet in Redis or Valkey. Only this module uses the crate `redis`.
//!
//! ```text
//! address    the URL of shared state           client             makes connections
//! connection runs a script, within 20 ms       thread_connection  the connection of one thread
//! script     a Lua script and its digest       server_identity    detects another server, or lost data
//! keys       names of keys and channels        reply              reads what a script returns
//! pubsub     messages between hosts            metrics            durations and failures of script calls
//! admission  breakers, limits, retry budgets   records            idempotency records, claims, fingerprint locks
//! agreement  the policy that the fleet serves
//! ```
//!
//! Each worker thread has its own connection, driven by its own runtime: a script call wakes no other thread. The thread
//! `triage-state` has one more, for background work and for watching the server.

use triage_bounded_file as bounded_file;
use triage_core::{breaker, clock, contract, error_chain, rate_limit, rng, secret, units};
#[cfg(test)]
use triage_core::{digest, retry};
#[cfg(test)]
use triage_state::fixtures;
use triage_state::{group, idempotency, memory, rollout};
use triage_telemetry as telemetry;

mod address;
pub mod admission;
pub mod agreement;
mod client;
mod connection;
mod error;
mod keys;
mod metrics;
pub mod records;
pub mod reply;
mod script;
mod settings;
#[cfg(test)]
#[path = "../../../../tests/support/redis_server.rs"]
pub mod test_server;

pub use address::{Address, Node, RULE, Topology};
pub use connection::{
    Condition, RedisConnection,
    pubsub::Pushed,
    server_identity::{Loss, Lost},
};
pub use error::{LinkError, OpenError};
pub use keys::Keys;
pub use metrics::Steps;
pub use script::Script;
pub use settings::Settings;

/// A server's reply, and its error.
pub use redis::{RedisError, Value};
