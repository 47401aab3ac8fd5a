//! Where state is kept.

pub mod memory;
pub mod redis;
