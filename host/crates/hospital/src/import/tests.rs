#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;
mod pure;
mod whole;
