//! The wasmtime engine: one a process, with a pool of instance slots and a thread that counts milliseconds.

use super::{Cache, Digest, shape};
use std::{sync::Arc, time::Duration};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, component::Component};

/// The epoch's step, by which overruns are measured.
const TICK: Duration = Duration::from_millis(1);

/// The most linear memory that one instance may have: a policy reads a few hundred KiB and keeps nothing.
pub(super) const MEMORY_BYTES: usize = 16 << 20;

/// Instances alive at once: one for each core that is deciding, the rest for `reused` isolation and for loads.
const INSTANCES: u32 = 256;

/// What is kept resident of a slot between instances; a policy touches less, so that a fresh one needs no page faults.
const RESIDENT_BYTES: usize = 256 << 10;

/// The engine could not be made on this machine.
#[derive(Debug, thiserror::Error)]
#[error(
    "the WebAssembly engine could not be started: 64-bit address space of about 1 TiB must be reservable; raise `ulimit -v`"
)]
pub struct EngineError(#[source] wasmtime::Error);

/// The process's engine. Clones share it; its ticker ends with the last clone.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    cache: Option<Arc<Cache>>,
    _ticker: Arc<()>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Starts an engine and its ticker thread.
    ///
    /// # Errors
    /// [`EngineError`] where the pool's address space cannot be reserved.
    pub fn start() -> Result<Self, EngineError> {
        let inner = wasmtime::Engine::new(&config(Enabled::Yes))
            .or_else(|_| wasmtime::Engine::new(&config(Enabled::No)))
            .map_err(EngineError)?;
        let alive = Arc::new(());
        let (weak, ticking) = (Arc::downgrade(&alive), inner.weak());
        std::thread::Builder::new()
            .name("triage-epochs".to_owned())
            .spawn(move || {
                while weak.strong_count() > 0 {
                    std::thread::sleep(TICK);
                    if let Some(engine) = ticking.upgrade() {
                        engine.increment_epoch();
                    }
                }
            })
            .map_err(|error| EngineError(error.into()))?;
        Ok(Self { inner, cache: None, _ticker: alive })
    }

    /// The same engine with a cache of compiled code.
    #[must_use]
    pub fn caching(mut self, cache: Cache) -> Self {
        self.cache = Some(Arc::new(cache));
        self
    }

    /// Compiled code: from the cache, or compiled now and kept there.
    pub(super) fn compiled(&self, digest: &Digest, bytes: &[u8]) -> wasmtime::Result<Component> {
        let compile = || {
            shape::check(bytes).map_err(wasmtime::Error::new)?;
            Component::from_binary(&self.inner, bytes)
        };
        let Some(cache) = &self.cache else { return compile() };
        if let Some(component) = cache.load(&self.inner, digest) {
            return Ok(component);
        }
        let component = compile()?;
        cache.store(&self.inner, digest, &component);
        Ok(component)
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner
    }
}

fn config(pagemap_scan: Enabled) -> Config {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES)
        .total_core_instances(INSTANCES * 4)
        .total_memories(INSTANCES)
        .total_tables(INSTANCES * 4)
        .max_memory_size(MEMORY_BYTES)
        .max_memories_per_component(1)
        .max_tables_per_component(4)
        .table_elements(10_000)
        .linear_memory_keep_resident(RESIDENT_BYTES)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(16)
        .pagemap_scan(pagemap_scan);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(512 << 10)
        .wasm_backtrace_max_frames(None)
        .memory_init_cow(true);
    config
}
