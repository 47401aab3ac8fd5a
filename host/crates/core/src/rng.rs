//! Random numbers as an injected dependency: seeded by the operating system in service, by a number in tests.

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng, rngs::SmallRng};
use std::sync::Arc;

/// A source of random numbers. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Rng(Option<Arc<Mutex<SmallRng>>>);

impl Rng {
    /// The thread's generator, seeded by the operating system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A repeatable sequence.
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)))))
    }

    /// The next number, uniform over all 64 bits.
    pub fn next(&self) -> u64 {
        match &self.0 {
            Some(seeded) => seeded.lock().next_u64(),
            None => rand::rng().next_u64(),
        }
    }
}
