//! Where state is kept.

pub mod alone;
pub mod memory;
pub mod redis;
