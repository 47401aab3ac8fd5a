//! Against servers of our own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::fleet::State;

mod history;
