//! State in the memory of this process; it is lost when the process ends.

pub mod admission;
pub mod records;
