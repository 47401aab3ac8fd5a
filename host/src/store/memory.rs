//! State in this process: gone when it ends.

pub mod gate;
pub mod records;
