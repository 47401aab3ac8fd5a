//! Limits the host's memory, and chooses which requests are refused when it gets scarce.
//!
//! The system's figures for the process and its control group are read a few times a second. In between, the bytes that callers and
//! upstreams make the host hold are counted: heads, bodies and responses. Uncounted memory (buffers that stay, fragmentation in the
//! allocator) grows with these bytes, so the system is also asked after every few megabytes of them, even if a timer is late on a busy
//! machine.
//!
//! An allocator may keep freed memory, so the resident size may never fall by itself. Hence one request is always admitted while no other
//! is under way: refusing it would free nothing, and the host would refuse all requests from then on.

use super::Priority;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// The host's memory use and limit.
#[derive(Debug)]
pub struct Memory {
    limit: Option<u64>,
    /// Resident bytes at the last measurement.
    resident: AtomicU64,
    /// Counted bytes that are held now.
    held: AtomicU64,
    /// `held` at the last measurement: these bytes are in `resident` already.
    held_then: AtomicU64,
    /// Admitted requests whose responses have not ended.
    under_way: AtomicU64,
    /// Connections with a large head that no request has taken yet.
    large_heads: AtomicU64,
    /// Bytes added since the last measurement, including those freed again.
    added: AtomicU64,
    probe: Probe,
}

/// Measures the memory in use by a call to the system.
struct Probe(Box<dyn Fn() -> Option<u64> + Send + Sync>);

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

/// Measure again after this many bytes: a measurement takes less than a tenth of the time to receive them.
const MEASURE_AFTER_BYTES: u64 = 4 << 20;

/// Memory is too scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scarce {
    /// The limit in bytes.
    pub limit_bytes: u64,
}

/// An admitted request and its counted bytes. Dropping it releases them.
#[derive(Debug)]
pub struct MemoryReservation {
    memory: Arc<Memory>,
    bytes: AtomicU64,
}

impl Memory {
    /// A limit in bytes, or none. `probe` measures the memory in use.
    pub fn new(limit: Option<u64>, probe: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Arc<Self> {
        let none = || AtomicU64::new(0);
        Arc::new(Self {
            limit,
            resident: none(),
            held: none(),
            held_then: none(),
            under_way: none(),
            large_heads: none(),
            added: none(),
            probe: Probe(Box::new(probe)),
        })
    }

    /// The limit, and the counted bytes that are held.
    pub fn view(&self) -> (Option<u64>, u64) {
        (self.limit, self.held.load(Relaxed))
    }

    /// Measures the memory in use.
    pub fn measure(&self) {
        self.added.store(0, Relaxed);
        if let Some(resident) = (self.probe.0)() {
            self.record_measurement(resident);
        }
    }

    fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Relaxed);
        if self.limit.is_some() && self.added.fetch_add(bytes, Relaxed).saturating_add(bytes) >= MEASURE_AFTER_BYTES {
            self.measure();
        }
    }

    /// Records a measurement.
    pub fn record_measurement(&self, resident: u64) {
        self.held_then.store(self.held.load(Relaxed), Relaxed);
        self.resident.store(resident, Relaxed);
    }

    /// The memory in use now, by the last measurement and the bytes counted since.
    fn used(&self) -> u64 {
        let held = self.held.load(Relaxed);
        // Freed bytes count as used until the next measurement confirms them.
        self.resident.load(Relaxed).saturating_add(held.saturating_sub(self.held_then.load(Relaxed)))
    }

    /// Admits a request of this priority, with nothing held yet: low ones up to 80 percent of the limit, normal ones up to 90, high ones up
    /// to 100, and any request while no other is under way.
    ///
    /// # Errors
    /// [`Scarce`]
    pub fn admit(self: &Arc<Self>, priority: Priority) -> Result<MemoryReservation, Scarce> {
        let percent = match priority {
            Priority::Low => 80,
            Priority::Normal => 90,
            Priority::High => 100,
        };
        // A refused request does not count as in flight.
        let let_in = |under_way| (under_way == 0 || self.above(percent).is_none()).then_some(under_way + 1);
        match (self.under_way.fetch_update(Relaxed, Relaxed, let_in), self.limit) {
            (Err(_), Some(limit_bytes)) => Err(Scarce { limit_bytes }),
            _ => Ok(MemoryReservation { memory: Arc::clone(self), bytes: AtomicU64::new(0) }),
        }
    }

    /// A counter for bytes beyond a request's own. None without a limit.
    pub fn spare(self: &Arc<Self>) -> Option<Spare> {
        self.limit.map(|_| Spare { memory: Arc::clone(self), bytes: 0 })
    }

    /// Whether the whole limit is in use.
    pub fn is_full(&self) -> bool {
        self.above(100).is_some()
    }

    /// The limit, if more than this percentage of it is in use.
    fn above(&self, percent: u64) -> Option<u64> {
        self.limit.filter(|limit| self.used() >= limit / 100 * percent)
    }
}

impl MemoryReservation {
    /// Counts more bytes.
    ///
    /// # Errors
    /// [`Scarce`]; the bytes are counted all the same.
    pub fn more(&self, bytes: usize) -> Result<(), Scarce> {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.memory.hold(bytes as u64);
        self.room_for(0)
    }

    /// Checks for space before bytes are read, without holding it: a caller that announces much and sends nothing takes nothing from
    /// others.
    ///
    /// # Errors
    /// [`Scarce`]
    pub fn room_for(&self, bytes: usize) -> Result<(), Scarce> {
        let is_alone = self.memory.under_way.load(Relaxed) <= 1;
        let fits = |limit: &u64| self.memory.used().saturating_add(bytes as u64) < limit / 100 * 100;
        match self.memory.limit {
            Some(limit_bytes) if !is_alone && !fits(&limit_bytes) => Err(Scarce { limit_bytes }),
            _ => Ok(()),
        }
    }

    /// A counter for bytes that the request keeps beyond its needs, even after its end. None without a limit.
    pub fn spare(&self) -> Option<Spare> {
        self.memory.spare()
    }

    /// Whether a memory limit is configured.
    pub fn is_limited(&self) -> bool {
        self.memory.limit.is_some()
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes.load(Relaxed), Relaxed);
        self.memory.under_way.fetch_sub(1, Relaxed);
    }
}

/// Counts bytes that are kept beyond the needs of a request. Dropping it releases them.
#[derive(Debug)]
pub struct Spare {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Spare {
    /// Counts more bytes.
    ///
    /// # Errors
    /// [`Scarce`]; the bytes are counted all the same. Drop the optional data then, and this with it.
    pub fn more(&mut self, bytes: usize) -> Result<(), Scarce> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.memory.hold(bytes as u64);
        match self.memory.limit {
            Some(limit_bytes) if self.memory.is_full() => Err(Scarce { limit_bytes }),
            _ => Ok(()),
        }
    }

    /// Splits off this many bytes, at most all of them.
    #[must_use = "dropping it releases them"]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = (bytes as u64).min(self.bytes);
        self.bytes -= bytes;
        Self { memory: Arc::clone(&self.memory), bytes }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// An ordinary head is smaller: it is read and its request answered even if memory is scarce.
const MAX_ORDINARY_HEAD_BYTES: u64 = 16 << 10;

/// The memory of a connection that has sent nothing: its first buffers, its state and its timers.
const CONNECTION_BYTES: u64 = 16 << 10;

/// Counts one connection and its bytes that no request has taken yet. Dropping it releases them.
#[derive(Debug)]
pub struct Buffered {
    memory: Arc<Memory>,
    max: u64,
    read: AtomicU64,
    counted: AtomicU64,
    is_large_head: AtomicBool,
}

impl Buffered {
    /// A new connection; its bytes count up to `max_bytes`.
    pub fn new(memory: &Arc<Memory>, max_bytes: usize) -> Self {
        let none = || AtomicU64::new(0);
        // Thousands of connections may arrive between two measurements.
        if memory.limit.is_some() {
            memory.hold(CONNECTION_BYTES);
        }
        Self {
            memory: Arc::clone(memory),
            max: max_bytes as u64,
            read: none(),
            counted: none(),
            is_large_head: AtomicBool::new(false),
        }
    }

    /// Counts bytes of a head.
    pub fn read(&self, bytes: usize) {
        let after = self.count(bytes);
        if self.memory.limit.is_some() && after > MAX_ORDINARY_HEAD_BYTES && !self.is_large_head.swap(true, Relaxed) {
            self.memory.large_heads.fetch_add(1, Relaxed);
        }
    }

    /// Counts bytes read while a request is open, bodies included.
    pub fn read_beside(&self, bytes: usize) {
        self.count(bytes);
    }

    /// Counts read bytes, and returns their sum.
    fn count(&self, bytes: usize) -> u64 {
        let before = self.read.load(Relaxed);
        let after = before.saturating_add(bytes as u64).min(self.max);
        if self.memory.limit.is_none() || after == before {
            return after;
        }
        self.read.store(after, Relaxed);
        // A buffer grows by doubling.
        let counted = after.saturating_mul(2);
        self.memory.hold(counted.saturating_sub(self.counted.swap(counted, Relaxed)));
        after
    }

    /// A request has taken the bytes: they now count as the request's.
    pub fn taken(&self) {
        self.memory.held.fetch_sub(self.counted.swap(0, Relaxed), Relaxed);
        self.read.store(0, Relaxed);
        if self.is_large_head.swap(false, Relaxed) {
            self.memory.large_heads.fetch_sub(1, Relaxed);
        }
    }

    /// Whether to close the connection: memory is scarce, and it has a large unfinished head, but not the only one.
    pub fn must_end(&self) -> bool {
        self.is_large_head.load(Relaxed) && self.memory.large_heads.load(Relaxed) > 1 && self.memory.is_full()
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.taken();
        if self.memory.limit.is_some() {
            self.memory.held.fetch_sub(CONNECTION_BYTES, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    impl Memory {
        /// A memory that measures nothing: a test sets the resident size.
        fn blind(limit: Option<u64>) -> Arc<Self> {
            Self::new(limit, || None)
        }
    }

    /// Freed bytes may leave uncounted memory behind, so the system is asked without a timer.
    #[test]
    fn uncounted_memory_is_found_after_a_few_megabytes() {
        let resident = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&resident);
        let memory = Memory::new(Some(64 << 20), move || Some(seen.fetch_add(8 << 20, Relaxed)));
        let _other = memory.admit(Priority::High).unwrap();
        let mut passed = 0;
        while let Ok(held) = memory.admit(Priority::High) {
            passed += u64::from(held.more(1 << 20).is_ok());
            assert!(passed <= 64, "{passed} MiB");
        }
        assert!(passed > 8, "{passed} MiB");
        assert!(memory.is_full());
    }

    #[test]
    fn memory_refuses_the_lowest_priority_first() {
        let memory = Memory::blind(Some(1000));
        let _other = memory.admit(Priority::High).unwrap();
        let admitted = |memory: &Arc<Memory>| Priority::ALL.map(|own| memory.admit(own).is_ok());
        for (resident, expected) in [
            (0, [true, true, true]),
            (799, [true, true, true]),
            (800, [false, true, true]),
            (900, [false, false, true]),
            (1000, [false, false, false]),
            (799, [true, true, true]),
        ] {
            memory.record_measurement(resident);
            assert_eq!(admitted(&memory), expected, "{resident}");
        }
        let boundless = Memory::blind(None);
        let _all = [(); 3].map(|()| boundless.admit(Priority::Low).unwrap());
    }

    /// The allocator may keep freed memory as resident.
    #[test]
    fn a_request_alone_is_admitted_at_any_resident_size() {
        let memory = Memory::blind(Some(1000));
        memory.record_measurement(5000);
        let alone = memory.admit(Priority::Low).unwrap();
        assert_eq!(alone.more(100), Ok(()));
        assert!(memory.is_full());
        assert_eq!(memory.admit(Priority::High).unwrap_err(), Scarce { limit_bytes: 1000 });
        drop(alone);
        assert!(memory.admit(Priority::Low).is_ok());
    }

    #[test]
    fn bodies_count_from_the_moment_that_they_are_held() {
        let memory = Memory::blind(Some(1000));
        memory.record_measurement(600);
        let first = memory.admit(Priority::High).unwrap();
        assert_eq!((first.more(300), memory.is_full()), (Ok(()), false));
        let second = memory.admit(Priority::High).unwrap();
        assert_eq!((second.more(100), memory.is_full()), (Err(Scarce { limit_bytes: 1000 }), true));
        drop(second);
        assert_eq!((memory.is_full(), memory.view()), (false, (Some(1000), 300)));
        // The measurement includes the held bytes, which must not count twice.
        memory.record_measurement(900);
        assert_eq!(memory.used(), 900);
        drop(first);
        assert_eq!((memory.used(), memory.view()), (900, (Some(1000), 0)));
        memory.record_measurement(600);
        assert_eq!(memory.used(), 600);
    }

    #[test]
    fn connections_that_send_nothing_count_before_the_next_look() {
        let memory = Memory::blind(Some(1 << 20));
        let connections: Vec<_> = (0..64).map(|_| Buffered::new(&memory, 64 << 10)).collect();
        assert!(memory.is_full(), "{:?}", memory.view());
        drop(connections);
        assert_eq!(memory.view().1, 0);
    }

    #[test]
    fn spare_memory_is_refused_first_and_outlives_its_request() {
        let memory = Memory::blind(Some(1000));
        memory.record_measurement(600);
        let alone = memory.admit(Priority::High).unwrap();
        let mut spare = alone.spare().unwrap();
        assert_eq!(spare.more(300), Ok(()));
        drop(alone);
        assert_eq!(memory.view().1, 300);
        assert_eq!(spare.more(100), Err(Scarce { limit_bytes: 1000 }), "though no request is under way");
        drop(spare);
        assert_eq!((memory.view().1, memory.is_full()), (0, false));
        assert!(Memory::blind(None).admit(Priority::Low).unwrap().spare().is_none());
    }

    #[test]
    fn a_body_is_refused_before_it_is_read() {
        let memory = Memory::blind(Some(1000));
        memory.record_measurement(600);
        let (first, _other) = (memory.admit(Priority::High).unwrap(), memory.admit(Priority::High).unwrap());
        assert_eq!((first.room_for(399), first.room_for(400)), (Ok(()), Err(Scarce { limit_bytes: 1000 })));
        assert_eq!(memory.view().1, 0, "asking takes nothing");
    }

    /// Unfinished heads count before there is a request. Large ones are closed when memory is scarce; ordinary ones are not.
    #[test]
    fn large_heads_without_a_request_count_and_give_way() {
        let memory = Memory::blind(Some(1 << 20));
        let heads: Vec<_> = (0..10).map(|_| Buffered::new(&memory, 64 << 10)).collect();
        for head in &heads {
            head.read(40 << 10);
            head.read(40 << 10);
        }
        assert_eq!(
            memory.view().1,
            10 * (2 * (64 << 10) + CONNECTION_BYTES),
            "no more than a head may have, twice for its buffer"
        );
        assert!(memory.is_full() && heads.iter().all(Buffered::must_end));
        let ordinary = Buffered::new(&memory, 64 << 10);
        ordinary.read(10 << 10);
        assert!(!ordinary.must_end(), "it gets an answer");
        heads[0].taken();
        assert!(!heads[0].must_end());
        drop(heads);
        assert_eq!((memory.view().1, memory.is_full()), ((20 << 10) + CONNECTION_BYTES, false));
        let alone = Buffered::new(&memory, 64 << 10);
        alone.read(60 << 10);
        memory.record_measurement(2 << 20);
        assert!(memory.is_full() && !alone.must_end(), "one goes on, or nobody would ever be served");
        drop((alone, ordinary));
        assert_eq!((memory.view().1, memory.large_heads.load(Relaxed)), (0, 0));
    }
}
