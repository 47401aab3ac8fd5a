//! Against servers of our own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Grant, fleet::State};

mod fleet;
mod history;
mod pybreaker;
mod together;
