//! Where state is kept.

pub mod local_fallback;
pub mod memory;
pub mod redis;
