//! State in this process: gone when it ends.

pub mod admission;
pub mod records;
