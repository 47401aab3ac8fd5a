//! State in this process; lost when it ends.

pub mod records;
