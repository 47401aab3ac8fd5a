//! A group's gate in shared state.

mod fleet;
mod steps;

#[cfg(test)]
mod tests;
