//! The decisions of Triage as pure functions: breaker, rate limits, retry, idempotency records, and the contract's types.
//!
//! Nothing here does I/O. Each transition takes the state, the event and the time, so that tests play any history, and so that the
//! store in memory and the scripts of Redis can be compared with it. Time and chance come from [`clock`] and [`rng`] only.
//!
//! | module | decides |
//! |---|---|
//! | [`contract`] | nothing: the types of the policy contract, free of wasmtime |
//! | [`breaker`] | whether an upstream is asked, and when it is tried again |
//! | [`rate_limit`] | when the next request may go (GCRA), and what a throttled answer does to the rate |
//! | [`retry`] | what the host makes of a policy's verdict, and how many retries there may be |
//! | [`idempotency`] | what a request with a key, or one equal to another, may do |
//! | [`route`] | which endpoint a path belongs to |

pub mod breaker;
pub mod clock;
pub mod contract;
pub mod digest;
pub mod idempotency;
pub mod rate_limit;
pub mod retry;
pub mod rng;
pub mod route;
pub mod secret;
pub mod units;
