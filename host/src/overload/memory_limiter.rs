//! How much memory the host may use, and who gives way when it gets scarce.
//!
//! What the system says of the process and of its control group is read a few times a second. In between, what callers and upstreams
//! make the host hold is counted byte by byte: heads, bodies and answers. What it takes in addition (buffers that stay, an allocator that
//! does not use freed memory again) grows with these bytes, so that the system is asked again after every few megabytes of them, however
//! late a timer is on a busy machine.
//!
//! An allocator may keep what was let go of, so what is resident may never fall again by itself. Hence one request is always let
//! in where no other is under way: to refuse it would free nothing, and nobody would be served ever after.

use super::Priority;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
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
    /// Requests that were let in, and whose answers have not ended.
    under_way: AtomicU64,
    /// Connections with a large head that no request has taken yet.
    large_heads: AtomicU64,
    /// Bytes that were held since the last look, those that were let go of included.
    added: AtomicU64,
    probe: Probe,
}

/// Asks the system how much is used.
struct Probe(Box<dyn Fn() -> Option<u64> + Send + Sync>);

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

/// The system is asked again after so many bytes: one look takes less than a tenth of the time that it takes to receive them.
const LOOK_AFTER_BYTES: u64 = 4 << 20;

/// There is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scarce {
    /// The limit.
    pub limit_bytes: u64,
}

/// One request that was let in, and the bytes of its body. Dropping it lets go of them.
#[derive(Debug)]
pub struct MemoryReservation {
    memory: Arc<Memory>,
    bytes: AtomicU64,
}

impl Memory {
    /// With a limit in bytes, or none. `probe` asks the system how much is used.
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

    /// The limit, and the bytes of bodies that are held.
    pub fn view(&self) -> (Option<u64>, u64) {
        (self.limit, self.held.load(Relaxed))
    }

    /// Asks the system how much is used.
    pub fn look(&self) {
        self.added.store(0, Relaxed);
        if let Some(resident) = (self.probe.0)() {
            self.looked(resident);
        }
    }

    fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Relaxed);
        if self.limit.is_some() && self.added.fetch_add(bytes, Relaxed).saturating_add(bytes) >= LOOK_AFTER_BYTES {
            self.look();
        }
    }

    /// Takes into account what the system says is used.
    pub(crate) fn looked(&self, resident: u64) {
        self.held_then.store(self.held.load(Relaxed), Relaxed);
        self.resident.store(resident, Relaxed);
    }

    /// What is used now, as far as that is known.
    fn used(&self) -> u64 {
        let held = self.held.load(Relaxed);
        // What was let go of since is not believed before the system says so.
        self.resident.load(Relaxed).saturating_add(held.saturating_sub(self.held_then.load(Relaxed)))
    }

    /// Lets a request of this priority in, with nothing held yet: low ones up to 80 percent of the limit, high ones up to all of
    /// it, and any that is alone.
    ///
    /// # Errors
    /// [`Scarce`]
    pub fn admit(self: &Arc<Self>, priority: Priority) -> Result<MemoryReservation, Scarce> {
        let percent = match priority {
            Priority::Low => 80,
            Priority::Normal => 90,
            Priority::High => 100,
        };
        // Who is refused is nobody's company.
        let let_in = |under_way| (under_way == 0 || self.above(percent).is_none()).then_some(under_way + 1);
        match (self.under_way.fetch_update(Relaxed, Relaxed, let_in), self.limit) {
            (Err(_), Some(limit_bytes)) => Err(Scarce { limit_bytes }),
            _ => Ok(MemoryReservation { memory: Arc::clone(self), bytes: AtomicU64::new(0) }),
        }
    }

    /// Counts bytes that are kept beside any request's own. None where there is no limit.
    pub fn spare(self: &Arc<Self>) -> Option<Spare> {
        self.limit.map(|_| Spare { memory: Arc::clone(self), bytes: 0 })
    }

    /// Whether all of the limit is used.
    pub fn is_full(&self) -> bool {
        self.above(100).is_some()
    }

    /// The limit, where more than this part of it is used.
    fn above(&self, percent: u64) -> Option<u64> {
        self.limit.filter(|limit| self.used() >= limit / 100 * percent)
    }
}

impl MemoryReservation {
    /// Holds more.
    ///
    /// # Errors
    /// [`Scarce`]; what was held before still is.
    pub fn more(&self, bytes: usize) -> Result<(), Scarce> {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.memory.hold(bytes as u64);
        self.room_for(0)
    }

    /// Whether there is room for so much more, before any of it is read. Nothing is held for it: a caller that says how much it will
    /// send, and sends nothing, takes nothing from others.
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

    /// Counts what the request keeps beside what it needs, also after its own end. None where there is no limit.
    pub fn spare(&self) -> Option<Spare> {
        self.memory.spare()
    }

    /// Whether there is a limit that it counts against.
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

/// Bytes that are kept beside what a request needs. Dropping it lets go of them.
#[derive(Debug)]
pub struct Spare {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Spare {
    /// Keeps more.
    ///
    /// # Errors
    /// [`Scarce`]; they are counted all the same. What can be done without should be dropped then, and this with it.
    pub fn more(&mut self, bytes: usize) -> Result<(), Scarce> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.memory.hold(bytes as u64);
        match self.memory.limit {
            Some(limit_bytes) if self.memory.is_full() => Err(Scarce { limit_bytes }),
            _ => Ok(()),
        }
    }

    /// Takes so many of the bytes out, at most all of them.
    #[must_use = "dropping it lets go of them"]
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

/// An ordinary head is smaller: it is read, and its request answered, however scarce memory is.
const ORDINARY_HEAD_BYTES: u64 = 16 << 10;

/// What a connection takes before it has sent anything: its first buffers, its state and its timers.
const CONNECTION_BYTES: u64 = 16 << 10;

/// What one connection takes, with what it has sent and no request has taken. Dropping it lets go of that.
#[derive(Debug)]
pub struct Buffered {
    memory: Arc<Memory>,
    max: u64,
    read: AtomicU64,
    counted: AtomicU64,
    is_large_head: AtomicBool,
}

impl Buffered {
    /// Nothing yet; never more than `max_bytes`.
    pub fn new(memory: &Arc<Memory>, max_bytes: usize) -> Self {
        let none = || AtomicU64::new(0);
        // Thousands may come between two looks at what is resident.
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

    /// So much of a head was read.
    pub fn read(&self, bytes: usize) {
        let after = self.count(bytes);
        if self.memory.limit.is_some() && after > ORDINARY_HEAD_BYTES && !self.is_large_head.swap(true, Relaxed) {
            self.memory.large_heads.fetch_add(1, Relaxed);
        }
    }

    /// So much was read while a request is open: bodies too.
    pub fn read_beside(&self, bytes: usize) {
        self.count(bytes);
    }

    /// Counts what was read, and says how much that is by now.
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

    /// A request has taken it: from now on it counts as that request's.
    pub fn taken(&self) {
        self.memory.held.fetch_sub(self.counted.swap(0, Relaxed), Relaxed);
        self.read.store(0, Relaxed);
        if self.is_large_head.swap(false, Relaxed) {
            self.memory.large_heads.fetch_sub(1, Relaxed);
        }
    }

    /// Whether it must be let go of: memory is scarce, it is a large part of a head, and not the only one.
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
        /// Knows of the system what a test says.
        fn blind(limit: Option<u64>) -> Arc<Self> {
            Self::new(limit, || None)
        }
    }

    /// Bytes that come and go leave memory behind that nothing counts: the system is asked without a timer.
    #[test]
    fn what_is_not_counted_is_found_after_a_few_megabytes() {
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
    fn who_matters_least_gives_way_first() {
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
            memory.looked(resident);
            assert_eq!(admitted(&memory), expected, "{resident}");
        }
        let boundless = Memory::blind(None);
        let _all = [(); 3].map(|()| boundless.admit(Priority::Low).unwrap());
    }

    /// What is resident may be the allocator's, which gives it back when it likes.
    #[test]
    fn whoever_is_alone_is_let_in_however_much_is_resident() {
        let memory = Memory::blind(Some(1000));
        memory.looked(5000);
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
        memory.looked(600);
        let first = memory.admit(Priority::High).unwrap();
        assert_eq!((first.more(300), memory.is_full()), (Ok(()), false));
        let second = memory.admit(Priority::High).unwrap();
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

    #[test]
    fn connections_that_send_nothing_count_before_the_next_look() {
        let memory = Memory::blind(Some(1 << 20));
        let connections: Vec<_> = (0..64).map(|_| Buffered::new(&memory, 64 << 10)).collect();
        assert!(memory.is_full(), "{:?}", memory.view());
        drop(connections);
        assert_eq!(memory.view().1, 0);
    }

    #[test]
    fn what_is_kept_beside_gives_way_first_and_outlives_its_request() {
        let memory = Memory::blind(Some(1000));
        memory.looked(600);
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
        memory.looked(600);
        let (first, _other) = (memory.admit(Priority::High).unwrap(), memory.admit(Priority::High).unwrap());
        assert_eq!((first.room_for(399), first.room_for(400)), (Ok(()), Err(Scarce { limit_bytes: 1000 })));
        assert_eq!(memory.view().1, 0, "asking takes nothing");
    }

    /// Half-sent heads count before there is a request, and give way when memory is scarce; ordinary ones do not.
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
        memory.looked(2 << 20);
        assert!(memory.is_full() && !alone.must_end(), "one goes on, or nobody would ever be served");
        drop((alone, ordinary));
        assert_eq!((memory.view().1, memory.large_heads.load(Relaxed)), (0, 0));
    }
}
