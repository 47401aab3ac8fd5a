//! Where state is kept.

pub mod memory;
