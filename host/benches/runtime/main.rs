//! Policies at runtime, measured on a whole host: `cargo bench --bench runtime [-- PART]`. The book's figures come from here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod drop_in;
mod failing;
mod restart;
mod stage;

/// The measurements by name.
const PARTS: [(&str, fn()); 5] = [
    ("serving", drop_in::file_closed_to_serving),
    ("swap", drop_in::first_requests_of_a_generation),
    ("rollback", failing::rolled_back),
    ("hostile", failing::beside_a_hostile_policy),
    ("restart", restart::from_the_cache),
];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, measure) in PARTS {
        if asked.is_empty() || asked.iter().any(|own| own == name) {
            measure();
        }
    }
}
