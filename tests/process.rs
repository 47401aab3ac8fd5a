//! The real binary, as an operator meets it: what it prints, how it ends, what a signal does to it.

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
