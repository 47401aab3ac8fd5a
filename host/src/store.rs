//! Stores of state: in this process, in Redis, and the fallback from one to the other.

pub mod local_fallback;
pub mod memory;
pub mod redis;
