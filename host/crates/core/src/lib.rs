//! The decisions of Triage as pure functions: breaker, rate limits, retry, idempotency records, and the contract's types.
//!
//! No function here does I/O. Each transition takes the state, the event and the time, so that tests can play any history, and can compare
//! the store in memory and the Redis scripts with the pure functions. Time and random numbers come from [`clock`] and [`rng`] only.
//!
//! | module | decides |
//! |---|---|
//! | [`contract`] | nothing: the types of the policy contract, free of wasmtime |
//! | [`breaker`] | whether an attempt is admitted, and when an open breaker admits probes |
//! | [`rate_limit`] | when the next request may be sent (GCRA), and how a throttled response lowers the rate |
//! | [`retry`] | whether the host follows a policy's verdict, and how many retries are allowed |
//! | [`idempotency`] | whether a request with a key, or one equal to another, is sent, replayed, verified or refused |
//! | [`route`] | which endpoint a path belongs to |

pub mod breaker;
pub mod clock;
pub mod contract;
pub mod digest;
pub mod error_chain;
pub mod idempotency;
pub mod rate_limit;
pub mod retry;
pub mod rng;
pub mod rounded;
pub mod route;
pub mod secret;
pub mod units;
