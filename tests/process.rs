//! The real executable: its output, its exit codes, and its reaction to signals.

mod abuse;
pub mod child;
mod commands;
mod compiler;
mod descriptors;
mod fleet;
mod import;
mod life;
mod operating;
mod policies;
mod serving;
mod watching;
