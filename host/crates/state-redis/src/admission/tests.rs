//! Tests against Redis servers that they start themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Grant, shared_breaker::State};

mod batch;
mod history;
mod pybreaker;
mod shared_breaker;
