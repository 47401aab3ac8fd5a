//! The contracts between the parts of the host that need state and the stores that keep it.

pub mod group;
pub mod rollout;
