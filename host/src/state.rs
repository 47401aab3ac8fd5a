//! Contracts between the stores and the parts of the host whose state they keep.

pub mod group;
pub mod rollout;
