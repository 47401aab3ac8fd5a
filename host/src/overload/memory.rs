//! How much memory the host may use, and who gives way when it gets scarce.
//!
//! What the system says of the process is read a few times a second. In between, request bodies that are held are counted byte by
//! byte: of all that a caller can make the host hold, they grow fastest.

use super::Priority;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The host's memory.
#[derive(Debug)]
pub struct Memory {
    limit: Option<u64>,
    /// What was resident at the last look.
    resident: AtomicU64,
    /// Bytes of bodies that are held.
    held: AtomicU64,
    /// The same at the last look: they are in `resident` already.
    held_then: AtomicU64,
}

/// There is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scarce {
    /// The limit.
    pub limit_bytes: u64,
}

/// Bytes of one body. Dropping it lets go of them.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// With a limit in bytes, or none.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let none = || AtomicU64::new(0);
        Arc::new(Self { limit, resident: none(), held: none(), held_then: none() })
    }

    /// The limit, and the bytes of bodies that are held.
    pub fn view(&self) -> (Option<u64>, u64) {
        (self.limit, self.held.load(Relaxed))
    }

    /// Takes into account what the system says is resident.
    pub fn looked(&self, resident: u64) {
        self.held_then.store(self.held.load(Relaxed), Relaxed);
        self.resident.store(resident, Relaxed);
    }

    /// What is used now, as far as that is known.
    fn used(&self) -> u64 {
        let held = self.held.load(Relaxed);
        // What was let go of since is not believed before the system says so.
        self.resident.load(Relaxed).saturating_add(held.saturating_sub(self.held_then.load(Relaxed)))
    }

    /// Whether a request of this priority may come in: low ones up to 80 percent of the limit, high ones up to all of it.
    ///
    /// # Errors
    /// [`Scarce`]
    pub fn admit(&self, priority: Priority) -> Result<(), Scarce> {
        let Some(limit_bytes) = self.limit else { return Ok(()) };
        let percent = match priority {
            Priority::Low => 80,
            Priority::Normal => 90,
            Priority::High => 100,
        };
        if self.used() < limit_bytes / 100 * percent { Ok(()) } else { Err(Scarce { limit_bytes }) }
    }

    /// Whether there is room for anybody at all.
    pub fn is_full(&self) -> bool {
        self.admit(Priority::High).is_err()
    }

    /// Nothing held yet.
    pub fn hold(self: &Arc<Self>) -> Held {
        Held { memory: Arc::clone(self), bytes: 0 }
    }
}

impl Held {
    /// Holds more.
    ///
    /// # Errors
    /// [`Scarce`]; what was held before still is.
    pub fn more(&mut self, bytes: usize) -> Result<(), Scarce> {
        self.bytes += bytes as u64;
        self.memory.held.fetch_add(bytes as u64, Relaxed);
        self.memory.admit(Priority::High)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_matters_least_gives_way_first() {
        let memory = Memory::new(Some(1000));
        let admitted = |memory: &Memory| Priority::ALL.map(|own| memory.admit(own).is_ok());
        for (resident, expected) in [
            (0, [true, true, true]),
            (799, [true, true, true]),
            (800, [false, true, true]),
            (900, [false, false, true]),
            (1000, [false, false, false]),
            (799, [true, true, true]),
        ] {
            memory.looked(resident);
            assert_eq!(admitted(&memory), expected, "{resident}");
        }
        assert_eq!(Memory::new(None).admit(Priority::Low), Ok(()));
    }

    #[test]
    fn bodies_count_from_the_moment_that_they_are_held() {
        let memory = Memory::new(Some(1000));
        memory.looked(600);
        let mut first = memory.hold();
        assert_eq!((first.more(300), memory.is_full()), (Ok(()), false));
        let mut second = memory.hold();
        assert_eq!((second.more(100), memory.is_full()), (Err(Scarce { limit_bytes: 1000 }), true));
        drop(second);
        assert_eq!((memory.is_full(), memory.view()), (false, (Some(1000), 300)));
        // The system sees it too, and it is not counted twice.
        memory.looked(900);
        assert_eq!(memory.used(), 900);
        drop(first);
        assert_eq!((memory.used(), memory.view()), (900, (Some(1000), 0)));
        memory.looked(600);
        assert_eq!(memory.used(), 600);
    }
}
